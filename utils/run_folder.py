"""The folder of a training run that goes on where it was interrupted: one run at a time, and the one that began in it."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import VitrailError
from .atomic import write_text

RUN_NAME = "run.json"
LOCK_NAME = ".lock"


@contextlib.contextmanager
def only_one_run(run_dir: Path) -> Iterator[None]:
    """Keeps a second run away from the folder of one that is going on; an empty folder is not left behind."""
    run_dir.mkdir(parents=True, exist_ok=True)
    alone = False
    try:
        with only_one(run_dir / LOCK_NAME, run_dir):
            alone = True
            yield
    finally:
        if alone and run_dir.exists() and {path.name for path in run_dir.iterdir()} <= {LOCK_NAME}:
            shutil.rmtree(run_dir)


def open_run(run_dir: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder of a run, or finds it; only the run that began in it may go on."""
    settings = json.loads(json.dumps(settings))
    path = run_dir / RUN_NAME
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in settings if settings[name] != begun.get(name)]
        if different:
            raise VitrailError(
                f"{run_dir} holds an unfinished run with another {' and '.join(different)}: repeat it as it was begun, remove that "
                "folder, or choose another output folder."
            )
        return
    write_text(path, json.dumps(settings, indent=2) + "\n")


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
