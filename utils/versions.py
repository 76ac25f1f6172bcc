"""Versions of the software that a result depends on."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from ..version import __version__


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of vitrail, Python and installed packages, by name."""
    return {"vitrail": __version__, "python": platform.python_version(), **{package: version(package) for package in packages}}


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
