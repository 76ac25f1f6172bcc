"""Targets of dense prediction: masks of class indices and maps of depth, from files, bytes or URLs."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import UnreadableImageError, VitrailError
from ..processing.image_processing_vit import upright_size
from .decoding import open_image
from .remote import fetch, is_url

DenseTask = Literal["segmentation", "depth"]

IGNORE_INDEX = 255  # the label of pixels that count neither in training nor in evaluation
ARRAY = ".npy"
INTEGER_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # of Pillow, with one channel
FLOAT_MODE = "F"
MILLIMETER = 0.001


@dataclass(frozen=True)
class TargetFormat:
    """What the numbers in the targets mean.

    reduce_labels: label 0 is ignored, and the others are lowered by 1, as in ADE20K.
    depth_unit: meters of one unit of integer depths; None for millimeters. Depths in floating point are meters.
    """

    task: DenseTask
    reduce_labels: bool = False
    depth_unit: float | None = None

    def read(self, row: Mapping[str, Any] | None, *, name: str) -> np.ndarray:
        """Return a target: class indices (H, W) int64, or depths in meters (H, W) float32, where 0 means that a pixel has none.

        Args:
            row: {"bytes", "path"}, as for `open_image`.
            name: of the target, for messages.

        Raises:
            VitrailError: the file is unreadable, or has colors or values that are no classes or depths.
        """
        path = (row or {}).get("path")
        name = str(path or name)
        values = _read_array(row, name) if str(path).endswith(ARRAY) else _read_picture(row, name)
        if values.ndim != 2:
            raise VitrailError(f"the target {name} has the shape {values.shape}; expected one number for each pixel, (H, W).")
        return self._classes(values, name) if self.task == "segmentation" else self._depths(values, name)

    def _classes(self, values: np.ndarray, name: str) -> np.ndarray:
        if values.dtype.kind not in "biu":
            raise VitrailError(f"the mask {name} holds {values.dtype} numbers; expected integer class indices.")
        classes = values.astype(np.int64)
        if classes.min(initial=0) < 0:
            raise VitrailError(
                f"the mask {name} holds {classes.min()}; expected class indices from 0, and {IGNORE_INDEX} to ignore."
            )
        return np.where(classes == 0, IGNORE_INDEX, classes - 1 + (classes == IGNORE_INDEX)) if self.reduce_labels else classes

    def _depths(self, values: np.ndarray, name: str) -> np.ndarray:
        if values.dtype.kind == "f":
            depths = values.astype(np.float32)
        elif values.dtype.itemsize == 1 and self.depth_unit is None:
            raise VitrailError(
                f"the depth map {name} has 8 bits, in which millimeters do not fit: write 16-bit PNG or {ARRAY}, or give the meters of one "
                "unit with depth_unit"
            )
        else:
            depths = values.astype(np.float32) * np.float32(self.depth_unit or MILLIMETER)
        depths = np.where(np.isfinite(depths), depths, 0)
        if depths.min(initial=0) < 0:
            raise VitrailError(
                f"the depth map {name} holds {depths.min():g}; expected meters above 0, and 0 for pixels without depth."
            )
        return depths


def _read_picture(row: Mapping[str, Any] | None, name: str) -> np.ndarray:
    try:
        image = open_image(row, name=name)
    except UnreadableImageError as error:
        raise VitrailError(f"the target of an image is unreadable: {error}") from error
    if image.mode not in (*INTEGER_MODES, FLOAT_MODE):
        raise VitrailError(
            f"the target {name} has the mode {image.mode}; expected one channel, with the class index or the depth of each pixel. Convert "
            "colors to indices first."
        )
    return np.asarray(image)


def _read_array(row: Mapping[str, Any] | None, name: str) -> np.ndarray:
    content = (row or {}).get("bytes")
    try:
        if content is None:
            content = fetch(name) if is_url(name) else Path(name).read_bytes()
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise VitrailError(f"cannot read the target {name}: {error}; expected an array of NumPy, (H, W).") from error
    if not isinstance(array, np.ndarray):
        raise VitrailError(f"the target {name} holds several arrays; expected one, (H, W).")
    return array


def image_size(row: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    """Return (height, width) of an image, upright, from its header; None if it is unreadable."""
    try:
        with open_image(row, Image.open, name=name) as image:
            width, height = upright_size(image)
            return height, width
    except UnreadableImageError:
        return None
