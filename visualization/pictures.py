"""Pictures for people: images prepared at another size, as the model sees them, as heat, and side by side under captions."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor

# Dark blue over violet and orange to light yellow; lightness grows steadily, so that the order survives in grey
HEAT_COLORS = np.array(
    [[13, 8, 60], [86, 15, 109], [160, 42, 99], [221, 81, 58], [252, 151, 32], [252, 255, 200]], dtype=np.float32
)
HEAT_OPACITY = 0.75
MARGIN = 6  # pixels around the cells of a sheet
SMALLEST_CELL = 160  # pixels, in which a caption can be read; smaller pictures are enlarged
MAX_SHEET = 32_000_000  # pixels; cells shrink for it. Pillow warns of files from 89 million on
SMALLEST_FONT = 16  # pixels


def at_size(
    image_processor: VitrailImageProcessor, patch_size: tuple[int, int], size: int | tuple[int, int]
) -> VitrailImageProcessor:
    """An image processor that makes images of another size, for a finer or a coarser patch grid, and is otherwise like this one.

    Where it crops a square, the crop and the size before it grow alike. To a rectangle images are squashed. Where images keep their
    aspect, `size` is their shorter side, and both sides become the nearest multiples of the patch.

    Args:
        patch_size: of the model, (height, width) in pixels.
        size: of the new images in pixels, int or (height, width).

    Raises:
        VitrailError: patches do not divide `size`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check_size((height, width), patch_size)
    before = dict(image_processor.size) if image_processor.do_resize else {}
    changes: dict[str, Any]
    if height != width or ("height" in before and not image_processor.do_center_crop):
        changes = {"size": {"height": height, "width": width}, "do_center_crop": False}
    elif image_processor.do_center_crop:
        crop = min(image_processor.crop_size.height, image_processor.crop_size.width)
        before = before or {"shortest_edge": crop}
        scaled = {name: side * height // crop for name, side in before.items()}
        changes = {"size": scaled, "crop_size": {"height": height, "width": width}}
    else:
        changes = {"size": {"shortest_edge": height}, "size_divisor": patch_size, "do_pad": False}
    return VitrailImageProcessor.from_dict(image_processor.to_dict(), do_resize=True, **changes)


def _check_size(size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    if all(side > 0 and side % patch == 0 for side, patch in zip(size, patch_size, strict=True)):
        return
    lower = tuple(max(side // patch, 1) * patch for side, patch in zip(size, patch_size, strict=True))
    upper = tuple(max(-(-side // patch), 1) * patch for side, patch in zip(size, patch_size, strict=True))
    choices = [_by(lower)] if lower == upper else [_by(lower), _by(upper)]
    raise VitrailError(
        f"Images of {_by(size)} pixels cannot be cut into patches of {_by(patch_size)}: choose the size {' or '.join(choices)}."
    )


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def look(model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, image: object) -> tuple[torch.Tensor, Image.Image]:
    """What a model sees of an image: its `pixel_values` (1, C, H, W), where the model is, and the same as an RGB picture.

    Channels that are not three make a grey picture, of their mean.
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


def name_of(image: object, index: int) -> str:
    """What an image is called under its picture: its file, or else its place among the images, from 0."""
    return os.path.basename(os.fspath(image)) if isinstance(image, str | os.PathLike) else f"image {index}"


def overlay(photo: Image.Image, attention: np.ndarray) -> Image.Image:
    """Lays attention (h, w) over a photo as heat, the smallest value the darkest and the largest the lightest."""
    smooth = Image.fromarray(_scaled(attention)).resize(photo.size, Image.Resampling.BICUBIC)
    return Image.blend(photo, heat(np.asarray(smooth).clip(0, 1)), HEAT_OPACITY)


def heat_map(photo: Image.Image, attention: np.ndarray) -> Image.Image:
    """Attention (h, w) alone as heat, patch by patch, as large as the photo; the largest value is the lightest, as in `overlay`."""
    return heat(_scaled(attention)).resize(photo.size, Image.Resampling.NEAREST)


def _scaled(attention: np.ndarray) -> np.ndarray:
    low, high = attention.min(), attention.max()
    return ((attention - low) / (high - low if high > low else 1)).astype(np.float32)


def heat(values: np.ndarray) -> Image.Image:
    """Values (h, w) from 0 to 1 in colours, a pixel for each."""
    position = values * (len(HEAT_COLORS) - 1)
    lower = np.minimum(position.astype(int), len(HEAT_COLORS) - 2)
    share = (position - lower)[..., None]
    colours = HEAT_COLORS[lower] * (1 - share) + HEAT_COLORS[lower + 1] * share
    return Image.fromarray(colours.round().astype(np.uint8))


def contact_sheet(strips: Sequence[Sequence[tuple[str, Image.Image | None]]]) -> Image.Image:
    """Strips of pictures under their captions, on white.

    One strip is cut into rows that make about a square. Several strips, of one length, stay whole: one below the other, and side by
    side too where the sheet would be a tower. Every picture fills its cell as far as its aspect allows. Large sheets are shrunk to
    `MAX_SHEET` pixels, and small pictures enlarged.

    Args:
        strips: (caption, picture) of each cell; without a picture the cell stays empty.
    """
    cells = [cell for strip in strips for cell in strip]
    widths, heights = zip(*(picture.size for _, picture in cells if picture is not None), strict=True)
    columns = _number_of_columns(len(strips), len(strips[0]), max(heights) / max(widths))
    rows = math.ceil(len(cells) / columns)
    largest_zoom = math.sqrt(MAX_SHEET / (rows * max(heights) * columns * max(widths)))
    zoom = min(math.ceil(SMALLEST_CELL / max(widths)), largest_zoom)
    width, height = max(round(max(widths) * zoom), 1), max(round(max(heights) * zoom), 1)
    step_x = width + MARGIN
    # Captions grow with the sheet, which a screen shows whole, up to a tenth of a cell's width
    font_size = max(min(columns * step_x // 100, width // 10), SMALLEST_FONT)
    font, caption_height = ImageFont.load_default(font_size), math.ceil(font_size * 1.4)
    step_y = height + caption_height + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(cells):
        left, top = MARGIN + index % columns * step_x, MARGIN + index // columns * step_y
        draw.text((left, top), _shortened(caption, font, width), fill="black", font=font)
        if picture is not None:
            sheet.paste(_fitted(picture, (width, height)), (left, top + caption_height))
    return sheet


def _number_of_columns(strips: int, length: int, aspect: float) -> int:
    if strips == 1:
        return math.ceil(math.sqrt(length * aspect))
    return length * min(max(round(math.sqrt(strips * aspect / length)), 1), strips)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest picture of this aspect in (width, height); where much larger, with its pixels left visible."""
    zoom = min(size[0] / picture.width, size[1] / picture.height)
    if zoom == 1:
        return picture
    fitted = max(round(picture.width * zoom), 1), max(round(picture.height * zoom), 1)
    return picture.resize(fitted, Image.Resampling.NEAREST if zoom >= 2 else Image.Resampling.LANCZOS)


def _shortened(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """A caption that fits into a width in pixels, if need be without its middle."""
    kept = len(caption)
    shortened = caption
    while kept > 1 and font.getlength(shortened) > width:
        kept -= 1
        shortened = f"{caption[: (kept + 1) // 2]}…{caption[len(caption) - kept // 2 :]}"
    return shortened
