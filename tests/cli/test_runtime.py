"""`--precision` and `--engine` of the commands that run a model."""

import json

import numpy as np
import pytest
import torch
from fake_engines import FakeEngines
from PIL import Image
from safetensors.torch import load_file

from command_line import end_of
from image_folders import PHOTOS, small_model, small_processor, write_images
from small_models import make_model
from vitrail.features.store import StoredFeatures
from vitrail.hub.saving import save
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.runtime import trials

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A backbone, a classifier and images."""
    place = tmp_path_factory.mktemp("place")
    write_images(place / "images", 12)
    save(small_model(), small_processor(), place / "model", code=False)
    classifier = make_model(ViTForImageClassification, "absolute", image_size=32)
    save(classifier, small_processor(), place / "classifier", code=False)
    return place


def test_embed_and_classify_report_how_near_they_come(place, tmp_path, capsys):
    plain, half = tmp_path / "plain.safetensors", tmp_path / "half.safetensors"
    assert not end_of("embed", place / "model", *PHOTOS, "--output", plain)
    assert "cosine" not in capsys.readouterr().out
    assert not end_of("embed", place / "model", *PHOTOS, "--output", half, "--precision", "bfloat16")
    assert "eager, bfloat16: cosine 0.99" in capsys.readouterr().out
    expected, found = load_file(plain)["features"], load_file(half)["features"]
    assert not torch.equal(expected, found)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert not end_of("classify", place / "classifier", PHOTOS[0], "--precision", "float16")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "on 1 images of 32x32" in lines[-1]


def test_extract_records_how_the_model_was_run(place, tmp_path, capsys):
    words = ["extract", place / "model", place / "images", tmp_path / "out", "--features", "mean", "--precision", "bfloat16"]
    assert not end_of(*words)
    assert "mean: cosine 0.99" in capsys.readouterr().out
    stored = StoredFeatures(tmp_path / "out")
    assert stored.manifest.settings["precision"] == "bfloat16"
    assert stored.manifest.settings["engine"] == "eager"
    assert end_of(*words[:-2]) == 2  # the existing rows were computed in another precision
    assert "different settings (precision was bfloat16, is float32)" in capsys.readouterr().err


def test_evaluations_keep_features_of_each_precision_apart(tmp_path, place, capsys):
    rng = np.random.default_rng(0)
    for label, color in enumerate(((220, 120, 20), (20, 120, 130))):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        for number in range(10):
            pixels = (color + rng.normal(0, 40, (40, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / str(label) / f"{number}.png")
    words = ["knn", place / "model", "--data", tmp_path / "data", "-k", 2, "--cache-dir", tmp_path / "cache"]
    for precision, folders in (("float32", 2), ("bfloat16", 4), ("bfloat16", 4)):
        output = tmp_path / f"{precision}.json"
        assert not end_of(*words, "--output", output, "--precision", precision)
        assert json.loads(output.read_text())["runtime"] == {"precision": precision, "engine": "eager"}
        assert len(list((tmp_path / "cache").iterdir())) == folders
    assert capsys.readouterr().out.count("layers: cosine 0.99") == 1  # only the run that computed features in bfloat16


def test_unreadable_images_are_left_out_of_what_engines_are_measured_on(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trials, "MIN_ROUNDS", 0)
    engines = FakeEngines(monkeypatch)
    engines.add("eager", 0.1)
    (tmp_path / "broken.jpg").touch()
    assert not end_of("classify", place / "classifier", tmp_path / "broken.jpg", *PHOTOS, "--json")
    printed = capsys.readouterr()
    assert "skipped" in printed.err
    assert len(json.loads(printed.out)["images"]) == len(PHOTOS)
    assert end_of("classify", place / "classifier", tmp_path / "broken.jpg") == 2
    assert "broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "classify", "extract", "probe", "knn", "logistic"])
def test_what_cannot_run_is_one_message(place, tmp_path, capsys, command):
    words = {
        "embed": ["model", PHOTOS[0], "--output", tmp_path / "x.safetensors"],
        "classify": ["classifier", PHOTOS[0]],
        "extract": ["model", place / "images", tmp_path / "out"],
        "probe": ["model", "--data", place / "images", "--output", tmp_path / "out"],
    }.get(command, ["model", "--data", place / "images"])
    assert end_of(command, place / words[0], *words[1:], "--engine", "tensorrt") == 2
    assert "found --engine tensorrt; write one of eager, compile, onnxruntime, openvino" in capsys.readouterr().err
    assert end_of(command, place / words[0], *words[1:], "--precision", "int8", "--engine", "eager") == 2
    assert "eager does not support int8" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
