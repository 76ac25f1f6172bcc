"""The files that a pretraining run writes next to its teacher: pretraining.json and its curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..hub.saving import keep_record
from ..model_cards.model_folder import PRETRAINING_NAMES
from ..model_cards.records import PretrainingRecord
from ..utils.figures import BACKGROUND_COLOR, COLORS, STYLE, save_figure
from .knn_evaluation import ACCURACY

PART_NAMES = {
    "dino_loss": "DINO",
    "ibot_loss": "iBOT",
    "koleo_loss": "KoLeo",
    "gram_loss": "Gram",
    "image_loss": "image",
    "patch_loss": "patches",
}  # parts of a loss


def write_report(folder: Path, record: PretrainingRecord) -> None:
    """Write pretraining.json and pretraining.png into the teacher's folder, and a section into its card unless the card was edited."""
    name, curves_name = PRETRAINING_NAMES
    save_figure(training_curves(record), folder / curves_name)
    keep_record(folder, name, record.to_dict())


def training_curves(record: PretrainingRecord) -> Figure:
    """Return a figure of the loss and its parts, of the entropies of the targets, and of the k-NN accuracy or the norm of the center."""
    curves = record.curves
    logged = dict.fromkeys(name for point in curves for name in point)
    panels = [_draw_losses]
    if "target_entropy" in logged:
        panels.append(_draw_entropies)
    if record.knn is not None:
        panels.append(_draw_accuracy)
    elif "center_norm" in logged:
        panels.append(_draw_center)
    with rc_context(STYLE):
        figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
        for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes, record)
    return figure


def _draw_losses(axes: Axes, record: PretrainingRecord) -> None:
    parts = [name for name in dict.fromkeys(name for point in record.curves for name in point) if name.endswith("_loss")]
    _draw(axes, record.curves, {"loss": "training loss", **{name: PART_NAMES[name] for name in parts}})
    axes.set_title("Loss" if parts else "Loss (cross entropy, nats)")
    if parts:
        axes.legend(fontsize=8)


def _draw_entropies(axes: Axes, record: PretrainingRecord) -> None:
    prototypes = record.arguments["num_prototypes"]
    _draw(axes, record.curves, {"mean_target_entropy": "of the batch's mean target", "target_entropy": "of a target"})
    axes.axhline(math.log(prototypes), color=BACKGROUND_COLOR, linewidth=1, linestyle="--")
    axes.set_ylim(0, 1.15 * math.log(prototypes))
    axes.text(0, 1.02 * math.log(prototypes), f"log {prototypes}: collapsed to uniform", fontsize=8, color="#606060")
    axes.set_title("Entropy of the teacher (nats)")
    axes.legend(fontsize=8)


def _draw_accuracy(axes: Axes, record: PretrainingRecord) -> None:
    assert record.knn is not None
    _draw(axes, record.curves, {ACCURACY: "accuracy"}, scale=100)
    axes.set_title(f"k-NN top-1 accuracy (%), k = {record.knn.k}")


def _draw_center(axes: Axes, record: PretrainingRecord) -> None:
    _draw(axes, record.curves, {"center_norm": "norm"})
    axes.set_title("Norm of the center")


def _draw(axes: Axes, curves: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, scale: float = 1) -> None:
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        points = [point for point in curves if name in point]
        values = [math.nan if (value := point[name]) is None else scale * value for point in points]
        axes.plot([point["epoch"] for point in points], values, color=color, linewidth=1.6, label=label)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
