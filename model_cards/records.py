"""The records of a training in the folder of its model, which a card describes: pretraining.json and results.json.

A record counts only for the weights in the folder, whose SHA-256 it holds as `weights_sha256`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..utils.records import Record
from .model_folder import PRETRAINING_NAME, RESULTS_NAME, hash_weights, read_ours

Kept = TypeVar("Kept", bound=Record)


@dataclass(kw_only=True)
class RecipeSource:
    """The recipe of a run: its name, and the document that it comes from."""

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
    """The last k-NN evaluation of the model. The accuracy is None if no labeled image could be read."""

    k: int
    accuracy: float | None
    train_images: int
    validation_images: int


@dataclass(kw_only=True)
class FeatureAccuracy:
    """The accuracy of classifying the validation images by pooled features: k-NN, and logistic regression where it was asked for.

    An accuracy is None if no labeled image could be read.
    """

    knn: float | None
    logistic: float | None = None


@dataclass(kw_only=True)
class FeatureComparison:
    """The same evaluation of the model that a run started from, of its result, and of random weights of the same architecture."""

    start: FeatureAccuracy
    result: FeatureAccuracy
    random: FeatureAccuracy


@dataclass(kw_only=True)
class PretrainingRecord(Record):
    """How a model was trained. `hub.saving.keep_record` adds `weights_sha256`, the hash of its weights.

    model: the checkpoint that the run started from; None for random weights.
    teacher: the checkpoint that a distillation learned from.
    arguments: of the method, those that change the numbers.
    updates: of the optimizer.
    knn: None without labels.
    curves: the logged values, in the order of the run; a value that was not finite is None in the file.
    resumed_from: the checkpoint that this run resumed from.
    seconds: of this run, without the time of an interrupted run that it resumed.
    comparison: None without labels, or for a run that started from random weights.
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
    teacher: dict[str, Any] | None = None
    comparison: FeatureComparison | None = None


@dataclass(kw_only=True)
class EvaluationData:
    """The images of an evaluation. The source is a Hub id, or the name of a folder or file without its path."""

    source: str
    fingerprint: str
    train_images: int
    validation_images: int
    labels: list[str]


@dataclass(kw_only=True)
class BestHead:
    """The classifier that an evaluation selected: the features it reads, and its learning rate for 256 images."""

    features: str
    learning_rate: float


@dataclass(kw_only=True)
class FineTuningSource:
    """How the whole model was fine-tuned."""

    epochs: int
    source: str


@dataclass(kw_only=True)
class MeasuredResults(Record):
    """The part of results.json that a card describes; `vitrail.evaluation.results.ProbeRecord` is the whole."""

    accuracy: float
    top_5_accuracy: float
    mean_per_class_accuracy: float
    data: EvaluationData
    unreadable_images: list[Any]
    recipe: RecipeSource
    heads: list[Any]
    best_head: BestHead
    fine_tuning: FineTuningSource | None


@dataclass(kw_only=True)
class DenseRecipe(RecipeSource):
    """The recipe of a dense head, and its learning rate."""

    learning_rate: float


@dataclass(kw_only=True)
class DenseResults(Record):
    """The part of the results.json of a dense head that a card describes; `vitrail.evaluation.results.DenseProbeRecord` is the whole."""

    task: str
    scores: dict[str, float]
    data: EvaluationData
    unreadable_images: list[Any]
    recipe: DenseRecipe
    fine_tuning: FineTuningSource | None = None


def read_results(folder: Path, weights_sha256: str | None = None) -> MeasuredResults | DenseResults | None:
    """Return a folder's results.json; None where there is none of vitrail, or it describes other weights.

    `weights_sha256` is the SHA-256 of the weights; by default, it is computed from the folder.
    """
    content = read_ours(folder / RESULTS_NAME) or {}
    if "scores" in content:
        return _read(DenseResults, folder, RESULTS_NAME, weights_sha256)
    return _read(MeasuredResults, folder, RESULTS_NAME, weights_sha256)


def read_pretraining(folder: Path, weights_sha256: str | None = None) -> PretrainingRecord | None:
    """Return a folder's pretraining.json, like `read_results`."""
    return _read(PretrainingRecord, folder, PRETRAINING_NAME, weights_sha256)


def _read(kind: type[Kept], folder: Path, name: str, weights_sha256: str | None) -> Kept | None:
    content = read_ours(folder / name)
    if content is None or content["weights_sha256"] != (weights_sha256 or hash_weights(folder)):
        return None
    return kind.from_dict(content, folder / name)
