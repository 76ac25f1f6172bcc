"""Linear heads for segmentation and depth: against another solver, and as a folder that loads."""

import copy
import dataclasses
import json
import shutil
import types

import datasets
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import vitrail
from small_models import tiny_model
from vitrail.data.decoding import open_image
from vitrail.data.dense import load_dense_images
from vitrail.data.digits import png
from vitrail.errors import VitrailError
from vitrail.evaluation.dense_probe import DenseHead, dense_config
from vitrail.evaluation.dense_probing import probe_dense
from vitrail.evaluation.dense_recipes import DENSE_RECIPES, make_dense_schedule
from vitrail.features.cache import FeatureCache
from vitrail.processing.image_processing_vit import VitrailImageProcessor

SIDE, PATCH, GRID = 16, 4, 4
SHORT = {
    task: dataclasses.replace(DENSE_RECIPES[task]["dinov3"], learning_rate=0.1, max_epochs=100, batch_size=48)
    for task in ("segmentation", "depth")
}


def scenes(count, seed, *, task="segmentation"):
    """Two bright squares of a color and a size each on noise, of 20 x 16 pixels, with the color as class or as depth."""
    rng = np.random.default_rng(seed)
    columns = {"image": [], "target": []}
    for _ in range(count):
        image, target = rng.integers(0, 120, (20, 16, 3)), np.zeros((20, 16))
        for color in rng.integers(0, 3, 2):
            y, x, side = *rng.integers(0, 10, 2), rng.integers(4, 7)
            place = np.s_[y : y + side, x : x + side]
            image[place] += rng.integers(0, 60) + 70 * np.eye(3, dtype=int)[color]
            target[place] = color + 1
        if task == "depth":
            target = 1000 * (1 + target)  # millimeters
        target[0, :3] = 255 if task == "segmentation" else 0
        columns["image"].append({"bytes": png(image.clip(0, 255).astype(np.uint8)), "path": None})
        columns["target"].append({"bytes": png(target.astype(np.uint8 if task == "segmentation" else np.uint16)), "path": None})
    return datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image())))


def make_data(task):
    splits = datasets.DatasetDict({"train": scenes(48, 0, task=task), "validation": scenes(24, 1, task=task)})
    return load_dense_images(splits, task=task, target_column="target", image_column="image")


@pytest.fixture(scope="module")
def backbone():
    model = tiny_model(hidden_size=16, image_size=SIDE, patch_size=PATCH, initializer_range=0.3)
    return model, VitrailImageProcessor(size={"shortest_edge": 20}, crop_size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module", params=["segmentation", "depth"])
def finished(request, backbone, tmp_path_factory):
    """A probe of each task: its data, folder and results."""
    folder = tmp_path_factory.mktemp(request.param)
    data = make_data(request.param)
    cache = FeatureCache(folder / "cache", progress=False)
    results = probe_dense(*backbone, data, output_dir=folder / "model", recipe=SHORT[request.param], cache=cache)
    return data, folder / "model", results, cache


def upsampling(length, grid):
    """Bilinear interpolation of a grid to a length, as a matrix (length, grid), with the corners of the pixels aligned."""
    matrix = np.zeros((length, grid))
    for row in range(length):
        position = min(max((row + 0.5) * grid / length - 0.5, 0), grid - 1)
        low = int(position)
        matrix[row, low] += 1 - (position - low)
        matrix[row, min(low + 1, grid - 1)] += position - low
    return matrix


def solve(tokens, masks, num_classes):
    """The linear layer of least cross entropy by L-BFGS of SciPy, in float64: (D + 1, K)."""
    rows = upsampling(SIDE, GRID)
    inputs = np.einsum("yh,xw,nhwd->nyxd", rows, rows, tokens).reshape(-1, tokens.shape[-1])
    inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    labels = masks.ravel()
    inputs, labels = inputs[labels != 255], labels[labels != 255]

    def loss(flat):
        logits = inputs @ flat.reshape(-1, num_classes)
        logits -= logits.max(1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(1, keepdims=True)
        picked = probabilities[np.arange(len(labels)), labels]
        probabilities[np.arange(len(labels)), labels] -= 1
        return -np.log(picked).mean(), (inputs.T @ probabilities / len(labels)).ravel()

    return minimize(loss, np.zeros(inputs.shape[1] * num_classes), jac=True, method="L-BFGS-B").x.reshape(-1, num_classes)


def test_the_head_is_that_of_another_solver(finished, backbone):
    data, _, results, _ = finished
    if data.task == "depth":  # whose loss another solver does not share: compared with the best constant
        depths = np.concatenate([data.target_format.read(row["target"], name="").ravel() for row in data.validation])
        assert results["scores"]["rmse"] < 0.8 * depths[depths > 0].std()
        return
    processor = VitrailImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    tokens = {}
    for name, split in (("train", data.train), ("validation", data.validation)):
        pixel_values = processor([open_image(row["image"]) for row in split], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            tokens[name] = backbone[0](pixel_values).last_hidden_state[:, 1:].unflatten(1, (GRID, GRID)).double().numpy()
    targets = {
        name: [data.target_format.read(row["target"], name="") for row in split]
        for name, split in (("train", data.train), ("validation", data.validation))
    }
    # row i of 16 shows the pixel of 20 rows that its center falls into
    nearest = ((np.arange(SIDE) + 0.5) * 20 / SIDE).astype(int)
    weight = solve(tokens["train"], np.stack(targets["train"])[:, nearest], 4)
    rows, columns = upsampling(20, GRID), upsampling(16, GRID)
    logits = np.einsum("yh,xw,nhwk->nyxk", rows, columns, tokens["validation"] @ weight[:-1] + weight[-1])
    expected = vitrail.MeanIoU(4).compute(predictions=list(logits.argmax(-1)), references=targets["validation"])
    assert results["scores"]["mean_iou"] == pytest.approx(expected["mean_iou"], abs=0.01)
    assert expected["mean_iou"] > 0.3


def test_the_folder_has_the_scores_that_it_states(finished):
    """The loaded model runs from images to maps, and another metric object finds the scores of results.json and of the card."""
    data, folder, results, _ = finished
    model, processor, _ = vitrail.load(folder)
    inputs = processor([open_image(row["image"]) for row in data.validation], return_tensors="pt")
    targets = [data.target_format.read(row["target"], name="") for row in data.validation]
    with torch.inference_mode():
        outputs = model(**inputs)
    if data.task == "segmentation":
        maps, metric = processor.post_process_semantic_segmentation(outputs, [(20, 16)] * 24), vitrail.MeanIoU(4)
        row = f"| mean intersection over union (mIoU) | {100 * results['scores']['mean_iou']:.1f} % |"
    else:
        maps = [one["predicted_depth"] for one in processor.post_process_depth_estimation(outputs, [(20, 16)] * 24)]
        metric = vitrail.DepthErrors((0.001, 10.0))
        row = f"| root mean squared error | {results['scores']['rmse']:.3f} m |"
    found = metric.compute(predictions=[one.numpy() for one in maps], references=targets)
    assert found == pytest.approx(results["scores"], rel=0.02)
    stored = json.loads((folder / "results.json").read_text())
    assert stored["scores"] == results["scores"]
    assert stored["task"] == f"{data.task} probe"
    assert {"curves.png", "README.md"} <= {file.name for file in folder.iterdir()}
    assert (folder / "confusion.png").exists() == (data.task == "segmentation")
    assert row in (folder / "README.md").read_text()
    assert [point["update"] for point in results["curves"]][-1] == results["recipe"]["updates"] == 100


def test_slices_of_an_update_add_up(backbone):
    """The loss of a batch is the sum of the losses of its slices, as processes and accumulation steps divide it."""
    rng = np.random.default_rng(0)
    for task in ("segmentation", "depth"):
        names = ("a", "b", "c") if task == "segmentation" else ()
        config = dense_config(backbone[0].config, label_names=names, depth_range=(0.001, 10.0))
        head = DenseHead(config, task, (GRID, GRID), seed=0).train()
        tokens = torch.from_numpy(rng.normal(size=(6, GRID**2, 16))).float()
        labels = torch.from_numpy(rng.integers(0, 3, (6, 8, 8)))
        labels[:2, :5] = -100
        if task == "depth":
            labels = labels.clamp(min=0).float()
        count = labels.ne(-100).sum()
        whole = head(tokens, labels)["loss"]
        parts = sum(
            head(tokens[part], labels[part], num_items_in_batch=count)["loss"] for part in (slice(0, 1), slice(1, 6), slice(6, 6))
        )
        torch.testing.assert_close(parts, whole)


def test_the_batch_norm_has_the_moments_of_all_tokens(backbone):
    tokens = np.random.default_rng(0).normal(3, 2, size=(300, 5, 16)).astype(np.float32)
    head = DenseHead(
        dense_config(backbone[0].config, label_names=("a", "b"), depth_range=(0.001, 10.0)), "segmentation", (1, 5), seed=0
    )
    head.fit_batch_norm(tokens)
    expected = torch.nn.BatchNorm1d(16, momentum=1.0, affine=False)(torch.from_numpy(tokens.reshape(-1, 16)))
    found = head.train().head.batch_norm(torch.from_numpy(tokens.reshape(-1, 16, 1, 1)))[..., 0, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("num_rows", "updates", "warmup"), [(20_210, 40_000, 1500), (160, 1000, 38), (8, 100, 4)])
def test_small_data_gets_fewer_iterations(num_rows, updates, warmup):
    schedule = make_dense_schedule(DENSE_RECIPES["segmentation"]["dinov2"], num_rows, seed=0)
    assert (schedule.num_updates, schedule.warmup) == (updates, warmup)
    middle = warmup + (updates - warmup) // 2
    assert schedule.learning_rate_factor(middle) == pytest.approx((updates - middle) / (updates - warmup))


def test_tokens_that_do_not_fit_on_the_disk(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=9 * 10**4))
    with pytest.raises(VitrailError, match=r"the patch tokens of 48 images take 9\.83e-05 GB, .* has 9e-05 GB free"):
        probe_dense(*backbone, make_data("depth"), output_dir=tmp_path / "model", cache=FeatureCache(tmp_path, progress=False))


def test_recipes_belong_to_tasks(backbone, tmp_path):
    with pytest.raises(VitrailError, match=r'There is no recipe "dinov2" for depth: choose dinov3'):
        probe_dense(*backbone, make_data("depth"), output_dir=tmp_path / "model", recipe="dinov2")


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_dense_probe_on_cuda(task, backbone, cuda, tmp_path):
    model, image_processor = copy.deepcopy(backbone[0]), backbone[1]
    cache = FeatureCache(tmp_path / "cache", progress=False)
    results = probe_dense(model, image_processor, make_data(task), output_dir=tmp_path / "model", recipe=SHORT[task], cache=cache)
    assert model.device.type == "cuda"
    assert np.isfinite(list(results["scores"].values())).all()
    vitrail.load(tmp_path / "model")
