"""The program `vitrail`: its commands, and what becomes of errors."""

import sys

import typer
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import enable_progress_bars
from rich.console import Console
from transformers.utils import logging

from . import checkpoints, evaluation, features, hub, images, info, pretraining

app = typer.Typer(
    name="vitrail",
    help="One model for every published Vision Transformer of the DINO, DINOv2, Google and timm families.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(checkpoints.convert)
app.command()(checkpoints.verify)
app.command()(checkpoints.export)
app.command()(hub.push)
app.command()(hub.card)
app.command()(info.info)
app.command()(images.embed)
app.command()(images.attention)
app.command()(images.pca)
app.command()(images.classify)
app.command()(features.extract)
app.command()(features.similar)
app.command()(features.report)
app.command()(evaluation.probe)
app.command()(evaluation.knn)
app.command()(evaluation.logistic)
app.command()(pretraining.pretrain)


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
