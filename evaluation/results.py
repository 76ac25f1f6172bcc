"""What every evaluation says of itself: scores, data, model and versions, as results.json has them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..convert.report import ConversionReport
from ..data.labeled import LabeledImages
from ..features.cache import Features
from ..utils.processes import start_processes
from ..utils.versions import versions
from .metrics import MeanPerClassAccuracy, TopKAccuracy, compute_metrics

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "numpy", "pillow", "scikit-learn")


def scores(classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, top-5 accuracy and mean accuracy per class, from 0 to 1.

    Args:
        classes: (N, at most 5), the most probable ones, the first one first.
        labels: (N,).
    """
    return compute_metrics(TopKAccuracy(1), TopKAccuracy(5), MeanPerClassAccuracy())(EvalPrediction(classes, labels))


def described_model(report: ConversionReport | None) -> dict[str, Any] | None:
    """Of which model results are; to be asked for before a long run, in which its file may be replaced: here it is hashed.

    Args:
        report: what `vitrail.load` said of it.
    """
    if report is None:
        return None
    said = report.to_dict()
    return {"format": said["format"], "checkpoint": said["checkpoint"], **said["source"]}


def described(
    data: LabeledImages, halves: Mapping[str, Features], *, model: dict[str, Any] | None, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What was evaluated, on what, and with which versions.

    Args:
        halves: the features of "train" and "validation".
        model: what `described_model` says.
        seconds: how long each part took in this run; what was kept of one that was interrupted took longer.
    """
    return {
        "model": model,
        "data": {
            "source": public_name(data.source),
            "fingerprint": data.fingerprint,
            **{f"{half}_images": len(features.labels) for half, features in halves.items()},
            "labels": list(data.label_names),
        },
        "bad_images": [
            {"half": half, "row": image.row, "path": _below(data.source, image.path), "reason": image.reason}
            for half, features in halves.items()
            for image in features.bad
        ],
        "runtime": halves["train"].runtime,
        "processes": start_processes().num_processes,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": versions(PACKAGES),
    }


def public_name(source: str) -> str:
    """What a source of images is called where others read it: a Hub id as it is, a file or folder without the path to it."""
    path = Path(source)
    if not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        return source
    return path.absolute().name


def _below(source: str, path: str) -> str:
    """A path inside a folder, without the path to that folder."""
    folder = Path(source).absolute()
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path
