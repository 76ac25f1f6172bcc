"""Images from files, bytes and URLs, decoded, or refused with the reason."""

import errno
import io
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps

from ...errors import BadImageError, VitrailError
from ...processing.image_processing_vit import DECODE_ERRORS
from .entries import ImageEntry
from .remote import fetch, is_url

# Kinds that Pillow recognises and cannot decode
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}

# Errors of the machine that any image would have met: no handle or memory left, a mounted store that is gone
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}


def image_suffixes() -> frozenset[str]:
    """What the names of images end in: those of all kinds that Pillow decodes, as ".jpg"."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in STUBS)


def open_entry(entry: ImageEntry) -> Image.Image:
    """The image of an entry, decoded, upright (its EXIF orientation applied), in the mode of its file.

    Raises BadImageError for what is missing, not to be read, empty, cut short, damaged, no image, or so large that it is taken for
    an attack. Raises a VitrailError that is none where the fault is not the image's: a store that does not answer three times.
    """
    if entry.problem is not None:
        raise BadImageError(entry.path, entry.problem)
    if entry.content is not None:
        return _decode(entry.path, entry.content)
    assert entry.location is not None
    if not is_url(entry.location):
        return _decode(entry.path, entry.location)
    try:
        content = fetch(entry.location)
    except OSError as error:
        raise BadImageError(entry.path, _reason(error)) from error
    return _decode(entry.path, content)


def open_image(entry: Mapping[str, Any] | None) -> Image.Image:
    """The image of a row, decoded, upright (its EXIF orientation applied), in the mode of its file.

    entry: {"bytes", "path"}, one of which may be None.

    Raises BadImageError for what is missing, empty, cut short, damaged, no image, or so large that it is taken for an attack.
    """
    entry = entry or {"bytes": None, "path": None}
    path, content = entry["path"], entry["bytes"]
    name = path or "without a path"
    if path is None and content is None:
        raise BadImageError(name, "the row holds no image")
    return _decode(name, path if content is None else content)


def _decode(name: str, file: str | bytes) -> Image.Image:
    """file: its path, or its content."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except Image.UnidentifiedImageError as error:
        empty = not file if isinstance(file, bytes) else os.path.exists(file) and not os.path.getsize(file)
        raise BadImageError(name, "it is empty" if empty else "Pillow knows no such format") from error
    except DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise VitrailError(
                f"cannot read the image {name}: {error.strerror}; this is a fault of the machine, not of the image"
            ) from error
        raise BadImageError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
