"""Milliseconds from a JPEG file to the ten views of DINO's augmentation, against the same transforms of torchvision.

The file is of 500 x 375 pixels, as most of ImageNet's: the photographs on board side by side, cut to size. Each round decodes it
and draws two views of 224 pixels and eight of 96, in one thread, as a worker of a DataLoader does. That nobody skips any work is
checked: what is drawn for our views, given to torchvision's functions, makes the same pixels, bit for bit. The runs alternate,
and their medians are compared. torchvision is left out where it is not installed.
"""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from .preprocess import mosaic
from .timing import interleaved

if TYPE_CHECKING:
    import torch

    Augment = Callable[[], tuple[torch.Tensor, torch.Tensor]]  # (2, 3, 224, 224) and (8, 3, 96, 96)

CHECKED = 5  # images whose views are compared
REPEATS, SECONDS = 400, 40.0


def ours(file: Path) -> "Augment":
    from vitrail.processing.augmentation import rng_of
    from vitrail.processing.image_processing_vit import decode
    from vitrail.processing.multi_crop import DINO_AUGMENTATION, make_crops
    from vitrail.processing.presets import IMAGENET_MEAN, IMAGENET_STD

    rows = itertools.count()
    return lambda: make_crops(decode(file), DINO_AUGMENTATION, rng_of(0, 0, next(rows)), mean=IMAGENET_MEAN, std=IMAGENET_STD)


def torchvisions(file: Path) -> "Augment":
    """facebookresearch/dino, main_dino.py, class DataAugmentationDINO, made of torchvision's own classes."""
    import torch
    from torchvision import transforms

    from vitrail.processing.multi_crop import DINO_AUGMENTATION
    from vitrail.processing.presets import IMAGENET_MEAN, IMAGENET_STD

    def blur(image: Image.Image) -> Image.Image:
        low, high = DINO_AUGMENTATION.blur_radius
        return image.filter(ImageFilter.GaussianBlur(low + (high - low) * torch.rand(()).item()))

    def sometimes(probability: float, transform: Any) -> list[Any]:
        return [transforms.RandomApply([transform], p=probability)] if probability else []

    views = [
        transforms.Compose(
            [
                transforms.RandomResizedCrop(crop.size, crop.scale, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.RandomHorizontalFlip(p=0.5),
                *sometimes(0.8, transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)),
                transforms.RandomGrayscale(p=0.2),
                *sometimes(crop.blur_probability, transforms.Lambda(blur)),
                *([transforms.RandomSolarize(128, p=crop.solarize_probability)] if crop.solarize_probability else []),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        for crop in DINO_AUGMENTATION.crops
    ]

    def augment() -> "tuple[torch.Tensor, torch.Tensor]":
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        crops = [view(rgb) for view in views]
        return torch.stack(crops[:2]), torch.stack(crops[2:])

    return augment


def check_work(image: Image.Image) -> None:
    """Raises AssertionError where torchvision's functions make other pixels of the same draws."""
    from torchvision.transforms import functional

    from vitrail.processing.multi_crop import DINO_AUGMENTATION, draw_crops, make_crop

    rng = np.random.default_rng(0)
    for draw in itertools.chain.from_iterable(draw_crops(DINO_AUGMENTATION, *image.size, rng) for _ in range(CHECKED)):
        left, top, right, bottom = draw.box
        size, bicubic = [draw.size, draw.size], functional.InterpolationMode.BICUBIC
        view = functional.resized_crop(image, top, left, bottom - top, right - left, size, bicubic)
        if draw.mirrored:
            view = functional.hflip(view)
        for name, factor in draw.jitter:
            view = getattr(functional, f"adjust_{name}")(view, factor)
        if draw.grayscale:
            view = functional.rgb_to_grayscale(view, num_output_channels=3)
        if draw.blur_radius is not None:
            view = view.filter(ImageFilter.GaussianBlur(draw.blur_radius))
        if draw.solarize_threshold is not None:
            view = functional.solarize(view, draw.solarize_threshold)
        assert np.array_equal(np.asarray(make_crop(image, draw).convert("RGB")), np.asarray(view)), f"{draw} makes another picture"


def run() -> list[dict[str, Any]]:
    """One row for each way."""
    import torch

    torch.set_num_threads(1)
    photo = mosaic(500, 375)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "photo.jpg")
        photo.save(file, quality=90)
        ways = {"vitrail": ours(file)}
        if importlib.util.find_spec("torchvision"):
            check_work(photo)
            ways["torchvision"] = torchvisions(file)
        seconds = interleaved(ways, repeats=REPEATS, seconds=SECONDS)
    return [
        {
            "way": name,
            "ms_per_image": round(1000 * median, 2),
            "images_per_second": round(1 / median, 1),
            "vitrail_is_faster_by": round(median / seconds["vitrail"], 2),
        }
        for name, median in seconds.items()
    ]
