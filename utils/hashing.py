"""Digests of files and of values."""

import hashlib
import os
from collections.abc import Iterable


def sha256(*paths: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, or of several one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def digest(parts: Iterable[str | int | None]) -> str:
    """A SHA-256 that differs when one of the parts, or their number, does."""
    sha = hashlib.sha256()
    for part in parts:
        content = repr(part).encode("utf-8", "backslashreplace")
        sha.update(len(content).to_bytes(8, "little"))
        sha.update(content)
    return sha.hexdigest()
