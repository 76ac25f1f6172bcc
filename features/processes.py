"""The processes of a run: one, or those that `accelerate launch` has started."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool
from filelock import FileLock, Timeout

from ..errors import VitrailError

PATIENCE = timedelta(days=30)  # one process may be done long before another; torchrun ends all of them when one has died


def start_processes() -> PartialState:
    """Joins the other processes, if there are any; on a machine without accelerators, and with `--cpu`, over gloo."""
    asked_for_cpu = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "no")) == 1
    return PartialState(cpu=asked_for_cpu or not torch.accelerator.is_available(), timeout=PATIENCE)


@contextlib.contextmanager
def only_one(lock_file: Path, what: str | Path) -> Iterator[None]:
    """Keeps a second run away from what the first is writing; a run that was killed keeps nobody away.

    Raises VitrailError if another run is going on.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise VitrailError(f"{what} is in use by another run: wait for it, or choose another output folder.") from error
    try:
        yield
    finally:
        lock.release()
