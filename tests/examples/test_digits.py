"""The bundled checkpoint matches its card."""

import json
import re
import runpy
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

import paths
import vitrail
from vitrail.data.labeled import load_labeled_images
from vitrail.evaluation.pooled_evaluation import evaluate_knn
from vitrail.features.cache import FeatureCache
from vitrail.pretraining.recipes import find_recipe
from vitrail.utils.atomic import read_json
from vitrail.utils.weight_files import read_checkpoint

DIGITS = paths.EXAMPLES / "digits"
CHECKPOINT = DIGITS / "dino_vit_digits.pth"
RESULTS = json.loads((DIGITS / "results.json").read_text(encoding="utf-8"))
PRETRAINING = read_json(DIGITS / "pretraining.json")


@pytest.fixture(scope="module")
def loaded():
    return vitrail.load(CHECKPOINT)


def test_it_is_a_teacher_in_the_original_format_and_small(loaded, tmp_path):
    content = read_checkpoint(CHECKPOINT).content
    assert list(content) == ["teacher"]
    assert all(name.startswith("backbone.") for name in content["teacher"])
    assert {tensor.dtype for tensor in content["teacher"].values()} == {torch.float16}
    model, _, report = loaded
    assert (report.format, report.root) == ("dino", "teacher")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size <= 2_000_000
    expected = vitrail.ViTConfig(**read_json(DIGITS / "config.json"))
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size"):
        assert getattr(model.config, field) == getattr(expected, field)


def test_it_knows_the_digits_that_it_was_not_trained_on(loaded, tmp_path):
    model, image_processor, _ = loaded
    results = evaluate_knn(
        model.float(),
        image_processor,
        load_labeled_images("digits"),
        num_neighbors=[20],
        cache=FeatureCache(tmp_path, progress=False),
    )
    trained, random = (RESULTS[name][0] for name in ("trained", "random"))
    assert results["accuracy"] == pytest.approx(trained["knn"], abs=0.005)  # those are of the weights in float32
    assert results["accuracy"] > random["knn"] + 0.1


def test_the_recipe_is_the_one_that_was_run():
    recipe = find_recipe(str(DIGITS / "recipe.json"))
    assert (PRETRAINING["epochs"], PRETRAINING["batch_size"]) == (recipe.epochs, recipe.batch_size)
    assert recipe.arguments.items() <= PRETRAINING["arguments"].items()
    recorded = {
        name.replace("greyscale", "grayscale"): value for name, value in PRETRAINING["augmentation"].items()
    }  # its name then
    assert recorded == json.loads(json.dumps(asdict(recipe.augmentation)))
    assert PRETRAINING["knn"]["accuracy"] == pytest.approx(RESULTS["trained"][0]["knn"], abs=1e-6)
    assert [row["seed"] for row in RESULTS["trained"]] == [row["seed"] for row in RESULTS["random"]] == [0, 1, 2]


def test_the_card_reports_what_was_measured(loaded):
    script = runpy.run_path(str(DIGITS / "train.py"))
    text = (DIGITS / "README.md").read_text(encoding="utf-8")
    cpu = re.search(r"one thread on an (.+), whose cores", text)[1]
    assert script["card"](RESULTS, PRETRAINING, loaded[0], cpu) == text


def test_the_guide_reports_the_distillation_that_was_measured(monkeypatch):
    """Both recipes took the same processor time, within a tenth."""
    monkeypatch.syspath_prepend(DIGITS)
    script = runpy.run_path(str(DIGITS / "distill.py"))
    results = json.loads((DIGITS / "distillation.json").read_text(encoding="utf-8"))
    guide = (paths.CHECKOUT / "docs" / "guides" / "pretraining.md").read_text(encoding="utf-8")
    for row in script["table"](results):
        assert row in guide
    assert [row["seed"] for row in results["distilled"]] == [row["seed"] for row in results["dino"]] == [0, 1, 2]
    seconds = [sum(row["processor_seconds"] for row in results[name]) for name in ("distilled", "dino")]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.1)
