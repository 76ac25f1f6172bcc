"""Files and folders that are complete, or not there: written under a temporary name, then renamed; JSON read with clear errors."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, VitrailError


def check_new(*paths: Path) -> None:
    """Raises VitrailError where something stands already."""
    if taken := [str(path) for path in paths if path.exists()]:
        raise VitrailError(f"{', '.join(taken)} exists already: remove it, or give another name.")


@contextmanager
def temporary_beside(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write into and to rename from; what is left in it goes.

    Raises VitrailError, before anything is made, where `output` exists.
    """
    check_new(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        CorruptFileError: it is none, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFileError(f"{path} is no JSON ({error}): download it again, or remove it.") from error
    if not isinstance(content, dict):
        raise CorruptFileError(
            f"{path} holds a {type(content).__name__} where an object should be: download it again, or remove it."
        )
    return content


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it into place."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)
