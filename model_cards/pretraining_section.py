"""The section of a card about self-supervised training, from pretraining.json."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from .descriptions import as_code, escape


def pretraining_facts(run: Mapping[str, Any], *, pictures: bool) -> dict[str, Any]:
    """Return the facts about a training; `pictures`: whether its curves are in the folder of the card."""
    knn, processes, model = run["knn"], run["processes"], run["model"]
    start = "from scratch"
    if model is not None:
        name = model.get("checkpoint") or model.get("hub_id") or model["name"]
        start = f"from {as_code(name) if name else 'weights of unknown origin'}"
    return {
        "start": start,
        "data": as_code(run["data"]["source"]),
        "train_images": f"{run['data']['train_images']:,}",
        "epochs": f"{run['epochs']:,}",
        "batch_size": f"{run['batch_size']:,}",
        "updates": f"{run['updates']:,}",
        "time": None if run["resumed_from"] else str(timedelta(seconds=round(run["seconds"]))),  # of the whole run
        "processes": "one process" if processes == 1 else f"{processes} processes",
        "precision": run["precision"],
        "recipe": f"{escape(run['recipe']['name'])} ({escape(run['recipe']['source'])})",
        "seed": run["seed"],
        # the accuracy is unknown where no labeled image could be read
        "knn": knn and knn["accuracy"] is not None and knn | {"accuracy": f"{100 * knn['accuracy']:.1f} %"},
        "pictures": pictures,
    }
