"""Pictures: images at other sizes, images as the model receives them, heat maps, and contact sheets with captions."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.optimization import OptimizedModel
from ..utils.atomic import replaced
from .fonts import Font, caption_font

# Dark blue, violet, orange, light yellow; lightness grows steadily, so that the order survives in grayscale
HEAT_COLORS = np.array(
    [[13, 8, 60], [86, 15, 109], [160, 42, 99], [221, 81, 58], [252, 151, 32], [252, 255, 200]], dtype=np.float32
)
HEAT_OPACITY = 0.75
MARGIN = 6  # pixels around the cells of a contact sheet
MIN_CELL = 160  # pixels, wide enough for a caption; smaller pictures are enlarged
MAX_SHEET = 32_000_000  # pixels; larger sheets are shrunk. Pillow warns about files of 89 million pixels
MIN_FONT = 16  # pixels


def preprocess(
    model: ViTPreTrainedModel | OptimizedModel, image_processor: VitrailImageProcessor, image: object
) -> tuple[torch.Tensor, Image.Image]:
    """Return the `pixel_values` (1, C, H, W) of an image, on the device of the model, and the same pixels as an RGB picture.

    Images with other than three channels become a gray picture of their mean.
    """
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    levels = pixel_values[0].cpu().numpy()
    if image_processor.do_normalize:
        mean, std = (np.reshape(numbers, (-1, 1, 1)) for numbers in (image_processor.image_mean, image_processor.image_std))
        levels = levels * std + mean
    if image_processor.do_rescale:
        levels = levels / image_processor.rescale_factor
    if len(levels) != 3:
        levels = np.broadcast_to(levels.mean(axis=0), (3, *levels.shape[1:]))
    photo = Image.fromarray(np.ascontiguousarray(levels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return pixel_values.to(model.device), photo


def write_values(values: np.ndarray, path: Path) -> None:
    """Write a map (H, W) whole or not at all: an array as .npy, or the pixels of a picture with 8 or 16 bits."""
    with replaced(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, values)
        else:
            Image.fromarray(values).save(temporary)


def image_name(image: object, index: int) -> str:
    """Return the caption of an image: its file name, or its index among the images."""
    return os.path.basename(os.fspath(image)) if isinstance(image, str | os.PathLike) else f"image {index}"


def overlay(photo: Image.Image, attention: np.ndarray) -> Image.Image:
    """Blend attention (h, w) with a photo as heat: the smallest value is the darkest, the largest the lightest."""
    smooth = Image.fromarray(scaled(attention, attention.min(), attention.max())).resize(photo.size, Image.Resampling.BICUBIC)
    return Image.blend(photo, heat(np.asarray(smooth).clip(0, 1)), HEAT_OPACITY)


def heat_map(photo: Image.Image, attention: np.ndarray) -> Image.Image:
    """Return attention (h, w) alone as heat, patch by patch, at the size of the photo; colors are those of `overlay`."""
    return heat(scaled(attention, attention.min(), attention.max())).resize(photo.size, Image.Resampling.NEAREST)


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values from `low` to `high` as shares of that range, from 0 to 1, in float32."""
    return ((values - low) / (high - low if high > low else 1)).astype(np.float32)


def heat(values: np.ndarray) -> Image.Image:
    """Return values (h, w) from 0 to 1 as a picture of heat colors, one pixel per value."""
    position = values * (len(HEAT_COLORS) - 1)
    lower = np.minimum(position.astype(int), len(HEAT_COLORS) - 2)
    share = (position - lower)[..., None]
    colors = HEAT_COLORS[lower] * (1 - share) + HEAT_COLORS[lower + 1] * share
    return Image.fromarray(colors.round().astype(np.uint8))


def contact_sheet(strips: Sequence[Sequence[tuple[str, Image.Image | None]]]) -> Image.Image:
    """Return strips of pictures under their captions, on white.

    A single strip is wrapped into rows that make about a square. Several strips of equal length stay whole: they are stacked, and placed
    side by side as well if the sheet would be too tall. Every picture fills its cell as far as its aspect allows. Large sheets are shrunk
    to `MAX_SHEET` pixels, and small pictures are enlarged.

    Args:
        strips: (caption, picture) of each cell; a cell without a picture stays empty.
    """
    cells = [cell for strip in strips for cell in strip]
    widths, heights = zip(*(picture.size for _, picture in cells if picture is not None), strict=True)
    columns = _number_of_columns(len(strips), len(strips[0]), max(heights) / max(widths))
    rows = math.ceil(len(cells) / columns)
    largest_zoom = math.sqrt(MAX_SHEET / (rows * max(heights) * columns * max(widths)))
    zoom = min(math.ceil(MIN_CELL / max(widths)), largest_zoom)
    width, height = max(round(max(widths) * zoom), 1), max(round(max(heights) * zoom), 1)
    step_x = width + MARGIN
    # Captions grow with the sheet, because a screen shows the whole sheet, up to a tenth of the cell width
    font_size = max(min(columns * step_x // 100, width // 10), MIN_FONT)
    caption_height = math.ceil(font_size * 1.4)
    step_y = height + caption_height + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(cells):
        left, top = MARGIN + index % columns * step_x, MARGIN + index // columns * step_y
        caption, font = caption_font(caption, font_size)
        draw.text((left, top), shortened(caption, font, width), fill="black", font=font)
        if picture is not None:
            sheet.paste(_fitted(picture, (width, height)), (left, top + caption_height))
    return sheet


def _number_of_columns(strips: int, length: int, aspect: float) -> int:
    if strips == 1:
        return math.ceil(math.sqrt(length * aspect))
    return length * min(max(round(math.sqrt(strips * aspect / length)), 1), strips)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the picture scaled to fit (width, height); when it is enlarged twice or more, its pixels stay visible."""
    zoom = min(size[0] / picture.width, size[1] / picture.height)
    if zoom == 1:
        return picture
    fitted = max(round(picture.width * zoom), 1), max(round(picture.height * zoom), 1)
    return picture.resize(fitted, Image.Resampling.NEAREST if zoom >= 2 else Image.Resampling.LANCZOS)


def shortened(caption: str, font: Font, width: int) -> str:
    """Return a caption that fits into a width in pixels; the middle is cut out if necessary."""
    kept = len(caption)
    shortened = caption
    while kept > 1 and font.getlength(shortened) > width:
        kept -= 1
        shortened = f"{caption[: (kept + 1) // 2]}…{caption[len(caption) - kept // 2 :]}"
    return shortened
