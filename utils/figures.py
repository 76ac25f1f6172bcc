"""The style of the figures of a run, and how they are written."""

from pathlib import Path

from matplotlib.figure import Figure

from .atomic import replaced

# Okabe and Ito's colors, which color-blind people can tell apart; with markers, so that gray copies can be read too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v")
BACKGROUND_COLOR = "#B8B8B8"  # of lines behind the main ones
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": 150,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a file."""
    with replaced(path) as temporary:
        figure.savefig(temporary)
