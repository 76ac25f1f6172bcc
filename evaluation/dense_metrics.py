"""Metrics of dense prediction as `evaluate` modules that need no network.

Each image adds one row of numbers, so that a metric never holds the pixels of more than one batch.
"""

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np

from ..data.dense_targets import IGNORE_INDEX
from .metrics import confusion_matrix

DELTA = 1.25  # the largest ratio of two depths that delta1 accepts

CITATIONS = {
    "segmentation": "Everingham et al. 2010, The PASCAL Visual Object Classes (VOC) Challenge, IJCV; averaged as in mmsegmentation",
    "depth": "Eigen et al. 2014, Depth Map Prediction from a Single Image using a Multi-Scale Deep Network, arXiv:1406.2283",
}


class DenseMetric(evaluate.Metric):
    """A metric of maps (H, W), whose images may differ in size: `compute(predictions=, references=)`, or `add_batch` before it."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)
        self._rows: list[np.ndarray] = []

    def measure(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the numbers of one image."""
        raise NotImplementedError

    def summarize(self, rows: np.ndarray) -> dict[str, float]:
        """Return the metrics from the numbers of all images, (N, M)."""
        raise NotImplementedError

    def add_batch(
        self, *, predictions: Iterable[np.ndarray] | None = None, references: Iterable[np.ndarray] | None = None, **kwargs: Any
    ) -> None:
        """Add images: maps (H, W), in a list or an array."""
        pairs = zip(predictions or [], references or [], strict=True)
        self._rows += [self.measure(np.asarray(prediction), np.asarray(reference)) for prediction, reference in pairs]

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        """Return the metrics of the images that were added and of those given here, and begin again."""
        if predictions is not None:
            self.add_batch(predictions=list(predictions), references=list(references))
        rows, self._rows = self._rows, []
        return self.summarize(np.stack(rows))

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return self.compute(predictions=predictions, references=references)

    def _describe(self, description: str, task: str, kind: str) -> evaluate.MetricInfo:
        maps = datasets.List(datasets.List(datasets.Value(kind)))
        return evaluate.MetricInfo(
            description=description,
            citation=CITATIONS[task],
            inputs_description="predictions, references: a map (H, W) for each image.",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )


class MeanIoU(DenseMetric):
    """Intersection over union of each class over all pixels of all images, averaged over the classes that occur.

    `compute` returns {"mean_iou", "pixel_accuracy", "mean_class_accuracy"}, from 0 to 1. Pixels whose reference is 255 do not count.
    """

    def __init__(self, num_labels: int, ignore_index: int = IGNORE_INDEX) -> None:
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return self._describe("Mean intersection over union, and accuracies of pixels.", "segmentation", "int64")

    def measure(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the confusion matrix of one image, flattened: rows are the true classes."""
        valid = reference != self.ignore_index
        return confusion_matrix(prediction[valid], reference[valid], self.num_labels).ravel()

    def confusion(self, rows: np.ndarray) -> np.ndarray:
        """Return the confusion matrix of all images, (K, K)."""
        return np.asarray(rows).sum(axis=0).reshape(self.num_labels, self.num_labels)

    def per_class(self, rows: np.ndarray) -> np.ndarray:
        """Return the intersection over union of each class, (K,); NaN for a class that neither occurs nor is predicted."""
        confusion = self.confusion(rows)
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        return np.where(union > 0, confusion.diagonal() / np.maximum(union, 1), np.nan)

    def summarize(self, rows: np.ndarray) -> dict[str, float]:
        """Return the metrics from the confusion matrices of all images."""
        confusion = self.confusion(rows)
        pixels = confusion.sum(1)
        return {
            "mean_iou": float(np.nanmean(self.per_class(rows))),
            "pixel_accuracy": float(confusion.trace() / pixels.sum()),
            "mean_class_accuracy": float((confusion.diagonal() / np.maximum(pixels, 1))[pixels > 0].mean()),
        }


class DepthErrors(DenseMetric):
    """Errors of depths in meters over the pixels whose reference is in a range, of each image, averaged over the images.

    `compute` returns {"rmse", "abs_rel", "delta1"}: the root of the mean squared error, the mean error relative to the reference, and the
    share of pixels whose depth differs by a factor below 1.25. Images without such a pixel do not count.
    """

    def __init__(self, depth_range: tuple[float, float]) -> None:
        self.depth_range = depth_range
        super().__init__()

    def _info(self) -> evaluate.MetricInfo:
        return self._describe("Errors of depths in meters.", "depth", "float32")

    def measure(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the errors of one image, (3,); NaN without a pixel that counts. Predictions are clamped to the range."""
        low, high = self.depth_range
        valid = (reference >= low) & (reference <= high)
        if not valid.any():
            return np.full(3, np.nan)
        predicted, true = prediction[valid].astype(np.float64).clip(low, high), reference[valid].astype(np.float64)
        error = np.abs(predicted - true)
        ratio = np.maximum(predicted / true, true / predicted)
        return np.array([np.sqrt((error**2).mean()), (error / true).mean(), (ratio < DELTA).mean()])

    def summarize(self, rows: np.ndarray) -> dict[str, float]:
        """Return the mean errors."""
        return dict(zip(("rmse", "abs_rel", "delta1"), np.nanmean(rows, axis=0).tolist(), strict=True))
