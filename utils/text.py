"""Text of messages and cards."""

import re
from pathlib import Path

from ..errors import public_text


def count(number: int, noun: str) -> str:
    """Return a number and a noun in the singular or plural: 1 image, 2 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def public_name(source: str) -> str:
    """Return a name of a source that can be published.

    A Hub id stays as it is; a URL loses its query and credentials, a file or folder the path to it.
    """
    if "://" in source:
        return public_text(source)
    path = Path(source)
    if not source or (not path.exists() and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)):
        return source
    return path.absolute().name
