"""Fonts for captions: a font of this machine that has the characters, or else the font of Pillow and escaped characters."""

import functools
from typing import TypeAlias

from PIL import ImageFont

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# In order of preference; Pillow finds them in the folders of the system
CANDIDATES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "arial.ttf",
    "msyh.ttc",
    "Hiragino Sans GB.ttc",
)
NO_CHARACTER = "\U0010fffe"  # drawn as the glyph for characters that a font lacks


def caption_font(caption: str, size: int) -> tuple[str, Font]:
    """Return a caption that can be drawn, and the font to draw it with, `size` pixels high.

    Characters that no font has are escaped: é becomes \\xe9.
    """
    if caption.replace("…", "").isascii():
        return caption, _default(size)
    for name in CANDIDATES:
        font = _installed(name, size)
        if font is not None and all(_has(font, character) for character in set(caption)):
            return caption, font
    return caption.encode("ascii", "backslashreplace").decode(), _default(size)


@functools.cache
def _default(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.cache
def _installed(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: Font, character: str) -> bool:
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(NO_CHARACTER))
