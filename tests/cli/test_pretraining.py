"""`vitrail pretrain`, in this process: from a config and a recipe to a folder that loads, and what is refused before."""

import dataclasses
import importlib.util
import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import vitrail
from command_line import end_of
from image_folders import write_images
from small_models import TINY
from vitrail.pretraining.recipes import RECIPES
from vitrail.processing.multi_crop import CropAugmentation
from vitrail.utils import optional as packages

pytestmark = pytest.mark.usefixtures("one_thread", "cache_of_datasets")

CONFIG = TINY | {
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
    "position_interpolation_offset": 0.1,
}
CROP = {"size": 8, "scale": [0.5, 1.0]}
RECIPE = {
    "recipe": "dino",
    "epochs": 2,
    "batch_size": 150,
    "arguments": {"num_prototypes": 32, "head_hidden_size": 24, "head_bottleneck_size": 8, "warmup_epochs": 1},
    "augmentation": {"global_crops": [CROP, CROP], "local_crop": {"size": 4, "scale": [0.2, 0.5]}, "num_local_crops": 1},
}


@pytest.fixture
def files(tmp_path):
    """Write config.json, recipe.json and images, the inputs of every run."""
    for name, content in (("config", CONFIG), ("recipe", RECIPE), ("short", RECIPE | {"epochs": 1, "batch_size": 6})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    write_images(tmp_path / "pictures", 15, sizes=((24, 16),))
    return tmp_path


def words(files, *, data="digits", model=(), recipe="recipe"):
    model = model or ("--arch", files / "config.json")
    return ["pretrain", "--data", data, *model, "--recipe", files / f"{recipe}.json", "--output", files / "model"]


def test_digits_from_scratch(files, capsys):
    """The run writes a folder with a card that transformers and vitrail load, and an original-layout checkpoint of the same weights."""
    original = files / "run.pth"
    assert end_of(*words(files), "--original-checkpoint", original, "--seed", 3) == 0
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    run = json.loads((files / "model" / "pretraining.json").read_text())
    images = run["data"]["train_images"]
    assert f"{images} images, 2 epochs, {2 * (images // 150)} updates" in captured.out
    assert f"k-NN accuracy of the teacher (k = 20): {run['knn']['accuracy']:.1%}" in captured.out
    assert run["knn"]["accuracy"] > 0.15  # of ten classes
    last = [point for point in run["curves"] if "loss" in point][-1]
    assert f"loss {last['loss']:.3f}, target entropy {last['target_entropy']:.3f}" in captured.out
    assert f"written to {files / 'model'}: the teacher, pretraining.json and its curves; {original}" in captured.out
    assert (run["seed"], run["batch_size"], run["model"], run["recipe"]["name"]) == (3, 150, None, "recipe")
    assert run["data"]["source"] == "digits"
    assert len([point for point in run["curves"] if "eval_knn_accuracy" in point]) == 2

    model, image_processor, _ = vitrail.load(files / "model")
    pixel_values = image_processor(Image.new("RGB", (8, 8), (200, 90, 10)), return_tensors="pt")["pixel_values"]
    auto = AutoModel.from_pretrained(files / "model").eval()
    converted, _, _ = vitrail.load(original, num_heads=2)
    with torch.no_grad():
        outputs = [network(pixel_values).pooler_output for network in (model.eval(), auto, converted.eval())]
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert AutoImageProcessor.from_pretrained(files / "model").to_dict() == image_processor.to_dict()
    card = (files / "model" / "README.md").read_text()
    assert "without labels by DINO" in card
    with Image.open(files / "model" / "pretraining.png") as picture:
        picture.load()
    assert {path.name for path in files.iterdir()} == {
        "config.json",
        "recipe.json",
        "short.json",
        "pictures",
        "model",
        "run.pth",
    }, "the folder of the run is gone"


def test_going_on_from_a_model(files, capsys):
    """With every option; the model itself stays."""
    torch.manual_seed(0)
    start = vitrail.ViTModel(vitrail.ViTConfig(**CONFIG, num_register_tokens=1))
    vitrail.save(start, vitrail.make_image_processor("dino", image_size=8), files / "start")
    before = {path.name: path.read_bytes() for path in (files / "start").iterdir()}
    options = [
        "--epochs",
        2,
        "--batch-size",
        3,
        "--evaluate-every",
        2,
        "--validation-fraction",
        0.4,
        "--num-workers",
        0,
        "--strict",
    ]
    command = words(files, data=files / "pictures", model=("--from", files / "start"), recipe="short")
    assert end_of(*command, *options) == 0
    run = json.loads((files / "model" / "pretraining.json").read_text())
    assert (run["epochs"], run["updates"], run["batch_size"]) == (2, 2, 6)
    assert (run["data"]["source"], run["data"]["train_images"], run["knn"]["validation_images"]) == ("pictures", 9, 6)
    assert [point["epoch"] for point in run["curves"] if "eval_knn_accuracy" in point] == [0, 2]
    compared = {name: accuracy["knn"] for name, accuracy in run["comparison"].items()}
    line = "k-NN accuracy (k = 9): start model {start:.1%}, teacher {result:.1%}, random weights {random:.1%}"
    assert line.format(**compared) in capsys.readouterr().out
    assert run["model"]["name"] == "model.safetensors"
    model, _, _ = vitrail.load(files / "model")
    assert model.config.num_register_tokens == 1
    assert not torch.equal(model.embeddings.cls_token, start.embeddings.cls_token)
    assert (model.embeddings.cls_token - start.embeddings.cls_token).abs().max() < 0.01
    assert {path.name: path.read_bytes() for path in (files / "start").iterdir()} == before


def test_distillation(files, capsys):
    """From a model with larger patches, which is loaded as any checkpoint."""
    torch.manual_seed(0)
    teacher = vitrail.ViTModel(vitrail.ViTConfig(**CONFIG | {"hidden_size": 48, "patch_size": 8})).half()
    vitrail.save(teacher, vitrail.make_image_processor("google", image_size=8), files / "teacher")
    changes = {"recipe": "distill", "arguments": {"warmup_epochs": 0, "distance": "cosine"}}
    crops = {"augmentation": {"global_crops": [CROP, CROP]}}
    (files / "short.json").write_text(json.dumps(changes | crops | {"epochs": 1, "batch_size": 6}))
    command = words(files, data=files / "pictures", recipe="short")
    assert "The method distill learns from a frozen model, and none is given: name it with --teacher." in error_of(capsys, *command)
    assert end_of(*command, "--teacher", files / "teacher", "--method", "distill") == 0
    printed, warnings = capsys.readouterr()
    assert "float16" not in warnings
    run = json.loads((files / "model" / "pretraining.json").read_text())
    assert (run["teacher"]["name"], run["model"], run["arguments"]["distance"]) == ("model.safetensors", None, "cosine")
    assert f"k-NN accuracy of the student (k = 12): {run['knn']['accuracy']:.1%}" in printed
    assert "image loss" in printed
    assert f"written to {files / 'model'}: the student, pretraining.json and its curves" in printed
    model, _, _ = vitrail.load(files / "model")
    assert (model.config.hidden_size, model.config.patch_size) == (CONFIG["hidden_size"], 4)
    assert "is the model itself" in error_of(capsys, *command, "--teacher", files / "model", "--overwrite")


def test_dinov2_from_a_model_adapts_it(files, capsys, monkeypatch):
    torch.manual_seed(0)
    start = vitrail.ViTModel(vitrail.ViTConfig(**CONFIG))
    vitrail.save(start, vitrail.make_image_processor("dino", image_size=8), files / "start")
    command = [
        "pretrain",
        "--data",
        files / "pictures",
        "--from",
        files / "start",
        "--method",
        "dinov2",
        "--output",
        files / "model",
    ]
    assert "fewer than a batch of the recipe adapt, 32" in error_of(capsys, *command)
    adapt = RECIPES["adapt"]
    crop = CropAugmentation(**CROP | {"scale": (0.5, 1.0)})
    views = dataclasses.replace(adapt.augmentation, global_crops=(crop, crop), local_crop=crop, num_local_crops=0)
    smaller = adapt.arguments | RECIPE["arguments"]
    monkeypatch.setitem(RECIPES, "adapt", dataclasses.replace(adapt, epochs=1, batch_size=6, arguments=smaller, augmentation=views))
    assert end_of(*command, "--no-labels") == 0
    printed = capsys.readouterr().out
    assert "15 images, 1 epochs, 2 updates, recipe adapt" in printed
    assert "adapt is the recipe of dinov2 with --from; --recipe dinov2 is that of a new model" in printed
    run = json.loads((files / "model" / "pretraining.json").read_text())
    assert (run["recipe"]["name"], run["arguments"]["frozen_blocks"], run["comparison"]) == ("adapt", 2, None)
    assert len([point for point in run["curves"] if "gram_loss" in point]) == 2
    model, _, _ = vitrail.load(files / "model")
    assert torch.equal(model.layers[1].mlp.fc1.weight, start.layers[1].mlp.fc1.weight)
    assert not torch.equal(model.layernorm.bias, start.layernorm.bias)


def test_images_without_labels(files, capsys):
    for path in list((files / "pictures").glob("*/*.jpg")):
        path.rename(files / "pictures" / f"{path.parent.name}-{path.name}")
    assert end_of(*words(files, data=files / "pictures", recipe="short")) == 0
    run = json.loads((files / "model" / "pretraining.json").read_text())
    assert run["knn"] is None
    assert run["data"]["train_images"] == 15
    assert "k-NN" not in capsys.readouterr().out


def test_a_run_that_logs_nothing_still_ends(files, capsys):
    quiet = RECIPE | {"epochs": 1, "batch_size": 6, "arguments": RECIPE["arguments"] | {"logging_strategy": "no"}}
    (files / "short.json").write_text(json.dumps(quiet))
    shutil.rmtree(files / "pictures" / "coffee")
    assert end_of(*words(files, data=files / "pictures", recipe="short")) == 0
    assert "8 images, 1 epochs, 1 updates" in capsys.readouterr().out


def error_of(capsys, *command):
    """The one message with which a command ends."""
    assert end_of(*command) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert [line.startswith("vitrail: ") for line in error.splitlines()].count(True) == 1
    return error


def test_either_a_name_or_a_model(files, capsys):
    both = ("--arch", "vit_tiny_patch16", "--from", "dino-vits16")
    command = words(files)
    for model in ((), both):
        assert "Give either --arch" in error_of(capsys, *command[:3], *model, *command[5:])
    assert not (files / "model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "resnet50"], 'There is no architecture "resnet50"'),
        (["--recipe", "dinov3"], 'There is no recipe "dinov3": choose dino'),
        (["--data", "nowhere/at/all.parquet"], "nowhere/at/all.parquet"),
        (["--label-column", "color"], "no column 'color'"),
        (
            ["--teacher", "dino-vitb16"],
            "The method dino does not learn from a frozen model: leave out --teacher, or choose the method",
        ),
        (["--original-checkpoint", "run.safetensors"], "unsupported extension '.safetensors'; expected .pth"),
        (["--original-checkpoint", "nowhere/run.pth"], "The folder nowhere does not exist"),
    ],
)
def test_mistakes_end_with_one_message(files, capsys, options, message):
    assert message in error_of(capsys, *words(files, data=files / "pictures"), *options)
    assert not (files / "model").exists()
    assert not (files / "model.run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 3}, "has unknown fields: batch. Similar fields: batch_size."),
        ({"batch_size": "many"}, "has batch_size: 'many'"),
        ({"arguments": {"momentum": 3}}, "has unknown fields: momentum"),
        ({"arguments": {"teacher_momentum": 3}}, "teacher_momentum is 3; expected a number from 0 to 1"),
        ({"epochs": 5}, "warmup_epochs is 10.0, longer than the run of 5 epochs"),
        (
            {"batch_size": 100},
            "pictures has 12 images to train on, fewer than a batch of the recipe short, 100: lower it with --total-batch-size.",
        ),
    ],
)
def test_mistakes_in_a_recipe(files, capsys, changes, message):
    (files / "short.json").write_text(json.dumps(RECIPE | {"arguments": {}, "batch_size": 6} | changes))
    assert message in error_of(capsys, *words(files, data=files / "pictures", recipe="short"))
    assert not (files / "model").exists()


def test_a_checkpoint_that_is_there_is_not_written_over(files, capsys):
    (files / "run.pth").write_bytes(b"of yesterday")
    error = error_of(capsys, *words(files, data=files / "pictures", recipe="short"), "--original-checkpoint", files / "run.pth")
    assert "run.pth" in error
    assert "exists" in error
    assert (files / "run.pth").read_bytes() == b"of yesterday"
    assert not (files / "model").exists()


def test_a_model_for_which_the_original_has_no_place(files, capsys):
    """The command reports this before training starts."""
    (files / "config.json").write_text(json.dumps(CONFIG | {"num_register_tokens": 2}))
    error = error_of(capsys, *words(files, data=files / "pictures", recipe="short"), "--original-checkpoint", files / "run.pth")
    assert "register" in error
    assert not (files / "model").exists()
    assert not (files / "run.pth").exists()


def test_an_output_that_cannot_be_written(files, capsys):
    (files / "model").mkdir()
    (files / "model" / "letter.txt").touch()
    assert "files that do not belong to a model" in error_of(capsys, *words(files, data=files / "pictures", recipe="short"))
    shutil.rmtree(files / "model")
    vitrail.save(vitrail.ViTModel(vitrail.ViTConfig(**CONFIG)), vitrail.make_image_processor("dino", image_size=8), files / "model")
    model = ("--from", files / "model")
    assert "is the model itself" in error_of(capsys, *words(files, data=files / "pictures", recipe="short", model=model))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_strict(files, capsys, num_workers):
    for path in (files / "pictures" / "coffee").iterdir():
        path.write_bytes(b"no image")
    command = words(files, data=files / "pictures", recipe="short")
    error = error_of(capsys, *command, "--strict", "--num-workers", num_workers)
    assert "vitrail: cannot read the image" in error
    assert not (files / "model").exists()


def test_a_missing_package_is_named_with_the_remedy(files, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in ("datasets", "sklearn") else find_spec(name))
    error = error_of(capsys, *words(files))
    assert 'not installed (datasets, sklearn): pip install ".[evaluation]" in a checkout' in error


def test_without_labels_all_images_are_trained_on(files, capsys):
    assert end_of(*words(files, data=files / "pictures", recipe="short"), "--no-labels", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["data"]["train_images"], printed["epochs"], printed["updates"]) == (15, 1, 2)
    assert json.loads((files / "model" / "pretraining.json").read_text())["knn"] is printed["knn"] is None
