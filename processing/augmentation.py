"""The training view of an image: a random crop resized to the model's size, mirrored with probability 0.5."""

import math

import numpy as np
import torch
from PIL import Image

from ..errors import VitrailError
from .image_processing_vit import VitrailImageProcessor

# The defaults of torchvision's RandomResizedCrop, after Szegedy et al. 2014, arXiv:1409.4842, section 6
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
TRIES = 10
FLIP_PROBABILITY = 0.5


def rng_of(seed: int, view: int, row: int) -> np.random.Generator:
    """Return the generator of one draw for one image, which depends on these three numbers only.

    A draw is therefore the same in any batch, order, process and version of numpy. seed: seed of the run; view: index of the draw for
    this image; row: index of the image in its dataset. All are 0 or more.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(view, row))))


def random_resized_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """Draw a random crop of an image of `width` x `height` pixels, as Pillow's box (left, top, right, bottom).

    Its share of the area is uniform in `scale`, the logarithm of its width / height is uniform in the logarithms of `ratio`, and its
    place is uniform. A crop that does not fit is drawn again, up to 10 times; after that, it is the largest center crop whose aspect is
    within `ratio`. These are the semantics of torchvision's RandomResizedCrop.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            return left, top, left + crop_width, top + crop_height
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def training_view(
    image: Image.Image,
    image_processor: VitrailImageProcessor,
    rng: np.random.Generator,
    *,
    resample: int = Image.Resampling.BICUBIC,
) -> torch.Tensor:
    """Return pixel values of one training view of an image: `random_resized_crop_box`, then a horizontal flip with probability 0.5.

    The image processor converts colors, resizes the crop to its own size, and normalizes. With the defaults this is the
    training transform of facebookresearch/dinov2 (dinov2/data/transforms.py, make_classification_train_transform); that of
    facebookresearch/dino (eval_linear.py) differs in its filter, which is bilinear.

    Args:
        image: of any mode, upright (an EXIF orientation applied).
        image_processor: of the model.
        rng: the source of all randomness; see `rng_of`.
        resample: Pillow's filter number.

    Returns:
        float32 (C, H, W).

    Raises VitrailError if the image processor has no fixed size.
    """
    box = random_resized_crop_box(image.width, image.height, rng)
    mirrored = rng.random() < FLIP_PROBABILITY
    # Cropping before the color conversion gives the same pixels; the flip comes last, as in torchvision
    pixel_values = image_processor(
        image.crop(box),
        do_resize=True,
        size=_training_size(image_processor),
        resample=resample,
        do_center_crop=False,
        device="cpu",  # also in worker processes, which cannot use a GPU
        return_tensors="pt",
    )["pixel_values"][0]
    return pixel_values.flip(-1) if mirrored else pixel_values


def _training_size(image_processor: VitrailImageProcessor) -> dict[str, int]:
    if image_processor.do_center_crop:
        return dict(image_processor.crop_size)
    if not image_processor.do_resize:
        raise VitrailError(
            "the image processor keeps the size of every image, but a random crop is resized to a fixed size; use one "
            'with a size, for example vitrail.make_image_processor("dino", image_size=224)'
        )
    size = dict(image_processor.size)
    return size if "height" in size else {"height": size["shortest_edge"], "width": size["shortest_edge"]}
