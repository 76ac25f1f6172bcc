"""Distillation from images to a folder: the record and the card, an interruption, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

import vitrail
from small_models import tiny_config, tiny_model
from vitrail.data.labeled import load_training_images
from vitrail.errors import VitrailError
from vitrail.hub.saving import save
from vitrail.pretraining import job
from vitrail.pretraining.job import pretrain
from vitrail.pretraining.recipes import RECIPES
from vitrail.processing.multi_crop import CropAugmentation
from vitrail.utils.trainer import KeepLastCheckpoint

CROP = CropAugmentation(size=16, scale=(0.4, 1.0))
RECIPE = dataclasses.replace(
    RECIPES["distill"],
    epochs=2,
    batch_size=8,
    learning_rate=0.1,
    arguments={"warmup_epochs": 1, "drop_path_rate": 0.1, "num_layers": 2, "optim": "adamw_torch"},
    augmentation=dataclasses.replace(RECIPES["distill"].augmentation, global_crops=(CROP, CROP)),
)
SMALL = {"num_attention_heads": 2, "image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write images of three colors, and a teacher with larger patches and other means."""
    folder = tmp_path_factory.mktemp("distill")
    rng = np.random.default_rng(0)
    for index in range(36):
        label = index % 3
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(0, 30, size=(20, 24, 3)) + np.roll((200, 40, 40), label)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / str(label) / f"{index}.png")
    save(make_teacher(), vitrail.make_image_processor("google", image_size=16), folder / "teacher")
    return folder


def make_teacher(seed=0):
    return tiny_model(seed=seed, hidden_size=48, num_hidden_layers=3, num_register_tokens=1, image_size=16, patch_size=8)


def run(folder, output="model", recipe=RECIPE, **options):
    torch.manual_seed(0)
    student = vitrail.ViTModel(tiny_config(**SMALL))
    images = load_training_images(folder / "images", validation_fraction=0.25)
    options = {"teacher": vitrail.load(folder / "teacher"), "progress": False, "from_scratch": True, **options}
    processor = vitrail.make_image_processor("dino", image_size=16)
    return pretrain(student, processor, images, output_dir=folder / output, recipe=recipe, **options)


def losses(result):
    return [point["loss"] for point in result["curves"] if "loss" in point]


class Stop(KeepLastCheckpoint):
    """Ends a run after its first checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        super().on_save(args, state, control, **kwargs)
        raise KeyboardInterrupt


def test_a_run_and_its_card(folder, monkeypatch):
    """The run is interrupted, refused with another teacher, and resumed."""
    whole = run(folder, "whole")
    with monkeypatch.context() as patched:
        patched.setattr(job, "KeepLastCheckpoint", Stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder)
    another = (make_teacher(1), vitrail.make_image_processor("google", image_size=16))
    with pytest.raises(VitrailError, match=r"begun with different settings \(teacher\.weights was "):
        run(folder, teacher=another)
    another = (make_teacher(), vitrail.make_image_processor("dino", image_size=16))
    with pytest.raises(VitrailError, match=r"begun with different settings \(teacher\.normalization was "):
        run(folder, teacher=another)
    resumed = run(folder)
    assert resumed["resumed_from"] == "checkpoint-3"
    assert losses(resumed) == losses(whole)
    trained = [AutoModel.from_pretrained(folder / name) for name in ("whole", "model")]
    for name, tensor in trained[0].state_dict().items():
        assert torch.equal(trained[1].state_dict()[name], tensor), name
    assert trained[0].config.drop_path_rate == 0
    assert trained[0].config.hidden_size == tiny_config().hidden_size

    assert (whole["task"], whole["model"], whole["knn"]["accuracy"]) == ("Distillation without labels", None, 1.0)
    assert whole["teacher"]["name"] == "model.safetensors"
    assert whole["arguments"]["learning_rate"] == pytest.approx(0.1 * 8 / 512)
    last = [point for point in whole["curves"] if "loss" in point][-1]
    assert last["loss"] == pytest.approx(last["image_loss"] + last["patch_loss"], rel=1e-5)
    assert last["loss"] < losses(whole)[0]
    card = " ".join((folder / "whole" / "README.md").read_text().split())
    assert "distillation ([Romero et al. 2014](https://arxiv.org/abs/1412.6550)) of `model.safetensors`, from scratch" in card
    assert "These are the weights of the student." in card
    assert "The license of the model that it learned from is *not stated*" in card
    assert "romero2014fitnets" in card
    assert json.loads((folder / "whole" / "pretraining.json").read_text())["teacher"] == whole["teacher"]


def test_what_is_refused(folder):
    gray = tiny_model(num_channels=1, image_size=16), vitrail.make_image_processor("dino", image_size=16, num_channels=1)
    large = dataclasses.replace(
        RECIPE, augmentation=dataclasses.replace(RECIPE.augmentation, global_crops=(dataclasses.replace(CROP, size=20),) * 2)
    )
    for options, message in (
        ({"teacher": None}, "The method distill learns from a frozen model, and none is given: name it with teacher=."),
        (
            {"recipe": "dino"},
            "The method dino does not learn from a frozen model: leave out teacher=, or choose the method distill.",
        ),
        ({"teacher": gray}, "The student's images have 3 channels and the teacher's 1"),
        ({"recipe": large}, "The crops have 20x20 pixels, which the 8x8 patches of the teacher do not divide"),
        ({"original_checkpoint": folder / "run.pth"}, "The method distill has no checkpoint layout of an original"),
    ):
        with pytest.raises(VitrailError, match=message.replace(".", r"\.")):
            run(folder, "refused", **options)
    assert not (folder / "refused").exists()
    assert not (folder / "refused.run").exists()
