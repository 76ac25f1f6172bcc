"""Image files: in a folder, local or in a store; matched by a pattern; in a list."""

import glob
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import SourceNotFoundError, VitrailError
from ..utils.file_kinds import check_kind
from ..utils.hashing import digest
from .entries import ImageCollection, ImageEntry
from .folders import match, walk
from .remote import fetch, is_http, is_url, open_store, persist

MAGIC = re.compile(r"[*?[{]")
BRACES = re.compile(r"{([^{}]*)}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
INTEGER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class Listing:
    """Files, in the order of their names.

    root: the absolute folder or URL that the names are relative to, with a slash at its end. sizes: in bytes, where known.
    """

    root: str
    names: list[str]
    sizes: list[int | None]

    def select(self, indices: Sequence[int]) -> "Listing":
        """Return the files with these indices."""
        return Listing(self.root, [self.names[index] for index in indices], [self.sizes[index] for index in indices])

    def only(self, suffixes: Collection[str]) -> "Listing":
        """Return the files with these suffixes."""
        return self.select([index for index, name in enumerate(self.names) if suffix_of(self.root + name) in suffixes])

    def below(self, folder: str) -> "Listing":
        """Return the files in a folder of the root, with that folder as their root."""
        inner = self.select([index for index, name in enumerate(self.names) if name.startswith(f"{folder}/")])
        return Listing(f"{self.root}{folder}/", [name.removeprefix(f"{folder}/") for name in inner.names], inner.sizes)

    def locations(self) -> list[str]:
        """Return the path or URL of each file."""
        return [location_of(name, self.root) for name in self.names]

    def measured(self) -> "Listing":
        """Return the listing with the sizes of local files, which requires system calls for each.

        Raises VitrailError for a pipe, a device or a socket, and for a file that does not exist.
        """
        if not is_url(self.root):
            for name in self.names:
                _check_file(self.root + name)
        sizes = [
            os.path.getsize(self.root + name) if not is_url(self.root) else size
            for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return Listing(self.root, self.names, sizes)


class FileCollection(ImageCollection):
    """Image files. The names in the listing may also be absolute paths or URLs."""

    random_access = True
    num_partitions = 1

    def __init__(
        self, listing: Listing, *, source: str, settings: dict[str, Any], labels: Sequence[str | int | None] | None
    ) -> None:
        self.source = source
        self.settings = settings
        self.names = listing.names
        self.root = listing.root
        self.labels = labels
        self.num_rows = len(self.names)
        self.label_type = None if labels is None else "string" if any(isinstance(label, str) for label in labels) else "int64"
        self.fingerprint = digest(chain(self.names, listing.sizes, labels or ()))

    def read(self, partition: int = 0, start: int = 0) -> Iterator[ImageEntry]:
        """Yield the images from the row `start`."""
        for row in range(start, len(self.names)):
            label = None if self.labels is None else self.labels[row]
            name = self.names[row]
            yield ImageEntry(row, as_text(name), location=location_of(name, self.root), label=label, own_store=is_url(name))


# Names


def location_of(name: str, root: str) -> str:
    """Return the path or URL of a file in a listing."""
    return name if is_url(name) or os.path.isabs(name) else root + name


def suffix_of(name: str) -> str:
    """Return the suffix of a path or URL in lower case, such as ".jpg" or ".tar.gz"."""
    stem, suffix = os.path.splitext(without_query(name).lower())
    return f".tar{suffix}" if stem.endswith(".tar") else suffix


def without_query(name: str) -> str:
    """Return a name without the query of a URL of a web server."""
    return name.partition("?")[0] if is_http(name) else name


def as_text(name: str) -> str:
    r"""Return a file name as text that can be encoded as UTF-8; invalid bytes become \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# Listing


def is_pattern(source: str) -> bool:
    """Whether a path or URL is a pattern such as *.jpg or {0000..0127}.tar, and not the name of a file."""
    return re.search(r"{" if is_http(source) else MAGIC, source) is not None and not os.path.exists(source)


def list_folder(folder: str) -> Listing:
    """Return all files in a folder and its subfolders, without hidden ones; folder: an absolute path, or a URL.

    Raises VitrailError if the folder, or a subfolder, cannot be listed.
    """
    if is_http(folder):
        raise VitrailError(
            f"{folder} cannot be listed, because web servers do not list files; give a list file, or the URL of a .tar or .parquet file"
        )
    if is_url(folder):
        store, path = open_store(folder)
        found = _ask(folder, lambda: store.find(path, detail=True))
        return _listing(
            store.unstrip_protocol(path), {store.unstrip_protocol(name): info.get("size") for name, info in found.items()}
        )
    return _listing(folder, dict.fromkeys(os.path.join(inner, file) for inner, files in walk(folder) for file in files))


def list_pattern(pattern: str) -> Listing:
    """Return the file at an absolute path or URL, or all files that a pattern with *, ?, [], ** and {} matches.

    Raises SourceNotFoundError if there is none.
    """
    if is_url(pattern):
        store, path = open_store(pattern)
        pattern = store.unstrip_protocol(path)
    several = is_pattern(pattern)
    files: dict[str, int | None] = {}
    for one in _alternatives(pattern) if several else [pattern]:
        if several and not is_http(one) and glob.has_magic(one):
            files |= _matches(one)
        elif is_url(one) or (os.path.lexists(one) and not os.path.isdir(one)):
            files[one] = None
        else:
            raise SourceNotFoundError(
                f"found no file {one}; give an existing file, a pattern of files, a folder, or a dataset on the Hub as user/name"
            )
    if not files:
        raise SourceNotFoundError(f"found no file at {pattern}; give an existing file, a pattern of files, or a folder")
    return _listing((MAGIC.split(pattern)[0] if several else pattern).rpartition("/")[0], files)


def read_list(file: str) -> tuple[Listing, list[str | int | None] | None]:
    """Return the paths and URLs in a text file, and their labels, if any line has one.

    A line is a path or URL, which may be relative to the folder of the file, and optionally a tab and a label. Empty lines and lines
    that begin with # are ignored. Labels are integers if all of them are.

    Raises SourceNotFoundError if there is no such file, VitrailError if it is not text.
    """
    if not is_url(file):
        _check_file(file)
    try:
        content = _ask(file, lambda: fetch(file)) if is_url(file) else Path(file).read_bytes()
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise VitrailError(f"cannot read {file}: {error.strerror}; give a file with read permission") from error
    except UnicodeDecodeError as error:
        raise VitrailError(f"{file} is not a list of images: {error}; write a path or URL on each line, in UTF-8") from error
    rows = [line.split("\t", 1) for line in map(str.strip, lines) if line and not line.startswith("#")]
    names = [row[0].strip() for row in rows]
    labels: list[str | int | None] = [row[1].strip() if len(row) == 2 else None for row in rows]
    given = [label for label in labels if label is not None]
    if all(INTEGER.fullmatch(str(label)) for label in given):
        labels = [None if label is None else int(label) for label in labels]
    return Listing(f"{file.rpartition('/')[0]}/", names, [None] * len(names)), labels if given else None


def _listing(folder: str, files: Mapping[str, int | None]) -> Listing:
    """Return the listing of files, whose sizes are given by path or URL, below a folder."""
    root = folder if folder.endswith("/") else f"{folder}/"
    sizes = {file.removeprefix(root).lstrip("/"): size for file, size in files.items()}
    names = sorted(name for name in sizes if not any(folder.startswith(".") for folder in name.split("/")))
    return Listing(root, names, [sizes[name] for name in names])


def _check_file(file: str) -> None:
    """Raise VitrailError if a path is neither a file nor a folder; SourceNotFoundError if there is nothing."""
    try:
        check_kind(file)
    except OSError as error:
        raise SourceNotFoundError(
            f"found no file {file} ({error.strerror}); give an existing file, pattern of files, or folder"
        ) from error


def _matches(pattern: str) -> dict[str, int | None]:
    if not is_url(pattern):
        return dict.fromkeys(match(pattern))
    store, path = open_store(pattern)
    found = _ask(pattern, lambda: store.glob(path, detail=True))
    return {store.unstrip_protocol(name): info.get("size") for name, info in found.items() if info["type"] == "file"}


def _alternatives(pattern: str) -> list[str]:
    """Expand braces: a{1,2} to a1 and a2, {08..10} to 08, 09 and 10."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    between = RANGE.fullmatch(braces[1])
    if between is None:
        values = braces[1].split(",")
    else:
        first, last = between.groups()
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        values = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    return [one for value in values for one in _alternatives(pattern[: braces.start()] + value + pattern[braces.end() :])]


def _ask(location: str, action: Callable[[], Any]) -> Any:
    """Return the result of a request to a store. Raises SourceNotFoundError, or VitrailError with the reason."""
    try:
        return persist(action, location)
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"found nothing at {location}; check the URL") from error
    except OSError as error:
        raise VitrailError(f"cannot open {location}: {error}; check the URL, and your permission to read it") from error
