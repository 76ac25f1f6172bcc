"""The folder of a long run: one run at a time writes into it, and an interrupted run continues with the settings it was begun with."""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import VitrailError
from .atomic import read_json, write_json
from .locks import acquire

SETTINGS_NAME = "run.json"
LOCK_NAME = ".lock"
UNKNOWN = "not recorded"
MAX_SHOWN = 4  # differences of settings in a message
MAX_VALUE = 24  # characters of a value there


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Raise a VitrailError for a file of a resumable run that cannot be written; `place` follows "cannot write"."""
    try:
        yield
    except OSError as error:
        raise VitrailError(
            f"cannot write {place}: {error.strerror or error}. Finished files are kept: fix the cause and run the same command to resume."
        ) from error


class RunFolder:
    """The folder of a run that can be interrupted: locked, compared with the settings of its beginning, removed at the end.

    A run has begun when the file of its settings is there. Until then nothing of it is left behind.

    Args:
        path: the folder. It need not exist.
        settings_name: the file whose presence shows that a run has begun.
        temporary_names: files and folders of the run that are removed if that file is missing.
        ignored_settings: settings that may differ when a run continues.
    """

    def __init__(
        self,
        path: Path,
        *,
        settings_name: str = SETTINGS_NAME,
        temporary_names: Collection[str] = (),
        ignored_settings: Collection[str] = (),
    ) -> None:
        self.path = path
        self.settings_file = path / settings_name
        self.lock_file = path / LOCK_NAME
        self.temporary_names = temporary_names
        self.ignored_settings = ignored_settings

    @contextlib.contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Create the folder and keep other runs out of it. A killed run leaves no lock.

        Args:
            wait: wait for another run to end, instead of raising.

        Raises:
            VitrailError: another run holds the lock.
        """
        created = not self.path.exists() or self.lock_file.exists()  # by this run, or by one that was killed
        self._make()
        lock = acquire(self.lock_file, wait=wait, in_use=self.path)
        try:
            yield
        finally:
            if self.path.exists() and not self.settings_file.exists():
                self._clear(remove=created)
            lock.release()

    def begin(self, settings: Mapping[str, Any], *, has_results: bool) -> None:
        """Record the settings of a run. A run that continues must have the settings it was begun with.

        Args:
            settings: everything that the results depend on, in types of JSON.
            has_results: whether the run continues from results in the folder. Without results any settings may begin.

        Raises:
            VitrailError: the folder holds results of other settings.
        """
        if has_results:
            self.check_settings(settings, self.begun_with())
        write_json(self.settings_file, settings)

    def begun_with(self) -> dict[str, Any]:
        """Return the settings that a run was begun with; empty if none was begun."""
        remedy = f"remove the folder {self.path} to start over"
        return read_json(self.settings_file, remedy=remedy) if self.settings_file.is_file() else {}

    def check_settings(self, settings: Mapping[str, Any], begun_with: Mapping[str, Any]) -> None:
        """Raise VitrailError if settings differ from those that a run was begun with."""
        settings = json.loads(json.dumps(settings))  # as they are read back: tuples become lists
        compared = [name for name in settings if name not in self.ignored_settings]
        if different := [one for name in compared for one in differences(name, begun_with.get(name, UNKNOWN), settings[name])]:
            more = f"; and {len(different) - MAX_SHOWN} more" if len(different) > MAX_SHOWN else ""
            raise VitrailError(
                f"{self.path} was begun with different settings ({'; '.join(different[:MAX_SHOWN])}{more}): repeat the run with the same "
                "settings, remove the folder, or choose another output folder."
            )

    def remove(self) -> None:
        """Remove the folder of a run that is complete."""
        shutil.rmtree(self.path)

    def _make(self) -> None:
        """Create the folder. Raises VitrailError if that is not possible, or it is read-only."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            reason = None if os.access(self.path, os.W_OK) else "it is read-only"
        except OSError as error:
            reason = "it is not a folder" if os.path.lexists(self.path) else error.strerror or str(error)
        if reason is not None:
            raise VitrailError(
                f"cannot write into {self.path}: {reason}. Choose the name of a folder that is new or can be written."
            )

    def _clear(self, *, remove: bool) -> None:
        """Remove what a run that has not begun leaves, and the folder if it is empty then."""
        for path in (self.path / name for name in (*self.temporary_names, LOCK_NAME)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if remove and not any(self.path.iterdir()):
            self.path.rmdir()


def differences(name: str, old: Any, new: Any) -> Iterator[str]:
    """Yield the differences between two settings, as `name was old, is new`, for each entry of dictionaries."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        shown = (text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…" for text in map(str, (old, new)))
        yield "{} was {}, is {}".format(name, *shown)
