"""Pictures of what a model attends to."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .embed import encoder

# Dark blue over violet and orange to light yellow; lightness grows steadily, so that the order survives in grey
HEAT_COLOURS = np.array(
    [[13, 8, 60], [86, 15, 109], [160, 42, 99], [221, 81, 58], [252, 151, 32], [252, 255, 200]], dtype=np.float32
)
HEAT_OPACITY = 0.75
MARGIN = 6  # pixels around the cells
CAPTION_HEIGHT = 16


@torch.inference_mode()
def attention_picture(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, image: object, *, layer: int = -1
) -> tuple[np.ndarray, Image.Image]:
    """How much [CLS] attends to each part of an image, in each head of a block.

    Args:
        model: any of our models.
        image_processor: the model's own.
        image: a path, PIL image or array.
        layer: index of the block, 0 for the first, negative ones from the last.

    Returns:
        The attention, (A, h, w) float32, and a picture: the image as the model sees it, then each head laid over it, scaled to its
        own largest value.
    """
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    maps = encoder(model).attention_maps(pixel_values.to(model.device), layers=(layer,))[0, 0].float().cpu().numpy()
    seen = image_processor(image, do_normalize=False, return_tensors="np")["pixel_values"][0]
    levels = (seen * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    photo = Image.fromarray(levels if levels.shape[-1] == 3 else levels[..., 0]).convert("RGB")
    cells = [("image", photo)] + [(f"head {index}", overlay(photo, attention)) for index, attention in enumerate(maps)]
    return maps, contact_sheet(cells)


def overlay(photo: Image.Image, attention: np.ndarray) -> Image.Image:
    """Lays attention (h, w) over a photo as heat; the largest value is the lightest."""
    scaled = Image.fromarray((attention / attention.max()).astype(np.float32))
    heat = np.asarray(scaled.resize(photo.size, Image.Resampling.BICUBIC)).clip(0, 1)
    position = heat * (len(HEAT_COLOURS) - 1)
    lower = np.minimum(position.astype(int), len(HEAT_COLOURS) - 2)
    share = (position - lower)[..., None]
    colours = HEAT_COLOURS[lower] * (1 - share) + HEAT_COLOURS[lower + 1] * share
    return Image.blend(photo, Image.fromarray(colours.astype(np.uint8)), HEAT_OPACITY)


def contact_sheet(cells: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures of one size under their captions, in rows."""
    width, height = cells[0][1].size
    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    step_x, step_y = width + MARGIN, height + CAPTION_HEIGHT + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(cells):
        left, top = MARGIN + index % columns * step_x, MARGIN + index // columns * step_y
        draw.text((left, top), caption, fill="black")
        sheet.paste(picture, (left, top + CAPTION_HEIGHT))
    return sheet
