"""The original's full checkpoints: their names and order, and that its optimizer and `vitrail.load` read them."""

import argparse

import pytest
import torch

import deterministic
import vitrail
from golden_training import CASE, HELD_OUT, REFERENCE, SETTINGS, golden_trainer
from small_models import tiny_model
from vitrail.errors import UnsupportedCheckpointError, VitrailError
from vitrail.pretraining.checkpoints import check_original_layout, original_names, save_original_checkpoint
from vitrail.pretraining.recipes import RECIPES
from vitrail.utils.weight_files import read_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trainer that has done the golden iterations, and its checkpoint."""
    folder = tmp_path_factory.mktemp("original")
    trainer = golden_trainer(folder)
    trainer.train()
    save_original_checkpoint(trainer, RECIPES["dino"], vitrail.make_image_processor("dino"), folder / "checkpoint.pth")
    return trainer, folder / "checkpoint.pth"


@pytest.fixture(scope="module")
def checkpoint(run):
    return read_checkpoint(run[1]).content  # which allows no more than torch's weights_only


def test_names_in_the_order_of_the_original(run, checkpoint):
    assert list(checkpoint["teacher"]) == list(CASE["checkpoint"])
    assert list(checkpoint["student"]) == [f"module.{name}" for name in CASE["checkpoint"]]
    assert {name: list(tensor.shape) for name, tensor in checkpoint["teacher"].items()} == {
        name: spec["shape"] for name, spec in CASE["checkpoint"].items()
    }
    assert set(checkpoint) == {"student", "teacher", "optimizer", "epoch", "args", "dino_loss"}
    assert checkpoint["epoch"] == SETTINGS["epochs"]
    torch.testing.assert_close(checkpoint["dino_loss"]["center"], REFERENCE["centers"][-1:], rtol=0, atol=1e-4)


def original_groups(parameters):
    """Port of utils.get_params_groups of facebookresearch/dino, for parameters with the original's names."""
    learning = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    plain = [name for name, parameter in learning.items() if name.endswith(".bias") or parameter.ndim == 1]
    return [[name for name in learning if name not in plain], plain]


def test_the_optimizer_of_the_original_takes_its_state(run, checkpoint):
    trainer, _ = run
    ours = dict(trainer.model.student.named_parameters())
    parameters = {
        original: torch.nn.Parameter(ours[name].detach().clone(), requires_grad=ours[name].requires_grad)
        for name, original in original_names(trainer.model.student).items()
    }
    names = original_groups(parameters)
    groups = [{"params": [parameters[name] for name in group]} for group in names]
    groups[1]["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(checkpoint["optimizer"])
    assert optimizer.param_groups[1]["weight_decay"] == 0
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(SETTINGS["weight_decay_end"])
    state = trainer.optimizer.state
    for name, original in original_names(trainer.model.student).items():
        if ours[name].requires_grad:
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(optimizer.state[parameters[original]][moment], state[ours[name]][moment].cpu()), original
    parameters["backbone.cls_token"].grad = torch.ones_like(parameters["backbone.cls_token"])
    optimizer.step()  # it is whole


def test_the_arguments_are_those_of_the_original(run, checkpoint):
    args = checkpoint["args"]
    assert isinstance(args, argparse.Namespace)
    golden = {
        "out_dim": "out_dim",
        "momentum_teacher": "momentum",
        "warmup_teacher_temp": "warmup_teacher_temp",
        "teacher_temp": "teacher_temp",
        "warmup_teacher_temp_epochs": "warmup_teacher_temp_epochs",
        "weight_decay": "weight_decay",
        "weight_decay_end": "weight_decay_end",
        "clip_grad": "clip_grad",
        "freeze_last_layer": "freeze_last_layer",
        "warmup_epochs": "warmup_epochs",
        "min_lr": "min_lr",
        "patch_size": "patch_size",
    }
    assert {name: getattr(args, name) for name in golden} == {name: SETTINGS[there] for name, there in golden.items()}
    assert (args.global_crops_scale, args.local_crops_number, args.local_crops_scale) == ((0.4, 1.0), 8, (0.05, 0.4))
    assert args.lr == pytest.approx(SETTINGS["lr"] * 256 / RECIPES["dino"].batch_size)


@pytest.mark.parametrize("branch", ["teacher", "student"])
def test_vitrail_reads_it_back(run, branch):
    _, path = run
    model, _, report = vitrail.load(path, branch=branch, num_heads=SETTINGS["num_heads"])
    assert report.root == branch
    with torch.no_grad():
        features = model(deterministic.pixel_values(HELD_OUT)).pooler_output
    torch.testing.assert_close(features, REFERENCE[f"{branch}_cls"], rtol=0, atol=1e-4)


def test_what_stands_there_stays(run):
    trainer, path = run
    before = path.read_bytes()
    with pytest.raises(VitrailError, match="exists already"):
        save_original_checkpoint(trainer, RECIPES["dino"], vitrail.make_image_processor("dino"), path)
    assert path.read_bytes() == before


def test_a_model_that_the_original_cannot_hold():
    model = tiny_model(hidden_size=64, num_attention_heads=1, image_size=16, layer_scale_init_value=0.1)
    with pytest.raises(UnsupportedCheckpointError, match="dino"):
        check_original_layout(model, vitrail.make_image_processor("dino", image_size=16), RECIPES["dino"])
