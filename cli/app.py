"""The program `vitrail` and its commands."""

from typing import Annotated

import typer
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging

from ..version import __version__
from . import checkpoints, dense, evaluation, features, hub, images, pretraining, search
from .output import as_command

COMMANDS = (
    checkpoints.list_checkpoints,
    checkpoints.convert,
    checkpoints.verify,
    checkpoints.export,
    checkpoints.info,
    hub.push,
    hub.card,
    images.embed,
    images.classify,
    images.attention,
    images.pca,
    dense.patches,
    dense.segment,
    dense.depth,
    features.extract,
    search.index,
    search.similar,
    search.duplicates,
    features.report,
    evaluation.probe,
    evaluation.knn,
    evaluation.logistic,
    pretraining.pretrain,
)

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, context_settings=HELP_NAMES)
for _function in COMMANDS:
    app.command(_function.__name__.partition("_")[0], context_settings=HELP_NAMES)(as_command(_function))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitrail {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """One model for every published Vision Transformer of the DINO, DINOv2, Google and timm families."""


def main() -> None:
    """Run the command line."""
    logging.disable_progress_bar()  # reading and writing weights takes a moment
    enable_progress_bars()  # of downloads, which transformers disables as well
    app(prog_name="vitrail")
