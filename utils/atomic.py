"""Read JSON with clear errors, and write files that are complete or absent: under a temporary name, then renamed."""

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, VitrailError
from .file_kinds import check_kind

MAX_JSON_BYTES = 64 << 20  # of a file that is read whole; a list of a million names has 30 MB
TEMPORARY_MARK = ".part"  # in the name of every file that is not complete


def check_new(*paths: Path) -> None:
    """Raise VitrailError if a path exists."""
    if taken := [str(path) for path in paths if path.exists()]:
        raise VitrailError(f"{', '.join(taken)} exists already: remove it, or give another name.")


@contextmanager
def replaced(path: Path, *, temporary_dir: Path | None = None) -> Iterator[Path]:
    """Yield a temporary name to write a file under, which becomes `path` when the block ends without an error.

    For libraries that write to a path. Several processes may replace the same file: the last one wins.

    Args:
        path: the file. The temporary name has the same extension.
        temporary_dir: where the temporary file lies, on the same disk; None for the folder of `path`, as a hidden file.
    """
    folder = path.parent if temporary_dir is None else temporary_dir
    temporary = folder / f".{path.stem}.{uuid.uuid4().hex[:8]}{TEMPORARY_MARK}{path.suffix}"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the process's umask decides it; safetensors makes private files
        yield temporary
        temporary.chmod(mode)
        synchronize(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Return True for the name of a hidden file from `replaced`, which stays where the process that writes it is killed."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(TEMPORARY_MARK)}(\..+)?", name, re.DOTALL) is not None


def synchronize(file: Path) -> None:
    """Flush a file to the disk. Otherwise a power cut after its renaming could leave it empty."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, *, remedy: str = "download it again, or remove it", max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file; `remedy` is the advice of the errors.

    Raises:
        VitrailError: the path is a pipe, a device or a socket.
        CorruptFileError: the file is not JSON, holds no object, or is far too large.
    """
    check_kind(path)
    if (size := path.stat().st_size) > max_bytes:
        raise CorruptFileError(f"{path} has {size} bytes; expected at most {max_bytes}: {remedy}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}): {remedy}.") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds a {type(content).__name__}; expected an object: {remedy}.")
    return content


def write_text(path: Path, text: str, *, temporary_dir: Path | None = None) -> None:
    """Write a text file. Names of files that are not valid Unicode are escaped."""
    with replaced(path, temporary_dir=temporary_dir) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def to_json(content: Any) -> str:
    """Return JSON text, indented; NaN and infinite values, which JSON does not have, become null."""
    finite = json.loads(json.dumps(content), parse_constant=lambda name: None)
    return json.dumps(finite, indent=2, ensure_ascii=False)


def write_json(path: Path, content: Any, *, temporary_dir: Path | None = None) -> None:
    """Write a JSON file, indented."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", temporary_dir=temporary_dir)
