"""The network in a weight file: any prefix is dropped, and the averaged weights are told from the trained ones."""

import numpy as np
import pytest
import torch

from vitrail.errors import UnsupportedCheckpointError
from vitrail.utils.state_dicts import find_state_dict

ANCHOR = "patch_embed.proj.weight"
WRAPPERS = ("opt/target/",)


def network(prefix="", number=0.0, **others):
    """A state dict of two names under a prefix; `number` tells networks apart."""
    names = {f"{prefix}{ANCHOR}": number, f"{prefix}norm.bias": number} | others
    return {name: torch.tensor(float(value)) for name, value in names.items()}


def find(content, **options):
    return find_state_dict(content, (ANCHOR,), WRAPPERS, **options)


PREFIXES = [
    "model.",
    "encoder.",
    "vit.",
    "visual.",
    "trunk.",
    "base_encoder.",
    "my_net.",
    "module.model.",
    "model.backbone.",
    "a.b.c.",
]
KNOWN = ["", "module.", "_orig_mod.", "backbone.", "module._orig_mod.backbone.", "opt/target/"]


@pytest.mark.parametrize("prefix", [*PREFIXES, *KNOWN])
@pytest.mark.parametrize("root", [None, "state_dict", "net", "weights"])
def test_a_prefix_is_dropped(prefix, root):
    tensors = network(prefix, 1)
    found = find({root: tensors, "epoch": 3, 7: None} if root else tensors)
    assert found.tensors == network(number=1)
    assert found.root == root
    assert found.left_out == (["epoch", "a key of type int"] if root else [])
    assert found.warnings == ([] if prefix in KNOWN else [f'the prefix "{prefix}" of the names is dropped'])


def test_a_classifier_may_lack_a_part_of_the_prefix():
    tensors = network("module.backbone.", 1) | {"module.head.bias": torch.tensor(2.0)}
    assert find(tensors).tensors == network(number=1, **{"head.bias": 2})


TRAINED_AND_AVERAGED = {
    "DINO": ({"student": network("module.backbone.", 1), "teacher": network("backbone.", 2), "epoch": 1}, False),
    "DINO's loss": ({"student": network(number=1), "teacher": network(number=2), "dino_loss": {"center": torch.zeros(1)}}, False),
    "DINOv2": ({"model": network("student.backbone.", 1) | network("teacher.backbone.", 2), "iteration": 1}, False),
    "one dictionary": (network("student_backbone.vit.", 1) | network("teacher_backbone.vit.", 2), True),
    "timm": ({"state_dict": network(number=1), "state_dict_ema": network(number=2), "args": {}}, True),
    "DeiT": ({"model": network(number=1), "model_ema": network(number=2), "optimizer": {"state": {0: {}}}}, True),
    "ema": ({"ema": network(number=2), "model": network(number=1)}, True),
    "solo-learn": ({"state_dict": network("backbone.", 1) | network("momentum_backbone.", 2, **{"classifier.weight": 3})}, True),
    "Lightning": ({"state_dict": network("model.", 1) | network("ema_model.module.", 2)}, True),
}


@pytest.mark.parametrize("name", TRAINED_AND_AVERAGED)
def test_the_branch_chooses_between_averaged_and_trained_weights(name):
    content, warns = TRAINED_AND_AVERAGED[name]
    for branch, number, other in (("teacher", 2, "student"), ("student", 1, "teacher")):
        found = find(content, branch=branch)
        assert found.tensors == network(number=number)
        assert any(f'pass branch="{other}"' in warning for warning in found.warnings) == warns
        assert found.left_out  # the other network, by name


def test_the_average_in_a_run_of_dinov3():
    """Its teacher is another model in a distillation, and a third network is the teacher of the Gram loss."""
    names = ("student", "teacher", "model_ema", "gram_teacher")
    run: dict = {}
    for number, name in enumerate(names):
        run |= network(f"{name}.backbone.", number)
    for options, number in (({}, 2), ({"branch": "student"}, 0), ({"prefix": "teacher.backbone"}, 1)):
        found = find({"model": run, "iteration": 1}, **options)
        assert found.tensors == network(number=number)
    assert find({"model": run}).warnings == [
        "the averaged weights are taken, model.model_ema.backbone., not model.student.backbone., model.teacher.backbone., "
        'model.gram_teacher.backbone.: for others, pass branch="student" or prefix='
    ]


def test_a_network_that_the_file_lacks():
    with pytest.raises(
        UnsupportedCheckpointError, match=r'has no "student", only "teacher" \(teacher\.backbone\.\): pass branch="teacher"'
    ):
        find({"teacher": network("backbone.")}, branch="student")
    assert find({"model": network(number=1)}, branch="student").tensors == network(number=1)
    with pytest.raises(UnsupportedCheckpointError, match='Unknown branch "ema"; expected teacher or student'):
        find(network(), branch="ema")


def test_several_networks_need_a_prefix():
    content = {"state_dict": network("image.", 1) | network("video.", 2), "classifier": network(number=3)}
    with pytest.raises(
        UnsupportedCheckpointError, match=r'3 networks, under state_dict\.image\., .*: name one with prefix="state_dict\.image'
    ):
        find(content)
    with pytest.raises(UnsupportedCheckpointError, match=r"2 networks, under teacher\., momentum\.: name one"):
        find(network("teacher.") | network("momentum.") | network("student."))
    for prefix in ("state_dict.video.", "video.", "video"):
        found = find(content, prefix=prefix)
        assert found.tensors == network(number=2)
        assert found.warnings == []
        assert found.left_out == ["classifier", f"image.{ANCHOR}", "image.norm.bias"]
    with pytest.raises(UnsupportedCheckpointError, match=r'no network under prefix="audio"; it has state_dict\.image\.'):
        find(content, prefix="audio")
    with pytest.raises(UnsupportedCheckpointError, match="100 networks"):
        find({name: value for number in range(100) for name, value in network(f"n{number}.").items()})


def test_a_prefix_takes_nothing_else():
    tensors = network("model.", 1, **{"criterion.weight": 5})
    assert find(tensors).tensors == network(number=1, **{"criterion.weight": 5})  # loading then refuses the name
    assert find(tensors, prefix="model.").tensors == network(number=1)


@pytest.mark.parametrize("value", [None, [network()], {}, {1: torch.zeros(1)}, {"a": {"b": {"c": {"d": network()}}}}])
def test_a_key_without_a_state_dict(value):
    with pytest.raises(UnsupportedCheckpointError, match="no tensors with names, only: teacher"):
        find({"teacher": value})


def test_a_file_that_contains_itself():
    content = {"epoch": 1}
    content["self"] = content
    with pytest.raises(UnsupportedCheckpointError, match="no tensors"):
        find(content)


def test_a_file_without_an_encoder_is_a_head():
    head = {"linear.weight": torch.ones(1)}
    assert find({"state_dict": {f"module.{name}": tensor for name, tensor in head.items()}, "epoch": 1}).tensors == head
    assert find({"heads": head}).tensors == head
    with pytest.raises(UnsupportedCheckpointError, match=r"a and module\.a, so it holds two models"):
        find({"module.a": torch.ones(1), "a": torch.ones(1)})
    with pytest.raises(UnsupportedCheckpointError, match="holds a ndarray; expected a state dict"):
        find(np.zeros(1))
