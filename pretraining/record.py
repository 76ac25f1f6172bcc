"""The record of a pretraining run: the content of pretraining.json."""

from dataclasses import dataclass
from typing import Any

from ..utils.records import Record


@dataclass(kw_only=True)
class RecipeSource:
    """The recipe of a run, by name."""

    name: str
    source: str


@dataclass(kw_only=True)
class TrainingData:
    """The images of a run. The source is a Hub id, or the name of a folder or file without its path."""

    source: str
    fingerprint: str
    train_images: int


@dataclass(kw_only=True)
class KNNEvaluation:
    """The last k-NN evaluation of the teacher. The accuracy is None if no labeled image could be read."""

    k: int
    accuracy: float | None
    train_images: int
    validation_images: int


@dataclass(kw_only=True)
class PretrainingRecord(Record):
    """How a teacher was trained. `hub.saving.keep_record` adds `weights_sha256`, the hash of the teacher's weights.

    model: the checkpoint that the run started from; None for random weights.
    arguments: of `DINOTrainingArguments`, those that change the numbers.
    updates: of the optimizer.
    knn: None without labels.
    curves: the logged values, in the order of the run; a value that was not finite is None in the file.
    resumed_from: the checkpoint that this run resumed from.
    seconds: of this run, without the time of an interrupted run that it resumed.
    """

    task: str
    model: dict[str, Any] | None
    recipe: RecipeSource
    epochs: int
    batch_size: int
    arguments: dict[str, Any]
    augmentation: dict[str, Any]
    precision: str
    seed: int
    data: TrainingData
    updates: int
    knn: KNNEvaluation | None
    curves: list[dict[str, Any]]
    processes: int
    versions: dict[str, str]
    resumed_from: str | None
    seconds: float
