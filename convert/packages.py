"""Packages that only some parts of this one need."""

from collections.abc import Iterable
from importlib.util import find_spec

from ..errors import VitrailError


def check_packages(names: Iterable[str], *, extra: str) -> None:
    """Says before any work is done that packages are missing, and which extra of ours brings them.

    names: as they are imported.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise VitrailError(f'This needs packages that are not installed ({", ".join(missing)}): pip install "vitrail[{extra}]"')
