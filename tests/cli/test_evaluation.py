"""`vitrail probe`, `knn` and `logistic`."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from command_line import end_of
from small_models import tiny_model
from vitrail.evaluation.dense_recipes import DENSE_RECIPES
from vitrail.evaluation.recipes import RECIPES
from vitrail.hub.saving import save
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.utils import optional as packages

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    model = tiny_model(hidden_size=16, image_size=8, patch_size=4, initializer_range=0.2)
    folder = tmp_path_factory.mktemp("backbone") / "small"
    save(model, VitrailImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False), folder, code=False)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noisy images of two colors, in one folder per color; one file is not an image."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    rng = np.random.default_rng(0)
    for name, color in (("orange", (220, 120, 20)), ("teal", (20, 120, 130))):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = (color + rng.normal(0, 40, (12, 12, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    (folder / "teal" / "00.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def words(backbone, pictures, tmp_path):
    """Arguments of every command."""
    return [backbone, "--data", pictures, "--cache-dir", tmp_path / "cache", "--batch-size", 16]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setitem(RECIPES, "quick", dataclasses.replace(RECIPES["quick"], iterations=50))
    monkeypatch.setitem(RECIPES, "dino", dataclasses.replace(RECIPES["dino"], epochs=2))


def test_probe_writes_a_model_and_reports_how_good_it_is(words, capsys, tmp_path):
    assert end_of("probe", *words, "--output", tmp_path / "model") == 0
    captured = capsys.readouterr()
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert f"{results['data']['train_images']} training images, 8 validation images, 2 classes" in captured.out
    assert f"best of 52 heads on these images: {results['best_head']['name']}, accuracy 100.0%" in captured.out
    assert "accuracy 100.0%, mean per class 100.0%" in captured.out  # the top-5 accuracy of two classes is always 1
    assert "skipped: " in captured.out
    assert "00.png" in captured.out
    assert "Traceback" not in captured.err
    assert results["model"]["name"] == "model.safetensors"
    assert results["data"]["source"] == "pictures"
    assert [image["path"] for image in results["unreadable_images"]] == ["teal/00.png"]
    assert end_of("classify", tmp_path / "model", words[2] / "teal" / "03.png") == 0
    assert capsys.readouterr().out.split()[1] == "teal"
    classifier = pipeline("image-classification", model=str(tmp_path / "model"))
    assert classifier(str(words[2] / "orange" / "03.png"))[0]["label"] == "orange"


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_probe_of_pixels(task, backbone, capsys, tmp_path, monkeypatch):
    """Folders of images and targets; the model that is written runs in the pipeline of its task."""
    recipe = dataclasses.replace(DENSE_RECIPES[task]["dinov3"], max_epochs=2)
    monkeypatch.setitem(DENSE_RECIPES[task], "dinov3", recipe)
    rng = np.random.default_rng(0)
    for kind, high in (("images", 256), ("depth", 9), ("masks", 2)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(5):
            array = rng.integers(0, high, (9, 12, 3) if kind == "images" else (9, 12)).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / "data" / kind / f"{number}.png")
    (tmp_path / "names.txt").write_text("ground\nsky\n")
    options = ["--labels", tmp_path / "names.txt"] if task == "segmentation" else ["--depth-unit", 0.5, "--depth-range", "0.1,20"]
    words = [
        backbone,
        "--data",
        tmp_path / "data",
        "--task",
        task,
        "--output",
        tmp_path / "model",
        "--cache-dir",
        tmp_path / "cache",
    ]
    assert end_of("probe", *words, *options) == 0
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    output = capsys.readouterr().out
    assert "4 training images, 1 validation images" in output
    assert ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in results["scores"].items()) in output
    name = {"segmentation": "image-segmentation", "depth": "depth-estimation"}[task]
    found = pipeline(name, model=str(tmp_path / "model"))(str(tmp_path / "data" / "images" / "0.png"))
    if task == "segmentation":
        assert {segment["label"] for segment in found} <= {"ground", "sky"}
        assert results["data"]["labels"] == ["ground", "sky"]
    else:
        assert found["predicted_depth"].shape[-2:] == (9, 12)
        assert results["depth_range"] == [0.1, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "segmentation", "--unfreeze", 2], "found --unfreeze 2, but segmentation has no such option"),
        (["--task", "depth", "--reduce-labels"], "found --reduce-labels, but depth has no such option"),
        (["--depth-unit", 0.5], "found --depth-unit 0.5, but classification has no such option"),
        (["--task", "boxes"], "found --task boxes; expected classification, segmentation, depth"),
        (["--task", "depth", "--recipe", "dinov2"], 'There is no recipe "dinov2" for depth: choose dinov3'),
    ],
)
def test_options_of_other_tasks(options, message, words, capsys, tmp_path):
    assert end_of("probe", *words, "--output", tmp_path / "model", *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_probe_takes_every_option(words, capsys, tmp_path):
    options = ["--recipe", "dino", "--views", 2, "--unfreeze", 1, "--seed", 3, "--num-workers", 0, "--validation-fraction", 0.3]
    assert end_of("probe", *words, "--output", tmp_path / "model", *options) == 0
    assert "fine-tuned for 1 epochs:" in capsys.readouterr().out
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert results["recipe"]["name"] == "dino"
    assert (results["recipe"]["views"], results["recipe"]["seed"], results["fine_tuning"]["epochs"]) == (2, 3, 1)
    assert results["data"]["validation_images"] == 12


def test_knn_prints_a_line_for_each_k(words, capsys, tmp_path):
    assert end_of("knn", *words, "-k", 1, "-k", 5, "-k", 500, "--output", tmp_path / "knn.json") == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "knn.json").read_text())
    assert [row["k"] for row in results["by_k"]] == [1, 5]  # fewer than 500 training images
    assert "k = 500 skipped" in printed
    for row in results["by_k"]:
        assert f"k = {row['k']:<4} accuracy {row['accuracy']:.1%}" in printed
    assert results["task"] == "k-NN"
    assert end_of("knn", *words, "-k", 1, "-k", 5, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["by_k"], printed["data"]) == (results["by_k"], results["data"])
    assert results["data"]["labels"] == ["orange", "teal"]


def test_logistic_prints_its_choice(words, capsys, tmp_path):
    assert end_of("logistic", *words, "--output", tmp_path / "logistic.json") == 0
    results = json.loads((tmp_path / "logistic.json").read_text())
    assert f"C = {results['C']:.3g}   accuracy {results['accuracy']:.1%}" in capsys.readouterr().out
    assert len(results["by_C"]) == 45


def test_standard_output_is_json_alone(words, capsys, tmp_path):
    """The Trainer prints on standard output as well, which goes to standard error."""
    assert end_of("probe", *words, "--output", tmp_path / "model", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    results = json.loads((tmp_path / "model" / "results.json").read_text())
    assert printed["best_head"] == results["best_head"]
    assert end_of("logistic", *words, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["by_C"]) == 45


def test_the_model_itself_is_not_written_over(words, capsys):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in words[0].iterdir())
    assert end_of("probe", *words, "--output", words[0]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in words[0].iterdir()) == before


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("probe", ["--recipe", "dinov3"], "no recipe"),
        ("probe", ["--views", "3"], "leave out --views 3"),
        ("probe", ["--strict"], "cannot read the image"),
        ("knn", ["--strict"], "cannot read the image"),
        ("knn", ["--label-column", "color"], "color"),
        ("logistic", ["--data", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistakes_end_with_one_message(words, capsys, tmp_path, command, options, message):
    output = ["--output", tmp_path / ("model" if command == "probe" else "results.json")]
    assert end_of(command, *words, *output, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output[1].exists()


def test_an_output_that_cannot_be_written_is_refused(words, capsys, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    assert end_of("probe", *words, "--output", tmp_path / "full") == 2
    assert "files that do not belong to a model" in capsys.readouterr().err
    assert end_of("knn", *words, "--output", tmp_path / "knn.txt") == 2
    assert ".json" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("command", ["probe", "knn", "logistic"])
def test_a_missing_package_is_named_with_the_remedy(words, capsys, tmp_path, monkeypatch, command):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in ("datasets", "sklearn") else find_spec(name))
    output = ["--output", tmp_path / "model"] if command == "probe" else []
    assert end_of(command, *words, *output) == 2
    error = capsys.readouterr().err
    assert 'not installed (datasets, sklearn): pip install ".[evaluation]" in a checkout' in error
