"""The content of results.json that all evaluations share: scores, data, model and versions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..convert.report import ConversionReport
from ..data.labeled import LabeledImages
from ..features.cache import CachedFeatures
from ..utils.processes import start_processes
from ..utils.versions import versions
from .metrics import MeanPerClassAccuracy, TopKAccuracy, compute_metrics

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "pillow", "scikit-learn")


def compute_scores(classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return accuracy, top-5 accuracy and mean accuracy per class, from 0 to 1.

    Args:
        classes: (N, at most 5), the most probable classes, the most probable first.
        labels: (N,).
    """
    return compute_metrics(TopKAccuracy(1), TopKAccuracy(5), MeanPerClassAccuracy())(EvalPrediction(classes, labels))


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
    data: LabeledImages, splits: Mapping[str, CachedFeatures], *, model: dict[str, Any] | None, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return what was evaluated, on which data, and with which versions.

    Args:
        splits: the features of "train" and "validation".
        model: from `describe_model`.
        seconds: of each step in this run, without the time of an interrupted run that it resumes.
    """
    return {
        "model": model,
        "data": {
            "source": public_name(data.source),
            "fingerprint": data.fingerprint,
            **{f"{split}_images": len(features.labels) for split, features in splits.items()},
            "labels": list(data.label_names),
        },
        "unreadable_images": [
            {"split": split, "row": image.row, "path": _below(data.source, image.path), "reason": image.reason}
            for split, features in splits.items()
            for image in features.unreadable
        ],
        "runtime": splits["train"].runtime,
        "processes": start_processes().num_processes,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": versions(PACKAGES),
    }


def public_name(source: str) -> str:
    """Return a name of a source of images that can be published: a Hub id as it is, a file or folder without the path to it."""
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return source
    return path.absolute().name


def _below(source: str, path: str) -> str:
    """Return a path inside a folder relative to that folder, and other paths as they are."""
    folder = Path(source).absolute()
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path
