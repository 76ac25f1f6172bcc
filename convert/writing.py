"""New files and folders: complete, or not there."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import VitrailError


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
