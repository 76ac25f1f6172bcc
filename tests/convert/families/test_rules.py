import pytest
import torch

from vitrail.convert.families.rules import (
    AddRegisterPositions,
    Concatenate,
    Coverage,
    Deinterleave,
    Interleave,
    Rule,
    Split,
    convert_tensors,
    reverse,
)
from vitrail.errors import ConversionError
from vitrail.utils.tensor_names import group_names

RULES = (
    Rule("token", "embeddings.token"),
    Rule(("b.{layer}.q", "b.{layer}.k", "b.{layer}.v"), "layers.{layer}.qkv", Concatenate(3)),
    Rule("head", "classifier", Deinterleave()),
)


def checkpoint():
    generator = torch.Generator().manual_seed(0)
    names = ["token", *(f"b.{layer}.{part}" for layer in range(11) for part in "qkv")]
    return {name: torch.rand(2, 4, generator=generator) for name in names} | {"head": torch.arange(12.0).view(2, 6)}


def test_rules_rename_and_join():
    tensors, coverage = convert_tensors(checkpoint(), RULES)
    assert set(tensors) == {"embeddings.token", "classifier", *(f"layers.{layer}.qkv" for layer in range(11))}
    assert torch.equal(tensors["layers.10.qkv"][2:4], checkpoint()["b.10.k"])
    # features 0 1 2 3 4 5 of a row are a0 b0 a1 b1 a2 b2
    assert tensors["classifier"][0].tolist() == [0, 2, 4, 1, 3, 5]
    assert len(coverage.converted) == 35
    assert not coverage.unexpected
    assert not coverage.missing


def test_reversed_rules_lead_back_bit_for_bit():
    original = checkpoint()
    tensors, _ = convert_tensors(original, RULES)
    back, coverage = convert_tensors(tensors, reverse(RULES))
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name]) for name in original)
    assert not coverage.unexpected


@pytest.mark.parametrize("operation", [Concatenate(2), Split(2), Interleave(), Deinterleave(), Interleave(3)])
def test_the_inverse_of_the_inverse_is_the_operation(operation):
    assert operation.inverse.inverse == operation
    rows = [torch.arange(24.0).view(4, 6)] * (operation.parts if isinstance(operation, Concatenate) else 1)
    back = operation.inverse.apply(operation.apply(rows))
    assert len(back) == len(rows)
    assert all(map(torch.equal, back, rows))


def test_positions_of_registers_are_added_to_them_and_are_0_in_reverse():
    registers, positions = torch.rand(1, 2, 4), torch.rand(1, 6, 4)
    added, rest = AddRegisterPositions(1).apply([registers, positions])
    assert torch.equal(added, registers + positions[:, 1:3])
    assert torch.equal(rest, positions[:, [0, 3, 4, 5]])
    back = AddRegisterPositions(1).inverse.apply([added, rest])
    assert not back[1][:, 1:3].any()
    assert all(map(torch.equal, AddRegisterPositions(1).apply(back), (added, rest)))


def test_a_name_without_a_rule_is_unexpected_unless_ignored():
    tensors = checkpoint() | {"loss.center": torch.zeros(1), "extra": torch.zeros(1)}
    _, coverage = convert_tensors(tensors, RULES, ignored=[r"loss\..*"])
    assert coverage.ignored == ["loss.center"]
    assert coverage.unexpected == ["extra"]


def test_a_part_that_is_absent_is_missing():
    tensors = checkpoint()
    del tensors["b.3.k"]
    _, coverage = convert_tensors(tensors, RULES)
    assert coverage.missing == ["b.3.k"]
    assert set(coverage.unexpected) == {"b.3.q", "b.3.v"}


def test_a_number_is_a_number():
    _, coverage = convert_tensors({"b.x.q": torch.zeros(1)}, RULES)
    assert coverage.unexpected == ["b.x.q"]


def test_names_are_grouped():
    names = [f"blocks.{index}.norm{which}.weight" for index in range(12) for which in (1, 2)] + ["norm.weight", "b.3.q", "b.5.q"]
    assert group_names(names) == ["blocks.{0..11}.norm1.weight", "blocks.{0..11}.norm2.weight", "norm.weight", "b.{3,5}.q"]


def test_names_with_two_numbers_are_grouped_only_where_every_combination_is_there():
    whole = [f"blocks.{chunk}.{block}.w" for chunk in (0, 1) for block in (0, 1)]
    assert group_names(whole) == ["blocks.{0..1}.{0..1}.w"]
    assert group_names(["blocks.0.0.w", "blocks.1.1.w"]) == ["blocks.0.0.w", "blocks.1.1.w"]


def test_names_are_not_read_again_for_every_rule():
    """Otherwise a file of a million names takes a million times a million steps."""

    class Counted(dict):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    tensors = Counted({f"layer{number}x": torch.zeros(()) for number in range(100)})
    converted, _ = convert_tensors(tensors, [Rule(name, name) for name in list(tensors)])
    assert len(converted) == 100
    assert tensors.passes < 10


def test_numbers_that_are_far_apart_are_not_counted_through():
    assert group_names(["b.0.w", "b.999999999.w", f"b.{'9' * 5000}.w"]) == ["b.{0,999999999}.w", f"b.{'9' * 5000}.w"]


def test_the_report_names_every_problem_in_groups():
    coverage = Coverage(
        unexpected=["extra"], missing=[f"layers.{index}.norm1.bias" for index in range(3)], mismatched=["x (file (1,), model (2,))"]
    )
    with pytest.raises(ConversionError) as error:
        coverage.raise_unless_complete("file.pth")
    for part in (
        "file.pth",
        "1 unexpected keys",
        "extra",
        "3 missing keys",
        "layers.{0..2}.norm1.bias",
        "x (file (1,), model (2,))",
    ):
        assert part in str(error.value)
