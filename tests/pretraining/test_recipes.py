"""Recipes against the defaults of facebookresearch/dino, and what a file may change."""

import dataclasses
import json

import pytest

from vitrail.errors import CorruptFileError, VitrailError
from vitrail.pretraining.arguments import DINOTrainingArguments, DistillationTrainingArguments
from vitrail.pretraining.recipes import RECIPES, PretrainingRecipe, find_recipe, fit_to_patches
from vitrail.processing.multi_crop import DINO_AUGMENTATION

# main_dino.py, get_args_parser: the name there, ours, the default there
ORIGINAL_DEFAULTS = (
    ("out_dim", "num_prototypes", 65536),
    ("norm_last_layer", "normalize_last_layer", True),
    ("momentum_teacher", "teacher_momentum", 0.996),
    ("warmup_teacher_temp", "warmup_teacher_temperature", 0.04),
    ("teacher_temp", "teacher_temperature", 0.04),
    ("warmup_teacher_temp_epochs", "warmup_teacher_temperature_epochs", 0),
    ("weight_decay", "weight_decay", 0.04),
    ("weight_decay_end", "final_weight_decay", 0.4),
    ("clip_grad", "max_grad_norm", 3.0),
    ("freeze_last_layer", "freeze_last_layer_epochs", 1),
    ("lr", "learning_rate", 0.0005),
    ("warmup_epochs", "warmup_epochs", 10),
    ("min_lr", "min_learning_rate", 1e-6),
    ("epochs", "num_train_epochs", 100),
    ("drop_path_rate", "drop_path_rate", 0.1),
)

# Proteus-pytorch, pretrain/main.py, get_args_parser
DISTILLATION_DEFAULTS = (
    ("clip_grad", "max_grad_norm", 0.0),  # None
    ("weight_decay", "weight_decay", 0.05),
    ("weight_decay", "final_weight_decay", 0.05),
    ("lr", "learning_rate", 5e-4),
    ("warmup_epochs", "warmup_epochs", 5),
    ("min_lr", "min_learning_rate", 1e-5),
    ("epochs", "num_train_epochs", 300),
    ("lambda_token", "image_loss_weight", 1.0),
    ("lambda_fea", "patch_loss_weight", 1.0),
)


@pytest.fixture
def write(tmp_path):
    def write(**content):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("kind", "defaults"), [(DINOTrainingArguments, ORIGINAL_DEFAULTS), (DistillationTrainingArguments, DISTILLATION_DEFAULTS)]
)
def test_defaults_are_those_of_the_original(kind, defaults, tmp_path):
    args = kind(str(tmp_path), use_cpu=True, report_to="none")
    assert {ours: getattr(args, ours) for _, ours, _ in defaults} == {ours: value for _, ours, value in defaults}
    assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon) == (0.9, 0.999, 1e-8)  # torch.optim.AdamW's


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0; expected a number above 0"),
        ({"num_prototypes": 0}, "num_prototypes is 0"),
        ({"teacher_temperature": -0.1}, "teacher_temperature is -0.1"),
        ({"student_temperature": 0.0}, "student_temperature"),
        ({"teacher_momentum": 1.1}, "teacher_momentum is 1.1; expected a number from 0 to 1"),
        ({"center_momentum": -0.1}, "center_momentum"),
        ({"drop_path_rate": 2}, "drop_path_rate"),
        ({"num_train_epochs": 5}, "warmup_epochs is 10.0, longer than the run of 5 epochs"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        DINOTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)


def test_the_recipe_is_that_of_the_source():
    recipe = RECIPES["dino"]
    # README.md, "Vanilla DINO training": 8 GPUs, 64 images on each
    assert (recipe.batch_size, recipe.epochs, recipe.learning_rate) == (512, 100, 0.0005)
    assert recipe.arguments == {}
    assert recipe.augmentation == DINO_AUGMENTATION
    for name, known in RECIPES.items():
        assert name == known.name
        assert known.source.startswith(("facebookresearch/dino", "BeSpontaneous/Proteus-pytorch"))
        assert find_recipe(name) is known


def test_a_file_changes_what_it_names(write):
    name = write(
        recipe="dino",
        batch_size=64,
        learning_rate=0.001,
        arguments={"warmup_epochs": 1, "bf16": True},
        augmentation={"num_local_crops": 4, "local_crop": {"size": 32, "scale": [0.1, 0.3]}},
    )
    recipe = find_recipe(name)
    assert (recipe.name, recipe.source) == ("mine", "facebookresearch/dino, main_dino.py, changed by mine.json")
    assert (recipe.batch_size, recipe.learning_rate, recipe.epochs) == (64, 0.001, 100)
    assert recipe.arguments == {"warmup_epochs": 1, "bf16": True}
    augmentation = recipe.augmentation
    assert (augmentation.num_local_crops, augmentation.local_crop.size, augmentation.local_crop.scale) == (4, 32, (0.1, 0.3))
    unchanged = dataclasses.replace(augmentation, num_local_crops=8, local_crop=DINO_AUGMENTATION.local_crop)
    assert unchanged == DINO_AUGMENTATION
    assert RECIPES["dino"].batch_size == 512


def test_a_file_keeps_the_arguments_of_its_recipe(write, monkeypatch):
    base = PretrainingRecipe("base", "a paper", 3, 4, 0.1, arguments={"warmup_epochs": 1, "num_prototypes": 100})
    monkeypatch.setitem(RECIPES, "base", base)
    recipe = find_recipe(write(recipe="base", arguments={"num_prototypes": 200}))
    assert recipe.arguments == {"warmup_epochs": 1, "num_prototypes": 200}
    assert base.arguments["num_prototypes"] == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, 'does not name the recipe that it changes: add "recipe": "dino"'),
        ({"recipe": "dinov3"}, "does not name the recipe"),
        ({"recipe": ["dino"]}, "does not name the recipe"),
        ({"recipe": "dino", "batch": 3}, "has unknown fields: batch. Similar fields: batch_size."),
        ({"recipe": "dino", "name": "x"}, "has unknown fields: name"),
        ({"recipe": "dino", "arguments": {"momentum": 0.9}}, "has unknown fields: momentum. Similar fields: .*teacher_momentum"),
        ({"recipe": "dino", "arguments": {"warmup": 3}}, "has unknown fields: warmup. Similar fields: .*warmup_epochs"),
        ({"recipe": "dino", "arguments": {"learning_rate": 0.9}}, "has unknown fields: learning_rate"),
        ({"recipe": "dino", "arguments": {"output_dir": "x"}}, "has unknown fields: output_dir"),
        ({"recipe": "dino", "arguments": [1]}, "has arguments: .1.; expected an object"),
        ({"recipe": "dino", "arguments": {"warmup_epochs": "1"}}, "has warmup_epochs: '1'; expected a number such as 10.0"),
        ({"recipe": "dino", "augmentation": 3}, "has augmentation: 3; expected an object"),
        ({"recipe": "dino", "augmentation": {"flips": 3}}, "found flips in a MultiCropAugmentation"),
        ({"recipe": "dino", "augmentation": {"local_crop": {"size": 0, "scale": [0.1, 1]}}}, "found size=0"),
        ({"recipe": "dino", "batch_size": "64"}, "has batch_size: '64'; expected a whole number above 0"),
        ({"recipe": "dino", "batch_size": 0}, "has batch_size: 0"),
        ({"recipe": "dino", "epochs": 1.5}, "has epochs: 1.5"),
        ({"recipe": "dino", "epochs": True}, "has epochs: True"),
        ({"recipe": "dino", "learning_rate": -1}, "has learning_rate: -1; expected a number above 0"),
    ],
)
def test_a_file_with_a_mistake_is_refused(write, content, message):
    with pytest.raises(VitrailError, match=message):
        find_recipe(write(**content))


@pytest.mark.parametrize("name", ["dinov3", "DINO"])
def test_an_unknown_recipe_is_refused(name):
    with pytest.raises(VitrailError, match=f'no recipe "{name}": choose dino, dinov2, .*, or give a .json file'):
        find_recipe(name)


def test_the_recipe_of_a_method():
    assert find_recipe() is RECIPES["dino"]
    assert find_recipe(method="dinov2") is find_recipe("dinov2")
    assert find_recipe("dinov2-short", method="dinov2").epochs == 200
    distill = find_recipe(method="distill")
    # run_pretrain.sh: 4 processes of 128 images; main.py: args.lr * batch / 512.0
    assert (distill.batch_size, distill.epochs, distill.scaled_learning_rate) == (512, 300, 5e-4)
    assert dataclasses.replace(distill, batch_size=1024).scaled_learning_rate == 1e-3
    assert distill.augmentation.num_local_crops == 0
    assert find_recipe(method="dinov2", from_model=True) is RECIPES["adapt"]
    assert find_recipe("dinov2", method="dinov2", from_model=True) is RECIPES["dinov2"]
    assert find_recipe(from_model=True) is RECIPES["dino"]
    with pytest.raises(VitrailError, match="The recipe dino is for the method dino, not dinov2"):
        find_recipe("dino", method="dinov2")
    with pytest.raises(VitrailError, match='There is no method "dinov3": choose dino, dinov2'):
        find_recipe(method="dinov3")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "mine.json").write_text("{bad")
    with pytest.raises(VitrailError, match=r"mine\.json is not valid JSON"):
        find_recipe(str(tmp_path / "mine.json"))


@pytest.mark.parametrize(("patch", "sizes"), [(16, (224, 96)), (8, (224, 96)), (14, (224, 98)), (32, (224, 96)), (20, (240, 100))])
def test_crops_are_fitted_to_patches(patch, sizes):
    fitted = fit_to_patches(DINO_AUGMENTATION, (patch, patch))
    assert [crop.size for crop in fitted.crops] == [sizes[0]] * 2 + [sizes[1]] * 8
    for crop, before in zip(fitted.crops, DINO_AUGMENTATION.crops, strict=True):
        assert dataclasses.replace(crop, size=before.size) == before
    assert dataclasses.replace(fitted, global_crops=DINO_AUGMENTATION.global_crops, local_crop=DINO_AUGMENTATION.local_crop) == (
        DINO_AUGMENTATION
    )


def test_patches_that_are_not_squares_are_refused():
    with pytest.raises(VitrailError, match="patches are 4x8 pixels"):
        fit_to_patches(DINO_AUGMENTATION, (4, 8))


def test_of_a_crop_only_what_differs_is_reported(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"recipe": "dino", "augmentation": {"local_crop": {"size": 48}, "global_crops": [{}, {"scale": [0.5, 1]}]}})
    )
    augmentation = find_recipe(str(path)).augmentation
    base = RECIPES["dino"].augmentation
    assert augmentation.local_crop == dataclasses.replace(base.local_crop, size=48)
    assert augmentation.global_crops == (base.global_crops[0], dataclasses.replace(base.global_crops[1], scale=(0.5, 1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_crops": 224}, '"global_crops" must be a list of two objects'),
        ({"global_crops": [{"size": 224}]}, '"global_crops" must be a list of two objects'),
        ({"local_crop": {"sise": 48}}, "augmentation: found sise"),
        ({"hue": 2}, "augmentation: found hue=2"),
    ],
)
def test_mistakes_in_the_augmentation_name_the_file(changes, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"recipe": "dino", "augmentation": changes}))
    with pytest.raises(VitrailError, match=f"mine.json.*{message}"):
        find_recipe(str(path))


@pytest.mark.parametrize("name", ["max_steps", "seed", "learning_rate"])
def test_what_the_run_decides_is_not_an_argument_of_a_recipe(name, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"recipe": "dino", "arguments": {name: 1}}))
    with pytest.raises(VitrailError, match=f"has unknown fields: {name}"):
        find_recipe(str(path))


def test_a_recipe_that_is_not_there_or_not_json(tmp_path):
    with pytest.raises(
        VitrailError, match=r"There is no file nothing\.json; expected a recipe: dino, dinov2, .*, or a \.json file"
    ):
        find_recipe("nothing.json")
    (tmp_path / "mine.json").write_text('{"recipe": "dino",}')
    with pytest.raises(CorruptFileError, match=r"mine\.json is not valid JSON .*: correct it\."):
        find_recipe(str(tmp_path / "mine.json"))
