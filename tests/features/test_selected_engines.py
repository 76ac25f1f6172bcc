"""`auto` in runs: one engine for the whole of a run, which a resumed run keeps. Engines and their times are not real."""

import json
import math
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from fake_engines import FakeEngines
from PIL import Image

from image_folders import small_model, small_processor, write_images
from small_models import IMPORT_OF_THE_COMPILER
from vitrail.errors import VitrailError
from vitrail.features import job, store
from vitrail.features.cache import FeatureCache
from vitrail.features.extraction import extract
from vitrail.processing.resizing import keep_aspect
from vitrail.runtime import trials
from vitrail.runtime.compiled import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")

AUTO, EAGER, OPENVINO = Runtime(engine="auto"), Runtime("float32"), Runtime("float32", "openvino")
SELECTED = {"precision": "float32", "engine": "openvino"}


@pytest.fixture
def engines(monkeypatch):
    """OpenVINO is the fastest, and any run is long enough to measure."""
    monkeypatch.setattr(trials, "MIN_ROUNDS", 0)
    monkeypatch.setattr(trials, "SHARE", math.inf)
    engines = FakeEngines(monkeypatch)
    engines.add("eager", 0.1)
    engines.add("openvino", 0.05)
    return engines


@pytest.fixture
def run(tmp_path):
    """Extract features of 6 images, in files of 2."""
    write_images(tmp_path / "images", 6)
    model = small_model()

    def run(runtime=AUTO, image_processor=None, output="out", **options):
        image_processor = image_processor or small_processor()
        options |= {"shard_size": 2, "num_workers": 0, "runtime": runtime}
        return extract(model, image_processor, tmp_path / "images", tmp_path / output, **options)

    return run


def interrupt(run, monkeypatch):
    """Interrupt an extraction after the first file."""
    finish = store.ChunkWriter.finish

    def finish_first(writer):
        if writer.chunk.number:
            raise KeyboardInterrupt
        finish(writer)

    with monkeypatch.context() as patch:
        patch.setattr(store.ChunkWriter, "finish", finish_first)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_a_resumed_extraction_keeps_its_engine(engines, run, tmp_path, monkeypatch, capfd):
    interrupt(run, monkeypatch)
    assert engines.built == [("eager", "float32"), ("openvino", "float32")]  # the run uses what was built to measure it
    assert capfd.readouterr().err.count("auto: openvino float32, 20.0 images/s (eager float32 10.0)") == 1
    engines.add("openvino", 1.0)
    assert run().runtime == SELECTED
    assert store.StoredFeatures(tmp_path / "out").manifest.settings["engine"] == "openvino"
    assert "auto:" not in capfd.readouterr().err
    with pytest.raises(VitrailError, match="engine was openvino, is eager"):
        run(EAGER)
    engines.add("eager", 0.1, precisions=("float32", "float64"))
    with pytest.raises(VitrailError, match="precision was float32, is float64"):  # without a measurement
        run(Runtime("float64", "auto"))
    assert run(output="other").runtime == {"precision": "float32", "engine": "eager"}  # a new run measures again


def test_a_resumed_extraction_keeps_its_batch_size(engines, run, tmp_path, monkeypatch, capfd):
    """Files hold two images, and so do the largest batches."""
    monkeypatch.setattr(job, "CPU_BATCH_SIZES", (1, 512))
    engines.add("eager", lambda number: 1 + 0.1 * number)
    engines.add("openvino", 2.0)
    interrupt(run, monkeypatch)
    assert "auto: eager float32, batch size 2, 1.7 images/s (openvino float32 0.5)" in capfd.readouterr().err
    engines.batch_sizes.clear()
    run()
    assert engines.batch_sizes == [2, 2]
    assert store.StoredFeatures(tmp_path / "out").manifest.batch_size == 2
    engines.batch_sizes.clear()
    run(output="other", batch_size=1)
    assert engines.batch_sizes[-6:] == [1] * 6


def test_images_of_several_sizes_run_as_they_are(engines, run):
    assert run(image_processor=keep_aspect(small_processor(), 8)).runtime == {"precision": "float32", "engine": "eager"}
    assert engines.built == [("eager", "float32")]


def test_unreadable_images_are_reported_by_the_run(engines, run, tmp_path):
    for path in (tmp_path / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(VitrailError, match=r"none of the 6 images of .* can be used"):
        run()
    assert engines.built == []


def test_nothing_is_measured_for_a_ray_cluster(engines, run, monkeypatch):
    """Its machines may differ from this one."""
    here = SimpleNamespace(run_on_ray=lambda job, pieces, **options: job.run(pieces)[0])
    monkeypatch.setitem(sys.modules, "vitrail.features.ray_runner", here)
    assert run(runner="ray").runtime == {"precision": "float32", "engine": "eager"}
    assert engines.built == [("eager", "float32")]
    assert run(output="local").runtime == SELECTED
    assert run(output="local", runner="ray").runtime == SELECTED


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(256, size=(5, 40, 40, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    return datasets.Dataset.from_dict({"image": list(map(Image.fromarray, pixels)), "label": [0, 1, 0, 1, 0]}, features=features)


def test_cached_features_are_taken_whatever_computed_them(engines, images, tmp_path):
    model, image_processor = small_model(), small_processor()

    def features(dataset, cache):
        return cache.features(model, image_processor, dataset).runtime

    cache = FeatureCache(tmp_path, runtime=AUTO, progress=False)
    assert features(images, cache) == SELECTED
    assert engines.built == [("eager", "float32"), ("openvino", "float32")]
    engines.add("openvino", 1.0)
    assert features(images.select(range(3)), cache) == SELECTED  # the same for another split
    assert features(images, FeatureCache(tmp_path, runtime=AUTO, progress=False)) == SELECTED
    assert len(list(tmp_path.iterdir())) == 2
    assert len(engines.built) == 2

    resumed = FeatureCache(tmp_path / "other", runtime=AUTO, progress=False)
    resumed.resume(model, {"runtime": SELECTED})
    assert features(images, resumed) == SELECTED
    measured = FeatureCache(tmp_path / "new", runtime=AUTO, progress=False)
    measured.resume(model, {})
    assert features(images, measured)["engine"] == "eager"


@IMPORT_OF_THE_COMPILER
@pytest.mark.parametrize("runtime", [AUTO, Runtime("auto", "eager")], ids=str)
def test_auto_on_cuda(runtime, cuda, no_network, tmp_path, monkeypatch):
    """With real engines and times, and also the batch size."""
    monkeypatch.setattr(trials, "MIN_ROUNDS", 0)
    monkeypatch.setattr(trials, "SHARE", math.inf)
    write_images(tmp_path / "images", 6)
    vectors = {}
    for one in (runtime, EAGER):
        done = extract(small_model(), small_processor(), tmp_path / "images", tmp_path / str(one), num_workers=0, runtime=one)
        assert done.runtime["engine"] in ("eager", "compile")
        vectors[one] = store.StoredFeatures(tmp_path / str(one)).vectors("pooled")
    assert json.loads((tmp_path / str(runtime) / "manifest.json").read_text())["batch_size"] in (64, 128, 256, 512)
    found, expected = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in vectors.values())
    assert (found * expected).sum(1).min() > 0.998
