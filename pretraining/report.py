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
from .teacher_evaluation import ACCURACY


def write_report(folder: Path, record: PretrainingRecord) -> None:
    """Write pretraining.json and pretraining.png into the teacher's folder, and a section into its card unless the card was edited."""
    name, curves_name = PRETRAINING_NAMES
    save_figure(training_curves(record), folder / curves_name)
    keep_record(folder, name, record.to_dict())


def training_curves(record: PretrainingRecord) -> Figure:
    """Return a figure of the loss, of the entropies of the targets, and of the k-NN accuracy or the norm of the center."""
    curves, prototypes = record.curves, record.arguments["num_prototypes"]
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 3.4), layout="constrained")
        loss_axes, entropy_axes, last_axes = figure.subplots(1, 3)
        _draw(loss_axes, curves, {"loss": "training loss"})
        loss_axes.set_title("Loss (cross entropy, nats)")
        _draw(entropy_axes, curves, {"mean_target_entropy": "of the batch's mean target", "target_entropy": "of a target"})
        entropy_axes.axhline(math.log(prototypes), color=BACKGROUND_COLOR, linewidth=1, linestyle="--")
        entropy_axes.set_ylim(0, 1.15 * math.log(prototypes))
        entropy_axes.text(0, 1.02 * math.log(prototypes), f"log {prototypes}: collapsed to uniform", fontsize=8, color="#606060")
        entropy_axes.set_title("Entropy of the teacher (nats)")
        entropy_axes.legend(fontsize=8)
        if record.knn is None:
            _draw(last_axes, curves, {"center_norm": "norm"})
            last_axes.set_title("Norm of the center")
        else:
            _draw(last_axes, curves, {ACCURACY: "accuracy"}, scale=100)
            last_axes.set_title(f"k-NN top-1 accuracy of the teacher (%), k = {record.knn.k}")
    return figure


def _draw(axes: Axes, curves: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, scale: float = 1) -> None:
    for (name, label), color in zip(names.items(), COLORS, strict=False):
        points = [point for point in curves if name in point]
        values = [math.nan if (value := point[name]) is None else scale * value for point in points]
        axes.plot([point["epoch"] for point in points], values, color=color, linewidth=1.6, label=label)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
