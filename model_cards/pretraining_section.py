"""The section of a card about self-supervised training, from pretraining.json."""

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from .descriptions import Markdown, as_code
from .records import FeatureComparison, PretrainingRecord


@dataclass(frozen=True)
class TrainingMethod:
    """A method of `vitrail pretrain`: its name, the arXiv number of its paper, and whose weights a run results in."""

    name: str
    paper: str
    result: str


# By the first word of a record's task
METHODS = {
    "DINO": TrainingMethod("DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294))", "2104.14294", "teacher"),
    "DINOv2": TrainingMethod("DINOv2's method ([Oquab et al. 2023](https://arxiv.org/abs/2304.07193))", "2304.07193", "teacher"),
}


def training_method(run: PretrainingRecord) -> TrainingMethod | None:
    """Return the method of a run; None for one that this release does not know."""
    return METHODS.get(run.task.partition(" ")[0])


def pretraining_facts(run: PretrainingRecord, *, pictures: bool) -> dict[str, Any]:
    """Return the facts about a training; `pictures`: whether its curves are in the folder of the card."""
    start = "from scratch"
    if run.model is not None:
        name = run.model.get("checkpoint") or run.model.get("hub_id") or run.model.get("name")
        start = Markdown(f"from {as_code(str(name))}") if name else "from weights of unknown origin"
    method = training_method(run)
    return {
        "method": run.task if method is None else Markdown(method.name),
        "result": "model" if method is None else method.result,
        "start": start,
        "data": as_code(run.data.source),
        "train_images": f"{run.data.train_images:,}",
        "epochs": f"{run.epochs:,}",
        "batch_size": f"{run.batch_size:,}",
        "updates": f"{run.updates:,}",
        # of the whole run
        "time": None if run.resumed_from or not 0 <= run.seconds < 1e9 else str(timedelta(seconds=round(run.seconds))),
        "processes": "one process" if run.processes == 1 else f"{run.processes} processes",
        "precision": run.precision,
        "recipe": f"{run.recipe.name} ({run.recipe.source})",
        "seed": run.seed,
        # the accuracy is unknown where no labeled image could be read
        "comparison": _compared(run.comparison),
        "knn": run.knn and run.knn.accuracy is not None and asdict(run.knn) | {"accuracy": f"{100 * run.knn.accuracy:.1f} %"},
        "pictures": pictures,
    }


def _compared(comparison: FeatureComparison | None) -> dict[str, dict[str, str]] | None:
    """Return the accuracies of start model, result and random weights as text, by the name of their evaluation."""
    if comparison is None:
        return None
    compared = {
        title: {name: getattr(getattr(comparison, name), metric) for name in ("start", "result", "random")}
        for metric, title in {"knn": "the k-NN vote", "logistic": "logistic regression"}.items()
    }
    return {
        title: {name: f"{100 * accuracy:.1f} %" for name, accuracy in accuracies.items()}
        for title, accuracies in compared.items()
        if None not in accuracies.values()
    }
