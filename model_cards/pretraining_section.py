"""What the card says of a self-supervised training by vitrail: pretraining.json in words."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from .conversion_section import code, plain


def pretraining_facts(run: Mapping[str, Any], *, pictures: bool) -> dict[str, Any]:
    """What the section on training is filled with; `pictures`: they lie beside the card."""
    knn, processes, model = run["knn"], run["processes"], run["model"]
    begun = "from scratch"
    if model is not None:
        name = model.get("checkpoint") or model.get("hub_id") or model["name"]
        begun = f"beginning with {code(name) if name else 'weights of which nothing is stated'}"
    return {
        "begun": begun,
        "data": code(run["data"]["source"]),
        "train_images": f"{run['data']['train_images']:,}",
        "epochs": f"{run['epochs']:,}",
        "batch_size": f"{run['batch_size']:,}",
        "updates": f"{run['updates']:,}",
        "time": None if run["resumed_from"] else str(timedelta(seconds=round(run["seconds"]))),  # of the whole run
        "processes": "one process" if processes == 1 else f"{processes} processes",
        "precision": run["precision"],
        "recipe": f"{plain(run['recipe']['name'])} ({plain(run['recipe']['source'])})",
        "seed": run["seed"],
        # of which nothing is known where no labeled image could be read
        "knn": knn and knn["accuracy"] is not None and knn | {"accuracy": f"{100 * knn['accuracy']:.1f} %"},
        "pictures": pictures,
    }
