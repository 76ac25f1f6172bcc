"""What evaluations cost on features that are in the cache: logistic regression, the heads of a probe, and k-NN; and at ImageNet's size.

Logistic regression: DINOv2's 45 values of C on the features of 809 digits by the checkpoint on board, in one thread, against scikit-learn's
default solver with at most 1,000 iterations. `excess` is the largest difference of the loss per image from the lowest loss that either
found.

Heads: updates of `quick` on features as wide as ViT-S, 256 rows and 10 classes each; one head, its 52 heads, and a plain loop that runs 52
layers after each other, as DINOv2's code does.

ImageNet's size: 1,281,167 random vectors of 768 numbers around the centers of 10 classes. `memory_gib` is the peak of a process beyond
its libraries and the features, which take 3.7 GiB in float32. Each piece of work runs once.
"""

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .timing import interleaved

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "dino_vit_digits.pth"
IMAGES, WIDTH, CLASSES, QUERIES = 1_281_167, 768, 10, 1000
UPDATES, REPEATS = 200, 5
Row = dict[str, Any]


def run() -> list[Row]:
    """Rows of seconds, with their ratio to the first row of the same work."""
    rows = [row for work in (logistic, heads) for row in work()]
    for work in (imagenet_knn, imagenet_logistic):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            rows.append(process.submit(work).result())
    return rows


def row(work: str, way: str, seconds: float, *, ratio: float = 1.0, excess: float | str = "", memory: float | str = "") -> Row:
    return {
        "work": work,
        "way": way,
        "seconds": round(seconds, 3),
        "ratio": round(ratio, 2),
        "excess": excess,
        "memory_gib": memory,
    }


def logistic() -> list[Row]:
    import torch
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    import vitrail
    from vitrail.evaluation.logistic import C_GRID, _fits, fit_logistic
    from vitrail.evaluation.pooled_evaluation import PooledVectors
    from vitrail.features.cache import FeatureCache

    torch.set_num_threads(1)
    model, image_processor, report = vitrail.load(DIGITS)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, progress=False)
        vectors = PooledVectors(model, image_processor, vitrail.load_labeled_images("digits"), cache, report)
    features, labels = vectors.train, vectors.train_labels
    rows = np.arange(len(labels)) % 10 > 0
    tensors = torch.from_numpy(features), torch.from_numpy(labels)
    found: dict[str, list[float]] = {}

    def ours() -> None:
        fits = _fits(*tensors, np.flatnonzero(rows), 10, C_GRID)
        found["vitrail"] = [loss(weight.numpy(), bias.numpy(), strength) for strength, weight, bias, _ in fits]

    def theirs() -> None:
        fits = ((C, LogisticRegression(C=C, max_iter=1000).fit(features[rows], labels[rows])) for C in C_GRID)
        found["scikit-learn"] = [loss(fit.coef_, fit.intercept_, strength) for strength, fit in fits]

    def loss(weight: np.ndarray, bias: np.ndarray, strength: float) -> float:
        logits = features[rows].astype(np.float64) @ weight.T + bias
        errors = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), labels[rows]]
        return errors.mean() + (weight**2).sum() / (2 * strength * len(logits))

    with threadpool_limits(1):
        seconds = interleaved({"vitrail": ours, "scikit-learn": theirs}, repeats=3, seconds=120)
        command = interleaved({"command": lambda: fit_logistic(features, labels)}, repeats=3)["command"]
    lowest = np.minimum(*found.values())
    excess = {way: f"{(losses - lowest).max():.0e}" for way, losses in found.items()}
    work = "45 values of C, 809 digits"
    return [
        *(row(work, way, time, ratio=time / seconds["vitrail"], excess=excess[way]) for way, time in seconds.items()),
        row("vitrail logistic, 899 digits in three folds", "vitrail", command),
    ]


def heads() -> list[Row]:
    import torch
    from transformers.utils import logging

    from vitrail.evaluation.linear_probe import LinearHeads, ProbeTrainer, token_slice
    from vitrail.evaluation.recipes import MOMENTUM, Head, Recipe, find_recipe, make_schedule
    from vitrail.evaluation.training import training_arguments
    from vitrail.evaluation.training_data import FeatureRows

    logging.set_verbosity_error()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(1, 899, 5, 384)).astype(np.float32)
    data = FeatureRows(tokens, rng.integers(10, size=899))
    quick = replace(find_recipe("quick"), iterations=UPDATES)

    def heads_of(recipe: Recipe) -> list[Head]:
        return [Head(rate, *choice) for choice in recipe.features for rate in recipe.learning_rates]

    def train(recipe: Recipe) -> None:
        schedule = make_schedule(recipe, 899, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            ProbeTrainer(
                heads=heads_of(recipe),
                schedule=schedule,
                model=LinearHeads(heads_of(recipe), token_size=384, num_cls_layers=4, num_labels=10, seed=0),
                args=training_arguments(
                    Path(folder), schedule, seed=0, device_batch_size=None, num_workers=0, evaluate_every=UPDATES
                ),
                train_dataset=data,
                eval_dataset=data,
                progress=False,
            ).train()

    def plain() -> None:
        slices = [token_slice((head.num_cls_layers, head.mean_patch), 4) for head in heads_of(quick)]
        linears = [torch.nn.Linear(384 * (one.stop - one.start), 10) for one in slices]
        groups = [{"params": linear.parameters(), "lr": 0.01} for linear in linears]
        optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
        for rows in make_schedule(quick, 899, seed=0).updates():
            batch = data.__getitems__(rows)
            losses = [
                torch.nn.functional.cross_entropy(linear(batch["features"][:, one].flatten(1)), batch["labels"])
                for linear, one in zip(linears, slices, strict=True)
            ]
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()

    runs: dict[str, Callable[[], None]] = {
        "vitrail, 1 head": lambda: train(replace(quick, learning_rates=(0.01,), features=((4, True),))),
        "vitrail, 52 heads": lambda: train(quick),
        "plain loop, 52 layers": plain,
    }
    seconds = interleaved(runs, repeats=REPEATS)
    return [row(f"{UPDATES} updates of heads", way, time, ratio=time / seconds["vitrail, 1 head"]) for way, time in seconds.items()]


def imagenet() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=IMAGES)
    features = np.empty((IMAGES, WIDTH), np.float32)
    centers = rng.normal(size=(CLASSES, WIDTH)).astype(np.float32) / 10
    for start in range(0, IMAGES, 2**14):
        part = slice(start, start + 2**14)
        features[part] = rng.standard_normal(features[part].shape, np.float32) + centers[labels[part]]
    return features, labels


def measured(work: str, call: Callable[[np.ndarray, np.ndarray], object]) -> Row:
    """The row of a call; the peak of memory before it is that of the features and the libraries."""
    features, labels = imagenet()
    call(features[:5000], labels[:5000])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    call(features, labels)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return row(work, "vitrail", seconds, memory=round((peak - before) / 2**20, 2))


def imagenet_knn() -> Row:
    from vitrail.evaluation.knn import knn_classify

    work = f"k-NN of {QUERIES} images, {IMAGES} x {WIDTH}"
    return measured(work, lambda features, labels: knn_classify(features, labels, features[:QUERIES], num_classes=CLASSES))


def imagenet_logistic() -> Row:
    from vitrail.evaluation.logistic import fit_logistic

    work = f"logistic regression, one C, {IMAGES} x {WIDTH}, {CLASSES} classes"
    return measured(work, lambda features, labels: fit_logistic(features, labels, grid=(0.01,)))
