"""Classification metrics as `evaluate` modules that need no network.

The same objects serve `evaluate.evaluator("image-classification")`, which passes the predicted class of each image, and
the Trainer (`make_compute_metrics`), which may pass several classes, the most probable first. All values are from 0 to 1.
"""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

from ..errors import VitrailError

TOP = 5

CITATION = """@article{russakovsky2015imagenet, title={{ImageNet} Large Scale Visual Recognition Challenge},
author={Russakovsky, Olga and Deng, Jia and Su, Hao and others}, journal={IJCV}, year={2015}}"""

INPUTS = """
Args:
    predictions: the class of each image, (N,) int, or its most probable classes, the most probable first, (N, k) int.
    references: the true class of each image, (N,) int.
"""

FEATURES = [
    datasets.Features({"predictions": predictions, "references": datasets.Value("int64")})
    for predictions in (datasets.Value("int64"), datasets.List(datasets.Value("int64")))
]


class TopKAccuracy(evaluate.Metric):
    """The share of images whose true class is among the `k` most probable ones.

    `compute(predictions=, references=)` returns {"accuracy"} for k = 1, or {"top_5_accuracy"} for k = 5. With fewer than k classes, all
    of them count, and the result is 1. A single class per image is an error, unless k is 1.
    """

    def __init__(self, k: int = 1) -> None:
        self.k = k
        super().__init__(config_name=f"top_{k}", keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"The share of images whose true class is among the {self.k} most probable ones.",
            citation=CITATION,
            inputs_description=INPUTS,
            features=FEATURES,
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        ranked = np.asarray(predictions)
        if ranked.ndim == 1:
            if self.k > 1:
                raise VitrailError(
                    f"found one class for each image, expected the {self.k} most probable classes for top-{self.k} accuracy; "
                    "or use TopKAccuracy(1)"
                )
            ranked = ranked[:, None]
        correct = (ranked[:, : self.k] == np.asarray(references)[:, None]).any(axis=1)
        return {"accuracy" if self.k == 1 else f"top_{self.k}_accuracy": float(correct.mean())}


class MeanPerClassAccuracy(evaluate.Metric):
    """The accuracy within each class, averaged over the classes that occur, so that rare classes count as much as common ones.

    `compute(predictions=, references=)` returns {"mean_per_class_accuracy"}.
    """

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The accuracy within each class, averaged over the classes that occur.",
            citation=CITATION,
            inputs_description=INPUTS,
            features=FEATURES,
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        predicted = np.asarray(predictions)
        first = predicted if predicted.ndim == 1 else predicted[:, 0]
        expected = np.asarray(references)
        images = np.bincount(expected)
        correct = np.bincount(expected[first == expected], minlength=len(images))
        return {"mean_per_class_accuracy": float((correct[images > 0] / images[images > 0]).mean())}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Compute accuracy, mean accuracy per class and, of more than five classes, top-5 accuracy: `Trainer(compute_metrics=compute_metrics)`.

    prediction: with float logits, (N, K), or classes, (N,) or (N, k).
    """
    if not isinstance(prediction, EvalPrediction):
        raise VitrailError(
            f"found {type(prediction).__name__}, expected an EvalPrediction: pass compute_metrics itself to the Trainer, or "
            "make_compute_metrics(…) for metrics of your choice."
        )
    predictions = np.asarray(prediction.predictions)
    top_5 = [TopKAccuracy(TOP)] if predictions.ndim == 2 and predictions.shape[1] > TOP else []
    return make_compute_metrics(TopKAccuracy(1), *top_5, MeanPerClassAccuracy())(prediction)


def make_compute_metrics(*metrics: evaluate.Metric) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return a `compute_metrics` function for a Trainer, whose predictions are classes, (N,) or (N, k), or float logits, (N, K)."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        classes = np.asarray(prediction.predictions)
        if np.issubdtype(classes.dtype, np.floating):
            classes = np.argsort(-classes, axis=1, kind="stable")
        results: dict[str, float] = {}
        for metric in metrics:
            results |= metric.compute(predictions=classes, references=prediction.label_ids)
        return results

    return compute


def confusion_matrix(predictions: np.ndarray, references: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix, (K, K) int64: rows are the true classes, columns the predicted ones.

    predictions, references: (N,) int, below `num_classes`.
    """
    pairs = np.asarray(references) * num_classes + np.asarray(predictions)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
