"""DINO's own file formats, training checkpoints and linear heads, and everything that can be wrong with a .pth file."""

import argparse
import os

import numpy as np
import pytest
import torch

import vitrail
from vitrail.errors import ConversionError, CorruptFileError, SourceNotFoundError, UnsafeFileError, UnsupportedCheckpointError

# ------------------------------------------------------------------------------------------- the containers of a training run


def tiny(depth=2, hidden_size=64):
    """The state dict of a tiny DINO backbone."""
    torch.manual_seed(0)
    shapes = {
        "cls_token": (1, 1, hidden_size),
        "pos_embed": (1, 17, hidden_size),
        "patch_embed.proj.weight": (hidden_size, 3, 8, 8),
        "patch_embed.proj.bias": (hidden_size,),
        "norm.weight": (hidden_size,),
        "norm.bias": (hidden_size,),
    }
    for index in range(depth):
        for name, shape in {
            "norm1.weight": (hidden_size,),
            "norm1.bias": (hidden_size,),
            "attn.qkv.weight": (3 * hidden_size, hidden_size),
            "attn.qkv.bias": (3 * hidden_size,),
            "attn.proj.weight": (hidden_size, hidden_size),
            "attn.proj.bias": (hidden_size,),
            "norm2.weight": (hidden_size,),
            "norm2.bias": (hidden_size,),
            "mlp.fc1.weight": (4 * hidden_size, hidden_size),
            "mlp.fc1.bias": (4 * hidden_size,),
            "mlp.fc2.weight": (hidden_size, 4 * hidden_size),
            "mlp.fc2.bias": (hidden_size,),
        }.items():
            shapes[f"blocks.{index}.{name}"] = shape
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def training_checkpoint(student, teacher):
    """Return what DINO's main_dino.py saves: wrapped names, projection heads, optimizer with numpy numbers, and the arguments."""
    projection = {"head.mlp.0.weight": torch.zeros(8, 64), "head.last_layer.weight_g": torch.ones(16, 1)}
    projection |= {"head.mlp.0.bias": torch.zeros(8), "head.last_layer.weight_v": torch.zeros(16, 8)}
    return {
        "student": {f"module.backbone.{name}": tensor for name, tensor in student.items()}
        | {f"module.{name}": tensor for name, tensor in projection.items()},
        "teacher": {f"backbone.{name}": tensor for name, tensor in teacher.items()} | projection,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1), "weight_decay": np.float64(0.4), "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 16)},
    }


@pytest.mark.parametrize("branch", ["teacher", "student"])
def test_a_training_checkpoint_gives_the_chosen_branch(tmp_path, branch):
    student = tiny()
    teacher = {name: tensor + 1 for name, tensor in student.items()}
    torch.save(training_checkpoint(student, teacher), tmp_path / "checkpoint.pth")
    model, _, report = vitrail.load(tmp_path / "checkpoint.pth", branch=branch)
    expected = {"teacher": teacher, "student": student}[branch]
    assert torch.equal(model.layers[1].attention.qkv.weight, expected["blocks.1.attn.qkv.weight"])
    assert report.root == branch
    assert report.coverage["ignored"] == [
        "head.mlp.0.weight",
        "head.last_layer.weight_g",
        "head.mlp.0.bias",
        "head.last_layer.weight_v",
    ]
    assert any("optimizer" in warning and "dino_loss" in warning for warning in report.warnings)


def test_teacher_is_the_default(tmp_path):
    student = tiny()
    torch.save(training_checkpoint(student, {name: tensor + 1 for name, tensor in student.items()}), tmp_path / "checkpoint.pth")
    assert vitrail.load(tmp_path / "checkpoint.pth")[2].root == "teacher"


def test_the_head_of_another_width_reads_what_its_width_states(tmp_path):
    torch.save(tiny(depth=4), tmp_path / "backbone.pth")
    for parts, fields in {1: (1, False), 2: (1, True), 3: (3, False), 4: (4, False)}.items():
        weight = torch.arange(10 * parts * 64.0).view(10, parts * 64)
        torch.save({"state_dict": {"module.linear.weight": weight, "module.linear.bias": torch.zeros(10)}}, tmp_path / "head.pth")
        model, _, _ = vitrail.load(tmp_path / "backbone.pth", head=tmp_path / "head.pth")
        assert (model.config.classifier_cls_layers, model.config.classifier_mean_patch) == fields
        kept = model.classifier.weight[0, :64].tolist()
        assert kept == weight[0, :128:2].tolist() if parts == 2 else kept == weight[0, :64].tolist()


def test_half_precision_stays_unless_another_is_asked_for(tmp_path):
    torch.save({name: tensor.half() for name, tensor in tiny().items()}, tmp_path / "half.pth")
    assert vitrail.load(tmp_path / "half.pth")[0].dtype == torch.float16
    assert vitrail.load(tmp_path / "half.pth", dtype=torch.float32)[0].dtype == torch.float32


def test_num_heads_can_be_given_and_must_be_where_the_width_does_not_tell(tmp_path):
    torch.save(tiny(hidden_size=48), tmp_path / "narrow.pth")
    with pytest.raises(UnsupportedCheckpointError, match="num_heads="):
        vitrail.load(tmp_path / "narrow.pth")
    assert vitrail.load(tmp_path / "narrow.pth", num_heads=6)[0].config.num_attention_heads == 6


def test_the_model_owns_its_weights(tmp_path):
    """Writing over the source file later must not change the model that was read from it."""
    torch.save(tiny(), tmp_path / "backbone.pth")
    model, _, _ = vitrail.load(tmp_path / "backbone.pth")
    before = model.layernorm.weight.clone()
    (tmp_path / "backbone.pth").write_bytes(bytes((tmp_path / "backbone.pth").stat().st_size))
    assert torch.equal(model.layernorm.weight, before)


# ---------------------------------------------------------------------------------------------------------------- bad input


def save(content, path):
    torch.save(content, path)
    return path


def without(name):
    return {key: tensor for key, tensor in tiny().items() if key != name}


class Payload:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_missing_file(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"nothing\.pth"):
        vitrail.load(tmp_path / "nothing.pth")


def test_a_truncated_file(tmp_path):
    path = save(tiny(), tmp_path / "backbone.pth")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CorruptFileError, match="Download it again"):
        vitrail.load(path)


def test_a_pickle_with_code_is_not_executed(tmp_path):
    path = save({"cls_token": Payload(tmp_path / "executed")}, tmp_path / "evil.pth")
    with pytest.raises(UnsafeFileError, match=r"posix\.system|os\.system|nt\.system"):
        vitrail.load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tiny() | {"extra.0.weight": torch.zeros(1), "extra.1.weight": torch.zeros(1)},
            r"2 unexpected keys: extra\.\{0\.\.1\}\.weight",
        ),
        (without("blocks.1.norm2.bias"), r"1 missing keys: layers\.1\.norm2\.bias"),
        (tiny() | {"norm.bias": torch.zeros(65)}, r"layernorm\.bias \(file \(65,\), model \(64,\)\)"),
        (tiny() | {"norm.bias": torch.full((64,), torch.nan)}, "NaN or inf"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, content, message):
    with pytest.raises(ConversionError, match=message):
        vitrail.load(save(content, tmp_path / "backbone.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("patch_embed.proj.weight"), "not recognized"),
        (tiny() | {"pos_embed": torch.zeros(1, 18, 64)}, "17 patches"),
        ({"epoch": 3}, "holds no tensors"),
        ([torch.zeros(1)], "list"),
        ({"student": tiny()}, 'branch="student"'),
        ({name: tensor.to(torch.int8) for name, tensor in tiny().items()}, "int8"),
    ],
)
def test_a_file_that_is_something_else(tmp_path, content, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(save(content, tmp_path / "file.pth"))


def test_unknown_words(tmp_path):
    path = save(tiny(), tmp_path / "backbone.pth")
    with pytest.raises(UnsupportedCheckpointError, match="teacher or student"):
        vitrail.load(path, branch="pupil")
    with pytest.raises(UnsupportedCheckpointError, match="expected auto"):
        vitrail.load(path, format="dinosaur")


def test_a_head_that_does_not_belong_to_the_backbone(tmp_path):
    path = save(tiny(), tmp_path / "backbone.pth")
    head = save(
        {"state_dict": {"module.linear.weight": torch.zeros(10, 100), "module.linear.bias": torch.zeros(10)}}, tmp_path / "h.pth"
    )
    with pytest.raises(UnsupportedCheckpointError, match=r"\(10, 100\).*n \* 64"):
        vitrail.load(path, head=head)
    head = save({"state_dict": {"module.linear.weight": torch.zeros(10, 64)}}, tmp_path / "h.pth")
    with pytest.raises(ConversionError, match=r"classifier\.bias"):
        vitrail.load(path, head=head)
