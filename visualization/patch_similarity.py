"""Pictures of patch similarity: how similar each patch of some images is to the patch at a point of the first image."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import keep_aspect, uncropped
from .legends import enlarged, with_scale_bar
from .pictures import contact_sheet, heat, image_name, preprocess, scaled

MARK_SHARE = 40  # width of a picture / half the width of a mark


@torch.inference_mode()
def plot_patch_similarity(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, images: Sequence, points: Sequence[tuple[float, float]]
) -> tuple[list[np.ndarray], Image.Image]:
    """Return the cosine of each patch of images with the patches at points of the first image, and a picture of it.

    Args:
        model: any vitrail model.
        image_processor: the image processor of the model; `at_size` derives processors for other sizes. Images keep their aspect and are
            not cropped.
        images: paths, PIL images or arrays, of any sizes.
        points: (x, y) in pixels of the first image, from its top left corner.

    Returns:
        The cosines of each image, (points, h, w) float32, of patch tokens after the final norm; and a picture with each image, followed
        by a map for each point. A cross marks the point in the first image, and the most similar patch in the others. The colors of a point
        have one scale in all images.

    Raises:
        VitrailError: there is no image or no point, or a point lies outside of the first image.
        ValueError: an image cannot be read.
    """
    if not len(images) or not len(points):
        raise VitrailError(f"found {len(images)} images and {len(points)} points; pass at least one of each")
    patches, photos = [], []
    whole_processor = keep_aspect(image_processor, model.config.patch_shape)
    for image in images:
        pixel_values, photo = preprocess(model, whole_processor, image)
        (tokens,) = model.base_model.get_intermediate_layers(pixel_values, reshape=True)
        patches.append(F.normalize(tokens[0].float(), dim=0).cpu())  # (D, h, w)
        photos.append(enlarged(photo))
    _, original = preprocess(model, uncropped(image_processor), images[0])
    queries = torch.stack([patches[0][:, row, column] for row, column in _patches_at(points, original.size, patches[0].shape[1:])])
    maps = [torch.einsum("pd,dhw->phw", queries, tokens).numpy() for tokens in patches]
    marks = [(x / original.width, y / original.height) for x, y in points]
    lows, highs = (np.array([bound(one) for one in zip(*maps, strict=True)]) for bound in (_smallest, _largest))
    strips = []
    for number, (image, photo, cosines) in enumerate(zip(images, photos, maps, strict=True)):
        strip = [(image_name(image, number), _marked(photo, marks) if number == 0 else photo)]
        for (x, y), mark, low, high, one in zip(points, marks, lows, highs, cosines, strict=True):
            picture = heat(scaled(one, low, high)).resize(photo.size, Image.Resampling.NEAREST)
            picture = _marked(picture, [mark if number == 0 else most_similar(one)])
            strip.append((f"cosine with ({x:g}, {y:g})", with_scale_bar(picture, low, high, heat)))
        strips.append(strip)
    return maps, contact_sheet(strips)


def most_similar(cosines: np.ndarray) -> tuple[float, float]:
    """Return the center of the most similar patch of a map (h, w), (x, y) as shares of the width and the height."""
    row, column = np.unravel_index(cosines.argmax(), cosines.shape)
    return (float(column) + 0.5) / cosines.shape[1], (float(row) + 0.5) / cosines.shape[0]


def _patches_at(points: Sequence[tuple[float, float]], size: tuple[int, int], grid: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (row, column) of the patch at each point of an image of (width, height)."""
    (width, height), (rows, columns) = size, grid
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise VitrailError(
                f"The point ({x:g}, {y:g}) lies outside of the first image: pass 0 <= x < {width} and 0 <= y < {height}."
            )
    return [(int(y * rows / height), int(x * columns / width)) for x, y in points]


def _smallest(maps: Sequence[np.ndarray]) -> float:
    return min(float(one.min()) for one in maps)


def _largest(maps: Sequence[np.ndarray]) -> float:
    return max(float(one.max()) for one in maps)


def _marked(picture: Image.Image, marks: Sequence[tuple[float, float]]) -> Image.Image:
    """Return a picture with crosses, white on black, at shares of its width and height."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    radius = max(picture.width // MARK_SHARE, 3)
    for x, y in marks:
        column, row = x * picture.width, y * picture.height
        for color, width in (("black", max(radius // 2, 3)), ("white", max(radius // 5, 1))):
            draw.line((column - radius, row, column + radius, row), fill=color, width=width)
            draw.line((column, row - radius, column, row + radius), fill=color, width=width)
    return picture
