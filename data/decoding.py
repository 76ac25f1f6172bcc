"""Decoding of images from files, bytes and URLs, or the reason why they are unreadable."""

import errno
import io
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from PIL import Image

from ..errors import StoreUnreachableError, UnreadableImageError, VitrailError
from ..processing.image_processing_vit import DECODE_ERRORS, PROGRAMS, decode
from .entries import ImageEntry
from .remote import Hosts, fetch, is_url

# Decodes a file to an upright image: `decode`, or that of an image processor, which may decode JPEG files at a reduced scale
Decode: TypeAlias = Callable[[Any], Image.Image]

# Formats that Pillow recognizes but cannot decode
STUBS = {"BUFR", "GRIB", "HDF5", "MPEG"}

HOSTS = Hosts()  # of this process

# Errors of the machine, not of one image: no handle or memory left, a mounted store that is gone
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of all image formats that Pillow decodes without running a program, such as ".jpg"."""
    kinds = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in kinds if kind in Image.OPEN and kind not in STUBS | PROGRAMS)


def open_entry(entry: ImageEntry, decode: Decode = decode) -> Image.Image:
    """Return the image of an entry, decoded, upright (its EXIF orientation applied), in the mode of its file.

    decode: `image_processor.decode`, if only the image processor sees the image.

    Raises UnreadableImageError for a file that is missing, unreadable, empty, truncated, damaged, not an image, not a regular file, or so
    large that it may be a decompression bomb. Raises another VitrailError if the image is not at fault: the store of the source did not
    respond three times.
    """
    if entry.problem is not None:
        raise UnreadableImageError(entry.path, entry.problem)
    if entry.content is not None:
        return _open(entry.path, entry.content, decode)
    assert entry.location is not None
    if not is_url(entry.location):
        return _open(entry.path, entry.location, decode)
    try:
        content = HOSTS.fetch(entry.location) if entry.own_store else fetch(entry.location)
    except StoreUnreachableError as error:
        if not entry.own_store:
            raise
        unreadable = UnreadableImageError(entry.path, str(error))
        unreadable.retry = True
        raise unreadable from error
    except OSError as error:
        raise UnreadableImageError(entry.path, _reason(error)) from error
    return _open(entry.path, content, decode)


def open_image(row: Mapping[str, Any] | None, decode: Decode = decode, *, name: str = "of a row without a path") -> Image.Image:
    """Return the image of a row of a dataset as `open_entry` does, and with its errors.

    row: {"bytes", "path"}, one of which may be None; the path may be a URL. name: of an image without a path, for messages.
    """
    path, content = (row or {}).get("path"), (row or {}).get("bytes")
    problem = "the row holds no image" if path is None and content is None else None
    return open_entry(ImageEntry(0, path or name, location=path, content=content, problem=problem), decode)


def _open(name: str, file: str | bytes, decode: Decode) -> Image.Image:
    """Decode a file, given its path or its content."""
    try:
        return decode(io.BytesIO(file) if isinstance(file, bytes) else file)
    except Image.UnidentifiedImageError as error:
        empty = not file if isinstance(file, bytes) else os.path.exists(file) and not os.path.getsize(file)
        raise UnreadableImageError(name, "it is empty" if empty else "Pillow does not recognize its format") from error
    except DECODE_ERRORS as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise VitrailError(
                f"cannot read the image {name}: {error.strerror}; this is an error of the machine, not of the image"
            ) from error
        raise UnreadableImageError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
