"""DINO's training augmentation: large and small random views of an image with changed colors, with Pillow and numpy only.

Caron et al. 2021, arXiv:2104.14294, after BYOL (Grill et al. 2020, arXiv:2006.07733, appendix B). `draw_crops` draws
all random numbers of a view, and `make_crop` makes the view from them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from ..errors import VitrailError
from .augmentation import RATIO, random_resized_crop_box
from .color_ops import JITTER
from .image_processing_vit import convert_channels

Kind = TypeVar("Kind")

MODES = {1: "L", 3: "RGB"}  # the number of channels: Pillow's mode


def _check_whole(name: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise VitrailError(f"found {name}={value!r}; write a whole number of at least {least}")


def _check_number(name: str, value: Any, *, most: float = math.inf) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= most:
        raise VitrailError(f"found {name}={value!r}; write a number from 0 {_upwards(most)}")


def _check_bounds(name: str, value: Any, *, most: float = math.inf) -> None:
    numbers = isinstance(value, tuple) and len(value) == 2 and all(isinstance(bound, int | float) for bound in value)
    if not numbers or not 0 < value[0] <= value[1] <= most:
        raise VitrailError(f"found {name}={value!r}; write two numbers (low, high), from above 0 {_upwards(most)}")


def _upwards(most: float) -> str:
    return "upwards" if most == math.inf else f"to {most:g}"


@dataclass(frozen=True)
class CropAugmentation:
    """One kind of view: a random crop of the image, resized to a square.

    size: side of the square, in pixels.
    scale: bounds of the crop's share of the image area.
    blur_probability, solarize_probability: see `MultiCropAugmentation`.
    """

    size: int
    scale: tuple[float, float]
    blur_probability: float = 0.0
    solarize_probability: float = 0.0

    def __post_init__(self) -> None:
        _check_whole("size", self.size, least=1)
        _check_bounds("scale", self.scale, most=1)
        _check_number("blur_probability", self.blur_probability, most=1)
        _check_number("solarize_probability", self.solarize_probability, most=1)


@dataclass(frozen=True)
class MultiCropAugmentation:
    """The views of an image, and their augmentations in order. The defaults are facebookresearch/dino's; see DINO_AUGMENTATION.

    global_crops: of the two large views, of one size.
    local_crop, num_local_crops: of the small views, and how many of them there are.
    ratio: bounds of the width / height of the part that is resized.
    flip_probability: of a mirror image.
    jitter_probability, brightness, contrast, saturation, hue: of changed colors. The four are applied in random order, the first
        three with a factor from max(0, 1 - strength) to 1 + strength; the hue moves by up to that share of the circle, to either
        side. A strength of 0 leaves its operation out.
    grayscale_probability: of an image without colors.
    blur_radius: bounds of the standard deviation, in pixels, of Pillow's GaussianBlur. How probable it is belongs to the crop.
    solarize_threshold: levels of at least this are inverted, as probable as the crop says.

    `dataclasses.asdict` makes it a dict that JSON can hold, and `from_dict` reads that. Raises VitrailError for values that do
    not fit.
    """

    global_crops: tuple[CropAugmentation, CropAugmentation]
    local_crop: CropAugmentation
    num_local_crops: int = 8
    ratio: tuple[float, float] = RATIO
    flip_probability: float = 0.5
    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale_probability: float = 0.2
    blur_radius: tuple[float, float] = (0.1, 2.0)
    solarize_threshold: int = 128

    def __post_init__(self) -> None:
        sizes = [crop.size for crop in self.global_crops]
        if len(sizes) != 2 or sizes[0] != sizes[1]:
            raise VitrailError(f"found {len(sizes)} global_crops, of the sizes {sizes}; write two, of one size")
        _check_whole("num_local_crops", self.num_local_crops, least=0)
        _check_whole("solarize_threshold", self.solarize_threshold, least=0)
        _check_bounds("ratio", self.ratio)
        _check_bounds("blur_radius", self.blur_radius)
        for name in ("flip_probability", "jitter_probability", "grayscale_probability"):
            _check_number(name, getattr(self, name), most=1)
        for name in ("brightness", "contrast", "saturation"):
            _check_number(name, getattr(self, name))
        _check_number("hue", self.hue, most=0.5)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MultiCropAugmentation":
        """Read the dict that `dataclasses.asdict` returns, also from JSON, where tuples are lists."""
        crops = {
            "global_crops": tuple(_read(CropAugmentation, crop) for crop in values.get("global_crops", ())),
            "local_crop": _read(CropAugmentation, values.get("local_crop", {})),
        }
        return _read(cls, {**values, **crops})

    @property
    def jitter_bounds(self) -> dict[str, tuple[float, float]]:
        """The smallest and the largest factor of each operation with a strength above 0."""
        strengths = {name: getattr(self, name) for name in JITTER}
        return {
            name: (-strength, strength) if name == "hue" else (max(0.0, 1 - strength), 1 + strength)
            for name, strength in strengths.items()
            if strength
        }

    @property
    def crops(self) -> tuple[CropAugmentation, ...]:
        """The kinds of all views, large ones first."""
        return (*self.global_crops, *(self.local_crop,) * self.num_local_crops)


# facebookresearch/dino, main_dino.py: class DataAugmentationDINO, with the defaults of --global_crops_scale, --local_crops_scale and
# --local_crops_number. What recipes change are the scales and the number.
DINO_AUGMENTATION = MultiCropAugmentation(
    global_crops=(
        CropAugmentation(size=224, scale=(0.4, 1.0), blur_probability=1.0),
        CropAugmentation(size=224, scale=(0.4, 1.0), blur_probability=0.1, solarize_probability=0.2),
    ),
    local_crop=CropAugmentation(size=96, scale=(0.05, 0.4), blur_probability=0.5),
)

# facebookresearch/dinov2, data/augmentations.py: the same but for the scales (configs/ssl_default_config.yaml, crops)
DINOV2_AUGMENTATION = replace(
    DINO_AUGMENTATION,
    global_crops=(
        replace(DINO_AUGMENTATION.global_crops[0], scale=(0.32, 1.0)),
        replace(DINO_AUGMENTATION.global_crops[1], scale=(0.32, 1.0)),
    ),
    local_crop=replace(DINO_AUGMENTATION.local_crop, scale=(0.05, 0.32)),
)


@dataclass(frozen=True)
class CropDraw:
    """All random numbers of one view.

    box: the crop, as Pillow's (left, top, right, bottom); size: the side it is resized to.
    jitter: operations of JITTER with their factors, in order.
    blur_radius, solarize_threshold: None for no blur or no solarization.
    """

    box: tuple[int, int, int, int]
    size: int
    mirrored: bool = False
    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_radius: float | None = None
    solarize_threshold: int | None = None


def make_crop(image: Image.Image, draw: CropDraw) -> Image.Image:
    """Make a drawn view of an image in RGB or L. Grayscale views are in L, which takes a third of the time afterwards."""
    view = image.crop(draw.box).resize((draw.size, draw.size), Image.Resampling.BICUBIC)
    if draw.mirrored:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, factor in draw.jitter:
        view = JITTER[name](view, factor)
    if draw.grayscale:
        view = view.convert("L")
    if draw.blur_radius is not None:
        view = view.filter(ImageFilter.GaussianBlur(draw.blur_radius))
    if draw.solarize_threshold is not None:
        view = ImageOps.solarize(view, draw.solarize_threshold)
    return view


def draw_crops(augmentation: MultiCropAugmentation, width: int, height: int, rng: np.random.Generator) -> Iterator[CropDraw]:
    """Draw the views of an image of `width` x `height` pixels, large ones first.

    Unused numbers are drawn as well, so that changing a probability affects no other draw.
    """
    bounds = augmentation.jitter_bounds
    for crop in augmentation.crops:
        box = random_resized_crop_box(width, height, rng, scale=crop.scale, ratio=augmentation.ratio)
        probabilities = (
            augmentation.flip_probability,
            augmentation.jitter_probability,
            augmentation.grayscale_probability,
            crop.blur_probability,
            crop.solarize_probability,
        )
        mirrored, jittered, grayscale, blurred, solarized = (rng.random(len(probabilities)) < probabilities).tolist()
        jitter = [(name, rng.uniform(*bounds[name])) for name in bounds]
        order = rng.random(len(jitter)).argsort()
        radius = rng.uniform(*augmentation.blur_radius)
        yield CropDraw(
            box,
            crop.size,
            mirrored=mirrored,
            jitter=tuple(jitter[place] for place in order) if jittered else (),
            grayscale=grayscale,
            blur_radius=radius if blurred else None,
            solarize_threshold=augmentation.solarize_threshold if solarized else None,
        )


def make_crops(
    image: Image.Image,
    augmentation: MultiCropAugmentation,
    rng: np.random.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    num_channels: int = 3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixel values of the views of an image: the two large ones and the small ones.

    Args:
        image: of any mode, upright (an EXIF orientation applied).
        augmentation: what is drawn; see DINO_AUGMENTATION.
        rng: where all randomness comes from; see `rng_of`.
        mean, std: of each channel, of values from 0 to 1.
        num_channels: of the model. 3 makes images RGB; 1 makes them grayscale, and leaves of the jitter brightness and contrast.

    Returns:
        float32 (2, C, S, S) and (N, C, s, s), of `num_local_crops` N.

    Raises VitrailError for another number of channels, and ValueError for an image without pixels or of floats beyond 0 to 1.
    """
    check_channels(num_channels)
    if not len(mean) == len(std) == num_channels:
        raise VitrailError(
            f"found mean={mean} and std={std} with num_channels={num_channels}; write {num_channels} numbers for each"
        )
    image = _with_channels(image, num_channels)
    global_size, local_size = augmentation.global_crops[0].size, augmentation.local_crop.size
    global_crops = torch.empty(2, num_channels, global_size, global_size)
    local_crops = torch.empty(augmentation.num_local_crops, num_channels, local_size, local_size)
    mean_operand, std_operand = (np.array(numbers, np.float32)[:, None, None] for numbers in (mean, std))
    draws = draw_crops(augmentation, image.width, image.height, rng)
    for values, draw in zip((*global_crops.numpy(), *local_crops.numpy()), draws, strict=True):
        levels = np.atleast_3d(np.asarray(make_crop(image, draw)))  # (H, W, C), or (H, W, 1) without colors
        np.divide(np.ascontiguousarray(levels.transpose(2, 0, 1)), np.float32(255), out=values)
        np.subtract(values, mean_operand, out=values)
        np.divide(values, std_operand, out=values)
    return global_crops, local_crops


def check_channels(num_channels: int) -> None:
    """Raise VitrailError if color changes are not defined for a number of channels."""
    if num_channels not in MODES:
        raise VitrailError(
            f"found num_channels={num_channels}; color changes are defined for 3 (RGB) and 1 (grayscale); write one of these"
        )


def _with_channels(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert to RGB or L. 16-bit levels and floats are rounded to 8 bits, for which the color changes are defined."""
    converted = convert_channels(
        image, backend="pil", num_channels=num_channels, input_data_format=None, device=None, full_scale=255.0
    )
    if isinstance(converted, Image.Image):
        return converted
    return Image.fromarray(converted[0].round().to(torch.uint8).numpy()).convert(MODES[num_channels])


def _read(kind: type[Kind], values: Any) -> Kind:
    if not isinstance(values, Mapping):
        raise VitrailError(f"found {values!r} in place of a {kind.__name__}; write its fields by name")
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in values if name not in names]
    if unknown:
        raise VitrailError(f"found {', '.join(unknown)} in a {kind.__name__}; it has {', '.join(names)}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise VitrailError(str(error)) from error
