"""Legends of pictures: names next to their colors, and scale bars with numbers."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import caption_font
from .pictures import shortened

Color = tuple[int, ...]  # red, green, blue

MIN_WIDTH = 480  # pixels of a picture with a legend: smaller pictures are enlarged
FONT_SHARE = 26  # width of a picture / height of its text
MIN_FONT = 12  # pixels
MAX_TICKS = 5
LINE = 1.5  # height of a line / height of its text


def enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture that is wide enough for a legend."""
    if picture.width >= MIN_WIDTH:
        return picture
    return picture.resize((MIN_WIDTH, max(round(picture.height * MIN_WIDTH / picture.width), 1)), Image.Resampling.LANCZOS)


def legend(entries: Sequence[tuple[str, Color]], size: tuple[int, int]) -> Image.Image:
    """Return a picture of (width, height) with the name of each entry next to its color, in as many columns as necessary.

    The text becomes smaller if the entries do not fit; those that do not fit even then are counted in the last line.
    """
    width, height = size
    for font_size in range(max(width // FONT_SHARE, MIN_FONT), MIN_FONT - 1, -1):
        line = math.ceil(font_size * LINE)
        rows = max(height // line, 1)
        widest = max(_length(name, font_size) for name, _ in entries) + 3 * line
        columns = max(width // min(math.ceil(widest), width), 1)
        if rows * columns >= len(entries):
            break
    omitted = len(entries) - rows * columns
    shown = list(entries[: rows * columns - 1]) if omitted > 0 else list(entries)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for index, (name, color) in enumerate([*shown, *([(f"and {omitted + 1} more", None)] if omitted > 0 else [])]):
        left, top = index // rows * (width // columns), index % rows * line
        if color is not None:
            draw.rectangle((left, top + line // 8, left + line, top + line - line // 8), fill=color, outline="#808080")
        text, font = caption_font(name, font_size)
        text = shortened(text, font, width // columns - 2 * line)
        draw.text((left + line * 1.4, top + line / 2), text, fill="black", font=font, anchor="lm")
    return picture


def _length(text: str, font_size: int) -> float:
    text, font = caption_font(text, font_size)
    return font.getlength(text)


def with_scale_bar(
    picture: Image.Image, low: float, high: float, colors: Callable[[np.ndarray], Image.Image], *, unit: str = ""
) -> Image.Image:
    """Return a picture above a bar of its colors from `low` to `high`, with numbers.

    colors: maps values (h, w) from 0 to 1 to a picture.
    """
    width = picture.width
    font_size = max(width // FONT_SHARE, MIN_FONT)
    bar, gap = font_size, font_size // 3
    sheet = Image.new("RGB", (width, picture.height + gap + bar + 2 * gap + font_size + gap), "white")
    sheet.paste(picture)
    top = picture.height + gap
    sheet.paste(colors(np.linspace(0, 1, width)[None]).resize((width, bar), Image.Resampling.NEAREST), (0, top))
    draw = ImageDraw.Draw(sheet)
    for value, label in ticks(low, high):
        text, font = caption_font(label + unit, font_size)
        place = (value - low) / (high - low) * (width - 1) if high > low else width / 2
        draw.line((place, top, place, top + bar + gap), fill="black", width=max(font_size // 10, 1))
        half = font.getlength(text) / 2
        draw.text((min(max(place, half), width - half), top + bar + gap), text, fill="black", font=font, anchor="ma")
    return sheet


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return at most MAX_TICKS + 1 round values from `low` to `high`, 1, 2 or 5 times a power of ten apart, and their texts."""
    if not high > low:
        return [(low, f"{low:.3g}")]
    power = math.floor(math.log10((high - low) / MAX_TICKS))
    step = next(step for step in (1, 2, 5, 10) if (high - low) / (step * 10.0**power) <= MAX_TICKS) * 10.0**power
    decimals = max(-math.floor(math.log10(step) + 1e-9), 0)
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:.{decimals}f}") for number in numbers]
