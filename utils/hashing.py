"""Digests of files and of values."""

import hashlib
import os
from collections.abc import Iterable


def sha256(*paths: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hexadecimal. Several files count as one, concatenated."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: sha)
    return sha.hexdigest()


def digest(values: Iterable[str | int | bytes | None]) -> str:
    """Return a SHA-256 that differs when one of the values, or their number, differs."""
    sha = hashlib.sha256()
    for value in values:
        content = value if isinstance(value, bytes) else repr(value).encode("utf-8", "backslashreplace")
        sha.update(len(content).to_bytes(8, "little"))
        sha.update(content)
    return sha.hexdigest()
