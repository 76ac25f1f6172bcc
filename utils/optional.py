"""Packages that only some parts of this one need."""

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from types import ModuleType

from ..errors import VitrailError

TELEMETRY = "openvino_telemetry"


def check_packages(names: Iterable[str], *, extra: str) -> None:
    """Says before any work is done that packages are missing, and which extra of ours brings them.

    names: as they are imported.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise VitrailError(f'This needs packages that are not installed ({", ".join(missing)}): pip install "vitrail[{extra}]"')


def import_without_telemetry(name: str) -> ModuleType:
    """Imports openvino or nncf without the package by which they report every import and call to their makers, over the network.

    Both do without it where it is not installed; so it seems while they are imported.
    """
    known = sys.modules.pop(TELEMETRY, None)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[TELEMETRY]
        if known is not None:
            sys.modules[TELEMETRY] = known
