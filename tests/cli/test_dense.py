"""`vitrail segment`, `depth` and `patches`: the pictures and values that they write, and what they print."""

import json
import math

import numpy as np
import pytest
import torch
from fake_engines import FakeEngines
from PIL import Image

import paths
import vitrail
from command_line import end_of
from image_folders import write_images
from small_models import randomize, tiny_config
from vitrail.processing.resizing import at_size
from vitrail.runtime import trials

PHOTO, OTHER = paths.IMAGES / "chelsea.jpg", paths.IMAGES / "coffee.jpg"
SIZE = {PHOTO: (300, 451), OTHER: (400, 600)}
WINDOWS = {"segmentation_window": 16, "segmentation_stride": 12}
PLOTS = {"segment": vitrail.plot_segmentation, "depth": vitrail.plot_depth}
IMAGE_PROCESSOR = vitrail.VitrailImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, model_class in (("segment", vitrail.ViTForSemanticSegmentation), ("depth", vitrail.ViTForDepthEstimation)):
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name) / "model"
        config = tiny_config(id2label=dict(enumerate(["cat", "cup", "table", "wall"])), **WINDOWS)
        vitrail.save(randomize(model_class(config)), IMAGE_PROCESSOR, found[name])
    return found


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("command", "values_format"), [("segment", "png"), ("depth", "png"), ("depth", "npy")])
def test_a_picture_and_the_values_of_each_image(command, values_format, folders, tmp_path, capsys):
    output, values = tmp_path / "picture.png", tmp_path / "values"
    words = [command, folders[command], PHOTO, OTHER, "--output", output, "--values", values, "--values-format", values_format]
    assert not end_of(*words, "--json")
    record = json.loads(capsys.readouterr().out)
    model, image_processor, _ = vitrail.load(folders[command])
    maps, picture = PLOTS[command](model, image_processor, [PHOTO, OTHER])
    assert np.array_equal(read(output), np.asarray(picture))
    assert record["values"] == [str(values / f"{image.stem}.{values_format}") for image in (PHOTO, OTHER)]
    for path, image, one, found in zip(record["values"], SIZE, maps, record["images"], strict=True):
        written = read(values / path)
        assert written.shape == one.shape == SIZE[image]
        if command == "segment":
            assert np.array_equal(written, one)
            assert sum(entry["share"] for entry in found["classes"]) == pytest.approx(1)
            assert found["classes"][0]["label"] == model.config.id2label[np.bincount(one.flatten()).argmax()]
            continue
        assert np.abs(written / (1000 if values_format == "png" else 1) - one).max() <= 5.1e-4
        assert (found["min"], found["median"], found["max"]) == pytest.approx((one.min(), np.median(one), one.max()))


def test_a_named_precision(folders, tmp_path, capsys):
    """The same depths as a model whose weights have that precision."""
    words = ["depth", folders["depth"], PHOTO, "--output", tmp_path / "a.png", "--values", tmp_path / "values"]
    assert not end_of(*words, "--values-format", "npy", "--precision", "bfloat16")
    assert capsys.readouterr().out.splitlines()[-1].startswith("eager, bfloat16: cosine ")
    model, image_processor, _ = vitrail.load(folders["depth"])
    (expected,), _ = vitrail.plot_depth(model.bfloat16(), image_processor, [PHOTO])
    assert np.array_equal(read(tmp_path / "values" / "chelsea.npy"), expected)


@pytest.mark.parametrize(
    ("command", "options", "sizes", "number", "is_measured"),
    [
        ("segment", [], [(64, 48), (48, 48)], 3, True),  # the windows have one size
        ("segment", ["--no-windows"], [(64, 48), (48, 48)], 3, False),
        ("segment", ["--image-size", 8], [(64, 48)], 3, True),  # smaller than a window
        ("depth", [], [(64, 48), (48, 48)], 3, False),
        ("depth", [], [(64, 48)], 3, True),
        ("depth", [], [(64, 48)], 2, False),
    ],
)
def test_auto_measures_many_inputs_of_one_size(
    command, options, sizes, number, is_measured, folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(trials, "MIN_ROUNDS", 3)
    monkeypatch.setattr(trials, "SHARE", math.inf)
    engines = FakeEngines(monkeypatch)
    engines.add("eager", 0.1)
    engines.add("openvino", 0.05)
    images = [tmp_path / path for path in write_images(tmp_path, number, sizes=sizes)]
    assert not end_of(command, folders[command], *images, "--output", tmp_path / "picture.png", "--json", *options)
    printed = capsys.readouterr()
    assert [name for name, _ in engines.built] == (["eager", "openvino"] if is_measured else [])
    assert ("auto: openvino float32, 20.0 images/s (eager float32 10.0)" in printed.err) == is_measured
    assert bool(json.loads(printed.out)["optimization"]) == is_measured
    model, image_processor, _ = vitrail.load(folders[command])
    if "--image-size" in options:
        image_processor = at_size(image_processor, (8, 8), 8)
    options = {"windows": False} if "--no-windows" in options else {}
    _, picture = PLOTS[command](model, image_processor, images, **options)
    assert np.array_equal(read(tmp_path / "picture.png"), np.asarray(picture))


def test_patches(folders, tmp_path, capsys):
    output = tmp_path / "picture.png"
    words = ["patches", folders["depth"], PHOTO, OTHER, "--output", output, "--at", "170,110", "--at", "40.5,200"]
    assert not end_of(*words, "--image-size", "64")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{output}: cosines with the patches at 170,110, 40.5,200"
    assert len(printed) == 3
    assert printed[1].startswith(f"{OTHER}: 170,110 is most similar at ")
    model, image_processor, _ = vitrail.load(folders["depth"])
    larger = vitrail.VitrailImageProcessor.from_dict(image_processor.to_dict(), size={"shortest_edge": 64})
    maps, picture = vitrail.plot_patch_similarity(model, larger, [PHOTO, OTHER], [(170, 110), (40.5, 200)])
    assert maps[0].shape == (2, 8, 12)
    assert f"cosine {maps[1][1].max():.3f}" in printed[2]
    assert np.array_equal(read(output), np.asarray(picture))


def test_bad_input_is_one_message_and_exit_code_2(folders, tmp_path, capsys):
    output = tmp_path / "picture.png"
    (tmp_path / "file").touch()
    (tmp_path / "chelsea.png").write_bytes(PHOTO.read_bytes())
    for command, words, message in (
        ("segment", [folders["depth"], PHOTO], "has no segmentation head: add a head with --head, for example ade20k_linear"),
        ("depth", [folders["segment"], PHOTO], "has no depth head: add a head with --head, for example nyu_dpt"),
        ("depth", [folders["depth"], PHOTO, "--values-format", "exr"], "expected png or npy"),
        ("depth", [folders["depth"], PHOTO, "--values", tmp_path / "file"], "is a file; expected a folder"),
        ("segment", [folders["segment"], PHOTO, tmp_path / "chelsea.png", "--values", tmp_path / "v"], "of different names"),
        ("segment", [folders["segment"], PHOTO, "--engine", "tensorrt"], "found --engine tensorrt; write one of eager, compile"),
        ("depth", [folders["depth"], PHOTO, "--engine", "eager", "--precision", "int8"], "eager does not support int8"),
        ("patches", [folders["depth"], PHOTO], "Missing option '--at'"),
        ("patches", [folders["depth"], PHOTO, "--at", "1"], "found --at 1; expected the pixels x,y, such as 120,80"),
        ("patches", [folders["depth"], PHOTO, "--at", "451,0"], "lies outside of the first image: pass 0 <= x < 451"),
    ):
        assert end_of(command, *words, "--output", output) == 2
        error = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert message in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chelsea.png", "file"]
