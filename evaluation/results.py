"""The records of evaluations, which results.json holds: scores, data, model and versions."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..convert.report import ConversionReport
from ..data.dense import DenseImages
from ..data.labeled import LabeledImages
from ..errors import public_text
from ..features.cache import CachedFeatures
from ..model_cards.records import EvaluationData
from ..utils.processes import start_processes
from ..utils.records import Record
from ..utils.text import public_name
from ..utils.versions import installed_versions
from .metrics import MeanPerClassAccuracy, TopKAccuracy, make_compute_metrics

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "pillow", "scikit-learn")


@dataclass(kw_only=True)
class SkippedImage:
    """An unreadable image: its split, its row there, its path, and the reason."""

    split: str
    row: int
    path: str
    reason: str


@dataclass(kw_only=True)
class RunRecord(Record):
    """The fields that all evaluations record.

    `hub.saving.keep_record` adds `weights_sha256` in a folder of a model.

    model: from `describe_model`.
    runtime: the precision and the engine that computed the features.
    seconds: of each step in this run, without the time of an interrupted run that it resumed.
    """

    task: str
    model: dict[str, Any] | None
    data: EvaluationData
    unreadable_images: list[SkippedImage]
    runtime: dict[str, str]
    processes: int
    seconds: dict[str, float]
    versions: dict[str, str]


@dataclass(kw_only=True)
class EvaluationRecord(RunRecord):
    """The fields that all classifications record. Accuracies are from 0 to 1."""

    accuracy: float
    top_5_accuracy: float
    mean_per_class_accuracy: float


@dataclass(kw_only=True)
class KNNRecord(EvaluationRecord):
    """A k-NN evaluation: the scores of the best k, and those of every k."""

    k: int
    selection: str
    temperature: float
    by_k: list[dict[str, float]]


@dataclass(kw_only=True)
class LogisticRecord(EvaluationRecord):
    """A logistic regression: the scores of the best C, the accuracies that selected it, and the values of C that did not converge."""

    C: float
    selection: str
    by_C: list[dict[str, float]]  # noqa: N815 - the name of the parameter
    unconverged: list[float]
    seed: int


@dataclass(kw_only=True)
class ProbeRecord(EvaluationRecord):
    """A linear probe: the scores of the best head or of the fine-tuned model, all heads, and their curves.

    resumed_from: the update that the training resumed from.
    """

    best_head: dict[str, Any]
    selection: str
    recipe: dict[str, Any]
    fine_tuning: dict[str, Any] | None
    heads: list[dict[str, Any]]
    curves: list[dict[str, Any]]
    resumed_from: int | None


@dataclass(kw_only=True)
class DenseProbeRecord(RunRecord):
    """A linear head for segmentation or depth.

    scores: of `MeanIoU` or `DepthErrors` on the validation images.
    iou_by_class: of a segmentation; None for a class that neither occurs nor is predicted.
    depth_range: smallest and largest depth in meters; of depth only.
    resumed_from: the update that the training resumed from.
    """

    scores: dict[str, float]
    iou_by_class: dict[str, float | None]
    recipe: dict[str, Any]
    depth_range: list[float] | None
    curves: list[dict[str, Any]]
    resumed_from: int | None


def compute_scores(classes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return accuracy, top-5 accuracy and mean accuracy per class, from 0 to 1.

    Args:
        classes: (N, at most 5), the most probable classes, the most probable first.
        labels: (N,).
    """
    return make_compute_metrics(TopKAccuracy(1), TopKAccuracy(5), MeanPerClassAccuracy())(EvalPrediction(classes, labels))


def describe_model(report: ConversionReport | None) -> dict[str, Any] | None:
    """Return the model that results are of. Call it before a long run, because it hashes the file, which may be replaced meanwhile.

    Args:
        report: from `vitrail.load`.
    """
    if report is None:
        return None
    record = report.to_dict()
    return {"format": record["format"], "checkpoint": record["checkpoint"], **record["source"]}


def describe_run(
    data: LabeledImages | DenseImages,
    splits: Mapping[str, CachedFeatures],
    *,
    model: dict[str, Any] | None,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the fields of a `RunRecord` but its task.

    Args:
        splits: the features of "train" and "validation".
        model: from `describe_model`.
        seconds: of each step in this run, without the time of an interrupted run that it resumes.
    """
    return {
        "model": model,
        "data": EvaluationData(
            source=public_name(data.source),
            fingerprint=data.fingerprint,
            train_images=len(splits["train"].labels),
            validation_images=len(splits["validation"].labels),
            labels=list(data.label_names),
        ),
        "unreadable_images": [
            SkippedImage(split=split, row=image.row, path=public_text(_below(data.source, image.path)), reason=image.reason)
            for split, features in splits.items()
            for image in features.unreadable
        ],
        "runtime": splits["train"].runtime,
        "processes": start_processes().num_processes,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": installed_versions(PACKAGES),
    }


def _below(source: str, path: str) -> str:
    """Return a path inside a folder relative to that folder, and other paths as they are."""
    folder = Path(source).absolute()
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path
