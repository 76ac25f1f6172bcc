"""Whole photographs for dense models: never cropped, and large ones shrunk, so that a map of any image fits into memory."""

import math
from dataclasses import dataclass

import torch
from PIL import Image

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import keep_aspect, uncropped
from ..runtime.optimization import OptimizedModel
from .pictures import preprocess

# By task: the class of the model, and a head to name in messages
HEADS: dict[str, tuple[type[ViTPreTrainedModel], str]] = {
    "segmentation": (ViTForSemanticSegmentation, "ade20k_linear"),
    "depth": (ViTForDepthEstimation, "nyu_dpt"),
}
MAX_PIXELS = 1_000_000  # of an image that the image processor does not resize: 150 classes of it take 600 MB


@dataclass(frozen=True)
class WholeImage:
    """An image that is not cropped.

    pixel_values: (1, C, H, W), normalized, at the size of the photo.
    photo: the same pixels as a picture; shrunk to MAX_PIXELS.
    size: (height, width) of the original image.
    prepared: (1, C, H', W'), resized as the image processor does.
    """

    pixel_values: torch.Tensor
    photo: Image.Image
    size: tuple[int, int]
    prepared: torch.Tensor


def check_head(model: object, task: str) -> None:
    """Raise VitrailError unless a model, or the model that `vitrail.optimize` was given, has the head of a task."""
    loaded = model.model if isinstance(model, OptimizedModel) else model
    kind, example = HEADS[task]
    if not isinstance(loaded, kind):
        raise VitrailError(f'found a {type(loaded).__name__}; load a {task} head, for example with head="{example}"')


def read_whole(model: ViTPreTrainedModel | OptimizedModel, image_processor: VitrailImageProcessor, image: object) -> WholeImage:
    """Read an image as a dense model receives it. Where the image processor crops, the image keeps its aspect instead.

    Raises ValueError if the image cannot be read.
    """
    pixel_values, photo = preprocess(model, uncropped(image_processor), image)
    height, width = size = photo.height, photo.width
    if height * width > MAX_PIXELS:
        factor = math.sqrt(MAX_PIXELS / (height * width))
        shrunk = {"height": max(round(height * factor), 1), "width": max(round(width * factor), 1)}
        pixel_values, photo = preprocess(model, uncropped(image_processor, size=shrunk), image)
    prepared = pixel_values
    if image_processor.do_center_crop:
        prepared, _ = preprocess(model, keep_aspect(image_processor, model.config.patch_shape), image)
    elif image_processor.do_resize:
        prepared, _ = preprocess(model, uncropped(image_processor, size=dict(image_processor.size)), image)
    return WholeImage(pixel_values, photo, size, prepared)
