"""The section of a card about an evaluation, from results.json, and the model-index of its metadata."""

from typing import Any

from huggingface_hub import EvalResult

from .descriptions import as_code, markdown_table
from .records import DenseResults, MeasuredResults

# By the key in results.json: the name of a metric in words, and its name in the library `evaluate`
METRIC_NAMES = {
    "accuracy": ("top-1 accuracy", "accuracy"),
    "top_5_accuracy": ("top-5 accuracy", "top_5_accuracy"),
    "mean_per_class_accuracy": ("mean accuracy per class", "mean_per_class_accuracy"),
}
# Of dense heads: the name in words, and the unit; a metric without a unit is a share
DENSE_METRICS = {
    "mean_iou": ("mean intersection over union (mIoU)", ""),
    "pixel_accuracy": ("accuracy of pixels", ""),
    "mean_class_accuracy": ("mean accuracy per class", ""),
    "rmse": ("root mean squared error", "m"),
    "abs_rel": ("mean relative error", ""),
    "delta1": ("pixels off by a factor below 1.25", ""),
}
DENSE_TASKS = {"segmentation probe": "image-segmentation", "depth probe": "depth-estimation"}
CURVES, CONFUSION = ("Learning curves", "curves.png"), ("Confusion matrix", "confusion.png")


def measured_facts(results: MeasuredResults | DenseResults, *, pictures: bool) -> dict[str, Any]:
    """Return the facts about an evaluation; `pictures`: whether its pictures are in the folder of the card."""
    if isinstance(results, DenseResults):
        return _dense_facts(results, pictures=pictures)
    data, recipe, best, fine_tuning = results.data, results.recipe, results.best_head, results.fine_tuning
    rows = [(name, f"{100 * getattr(results, key):.1f} %") for key, (name, _) in _reported_metrics(results).items()]
    return {
        "head": "classifier",
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
        "pictures": [("Validation accuracy of every classifier", "heads.png"), CURVES, CONFUSION] if pictures else [],
    }


def _dense_facts(results: DenseResults, *, pictures: bool) -> dict[str, Any]:
    data, recipe = results.data, results.recipe
    metrics = [(DENSE_METRICS[key], value) for key, value in results.scores.items()]
    rows = [(name, f"{value:.3f} {unit}" if unit else f"{100 * value:.1f} %") for (name, unit), value in metrics]
    return {
        "head": "head",
        "data": as_code(data.source),
        "train_images": f"{data.train_images:,}",
        "validation_images": f"{data.validation_images:,}",
        "recipe": f"{recipe.name} ({recipe.source})",
        "num_heads": 1,
        "left_out": len(results.unreadable_images),
        "features": "the patch tokens of the last block",
        "learning_rate": f"{recipe.learning_rate:g}",
        "fine_tuning": None,
        "table": markdown_table(("Metric", "Value"), rows),
        "pictures": ([CURVES, CONFUSION] if data.labels else [CURVES]) if pictures else [],
    }


def measured_results(results: MeasuredResults | DenseResults) -> list[EvalResult]:
    """Return the results for the model-index, from 0 to 1 as in `evaluate`, or in meters."""
    source = results.data.source
    if isinstance(results, DenseResults):
        return [
            EvalResult(
                task_type=DENSE_TASKS[results.task],
                dataset_type=source if "/" in source else "imagefolder",
                dataset_name=source,
                dataset_split="validation",
                metric_type=key,
                metric_name=DENSE_METRICS[key][0],
                metric_value=value,
            )
            for key, value in results.scores.items()
        ]
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
