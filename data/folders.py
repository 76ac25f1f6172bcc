"""Local folders: the files below them, and the files that a pattern matches. Each folder is read once, however many links lead there."""

import glob
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ..errors import VitrailError

ANY_FOLDERS = "**"


def walk(*folders: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder, and each folder below it, with the names of its files. Hidden folders are left out.

    Links to folders are followed, in the order of their names, after everything that is reached without them. A link to a folder that
    has been read, or to a folder above those given, is not followed.

    Raises VitrailError if a folder cannot be listed.
    """
    roots = [Path(os.path.realpath(folder)) for folder in folders]
    read = {str(parent) for root in roots for parent in root.parents} - {str(root) for root in roots}
    waiting = deque(sorted(folders, key=lambda folder: (os.path.islink(folder), folder)))
    while waiting:
        for inner, names, files in os.walk(waiting.popleft(), onerror=_refuse):
            place = os.path.realpath(inner)
            if place in read:
                names.clear()
                continue
            read.add(place)
            names[:] = sorted(name for name in names if not name.startswith("."))
            waiting.extend(path for path in (os.path.join(inner, name) for name in names) if os.path.islink(path))
            yield inner, files


def match(pattern: str) -> Iterator[str]:
    """Yield the files that an absolute pattern with *, ?, [] and ** matches. The folders that ** stands for are read once."""
    *outer, last = re.split(rf"/{re.escape(ANY_FOLDERS)}(?=/|$)", pattern)
    found = [""]
    for part in outer:
        roots = [root for folder in found for root in glob.glob(f"{glob.escape(folder)}{part}/")]
        found = [folder.rstrip("/") for folder, _ in walk(*roots)]
    for folder in found:
        yield from (file for file in glob.glob(glob.escape(folder) + (last or "/*")) if not os.path.isdir(file))


def _refuse(error: OSError) -> None:
    raise VitrailError(
        f"cannot list the folder {error.filename}: {error.strerror}; make it readable, or move it elsewhere"
    ) from error
