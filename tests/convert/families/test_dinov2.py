"""DINOv2's own file formats: chunks, training runs, linear heads of four widths, and evaluations with many of them."""

import re

import pytest
import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor

import deterministic
import vitrail
from vitrail.errors import UnsupportedCheckpointError

TINY = deterministic.case("dinov2_chunked_teacher_tiny")  # 4 blocks in 2 chunks, 128 wide
WIDTH = 128


@pytest.fixture(scope="module")
def chunked():
    return deterministic.weights(TINY["checkpoint"])


@pytest.fixture(scope="module")
def flat(chunked):
    return {re.sub(r"blocks\.[01]\.", "blocks.", name): tensor for name, tensor in chunked.items()}


@pytest.fixture
def backbone(flat, tmp_path):
    torch.save(flat, tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


def save(content, path):
    torch.save(content, path)
    return path


def assert_same(model, other):
    weights = other.state_dict()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_diff_dict() == other.config.to_diff_dict()


# ------------------------------------------------------------------------------------------------------------- training runs


def test_blocks_in_chunks_are_numbered_through(chunked, backbone, tmp_path):
    assert {name.split(".")[1] + name.split(".")[2] for name in chunked if name.startswith("blocks")} == {"00", "01", "12", "13"}
    model, _, report = vitrail.load(save(chunked, tmp_path / "chunked.pth"))
    expected, _, _ = vitrail.load(backbone)
    assert_same(model, expected)
    assert torch.equal(model.layers[3].mlp.fc2.weight, chunked["blocks.1.3.mlp.fc2.weight"])
    assert report.coverage == {"converted": len(chunked), "ignored": []}


def projection_heads():
    """The names of DINOHead, of DINO's and iBOT's loss."""
    names = [f"mlp.{index}.{kind}" for index in (0, 2, 4) for kind in ("weight", "bias")] + [
        "last_layer.weight_g",
        "last_layer.weight_v",
    ]
    return {f"{head}.{name}": torch.zeros(2, 2) for head in ("dino_head", "ibot_head") for name in names}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_heads_of_a_training_run_are_ignored(chunked, backbone, tmp_path, wrapper):
    names = {f"backbone.{name}": tensor for name, tensor in chunked.items()} | projection_heads()
    content = {"teacher": {wrapper + name: tensor for name, tensor in names.items()}, "iteration": 3}
    model, _, report = vitrail.load(save(content, tmp_path / "teacher_checkpoint.pth"))
    assert_same(model, vitrail.load(backbone)[0])
    assert report.root == "teacher"
    assert report.coverage["converted"] == len(chunked)
    assert "dino_head.mlp.{0,2,4}.weight" in report.coverage["ignored"]
    assert "ibot_head.last_layer.weight_g" in report.coverage["ignored"]
    assert any("iteration" in warning for warning in report.warnings)


@pytest.mark.parametrize("name", ["backbone._fsdp_wrapped_module._flat_param", "student.backbone.blocks.0.flat_param_0"])
def test_a_shard_of_a_distributed_run_is_refused(tmp_path, name):
    with pytest.raises(UnsupportedCheckpointError, match=r"FSDP.*flat_param.*teacher_checkpoint\.pth"):
        vitrail.load(save({"model": {name: torch.zeros(8)}}, tmp_path / "model_0000999.rank_0.pth"))


class Shard:
    """Stand-in for the tensors of FSDP's local state dicts, pickled like them. A real tensor needs a process group."""

    def __reduce__(self):
        return ShardedTensor, ()


def test_a_shard_of_sharded_tensors_is_refused_with_the_way_out(tmp_path):
    content = {"model": {"student.backbone._fsdp_wrapped_module._flat_param": Shard()}, "iteration": 999}
    with pytest.raises(UnsupportedCheckpointError, match=r"FSDP.*ShardedTensor.*teacher_checkpoint\.pth"):
        vitrail.load(save(content, tmp_path / "model_0000999.rank_0.pth"))


def test_the_mask_token_is_kept(flat, backbone):
    model, _, _ = vitrail.load(backbone)
    assert model.embeddings.mask_token.shape == (1, 1, WIDTH)
    assert torch.equal(model.embeddings.mask_token[0], flat["mask_token"])


def test_registers_come_with_another_interpolation(flat, tmp_path):
    registers = flat | {"register_tokens": torch.ones(1, 3, WIDTH)}
    for content, number, offset, antialias in ((flat, 0, 0.1, False), (registers, 3, 0.0, True)):
        config = vitrail.load(save(content, tmp_path / "file.pth"))[0].config
        assert config.num_register_tokens == number
        assert config.position_interpolation_offset == offset
        assert config.position_interpolation_antialias == antialias


# --------------------------------------------------------------------------------------------------------------------- heads

READS = {1: (1, False), 2: (1, True), 4: (4, False), 5: (4, True)}  # by the width of the head: [CLS] of how many blocks, mean patch


@pytest.mark.parametrize("parts", READS)
def test_a_head_reads_what_its_width_states(backbone, tmp_path, parts):
    torch.manual_seed(0)
    head = {"weight": torch.randn(7, parts * WIDTH), "bias": torch.randn(7)}
    model, _, report = vitrail.load(backbone, head=save(head, tmp_path / "head.pth"))
    cls_layers, mean_patch = READS[parts]
    assert (model.config.classifier_cls_layers, model.config.classifier_mean_patch) == (cls_layers, mean_patch)
    pixel_values = torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        blocks = model.vit.get_intermediate_layers(pixel_values, cls_layers, return_class_token=True)
        features = [cls for _, cls in blocks] + [blocks[-1][0].mean(dim=1)] * mean_patch
        expected = torch.cat(features, dim=-1) @ head["weight"].T + head["bias"]
        torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-5, rtol=1e-5)
    assert report.head.name == "head.pth"


def test_a_head_of_no_such_width_is_refused(backbone, tmp_path):
    head = save({"weight": torch.zeros(7, 3 * WIDTH), "bias": torch.zeros(7)}, tmp_path / "head.pth")
    with pytest.raises(
        UnsupportedCheckpointError, match=r"\(7, 384\).*n \* 128\) with n in 1, 2, 4, 5.*published with the backbone"
    ):
        vitrail.load(backbone, head=head)


def evaluation(prefix="module."):
    """Checkpoint of eval/linear.py: a classifier for each setting and learning rate, wrapped for distributed training, and an optimizer."""
    tensors = {}
    for number, (blocks, avgpool) in enumerate([(1, False), (1, True), (4, False), (4, True)], start=1):
        name = f"{prefix}classifiers_dict.classifier_{blocks}_blocks_avgpool_{avgpool}_lr_0_00100.linear"
        tensors[f"{name}.weight"] = torch.full((7, (blocks + avgpool) * WIDTH), float(number))
        tensors[f"{name}.bias"] = torch.full((7,), float(number))
    return {"model": tensors, "optimizer": {"state": {}}, "iteration": 12499}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("head_name", "number", "reads"),
    [("classifier_1_blocks_avgpool_True_lr_0_00100", 2, (1, True)), ("classifier_4_blocks_avgpool_True_lr_0_00100", 4, (4, True))],
)
def test_one_of_many_classifiers_is_picked_by_name(backbone, tmp_path, prefix, head_name, number, reads):
    head = save(evaluation(prefix), tmp_path / "running_checkpoint_linear_eval.pth")
    model, _, report = vitrail.load(backbone, head=head, head_name=head_name)
    assert (model.config.classifier_cls_layers, model.config.classifier_mean_patch) == reads
    assert (model.classifier.weight == number).all()
    assert (model.classifier.bias == number).all()
    assert report.coverage["converted"] == len(TINY["checkpoint"]) + 2


@pytest.mark.parametrize(
    ("head_name", "found"),
    [(None, "The head file holds 4 classifiers"), ("classifier_9_blocks", 'no classifier "classifier_9_blocks"')],
)
def test_the_names_of_many_classifiers_are_listed(backbone, tmp_path, head_name, found):
    head = save(evaluation(), tmp_path / "running_checkpoint_linear_eval.pth")
    with pytest.raises(UnsupportedCheckpointError, match="head_name=") as error:
        vitrail.load(backbone, head=head, head_name=head_name)
    assert found in str(error.value)
    for blocks, avgpool in ((1, False), (1, True), (4, False), (4, True)):
        assert f"classifier_{blocks}_blocks_avgpool_{avgpool}_lr_0_00100" in str(error.value)


def test_a_name_for_a_lone_classifier_is_refused(backbone, tmp_path):
    head = save({"weight": torch.zeros(7, WIDTH), "bias": torch.zeros(7)}, tmp_path / "head.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r'head_name="classifier_1".*holds one'):
        vitrail.load(backbone, head=head, head_name="classifier_1")
