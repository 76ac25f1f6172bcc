"""Optional dependencies: packages that only some features need."""

import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from types import ModuleType

from ..errors import VitrailError

TELEMETRY = "openvino_telemetry"


def check_packages(names: Iterable[str], *, extra: str | None = None) -> None:
    """Raise VitrailError, before any work is done, if packages are missing.

    Args:
        names: of the packages, as they are imported.
        extra: the extra of vitrail that installs the packages; None for packages that are installed by their names.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        command = f"pip install {' '.join(missing)}" if extra is None else install_command(extra)
        raise VitrailError(f"This needs packages that are not installed ({', '.join(missing)}): {command}")


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra."""
    return f'pip install ".[{extra}]" in a checkout of vitrail'


def import_without_telemetry(name: str) -> ModuleType:
    """Import openvino or nncf without the package that reports imports and calls to their makers over the network.

    Both work without that package. It is hidden while they are imported.
    """
    known = sys.modules.pop(TELEMETRY, None)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # makes Python's import raise ImportError
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[TELEMETRY]
        if known is not None:
            sys.modules[TELEMETRY] = known
