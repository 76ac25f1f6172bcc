"""The command line: `vitrail --help`.

A command parses, calls one function of the package and prints. What a user can mend ends with exit code 2 and one message.
"""

import sys

import typer
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import enable_progress_bars
from rich.console import Console
from transformers.utils import logging

from . import convert, evaluate, features, hub, images, inspect, pretrain

app = typer.Typer(
    name="vitrail",
    help="One model for every published Vision Transformer of the DINO, DINOv2, Google and timm families.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(convert.convert)
app.command()(convert.verify)
app.command()(convert.export)
app.command()(hub.push)
app.command()(hub.card)
app.command()(inspect.info)
app.command()(images.embed)
app.command()(images.attention)
app.command()(images.pca)
app.command()(images.classify)
app.command()(features.extract)
app.command()(features.similar)
app.command()(features.report)
app.command()(evaluate.probe)
app.command()(evaluate.knn)
app.command()(evaluate.logistic)
app.command()(pretrain.pretrain)


def main() -> None:
    """Runs the command line; errors of the user's making become one message and exit code 2."""
    logging.disable_progress_bar()  # of reading and writing weights, which takes a moment,
    enable_progress_bars()  # but not of downloads, which it switches off too
    try:
        app()
    except (ValueError, OSError, StrictDataclassError) as error:
        message = " ".join(str(error).split())
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"vitrail: {message}", style="red", markup=False)
        sys.exit(2)
