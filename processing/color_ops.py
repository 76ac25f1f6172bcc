"""Color operations on 8-bit Pillow images. Each equals torchvision's operation of that name bit for bit."""

from functools import cache

import numpy as np
from PIL import Image

SIXTH = 85  # of the circle of hues, on which Pillow's 256 levels are 2 apart


def adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    """Away from black (above 1) or towards it; 0 is black."""
    return Image.blend(Image.new(image.mode, image.size), image, factor)


def adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    """Away from the mean grey (above 1) or towards it; 0 is that grey."""
    grey = image if image.mode == "L" else image.convert("L")
    mean = int(np.asarray(grey).mean() + 0.5)
    return Image.blend(Image.new(image.mode, image.size, (mean,) * len(image.getbands())), image, factor)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Away from the greyscale image (above 1) or towards it; 0 is that image."""
    return image if image.mode == "L" else Image.blend(image.convert("L").convert(image.mode), image, factor)


def adjust_hue(image: Image.Image, factor: float) -> Image.Image:
    """Around the circle of hues, of which `factor` is a share, from -0.5 to 0.5.

    The way back from HSV is arithmetic on whole channels, which takes half of Pillow's time. A channel lies below the value by
    saturation * value * missing / (255 * SIXTH): the products are whole numbers below 2**24, so exact in float32, and the
    divisor is odd, so that no quotient is close to a half. It is rounded right.
    """
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    levels = np.asarray(value)
    chroma = np.multiply(levels, saturation, dtype=np.float32)
    channels = []
    for missing in _missing(int(factor * 255) % 256):  # towards 0, as in torchvision
        below = chroma * np.asarray(hue.point(missing))
        below /= 255 * SIXTH
        below += 0.5
        channels.append(Image.fromarray(levels - below.astype(np.uint8)))
    return Image.merge(image.mode, channels)


@cache
def _missing(shift: int) -> list[list[int]]:
    """What red, green and blue lack at each of the 256 hues moved by `shift`: 0 up to a sixth from their own hue, SIXTH from two on."""
    hues = (np.arange(256) + shift) % 256
    distances = np.abs(2 * hues - np.array([[0], [2 * SIXTH], [4 * SIXTH]]))
    return np.clip(np.minimum(distances, 6 * SIXTH - distances) - SIXTH, 0, SIXTH).tolist()


# The operations of torchvision's ColorJitter, in its order
JITTER = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
