"""Locks between processes. The system releases the lock of a process that dies."""

import contextlib
import logging
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import VitrailError

logger = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds without a word


def acquire(lock_file: Path, *, wait: bool, in_use: Path) -> FileLock:
    """Acquire a lock, and create its file and the folder of the file. Remove the file before you release the lock.

    Args:
        wait: wait for another process to release the lock, with a warning after some seconds, instead of raising.
        in_use: the path that the lock protects; for the error.

    Raises:
        VitrailError: another process holds the lock.
    """
    lock, patience = FileLock(lock_file), PATIENCE if wait else 0
    while not lock.is_locked:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.suppress(FileNotFoundError):  # the process that held the lock has removed the folder
                lock.acquire(timeout=patience)
        except Timeout as error:
            if not wait:
                raise VitrailError(
                    f"{in_use} is in use by another run: wait until it ends, or choose another output folder."
                ) from error
            logger.warning("waiting for another process that writes to %s", in_use)
            patience = -1
        if lock.is_locked and not lock_file.exists():  # removed after it was opened
            lock.release()
    return lock
