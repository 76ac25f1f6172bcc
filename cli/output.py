"""What commands print: results on standard output, as text or JSON; warnings, progress and errors on standard error."""

import contextlib
import inspect
import sys
import traceback as traceback_module
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import typer
from huggingface_hub.errors import StrictDataclassError

from ..convert.loading import load
from ..convert.report import ConversionReport
from ..errors import VitrailError, one_line, public_text
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import Agreement
from ..utils.atomic import to_json
from ..version import __version__
from .options import Json, Traceback, as_options, expand_groups, set_signature

USER_ERRORS = (ValueError, OSError, StrictDataclassError)
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
OPTIONS: ContextVar[Collection[str]] = ContextVar("OPTIONS", default=())  # the parameters of the command that runs
RESUMED = ("extract", "index", "probe", "pretrain")  # commands that continue after an interruption
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
        OPTIONS.set(frozenset(values))
        # Trainers and engines print on standard output, which is for results
        with ErrorsAsMessages(function.__name__, traceback=traceback), contextlib.redirect_stdout(sys.stderr):
            result = expanded(**values)
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


class ErrorsAsMessages(contextlib.AbstractContextManager[None]):
    """Turn an error of a command into a message and an exit code: 2 if the user can fix it; 1, with a traceback, for a fault of vitrail.

    An interruption has a message too, and ends as the shell expects.
    """

    def __init__(self, command: str, *, traceback: bool) -> None:
        self.command = command
        self.traceback = traceback

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Print the error, and exit."""
        if isinstance(error, KeyboardInterrupt):
            resumed = ": what is finished is kept, and the same command continues" if self.command in RESUMED else ""
            typer.echo(f"interrupted{resumed}", err=True)
        if not isinstance(error, Exception) or isinstance(error, BrokenPipeError | typer.Exit | typer.Abort | typer.BadParameter):
            return
        mends = isinstance(error, (*USER_ERRORS, *OUT_OF_MEMORY))
        if self.traceback or not mends:
            traceback_module.print_exception(error)
        if isinstance(error, OUT_OF_MEMORY):
            message = f"there is not enough memory ({type(error).__name__}): choose a smaller --batch-size, if the command has one."
        elif mends:
            message = as_options(one_line(str(error)), OPTIONS.get()) or type(error).__name__
        else:
            message = f"this is a fault of vitrail {__version__}: please report it, with the text above and the command."
        typer.secho(f"vitrail: {message}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2 if mends else 1) from None


def warn(*messages: str, options: Collection[str] | None = None) -> None:
    """Print warnings on standard error. options: those that messages may name, in place of all options of the command."""
    for message in messages:
        text = as_options(message, OPTIONS.get() if options is None else options)
        typer.secho(public_text(f"warning: {text}"), fg=typer.colors.YELLOW, err=True)


def load_model(source: str, **options: Any) -> tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport]:
    """Load a checkpoint and print the warnings of its conversion."""
    model, image_processor, report = load(source, **options)
    warn(*report.warnings, options=options)  # not others of the command: --dtype of `extract` is that of features
    return model, image_processor, report


def agreement_lines(agreement: Mapping[str, Agreement]) -> list[str]:
    """Return one line per output: its agreement with the model in float32."""
    return [
        f"{name}: cosine {found.cosine:.5f} to float32, largest difference {found.max_difference:.2g}"
        for name, found in agreement.items()
    ]


def check_output(output: Path, suffixes: tuple[str, ...]) -> None:
    """Raise VitrailError, before any work, if a file cannot be written."""
    if output.is_dir():
        raise VitrailError(f"{output} is a folder; expected the name of a file ({', '.join(suffixes)}).")
    if output.suffix.lower() not in suffixes:
        raise VitrailError(f"{output}: unsupported extension {output.suffix!r}; expected {', '.join(suffixes)}")
    if not output.parent.is_dir():
        raise VitrailError(f"The folder {output.parent} does not exist: create it before writing {output.name}.")


def check_not_itself(model: str, output: Path) -> None:
    """Raise VitrailError if the output is the model that is read."""
    if Path(model).exists() and Path(model).resolve() == output.resolve():
        raise VitrailError(f"{output} is the model itself: choose another output folder.")
