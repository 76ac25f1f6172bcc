"""The whole job: from images to a folder that transformers loads."""

import copy
import dataclasses
import hashlib
import io
import json
import math
import signal
import warnings
from types import MappingProxyType

import datasets
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import forked
import vitrail
from small_models import classifier_tokens, tiny_config
from vitrail.data.labeled import LabeledImages
from vitrail.errors import UnreadableImageError, VitrailError
from vitrail.evaluation import training
from vitrail.evaluation.linear_probe import merge_head, token_slice
from vitrail.evaluation.probing import check_better, probe
from vitrail.evaluation.recipes import RECIPES, Head, Recipe, make_schedule, recipe_heads
from vitrail.features.cache import FeatureCache
from vitrail.hub.saving import save
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.processing.image_processing_vit import VitrailImageProcessor

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
NAMES = ("red", "green", "blue", "gray")
COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (120, 120, 120)])
# Few heads and updates; the last batch of an epoch has less rows than the others
PLAIN = Recipe("plain", "this test", (0.01, 0.1), ((1, False), (2, True)), batch_size=16, epochs=4, augmented=False)
AUGMENTED = dataclasses.replace(PLAIN, name="augmented", augmented=True, resample=int(Image.Resampling.BILINEAR))


def noisy_colors(count, seed):
    """Images of four colors, which differ in size, as PNG bytes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    images = []
    for row, label in enumerate(labels):
        shape = (*rng.integers(10, 24, size=2), 3)
        noise = rng.normal(0, 60, size=shape) + COLORS[label]
        stream = io.BytesIO()
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
        images.append({"bytes": stream.getvalue(), "path": f"{seed}-{row}.png"})
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels},
        features=datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(NAMES))}),
    )


def with_unreadable_image(half, row):
    entries = half["image"][:]
    entries[row] = {"bytes": b"not an image", "path": "bad.png"}
    return datasets.Dataset.from_dict({"image": entries, "label": half["label"][:]}, features=half.features)


def make_data(train=None, validation=None):
    train = train or noisy_colors(41, seed=1)
    validation = validation or noisy_colors(21, seed=2)
    return LabeledImages(train, validation, NAMES, "colors", f"{train._fingerprint}-{validation._fingerprint}")


@pytest.fixture(scope="module")
def colors():
    return make_data()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ViTModel(tiny_config(**SMALL, initializer_range=0.2, use_mask_token=True)).eval()


@pytest.fixture(scope="module")
def image_processor():
    return VitrailImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)


@pytest.fixture(scope="module")
def run(model, image_processor, colors, tmp_path_factory):
    """Runs a probe, with features in a cache that all tests share."""
    cache_dir = tmp_path_factory.mktemp("cache")

    def call(output_dir, *, data=colors, recipe=PLAIN, reading=MappingProxyType({}), **options):
        cache = FeatureCache(cache_dir, progress=False, **reading)
        return probe(model, image_processor, data, recipe=recipe, output_dir=output_dir, cache=cache, **options)

    return call


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "model"
    return folder, run(folder)


def same_results(one, other):
    """Return the results without the fields that depend on when, and in how many pieces, a run was made."""
    return all(json.dumps(one[name]) == json.dumps(other[name]) for name in one.keys() - {"seconds", "resumed_from", "processes"})


def test_the_folder_is_a_model_with_the_names_of_the_classes(finished, image_processor, colors):
    folder, results = finished
    assert {path.name for path in folder.iterdir()} >= {
        "model.safetensors",
        "results.json",
        "curves.png",
        "heads.png",
        "confusion.png",
    }
    assert not folder.with_name("model.run").exists()
    classifier = pipeline("image-classification", model=str(folder))
    pictures = [Image.open(io.BytesIO(entry["bytes"])) for entry in colors.validation["image"][:]]
    predicted = [output[0]["label"] for output in classifier(pictures)]
    truth = [NAMES[label] for label in colors.validation["label"][:]]
    assert np.mean([one == other for one, other in zip(predicted, truth, strict=True)]) == pytest.approx(results["accuracy"])
    assert results["accuracy"] > 0.8
    assert AutoImageProcessor.from_pretrained(folder).to_dict() == image_processor.to_dict()


def test_the_merged_model_gives_the_logits_of_the_head(finished, model, image_processor, colors):
    folder, results = finished
    merged = AutoModelForImageClassification.from_pretrained(folder)
    best = results["best_head"]
    assert (merged.config.classifier_cls_layers, merged.config.classifier_mean_patch) == (
        best["num_cls_layers"],
        best["mean_patch"],
    )
    pictures = [Image.open(io.BytesIO(entry["bytes"])) for entry in colors.validation["image"][:]]
    pixel_values = image_processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = classifier_tokens(model, pixel_values, num_cls_layers=3)
        tokens = token_slice((best["num_cls_layers"], best["mean_patch"]), 3)
        expected = merged.classifier(features[:, tokens].flatten(1))
        torch.testing.assert_close(merged(pixel_values).logits, expected, rtol=0, atol=1e-5)
        for name, tensor in model.state_dict().items():
            assert torch.equal(merged.vit.state_dict()[name], tensor), name


def test_results_contain_everything(finished, colors):
    folder, results = finished
    written = json.loads((folder / "results.json").read_text())
    assert written.pop("weights_sha256") == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert written == json.loads(json.dumps(results))
    assert written["recipe"] == json.loads(json.dumps(dataclasses.asdict(PLAIN))) | {"views": 0, "seed": 0}
    assert written["data"] == {
        "source": "colors",
        "fingerprint": colors.fingerprint,
        "train_images": 41,
        "validation_images": 21,
        "labels": list(NAMES),
    }
    assert [head["name"] for head in written["heads"]] == [
        "[CLS], lr 0.01",
        "[CLS], lr 0.1",
        "[CLS] of 2 blocks + mean patch, lr 0.01",
        "[CLS] of 2 blocks + mean patch, lr 0.1",
    ]
    scores = [head["accuracy"] for head in written["heads"]]
    assert written["best_head"] == written["heads"][scores.index(max(scores))]
    assert written["accuracy"] == max(scores)
    assert written["top_5_accuracy"] == 1  # of four classes
    assert 0 < written["mean_per_class_accuracy"] <= 1
    assert [point["update"] for point in written["curves"]] == [3, 6, 9, 12]
    assert [point["epoch"] for point in written["curves"]] == [1, 2, 3, 4]
    for point in written["curves"]:
        assert len(point["losses"]) == len(point["accuracy"]) == 4
    assert written["unreadable_images"] == []
    assert written["versions"].keys() >= {"vitrail", "torch", "transformers", "datasets"}
    assert (written["resumed_from"], written["processes"], written["fine_tuning"]) == (None, 1, None)
    assert set(written["seconds"]) == {"features", "heads", "fine_tuning"}


def test_the_same_call_gives_the_same_bytes(run, finished, tmp_path):
    again = run(tmp_path / "model")
    assert same_results(again, finished[1])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    other = run(tmp_path / "other", seed=1)
    assert other["curves"] != again["curves"]


def test_images_and_cached_views_of_every_epoch_are_the_same(run, tmp_path):
    """Without views each epoch draws again; with as many views as epochs the same draws come from the cache."""
    on_images = run(tmp_path / "images", recipe=AUGMENTED, reading={"batch_size": 5})
    cached = run(tmp_path / "views", recipe=AUGMENTED, views=4)
    for one, other in zip(on_images["curves"], cached["curves"], strict=True):
        np.testing.assert_allclose(one["losses"], other["losses"], atol=1e-5)
    few = run(tmp_path / "few", recipe=AUGMENTED, views=2)
    assert np.abs(np.subtract(few["curves"][-1]["losses"], cached["curves"][-1]["losses"])).max() > 1e-4


def test_unreadable_images_are_left_out_and_reported(run, colors, tmp_path):
    data = make_data(with_unreadable_image(colors.train, 7), with_unreadable_image(colors.validation, 3))
    results = run(tmp_path / "model", data=data, recipe=AUGMENTED)
    assert (results["data"]["train_images"], results["data"]["validation_images"]) == (40, 20)
    assert [(image["split"], image["row"], image["path"]) for image in results["unreadable_images"]] == [
        ("train", 7, "bad.png"),
        ("validation", 3, "bad.png"),
    ]
    cached = run(tmp_path / "views", data=data, recipe=AUGMENTED, views=4)
    for one, other in zip(results["curves"], cached["curves"], strict=True):
        np.testing.assert_allclose(one["losses"], other["losses"], atol=1e-5)
    with pytest.raises(UnreadableImageError, match=r"bad\.png"):
        run(tmp_path / "strict", data=data, reading={"strict": True})


def test_a_second_run_into_the_same_output_is_refused(run, tmp_path):
    (tmp_path / "model.run").mkdir()
    with FileLock(tmp_path / "model.run" / ".lock"), pytest.raises(VitrailError, match="in use by another run"):
        run(tmp_path / "model")
    run(tmp_path / "model")
    assert not (tmp_path / "model.run").exists()


def test_an_output_that_cannot_be_written_is_refused_before_any_work(run, colors, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(VitrailError, match="is a file; expected the name of a folder"):
        run(tmp_path / "file")
    with pytest.raises(VitrailError, match="files that do not belong to a model"):
        run(tmp_path)
    with pytest.raises(VitrailError, match="has one class, 'red'"):
        run(tmp_path / "model", data=dataclasses.replace(make_data(colors.train, colors.validation), label_names=("red",)))
    with pytest.raises(VitrailError, match="leave out views=3"):
        run(tmp_path / "model", views=3)
    with pytest.raises(VitrailError, match="no recipe"):
        run(tmp_path / "model", recipe="dinov3")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_head_that_has_learned_is_refused(run, tmp_path):
    recipe = dataclasses.replace(PLAIN, learning_rates=(math.inf,))
    with pytest.raises(VitrailError, match="all heads of the recipe plain diverged"):
        run(tmp_path / "model", recipe=recipe)
    assert not (tmp_path / "model").exists()


def run_alone(folder, kill_at=0):
    """A probe of what `prepared` has put into a folder, which dies at an update."""
    if kill_at:

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == kill_at:
                signal.raise_signal(signal.SIGKILL)

        training.KeepLastCheckpoint.on_step_end = on_step_end
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    model, image_processor, _ = vitrail.load(folder / "backbone")
    cache = FeatureCache(folder / "cache", progress=False)
    options = {"recipe": AUGMENTED, "unfreeze_epochs": 1, "cache": cache}
    probe(model, image_processor, make_data(), output_dir=folder / "model", **options)


@pytest.fixture
def prepared(model, image_processor, tmp_path):
    save(model, image_processor, tmp_path / "backbone", code=False)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted") / "model"
    return folder, run(folder, recipe=AUGMENTED, unfreeze_epochs=1)


def test_killed_in_training_and_resumed_ends_with_the_same_numbers(prepared, run, uninterrupted):
    assert forked.exit_code(__file__, "run_alone", prepared, 8) == -signal.SIGKILL
    assert not (prepared / "model").exists()
    assert (prepared / "model.run" / "heads" / "checkpoint-6").is_dir()
    with pytest.raises(VitrailError, match=r"begun with different settings \(recipe.* was .*, is .*\): repeat the run"):
        run(prepared / "model", recipe=PLAIN, seed=1)
    results = run(prepared / "model", recipe=AUGMENTED, unfreeze_epochs=1)
    assert results["resumed_from"] == 6
    assert same_results(results, uninterrupted[1])
    weights = [folder.joinpath("model.safetensors").read_bytes() for folder in (prepared / "model", uninterrupted[0])]
    assert weights[0] == weights[1]
    assert not (prepared / "model.run").exists()


def test_two_processes_give_the_numbers_of_one(prepared, uninterrupted):
    """41 rows in batches of 16: the last batch of an epoch has 9 rows, which go to the processes as 5 and 4."""
    forked.run_two(__file__, "run_alone", prepared)
    results = json.loads((prepared / "model" / "results.json").read_text())
    folder, expected = uninterrupted
    assert results["processes"] == 2
    assert results["accuracy"] == expected["accuracy"]
    assert [head["accuracy"] for head in results["heads"]] == [head["accuracy"] for head in expected["heads"]]
    for one, other in zip(results["curves"], expected["curves"], strict=True):
        np.testing.assert_allclose(one["losses"], other["losses"], atol=1e-5)
        assert one["accuracy"] == other["accuracy"]
    fine_tuned, expected = (load_file(path / "model.safetensors") for path in (prepared / "model", folder))
    for name, tensor in expected.items():
        torch.testing.assert_close(fine_tuned[name], tensor, rtol=0, atol=1e-5, msg=name)


MERGES = {
    "pooled": ({"pooling": "avg", "norm_before_pooling": False}, Head(0.1, 0, False)),
    "no [CLS]": ({"pooling": "avg", "use_cls_token": False}, Head(0.1, 0, False)),
    "representation": ({"representation_size": 5}, Head(0.1, 0, False)),
    "[CLS] of a model that pools otherwise": ({"pooling": "avg"}, Head(0.1, 1, False)),
    "mean patch": ({"pooling": "cls+avg", "num_register_tokens": 2}, Head(0.1, 1, True)),
    "blocks": ({"layer_scale_init_value": 0.5}, Head(0.1, 3, False)),
    "blocks and mean patch": ({"classifier_cls_layers": 2}, Head(0.1, 3, True)),
}


@pytest.mark.parametrize("name", MERGES)
def test_heads_of_any_model_merge(name, tmp_path):
    fields, head = MERGES[name]
    torch.manual_seed(0)
    backbone = ViTModel(tiny_config(**SMALL, **fields, initializer_range=0.3)).eval()
    assert (head.num_cls_layers > 0) == (recipe_heads(RECIPES["dino"], backbone.config)[0].num_cls_layers > 0)
    num_cls_layers = 3 if head.num_cls_layers else 0
    pixel_values = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        features = classifier_tokens(backbone, pixel_values, num_cls_layers=num_cls_layers)
        inputs = features[:, token_slice((head.num_cls_layers, head.mean_patch), num_cls_layers)].flatten(1)
        weight, bias = torch.randn(4, inputs.shape[1]), torch.randn(4)
        merged = merge_head(backbone, head, weight, bias, NAMES)
        torch.testing.assert_close(merged(pixel_values).logits, inputs @ weight.T + bias, rtol=0, atol=1e-5)
        merged.save_pretrained(tmp_path)
        again = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(again(pixel_values).logits, merged(pixel_values).logits)
    assert again.config.label2id == {name: number for number, name in enumerate(NAMES)}


def test_fine_tuning_that_lowers_the_accuracy_is_named(caplog):
    check_better(np.array([[0], [1]]), np.array([0, 0]), {"accuracy": 0.4})
    assert not caplog.records
    check_better(np.array([[0], [1]]), np.array([0, 0]), {"accuracy": 0.8})
    assert "lowers the accuracy of the best head from 80.0% to 50.0%" in caplog.text


def test_heads_train_where_features_are_computed(monkeypatch, tmp_path):
    """A user may ask for the CPU where there is a GPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    schedule = make_schedule(PLAIN, 41, seed=0)
    args = training.training_arguments(tmp_path, schedule, seed=0, device_batch_size=None, num_workers=0, evaluate_every=1)
    assert args.use_cpu


@pytest.mark.parametrize("recipe", [PLAIN, AUGMENTED], ids=["plain", "augmented"])
def test_a_probe_on_cuda(recipe, model, image_processor, colors, cuda, tmp_path):
    on_gpu = copy.deepcopy(model)
    results = probe(
        on_gpu,
        image_processor,
        colors,
        recipe=recipe,
        output_dir=tmp_path / "model",
        cache=FeatureCache(tmp_path / "cache", progress=False),
        unfreeze_epochs=1,
    )
    assert on_gpu.device.type == "cuda"
    assert results["accuracy"] > 0.6
    vitrail.load(tmp_path / "model")
