"""How the pictures of a run look, and how they are written."""

from pathlib import Path

from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart; with markers, so that grey copies can be read too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")
OTHERS = "#B8B8B8"  # what stands behind
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
    """Writes a PNG under a temporary name, then renames it into place."""
    temporary = path.with_name(f".{path.stem}.part.png")
    figure.savefig(temporary)
    temporary.replace(path)
