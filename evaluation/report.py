"""The report of a probe: results.json and its figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..hub.saving import keep_record
from ..model_cards.model_folder import RESULT_NAMES
from ..utils.figures import BACKGROUND_COLOR, COLORS, MARKERS, STYLE, save_figure

MAX_CLASSES = 30  # in a readable confusion matrix
MAX_NUMBERED = 15  # whose cells have room for numbers
MAX_LABEL_LENGTH = 24  # characters


def write_report(folder: Path, results: Mapping[str, Any], confusion: np.ndarray) -> None:
    """Write results.json, curves.png, heads.png and confusion.png, and update the model card, unless it was edited.

    Args:
        folder: of the model.
        results: from `vitrail.probe`.
        confusion: (K, K) counts; rows are the true classes, columns the predicted ones.
    """
    results_name, curves_name, heads_name, confusion_name = RESULT_NAMES
    save_figure(learning_curves(results), folder / curves_name)
    save_figure(accuracy_by_head(results), folder / heads_name)
    save_figure(plot_confusion(confusion, results["data"]["labels"]), folder / confusion_name)
    keep_record(folder, results_name, results)


def write_dense_report(folder: Path, results: Mapping[str, Any], confusion: np.ndarray | None) -> None:
    """Write results.json, curves.png and, of a segmentation, confusion.png, and update the model card, unless it was edited.

    Args:
        folder: of the model.
        results: from `vitrail.probe_dense`.
        confusion: (K, K) counts of pixels; None for depth.
    """
    results_name, curves_name, _, confusion_name = RESULT_NAMES
    save_figure(dense_curves(results), folder / curves_name)
    if confusion is not None:
        save_figure(
            plot_confusion(confusion, results["data"]["labels"], "pixels of the validation images"), folder / confusion_name
        )
    keep_record(folder, results_name, results)


def dense_curves(results: Mapping[str, Any]) -> Figure:
    """Plot the training loss, and the first of the scores on the validation images, by update."""
    metric = next(iter(results["scores"]))
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, key, title in zip(
            figure.subplots(1, 2), ("loss", metric), ("Training loss", f"Validation: {metric.replace('_', ' ')}"), strict=True
        ):
            points = [point for point in results["curves"] if key in point]
            axes.plot([point["update"] for point in points], [point[key] for point in points], color=COLORS[0], linewidth=2)
            axes.set_xlabel("iteration")
            axes.set_xlim(0, None)
            axes.set_title(title)
    return figure


def learning_curves(results: Mapping[str, Any]) -> Figure:
    """Plot training loss and validation accuracy over time, the best head in front of the others."""
    by_epoch = results["recipe"]["epochs"] is not None
    names = [head["name"] for head in results["heads"]]
    best = names.index(results["best_head"]["name"])
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        loss_axes, accuracy_axes = figure.subplots(1, 2)
        for axes, key, scale in ((loss_axes, "losses", 1), (accuracy_axes, "accuracy", 100)):
            points = [point for point in results["curves"] if key in point]
            times = [point["epoch" if by_epoch else "update"] for point in points]
            values = scale * np.array([[math.nan if value is None else value for value in point[key]] for point in points])
            axes.plot(times, values, color=BACKGROUND_COLOR, linewidth=0.7, zorder=1)
            axes.plot(times, values[:, best], color=COLORS[0], linewidth=2, zorder=2)
            axes.set_xlabel("epoch" if by_epoch else "iteration")
            axes.set_xlim(0, None)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if key == "losses":
                axes.set_yscale("log")
                chance = math.log(len(results["data"]["labels"]))
                axes.set_ylim(None, 1.3 * np.nanmax([chance, *values[:, best]]))  # diverging heads leave the plot
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_locator(NullLocator())
            else:
                axes.set_ylim(0, 101)
        loss_axes.set_title("Training loss (cross entropy)")
        accuracy_axes.set_title("Validation top-1 accuracy (%)")
        others = f"; gray: the {len(names) - 1} others" if len(names) > 1 else ""
        figure.supxlabel(f"blue: {names[best]}{others}", fontsize=9, color="#404040")
    return figure


def accuracy_by_head(results: Mapping[str, Any]) -> Figure:
    """Plot validation accuracy over the learning rate, one line for each choice of features."""
    choices = list(dict.fromkeys(head["features"] for head in results["heads"]))
    best = results["best_head"]
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        for choice, color, marker in zip(choices, COLORS, MARKERS, strict=False):
            heads = [head for head in results["heads"] if head["features"] == choice]
            rates, accuracies = [head["learning_rate"] for head in heads], [100 * head["accuracy"] for head in heads]
            front = 4 if choice == best["features"] else 2  # above heads of the same accuracy
            axes.plot(rates, accuracies, color=color, marker=marker, markersize=5, linewidth=1.4, label=choice, zorder=front)
        (ring,) = axes.plot(best["learning_rate"], 100 * best["accuracy"], "o", markersize=13, fillstyle="none", zorder=5)
        ring.set(color="black", markeredgewidth=1.4)
        axes.set_xscale("log")
        axes.set_xlabel("learning rate, for 256 images")
        axes.set_ylim(max(-1, 100 * min(head["accuracy"] for head in results["heads"]) - 5), 102)
        axes.set_title(f"Validation top-1 accuracy (%); best {100 * best['accuracy']:.1f}")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def plot_confusion(confusion: np.ndarray, label_names: Sequence[str], rows: str = "validation images") -> Figure:
    """Plot the confusion matrix, each row as shares of its class; of many classes, those with the most errors."""
    shown = np.arange(len(confusion))
    title = f"Predictions for the {rows}, in % of each class"
    if len(shown) > MAX_CLASSES:
        errors = confusion.sum(0) + confusion.sum(1) - 2 * confusion.diagonal()
        shown = np.sort(np.argsort(-errors, kind="stable")[:MAX_CLASSES])
        title += f":\nthe {MAX_CLASSES} of {len(confusion)} classes with the most errors"
    shares = 100 * confusion[shown][:, shown] / np.maximum(confusion[shown].sum(1, keepdims=True), 1)
    names = [_short(label_names[number]) for number in shown.tolist()]
    side = max(4.2, 2.2 + 0.28 * len(shown))
    with rc_context(STYLE):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        _name_classes(axes, names)
        if len(shown) <= MAX_NUMBERED:
            for (row, column), share in np.ndenumerate(shares):
                if share:
                    color = "white" if share > 55 else "black"
                    text = f"{share:.0f}" if share >= 0.5 else "<1"
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        figure.suptitle(title, x=0.02, horizontalalignment="left", fontsize=11)
        bar = figure.colorbar(image, shrink=0.7)
        bar.outline.set_visible(False)
    return figure


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    upright = max(map(len, names)) <= 3
    axes.set_xticks(range(len(names)), names, rotation=0 if upright else 90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")


def _short(name: str) -> str:
    short = name if len(name) <= MAX_LABEL_LENGTH else name[: MAX_LABEL_LENGTH - 1] + "…"
    return short.replace("$", r"\$")  # which would begin a formula
