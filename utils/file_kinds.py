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
    """Return what a path is, if it is neither a file nor a folder. Raises OSError if there is nothing."""
    return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))


def check_kind(path: str | os.PathLike[str]) -> None:
    """Raise VitrailError if a path is neither a file nor a folder; it is not opened. Raises OSError if there is nothing."""
    kind = special_kind(path)
    if kind is not None:
        raise VitrailError(f"{path} is {kind}; expected a file: copy its content into one.")
