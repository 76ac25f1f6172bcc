"""Image files and bytes, decoded, or refused with the reason."""

import io
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageOps

from ..errors import BadImageError
from ..processing.image_processing_vit import DECODE_ERRORS


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
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except FileNotFoundError as error:
        raise BadImageError(name, "there is no such file") from error
    except Image.UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0 if content is None else not content
        raise BadImageError(name, "it is empty" if empty else "Pillow knows no such format") from error
    except DECODE_ERRORS as error:
        raise BadImageError(name, str(error) or type(error).__name__) from error
