"""What commands print: results on standard output, as text or JSON; warnings, progress and errors on standard error."""

import contextlib
import inspect
import sys
import traceback as traceback_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from huggingface_hub.errors import StrictDataclassError

from ..convert.loading import load
from ..convert.report import ConversionReport
from ..errors import VitrailError, public_text
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import Agreement
from ..utils.atomic import to_json
from .options import Json, Traceback, expand_groups, set_signature

USER_ERRORS = (ValueError, OSError, StrictDataclassError)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Result:
    """The report of a command.

    record: the content of `--json`.
    lines: the same as text.
    """

    record: Mapping[str, Any]
    lines: Sequence[str]
    exit_code: int = 0


def as_command(function: Callable[..., Result | None]) -> Callable[..., None]:
    """Return a function as typer needs it: with the options of its groups, `--json` and `--traceback`, and with errors as messages.

    The function returns None where another process of the same run prints.
    """
    expanded = expand_groups(function)

    def command(*, json: bool, traceback: bool, **values: Any) -> None:
        try:
            # Trainers and engines print on standard output, which is for results
            with contextlib.redirect_stdout(sys.stderr):
                result = expanded(**values)
        except BrokenPipeError:
            raise
        except USER_ERRORS as error:
            if traceback:
                traceback_module.print_exception(error)
            typer.secho(public_text(f"vitrail: {' '.join(str(error).split())}"), fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from None
        if result is None:
            return
        for line in [to_json(result.record)] if json else result.lines:
            typer.echo(public_text(line))
        if result.exit_code:
            raise typer.Exit(result.exit_code)

    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("json", Json), ("traceback", Traceback))
    ]
    set_signature(command, function, [*inspect.signature(expanded).parameters.values(), *own])
    return command


def warn(*messages: str) -> None:
    """Print warnings on standard error."""
    for message in messages:
        typer.secho(public_text(f"warning: {message}"), fg=typer.colors.YELLOW, err=True)


def load_model(source: str, **options: Any) -> tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport]:
    """Load a checkpoint and print the warnings of its conversion."""
    model, image_processor, report = load(source, **options)
    warn(*report.warnings)
    return model, image_processor, report


def agreement_lines(agreement: Mapping[str, Agreement]) -> list[str]:
    """Return one line per output: its agreement with the model in float32."""
    return [
        f"{name}: cosine {found.cosine:.5f} to float32, largest difference {found.max_difference:.2g}"
        for name, found in agreement.items()
    ]


def check_output(output: Path, suffixes: tuple[str, ...]) -> None:
    """Raise VitrailError, before any work, if a file cannot be written."""
    if output.suffix.lower() not in suffixes:
        raise VitrailError(f"{output}: unsupported extension {output.suffix!r}; expected {', '.join(suffixes)}")
    if output.is_dir():
        raise VitrailError(f"{output} is a folder; expected the name of a file.")
    if not output.parent.is_dir():
        raise VitrailError(f"The folder {output.parent} does not exist: create it before writing {output.name}.")


def check_not_itself(model: str, output: Path) -> None:
    """Raise VitrailError if the output is the model that is read."""
    if Path(model).exists() and Path(model).resolve() == output.resolve():
        raise VitrailError(f"{output} is the model itself: choose another output folder.")
