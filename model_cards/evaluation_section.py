"""The section of a card about an evaluation, from results.json, and the model-index of its metadata."""

from typing import Any

from huggingface_hub import EvalResult

from .descriptions import as_code, markdown_table
from .records import MeasuredResults

# By the key in results.json: the name of a metric in words, and its name in the library `evaluate`
METRIC_NAMES = {
    "accuracy": ("top-1 accuracy", "accuracy"),
    "top_5_accuracy": ("top-5 accuracy", "top_5_accuracy"),
    "mean_per_class_accuracy": ("mean accuracy per class", "mean_per_class_accuracy"),
}


def measured_facts(results: MeasuredResults, *, pictures: bool) -> dict[str, Any]:
    """Return the facts about an evaluation; `pictures`: whether its pictures are in the folder of the card."""
    data, recipe, best, fine_tuning = results.data, results.recipe, results.best_head, results.fine_tuning
    rows = [(name, f"{100 * getattr(results, key):.1f} %") for key, (name, _) in _reported_metrics(results).items()]
    return {
        "data": as_code(data.source),
        "train_images": f"{data.train_images:,}",
        "validation_images": f"{data.validation_images:,}",
        "recipe": f"{recipe.name} ({recipe.source})",
        "num_heads": len(results.heads),
        "left_out": len(results.unreadable_images),
        "features": best.features,
        "learning_rate": f"{best.learning_rate:g}",
        "fine_tuning": f"{fine_tuning.epochs} epochs ({fine_tuning.source})" if fine_tuning else None,
        "table": markdown_table(("Metric", "Value"), rows),
        "pictures": pictures,
    }


def measured_results(results: MeasuredResults) -> list[EvalResult]:
    """Return the results for the model-index, from 0 to 1 as in `evaluate`."""
    source = results.data.source
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=source if "/" in source else "imagefolder",  # not a dataset of the Hub
            dataset_name=source,
            dataset_split="validation",
            metric_type=metric_type,
            metric_name=name,
            metric_value=getattr(results, key),
        )
        for key, (name, metric_type) in _reported_metrics(results).items()
    ]


def _reported_metrics(results: MeasuredResults) -> dict[str, tuple[str, str]]:
    """Return the metrics to report; the top-5 accuracy of up to 5 classes is always 1."""
    few = len(results.data.labels) <= 5
    return {key: names for key, names in METRIC_NAMES.items() if not (few and key == "top_5_accuracy")}
