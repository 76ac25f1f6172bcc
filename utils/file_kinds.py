"""Kinds of files: reading from a pipe, a device or a socket could wait forever, or have no end."""

import os
import stat

from ..errors import VitrailError

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of a pipe, device or socket; None for a file or folder. Raises OSError if the path does not exist."""
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raise VitrailError if a path is neither a file nor a folder; it is not opened. Raises OSError if the path does not exist."""
    kind = special_kind(path)
    if kind is not None:
        raise VitrailError(f"{path} is {kind}; expected a file: copy its content into one.")
