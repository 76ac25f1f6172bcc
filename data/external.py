"""Files and URLs that the rows of a dataset name, in place of the content of their images.

Whoever wrote the dataset chose them. Read without asking, they could be any file of this machine, or requests to any server.
"""

import os
from collections.abc import Iterable
from urllib.parse import unquote

from .remote import is_url

# Links of a chained URL, such as zip://a.png::hf://…, that read from the next link. Other links, such as file://, ignore the next one
ARCHIVES = ("zip", "tar", "gzip", "bz2", "lz4", "xz", "zstd")

REFUSED = "its row names {path}, which is not part of the dataset; to read what rows name, set allow_external=True"


class RowPaths:
    """The files and URLs that rows may name: those below some folders and URLs, or with None, any."""

    def __init__(self, roots: Iterable[str | os.PathLike[str]] | None) -> None:
        self.roots = None if roots is None else tuple(_with_slash(os.fspath(root)) for root in roots)

    def contain(self, path: str) -> bool:
        """Whether a path or URL, or the archive that holds it, is below one of the roots."""
        *inner, place = path.split("::")
        if self.roots is None or not all(link.partition("://")[0] in ARCHIVES for link in inner):
            return False
        if is_url(place) and ".." in unquote(place).split("/"):
            return False
        return _absolute(place).startswith(self.roots)

    def refusal(self, path: str) -> str | None:
        """Return why a path or URL is not read, or None."""
        return None if self.roots is None or self.contain(path) else REFUSED.format(path=path)


ANY_PATHS = RowPaths(None)


def _absolute(path: str) -> str:
    return path if is_url(path) else os.path.abspath(path)


def _with_slash(root: str) -> str:
    return root if root.endswith(("/", "@")) else os.path.join(root, "")
