"""JSON files: configs of all layouts, the index of shards, and every record, with odd values, without values, and damaged."""

import contextlib
import itertools
import json
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import paths
import vitrail
from damage import damage_json
from fuzzing import Fault
from image_folders import PHOTOS, small_model, small_processor, write_images
from vitrail.evaluation.results import ProbeRecord, SkippedImage
from vitrail.features.cache import FeatureCache
from vitrail.hub.saving import check_output_dir, keep_verification
from vitrail.hub.upload import stage
from vitrail.model_cards.model_folder import hash_weights
from vitrail.model_cards.records import EvaluationData
from vitrail.pretraining.architectures import new_model
from vitrail.pretraining.recipes import find_recipe
from vitrail.utils.downloads import download
from vitrail.utils.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE = Image.effect_mandelbrot((20, 16), (-2, -1, 1, 1), 9).convert("RGB")

# Keys that a config.json may have, beyond those that vitrail writes
MORE_CONFIG = (
    "torch_dtype",
    "attn_implementation",
    "_attn_implementation",
    "auto_map",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "problem_type",
    "quantization_config",
    "tie_word_embeddings",
    "use_return_dict",
    "name_or_path",
    "model_args",
    "pretrained_cfg",
    "global_pool",
    "num_features",
)
MORE_PREPROCESSOR = ("crop_pct", "feature_extractor_type", "processor_class", "backend", "size_divisor", "do_pad", "data_format")

# A file of a model's folder, by the kind of folder, with other keys that it may have, and the number of inputs
CONFIGS = {
    ("vitrail", "config.json"): (MORE_CONFIG, 250),
    ("transformers", "config.json"): (MORE_CONFIG, 100),
    ("timm", "config.json"): (MORE_CONFIG, 100),
    ("vitrail", "preprocessor_config.json"): (MORE_PREPROCESSOR, 100),
    ("transformers", "preprocessor_config.json"): (MORE_PREPROCESSOR, 100),
    ("shards", "model.safetensors.index.json"): ((), 50),
}


@pytest.mark.parametrize(("kind", "name"), CONFIGS, ids=map("-".join, CONFIGS))
def test_configs(kind, name, sources, tmp_path, fuzz):
    source = shutil.copytree(sources / kind, tmp_path / kind)
    content = json.loads((source / name).read_text())
    more, number = CONFIGS[kind, name]

    def attempt(rng):
        (source / name).write_bytes(damage_json(content, rng, more))
        model, image_processor, _ = vitrail.load(source)
        if found := re.search(r'"\w+": -?(NaN|Infinity)', model.config.to_json_string() + image_processor.to_json_string()):
            raise Fault(f"accepted {found[0]}")
        with torch.inference_mode(), contextlib.suppress(ValueError):  # of a model or an image processor that do not fit together
            model(**image_processor(IMAGE, return_tensors="pt"))

    fuzz(attempt, number)


RESULTS = ProbeRecord(
    task="linear probe",
    accuracy=0.5,
    top_5_accuracy=0.9,
    mean_per_class_accuracy=0.5,
    model={"name": "a.pth", "checkpoint": None},
    data=EvaluationData(source="photos", fingerprint="00", train_images=3, validation_images=2, labels=["a", "b"]),
    unreadable_images=[SkippedImage(split="train", row=1, path="a.jpg", reason="it is empty")],
    runtime={"precision": "float32", "engine": "torch"},
    processes=1,
    seconds={"features": 1.0},
    versions={"vitrail": "0.1"},
    best_head={"features": "cls4", "learning_rate": 0.1},
    selection="validation",
    recipe={"name": "quick", "source": "vitrail"},
    fine_tuning={"epochs": 3, "source": "DeiT"},
    heads=[{"features": "cls4", "learning_rate": 0.1, "accuracy": 0.5}],
    curves=[],
    resumed_from=None,
)


@pytest.mark.parametrize("name", ["config.json", "conversion.json", "results.json", "pretraining.json"])
def test_records_of_a_model(name, sources, tmp_path, fuzz):
    folder = tmp_path / "model"
    vitrail.convert_checkpoint(sources / "timm", folder, code=False)
    pretraining = json.loads((paths.EXAMPLES / "digits" / "pretraining.json").read_text())
    for record, content in {"results.json": RESULTS.to_dict(), "pretraining.json": pretraining}.items():
        (folder / record).write_text(json.dumps(content | {"weights_sha256": hash_weights(folder)}))
    content = json.loads((folder / name).read_text())
    numbers = itertools.count()

    def use():
        check_output_dir(folder, overwrite=True)
        stage(folder, tmp_path / str(next(numbers)), repo_id="user/name")
        keep_verification(folder, [])

    use()

    def attempt(rng):
        (folder / name).write_bytes(damage_json(content, rng))
        use()

    fuzz(attempt, 20)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 4)
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
def test_manifest_of_features(finished, images, tmp_path, fuzz):
    model, image_processor = small_model(), small_processor()
    whole, folder = tmp_path / "whole", tmp_path / "features"
    vitrail.extract(model, image_processor, images, whole, num_workers=0, progress=False)
    content = json.loads((whole / "manifest.json").read_text()) | {"finished": finished}

    def attempt(rng):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        (folder / "manifest.json").write_bytes(damage_json(content, rng))
        if not finished:
            vitrail.extract(model, image_processor, images, folder, num_workers=0, progress=False)
        stored = vitrail.StoredFeatures(folder)
        return stored.vectors(), stored.paths(), stored.labels(), stored.errors()

    fuzz(attempt, 15)


def test_manifest_of_the_cache(tmp_path, fuzz):
    model, image_processor, cache = small_model(), small_processor(), FeatureCache(tmp_path, progress=False)
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])})
    images = datasets.Dataset.from_dict({"image": [str(path) for path in PHOTOS], "label": [0, 1, 0]}, features=features)
    cache.features(model, image_processor, images)
    manifest = next(tmp_path.glob("*/manifest.json"))
    content = json.loads(manifest.read_text())

    def attempt(rng):
        manifest.write_bytes(damage_json(content, rng))
        return np.array(cache.features(model, image_processor, images).tokens)

    fuzz(attempt, 15)


SETTINGS = {"recipe": {"name": "dino", "epochs": 3}, "seed": 7, "data": "00", "model": None}


def begin_run(folder):
    RunFolder(folder).begin(SETTINGS, has_results=True)


# Files that are read on their own: their name and content, and the function that is given their path
FILES = {
    "run.json": (SETTINGS, lambda path: begin_run(path.parent)),
    "recipe.json": (json.loads((paths.EXAMPLES / "digits" / "recipe.json").read_text()), lambda path: find_recipe(str(path))),
    "config.json": (vitrail.ViTConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16).to_dict(), None),
}


@pytest.mark.parametrize("name", FILES)
def test_other_files(name, tmp_path, fuzz):
    content, read = FILES[name]
    read = read or (lambda path: new_model(str(path), image_size=16, seed=0))

    def attempt(rng):
        (tmp_path / name).write_bytes(damage_json(content, rng))
        return read(tmp_path / name)

    fuzz(attempt, 60)


def test_record_of_a_download(http_server, page, tmp_path, fuzz):
    url = f"{http_server.url}/weights.pth"
    http_server.pages["/weights.pth"] = page(b"0123456789", headers={"ETag": '"1"'})
    path = download(url, cache_dir=tmp_path, progress=False)
    record = path.with_name(f"{path.name}.json")
    content = json.loads(record.read_text())

    def attempt(rng):
        damaged = damage_json(content, rng)
        if rng.random() < 0.5:  # the download was interrupted
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.part").write_bytes(b"0123")
        record.write_bytes(damaged)
        return download(url, cache_dir=tmp_path, progress=False).read_bytes()

    fuzz(attempt, 30, expected=b"0123456789")
