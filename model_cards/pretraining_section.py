"""The section of a card about self-supervised training, from pretraining.json."""

from dataclasses import asdict
from datetime import timedelta
from typing import Any

from .descriptions import Markdown, as_code
from .records import PretrainingRecord


def pretraining_facts(run: PretrainingRecord, *, pictures: bool) -> dict[str, Any]:
    """Return the facts about a training; `pictures`: whether its curves are in the folder of the card."""
    start = "from scratch"
    if run.model is not None:
        name = run.model.get("checkpoint") or run.model.get("hub_id") or run.model.get("name")
        start = Markdown(f"from {as_code(str(name))}") if name else "from weights of unknown origin"
    return {
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
        "knn": run.knn and run.knn.accuracy is not None and asdict(run.knn) | {"accuracy": f"{100 * run.knn.accuracy:.1f} %"},
        "pictures": pictures,
    }
