"""Drawings of a report: pictures and heat maps as data URIs, and a histogram."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from ..pictures import heat

JPEG_QUALITY = 80
BINS = 48
MIN_HEIGHT = 0.3  # height of a bar with a single value, in powers of ten


def jpeg_uri(photo: Image.Image, side: int) -> str:
    """Return a photo as a data URI, with a longer side of at most `side` pixels."""
    photo = photo.copy()
    photo.thumbnail((side, side))
    return _data_uri(photo, "jpeg", quality=JPEG_QUALITY, optimize=True)


def heat_uri(values: np.ndarray) -> str:
    """Return values (h, w) from 0 to 1 in heat colors, one pixel per value, as a data URI."""
    return _data_uri(heat(values), "png")


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def histogram(values: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return the bars and ticks of a histogram, as fractions of the width and height; the range includes 0, all values and the threshold.

    Heights are logarithms of the counts, so that a single value is visible next to thousands. The threshold is an edge between two bars.
    """
    largest = max(float(values.max()), threshold)
    below = max(round(BINS * threshold / largest), 1)  # bars below the threshold
    width = threshold / below
    number = math.floor(largest / width) + 1
    counts, edges = np.histogram(values, bins=width * np.arange(number + 1))
    end = float(edges[-1])

    def height(count: int) -> float:
        return (math.log10(count) + MIN_HEIGHT) / (math.log10(counts.max()) + MIN_HEIGHT)

    step = _round_step(end / 6)
    return {
        "bars": [
            {
                "at": edges[index] / end,
                "width": width / end,
                "height": height(count),
                "count": count,
                "from": edges[index],
                "to": edges[index + 1],
                "above": index >= below,
            }
            for index, count in enumerate(counts.tolist())
            if count
        ],
        "threshold": threshold / end,
        "x": [{"at": tick * step / end, "value": tick * step} for tick in range(math.floor(end / step) + 1)],
        "y": [{"at": height(10**power), "value": 10**power} for power in range(int(math.log10(counts.max())) + 1)],
    }


def _round_step(length: float) -> float:
    """Round up to 1, 2, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(length))
    return next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= length)
