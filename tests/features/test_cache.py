"""How features are kept: found again by what they are of, resumed after an interruption, the same from any number of processes."""

import copy
import io
import itertools
import os
import resource
import shutil
import signal
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub.utils import WeakFileLock
from PIL import Image

import forked
from small_models import make_model, randomize
from vitrail.data.reader import TrainingViews
from vitrail.errors import UnreadableImageError, VitrailError
from vitrail.features import cache
from vitrail.features.cache import FeatureCache
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.processing.presets import make_image_processor
from vitrail.runtime.compiled import ENGINES, Engine, Runtime

ROWS = 13
FILES = ("tokens.npy", "labels.npy", "rows.npy", "manifest.json")


def extract_prepared(folder, kill_at=0):
    """Extracts what `prepared` has saved; writes to a file how many batches this process ran, or is killed at one."""
    torch.set_num_threads(1)
    model = ViTModel.from_pretrained(folder / "model")
    batches = []

    def count(module, inputs):
        batches.append(len(inputs[0]))
        if len(batches) == kill_at:
            signal.raise_signal(signal.SIGKILL)

    model.register_forward_pre_hook(count)
    cache.CHUNK = 4
    FeatureCache(folder / "features", batch_size=2, runtime=Runtime(engine="auto")).features(  # selected in one process
        model,
        VitrailImageProcessor.from_pretrained(folder / "model"),
        datasets.load_from_disk(folder / "data"),
        num_cls_layers=2,
    )
    (folder / f"batches-{os.environ.get('RANK')}").write_text(str(batches))


def make_dataset(*, first=0, label=0, unreadable=()):
    """Photos of which those with a number in `unreadable` end early; `first` and `label` change its first row."""
    contents = []
    for row in range(ROWS):
        stream = io.BytesIO()
        levels = np.random.default_rng([row, first if row == 0 else 0]).integers(256, size=(20 + row, 24, 3), dtype=np.uint8)
        Image.fromarray(levels).save(stream, "PNG")
        contents.append(stream.getvalue()[: 200 if row in unreadable else None])
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    images = [{"bytes": content, "path": f"photo-{row}.png"} for row, content in enumerate(contents)]
    labels = [label, *(row % 3 for row in range(1, ROWS))]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@dataclass
class Extraction:
    """A cache, and the arguments of its features."""

    cache_dir: Path
    model: Any = field(default_factory=lambda: make_model(ViTModel, "registers"))
    image_processor: Any = field(default_factory=lambda: make_image_processor("dino", image_size=16))
    dataset: Any = field(default_factory=make_dataset)
    options: dict = field(default_factory=lambda: {"num_cls_layers": 2, "batch_size": 2})

    def run(self, **changes):
        """The features, and the number of images in each batch that the model ran."""
        batches = []
        handle = self.model.base_model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
        try:
            options = {**self.options, "views": 0, "seed": 0, "resample": int(Image.Resampling.BICUBIC), **changes}
            views, seed, resample = (options.pop(name) for name in ("views", "seed", "resample"))
            views = TrainingViews(views, seed, resample) if views else None
            num_cls_layers = options.pop("num_cls_layers")
            feature_cache = FeatureCache(self.cache_dir, **options)
            arguments = (self.model, self.image_processor, self.dataset)
            features = feature_cache.features(*arguments, num_cls_layers=num_cls_layers, views=views)
        finally:
            handle.remove()
        return features, batches

    @property
    def folder(self):
        (folder,) = self.cache_dir.iterdir()
        return folder


@pytest.fixture
def extraction(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)
    return Extraction(tmp_path / "features")


def contents(folder):
    """The bytes of a finished folder, which holds nothing else."""
    assert {path.name for path in folder.iterdir()} - {".lock"} == set(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


def uninterrupted(extraction):
    """The bytes of the same features, extracted in one go."""
    other = replace(extraction, cache_dir=extraction.cache_dir.with_name("uninterrupted"))
    other.run()
    return contents(other.folder)


@pytest.fixture
def prepared(extraction, tmp_path):
    """A folder from which SCRIPT extracts the same features, into the same cache."""
    extraction.model.save_pretrained(tmp_path / "model")
    extraction.image_processor.save_pretrained(tmp_path / "model")
    extraction.dataset.save_to_disk(tmp_path / "data")
    extraction.dataset = datasets.load_from_disk(tmp_path / "data")  # saving changes the fingerprint
    return tmp_path


def test_features_are_those_of_the_rows_in_evaluation(extraction):
    extraction.model = make_model(ViTModel, "registers", hidden_dropout_prob=0.5).train()
    features, _ = extraction.run()
    assert features.tokens.shape == (1, ROWS, 3, 32)
    assert features.tokens.dtype == np.float32
    np.testing.assert_array_equal(features.rows, range(ROWS))
    np.testing.assert_array_equal(features.labels, extraction.dataset["label"][:])
    assert (features.num_cls_layers, features.unreadable) == (2, ())
    images = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in extraction.dataset]
    with torch.no_grad():
        pixel_values = extraction.image_processor(images, return_tensors="pt")["pixel_values"]
        expected = extraction.model(pixel_values, output_hidden_states=True)
    tokens = expected.last_hidden_state
    np.testing.assert_allclose(features.tokens[0, :, 1], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(
        features.tokens[0, :, 0], extraction.model.layernorm(expected.hidden_states[-2][:, 0]).detach(), atol=1e-5
    )
    np.testing.assert_allclose(features.tokens[0, :, 2], tokens[:, 4:].mean(1), atol=1e-5)


def test_reading_again_runs_no_model_and_maps_the_file(extraction):
    first, batches = extraction.run(views=2)
    assert sum(batches) == 2 * ROWS
    again, batches = extraction.run(views=2, num_workers=1, batch_size=7, strict=True)
    assert batches == []
    assert isinstance(again.tokens, np.memmap)
    assert not again.tokens.flags.writeable
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (again.tokens[0] != again.tokens[1]).any(axis=(1, 2)).all()


def test_damaged_features_are_extracted_again(extraction, caplog):
    extraction.run()
    whole = contents(extraction.folder)
    tokens, labels = whole["tokens.npy"], io.BytesIO()
    np.save(labels, np.load(extraction.folder / "labels.npy")[::-1])
    for name, content in (
        ("tokens.npy", tokens[:-1] + bytes([tokens[-1] ^ 1])),
        ("labels.npy", labels.getvalue()),
        ("rows.npy", None),
        ("manifest.json", b"{"),
    ):
        file = extraction.folder / name
        file.unlink()  # the features of a run before may be memory-mapped
        if content is not None:
            file.write_bytes(content)
        caplog.clear()
        _, batches = extraction.run()
        assert sum(batches) == ROWS
        assert contents(extraction.folder) == whole
        assert "are damaged, and are extracted again" in caplog.text


@pytest.mark.parametrize("views", [0, 2])
def test_a_full_disk_is_an_error_and_resumes(extraction, views, monkeypatch):
    """A limit on the size of files while the array is written, as on a disk that fills up."""
    whole = extraction.run(views=views)[0].tokens
    extraction.cache_dir = extraction.cache_dir.with_name("full")
    write, limits = cache._write_array, resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_on_a_full_disk(*args):
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole.nbytes // 2, limits[1]))
        try:
            write(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    monkeypatch.setattr(cache, "_write_array", write_on_a_full_disk)
    with pytest.raises(VitrailError, match=r"cannot be completed: .*too large.* remove that folder"):
        extraction.run(views=views)
    monkeypatch.setattr(cache, "_write_array", write)
    features, batches = extraction.run(views=views)
    assert batches == []
    np.testing.assert_array_equal(features.tokens, whole)


def test_a_damaged_extraction_is_repeated_or_names_the_folder_to_remove(extraction, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_join", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            extraction.run()
    manifest = extraction.folder / "extraction" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text("{")
    with pytest.raises(VitrailError, match=r"cannot be completed: .* remove that folder"):
        extraction.run()
    manifest.write_text(whole)
    for file in (extraction.folder / "extraction" / "data").iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    features, batches = extraction.run()
    assert sum(batches) == len(features.rows)
    assert np.abs(features.tokens).max(axis=(0, 2, 3)).all()


@pytest.mark.parametrize(("name", "num_cls_layers"), [("no_cls", 2), ("registers", 0)])
def test_pooled_features_are_one_token(name, num_cls_layers, tmp_path):
    features, _ = Extraction(tmp_path, make_model(ViTModel, name, image_size=16)).run(num_cls_layers=num_cls_layers)
    assert features.tokens.shape == (1, ROWS, 1, 32)
    assert features.num_cls_layers == 0


def test_more_layers_than_there_are_means_all(tmp_path):
    features, _ = Extraction(tmp_path).run(num_cls_layers=9)
    assert features.tokens.shape == (1, ROWS, 4, 32)
    assert features.num_cls_layers == 3


def test_what_changes_no_feature_changes_no_key(tmp_path):
    extraction = Extraction(tmp_path)
    extraction.run()
    extraction.model = make_model(ViTForImageClassification, "registers", num_labels=7, classifier_mean_patch=True)
    extraction.model.vit.load_state_dict(make_model(ViTModel, "registers").state_dict())
    extraction.model.train()
    for changes in ({}, {"seed": 3}, {"batch_size": 8}):
        _, batches = extraction.run(**changes)
        assert batches == []


CHANGES = {
    "weight": {"model": lambda: randomize(make_model(ViTModel, "registers"), seed=1)},
    "dtype": {"model": lambda: make_model(ViTModel, "registers").to(torch.float64)},
    "config": {"model": lambda: make_model(ViTModel, "registers", position_interpolation_antialias=False)},
    "image processor": {"image_processor": lambda: make_image_processor("dino", image_size=16, crop_pct=0.9)},
    "image": {"dataset": lambda: make_dataset(first=1)},
    "label": {"dataset": lambda: make_dataset(label=1)},
    "layers": {"num_cls_layers": 1},
    "views": {"views": 1},
    "number of views": {"views": 3},
    "seed": {"views": 2, "seed": 1},
    "resample": {"views": 2, "resample": Image.Resampling.BILINEAR},
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_feature_has_another_key(name, tmp_path):
    extraction = Extraction(tmp_path)
    extraction.run(views=0)
    extraction.run(views=2)
    changes = dict(CHANGES[name])
    for attribute in changes.keys() & {"model", "image_processor", "dataset"}:
        setattr(extraction, attribute, changes.pop(attribute)())
    _, batches = extraction.run(**changes)
    assert batches
    assert len(list(tmp_path.iterdir())) == 3


def test_unreadable_images_are_left_out_and_listed(extraction):
    extraction.dataset = make_dataset(unreadable=(0, 4, 5, 6, 7))
    for _ in range(2):
        features, _ = extraction.run()
        np.testing.assert_array_equal(features.rows, [1, 2, 3, 8, 9, 10, 11, 12])
        np.testing.assert_array_equal(features.labels, [1, 2, 0, 2, 0, 1, 2, 0])
        assert [(image.row, image.path) for image in features.unreadable] == [(row, f"photo-{row}.png") for row in (0, 4, 5, 6, 7)]
        assert all("truncated" in image.reason for image in features.unreadable)
    with pytest.raises(UnreadableImageError, match=r"photo-0\.png"):  # also of features that are there
        extraction.run(strict=True)


@pytest.mark.parametrize(("views", "done"), [(0, 8), (2, 8), (4, 9), (9, 9)])
def test_strict_stops_at_the_first_unreadable_image_and_keeps_what_is_done(extraction, views, done):
    """A chunk is of at most 4 forward passes, but of one image at least."""
    extraction.dataset = make_dataset(unreadable=(9,))
    with pytest.raises(UnreadableImageError, match=r"photo-9\.png"):
        extraction.run(views=views, strict=True)
    _, batches = extraction.run(views=views)
    assert sum(batches) == max(views, 1) * (ROWS - 1 - done)


def test_no_image_at_all(extraction):
    extraction.dataset = make_dataset(unreadable=range(ROWS))
    with pytest.raises(VitrailError, match=r"none of the 13 images of .* can be used; photo-0\.png: .*truncated"):
        extraction.run()


def test_killed_and_repeated_computes_what_is_missing(extraction, prepared):
    assert forked.exit_code(__file__, "extract_prepared", prepared, 6) == -signal.SIGKILL
    done = list((extraction.folder / "extraction" / "data").iterdir())
    assert len(done) in (1, 2)  # files of 4 rows; the model runs ahead of the writer
    # as if killed while it wrote
    (extraction.folder / "extraction" / ".progress" / "000000-000001.part").write_bytes(done[0].read_bytes()[:100])
    _, batches = extraction.run()
    assert sum(batches) == ROWS - 4 * len(done)
    assert contents(extraction.folder) == uninterrupted(extraction)


def test_interrupted_at_each_change_of_the_folder(extraction, monkeypatch):
    """The process ends before each renaming and removal of chunks, of their records and of the finished files."""
    whole = uninterrupted(extraction)
    recomputed = []
    for place in itertools.count():
        extraction.cache_dir = extraction.cache_dir.with_name(f"features-{place}")
        calls = itertools.count()

        def interruptible(function, calls=calls, place=place):
            def call(*args, **kwargs):
                if next(calls) == place:
                    raise KeyboardInterrupt
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", interruptible(Path.replace))
            patch.setattr(shutil, "rmtree", interruptible(shutil.rmtree))
            try:
                extraction.run()
                break
            except KeyboardInterrupt:
                pass
        _, batches = extraction.run()
        recomputed.append(sum(batches))
        assert contents(extraction.folder) == whole
    assert recomputed == sorted(recomputed, reverse=True)
    assert set(recomputed) == {ROWS, ROWS - 4, ROWS - 8, ROWS - 12, 0}, "a chunk of 4 rows at a time"


def test_two_processes_give_the_bytes_of_one(extraction, prepared):
    forked.run_two(__file__, "extract_prepared", prepared)
    assert contents(extraction.folder) == uninterrupted(extraction)
    assert (prepared / "batches-0").read_text() == "[2, 2, 2, 2]"  # rows 0 to 3 and 8 to 11
    assert (prepared / "batches-1").read_text() == "[2, 2, 1]"


def test_another_process_waits_for_the_same_features(extraction):
    extraction.run()
    held = extraction.folder / ".lock"
    for name in FILES:
        (extraction.folder / name).unlink()
    with WeakFileLock(held):
        waiting = threading.Thread(target=extraction.run)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert not (extraction.folder / "extraction").exists()
    waiting.join()
    contents(extraction.folder)


@pytest.mark.parametrize("runtime", [Runtime(), Runtime("float64"), Runtime("float32", "openvino")], ids=str)
def test_weights_that_change_in_place_change_the_features(extraction, runtime, monkeypatch):
    """A cache is kept while a model is trained; `.data` changes weights without any counter that notices."""
    copies = Engine(lambda module, example, **options: copy.deepcopy(module), ("float32",), fixed_size=True)
    monkeypatch.setitem(ENGINES, "openvino", copies)  # as an engine that compiles, in no time
    feature_cache = FeatureCache(extraction.cache_dir, batch_size=4, runtime=runtime, progress=False)
    arguments = (extraction.model, extraction.image_processor, extraction.dataset)
    before = feature_cache.features(*arguments, num_cls_layers=2)
    for parameter in extraction.model.parameters():
        parameter.data.mul_(-0.5)
    after = feature_cache.features(*arguments, num_cls_layers=2)
    expected = FeatureCache(extraction.cache_dir.with_name("other"), batch_size=4, progress=False).features(
        *arguments, num_cls_layers=2
    )
    assert before.key != after.key
    np.testing.assert_allclose(after.tokens, expected.tokens, atol=0.05)
    assert np.abs(after.tokens - before.tokens).max() > 0.5
