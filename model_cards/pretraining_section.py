"""The section of a card about self-supervised training, from pretraining.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from ..convert.sources.catalog import find_checkpoint
from .descriptions import Markdown, as_code
from .licenses import license_text
from .provenance import checkpoint_link
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
    "Distillation": TrainingMethod("distillation ([Romero et al. 2014](https://arxiv.org/abs/1412.6550))", "1412.6550", "student"),
    "DINOv2": TrainingMethod("DINOv2's method ([Oquab et al. 2023](https://arxiv.org/abs/2304.07193))", "2304.07193", "teacher"),
}


def training_method(task: str) -> TrainingMethod | None:
    """Return the method of the run with a task; None for one that this release does not know."""
    return METHODS.get(task.partition(" ")[0])


def pretraining_facts(run: PretrainingRecord, *, pictures: bool) -> dict[str, Any]:
    """Return the facts about a training; `pictures`: whether its curves are in the folder of the card."""
    start = "from scratch"
    if run.model is not None:
        start = Markdown(f"from {_name(run.model)}") if _name(run.model) else "from weights of unknown origin"
    method = training_method(run.task)
    teacher = "" if run.teacher is None else f" of {_name(run.teacher) or 'a model of unknown origin'}"
    return {
        "method": run.task if method is None else Markdown(f"{method.name}{teacher}"),
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
        "teacher_license": _teacher_license(run),
    }


def _name(model: Mapping[str, Any]) -> Markdown | None:
    """Return the name of a model in a record; None where the record has none."""
    name = model.get("checkpoint") or model.get("hub_id") or model.get("name")
    return as_code(str(name)) if name else None


def _teacher_license(run: PretrainingRecord) -> Markdown | None:
    """Return a sentence about the license of the model that a student learned from."""
    if run.teacher is None:
        return None
    checkpoint = find_checkpoint(str(run.teacher.get("checkpoint") or ""))
    if checkpoint is None or checkpoint.license is None:
        return Markdown("The license of the model that it learned from is *not stated*; check whether it applies to this model.")
    return Markdown(
        f"It learned from the outputs of {checkpoint_link(checkpoint)}; check whether the license of that checkpoint applies to this "
        f"model: {license_text(checkpoint)}."
    )


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
