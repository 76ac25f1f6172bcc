"""Progress of a long job: a bar in a terminal, otherwise a line per minute."""

import contextlib
import time
from collections.abc import Callable, Iterator

from huggingface_hub.utils import are_progress_bars_disabled
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 60
SECONDS_OF_SPEED = 300  # the rate is averaged over these: results of other machines arrive rarely, and many at a time


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.unit}/s")


@contextlib.contextmanager
def progress_bar(
    description: str, total: int | None, *, unit: str = "images", wanted: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show on stderr how many units are done, the rate, and the time left. Yield the function that advances by a number.

    Args:
        description: of the job.
        total: number of units; None if it is unknown.
        unit: what is counted, in the plural.
        wanted: whether anything is shown.
    """
    console = Console(stderr=True)
    wanted = wanted and not are_progress_bars_disabled()
    if wanted and not console.is_terminal:
        yield _lines(console, description, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not wanted, speed_estimate_period=SECONDS_OF_SPEED) as bar:
        task = bar.add_task(description, total=total)
        yield lambda number: bar.advance(task, number)


def show_line(text: str, *, wanted: bool = True) -> None:
    """Print a line about a job on stderr, where its progress is shown."""
    if wanted and not are_progress_bars_disabled():
        Console(stderr=True).print(text, soft_wrap=True, highlight=False, markup=False)


def _lines(console: Console, description: str, total: int | None, unit: str) -> Callable[[int], None]:
    started = last = time.monotonic()
    done = 0

    def advance(number: int) -> None:
        nonlocal done, last
        done += number
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            rate = done / (now - started)
            left = "" if total is None else f" of {total}, {(total - done) / rate / 60:.0f} minutes left"
            console.print(f"{description}: {done}{left}, {rate:.1f} {unit}/s", soft_wrap=True, highlight=False)

    return advance
