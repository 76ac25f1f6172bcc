"""Pictures of depth: colors with a scale bar in meters, and the depths as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import VitrailError
from ..modeling.modeling_vit_dense import ViTForDepthEstimation, resize
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.optimization import OptimizedModel
from .legends import enlarged, with_scale_bar
from .pictures import contact_sheet, heat, image_name, write_values
from .whole_images import check_head, read_whole

MAX_MILLIMETERS = 2**16 - 1  # of a 16-bit PNG


@torch.inference_mode()
def plot_depth(
    model: ViTForDepthEstimation | OptimizedModel, image_processor: VitrailImageProcessor, images: Sequence
) -> tuple[list[np.ndarray], Image.Image]:
    """Return the depth of each pixel of images, and a picture of it as colors: near pixels are light, far pixels dark.

    Images are not cropped. Images that the image processor does not resize are shrunk if they have more than a million pixels.

    Args:
        model: a depth model, or a depth model from `vitrail.optimize`.
        image_processor: the image processor of the model.
        images: paths, PIL images or arrays, of any sizes.

    Returns:
        The depth of each image in meters, (H, W) float32; and a picture with each image and its depth, above a scale bar from the
            smallest to the largest depth of that image.

    Raises:
        VitrailError: there is no image, or the model has no depth head.
        ValueError: an image cannot be read.
    """
    if not len(images):
        raise VitrailError("found no image; pass at least one")
    check_head(model, "depth")
    maps, strips = [], []
    for number, image in enumerate(images):
        whole = read_whole(model, image_processor, image)
        predicted = model(whole.prepared).predicted_depth.float()
        depth = resize(predicted[:, None], whole.size)[0, 0].cpu().numpy()
        maps.append(depth)
        low, high = float(depth.min()), float(depth.max())
        photo = enlarged(whole.photo)
        nearness = (high - depth) / (high - low if high > low else 1)
        picture = heat(nearness.clip(0, 1)).resize(photo.size, Image.Resampling.BILINEAR)
        scaled = with_scale_bar(picture, low, high, lambda values: heat(1 - values), unit=" m")
        strips.append([(image_name(image, number), photo), ("depth", scaled)])
    return maps, contact_sheet(strips)


def write_depth(depth: np.ndarray, path: Path) -> None:
    """Write depths in meters, whole or not at all: a .png has 16 bits and millimeters, a .npy float32 and meters.

    Raises VitrailError if a depth is too large for a .png.
    """
    if path.suffix != ".npy":
        depth = (depth.astype(np.float64) * 1000).round()
        if depth.max() > MAX_MILLIMETERS:
            raise VitrailError(
                f"{path.name} would hold depths up to {depth.max() / 1000:.2f} m, but 16 bits of millimeters end at "
                f"{MAX_MILLIMETERS / 1000} m: write .npy files."
            )
        depth = depth.astype(np.uint16)
    write_values(depth, path)
