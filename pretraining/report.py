"""What a run of DINO leaves beside its teacher: pretraining.json and its curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..convert.model_folder import PRETRAINING_NAMES
from ..hub.save import keep_record
from ..utils.figures import BACKGROUND_COLOR, COLORS, STYLE, save_figure
from .teacher_evaluation import ACCURACY


def write_report(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes pretraining.json and pretraining.png, and what they say into the card, unless someone has edited that.

    Args:
        folder: of the teacher.
        run: what `vitrail.pretraining.job.pretrain` returns.
    """
    name, curves_name = PRETRAINING_NAMES
    save_figure(training_curves(run), folder / curves_name)
    keep_record(folder, name, run)


def training_curves(run: Mapping[str, Any]) -> Figure:
    """The loss; the entropies of targets, between the two ways to collapse; the k-NN accuracy, or the norm of the centre."""
    curves, prototypes = run["curves"], run["arguments"]["num_prototypes"]
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
        if run["knn"] is None:
            _draw(last_axes, curves, {"center_norm": "norm"})
            last_axes.set_title("Norm of the centre")
        else:
            _draw(last_axes, curves, {ACCURACY: "accuracy"}, scale=100)
            last_axes.set_title(f"k-NN top-1 accuracy of the teacher (%), k = {run['knn']['k']}")
    return figure


def _draw(axes: Axes, curves: Sequence[Mapping[str, float]], names: Mapping[str, str], *, scale: float = 1) -> None:
    for (name, label), colour in zip(names.items(), COLORS, strict=False):
        points = [point for point in curves if name in point]
        values = [scale * point[name] for point in points]
        axes.plot([point["epoch"] for point in points], values, color=colour, linewidth=1.6, label=label)
    axes.set_xlabel("epoch")
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
