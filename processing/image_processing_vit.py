"""Preprocessing of images to the `pixel_values` of a Vision Transformer, with Pillow and torch only.

This file is uploaded with a model, so it imports nothing from the package and raises `ValueError`.

An image passes through one function after the other: `_read` opens files with `decode`, `convert_channels` gives it the channels of
the model, `_resize_with_pil` or `_resize_with_torch` and `_center_crop` its size, and `rescale_and_normalize` its scale. In between it is
a Pillow image of 8-bit levels or a tensor (C, H, W): uint8 levels, or float32 values that are final but for the normalization.
"""

import functools
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.utils import httpx  # exported for other libraries: httpx or httpx2, as its version needs
from PIL import ExifTags, Image, ImageCms, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import ChannelDimension, SizeDict
from transformers.processing_utils import ImagesKwargs, Unpack

Pixels: TypeAlias = Image.Image | torch.Tensor
Group: TypeAlias = tuple[list[int], list[torch.Tensor]]
Batch: TypeAlias = tuple[list[int], torch.Tensor]

BACKENDS = ("pil", "torch")
DOWNLOAD_TIMEOUT = 30.0  # seconds
MAX_SIDE = 2**16  # pixels
SIZE_KEYS = ({"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"height", "width"})

# The largest value that an array of each type can hold; bool arrays become uint8 levels of 0 and 255.
FULL_RANGE = {"bool": 1, "uint8": 255, "uint16": 65535, "float16": 1, "bfloat16": 1, "float32": 1, "float64": 1}

# torch's antialiased kernels, and the devices on which they take uint8.
TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
UINT8_KERNELS = {"cpu"}

# Since version 13 Pillow shrinks some images vertically first (python-pillow/Pillow#9549): see _resize_with_torch.
PILLOW_MAY_SHRINK_HEIGHT_FIRST = int(PIL.__version__.split(".")[0]) >= 13

# What libjpeg decodes, at the scales 1 / n that Pillow asks for; and the EXIF orientations that lie on their sides.
JPEG_FORMATS = ("JPEG", "MPO")
JPEG_SCALES = (8, 4, 2)
SIDEWAYS = (5, 6, 7, 8)

# What Pillow's decoders raise on broken files.
DECODE_ERRORS = (
    OSError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# What preprocessing raises on images that cannot be used.
PREPROCESS_ERRORS = (ArithmeticError, MemoryError, ValueError)

# Formats that are programs: Pillow would run Ghostscript on them.
PROGRAMS = {"EPS"}


class VitrailImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of VitrailImageProcessor beyond those of every image processor."""

    backend: str | None
    num_channels: int | None
    size_divisor: int | list[int] | tuple[int, ...] | None
    jpeg_draft: bool | None


class VitrailImageProcessor(BaseImageProcessor):
    """Resizes, crops, rescales and normalizes images. The defaults are DINO's evaluation (arXiv:2104.14294, `eval_knn.py`).

    Every setting can be passed to the constructor, to `from_pretrained` and to a call, and is saved in preprocessor_config.json:

    - backend: "pil" resizes with Pillow and equals torchvision's PIL transforms bit for bit. "torch" resizes uint8 tensors
      with torch's antialiased kernels, images of one shape as one batch, on `device` if one is given: bilinear and bicubic
      only, within 2 levels of Pillow, and typically under 1 % of the values differ.
    - num_channels: number of channels of the model. 3 converts Pillow images to RGB, 1 to grayscale; with another number an image must have
      that many channels, which are processed one by one. Grayscale is repeated for a model of 3 channels.
    - do_resize, size, resample: `{"shortest_edge": s}` keeps the aspect, with a bound if there is a "longest_edge";
      `{"height": h, "width": w}` squashes, and usually goes with do_center_crop=False. `resample` is Pillow's filter, by
      number or name.
    - size_divisor: a patch size, int or (height, width). Each side becomes a multiple of it: the nearest, by resizing, or
      with do_pad the next, by padding right and bottom with zeros after the normalization, which are the mean color.
    - do_center_crop, crop_size: a smaller image is padded with black.
    - jpeg_draft: libjpeg decodes JPEG files at 1/2, 1/4 or 1/8 of their size if both sides remain at least as large as the size
      to resize to and the shape of `pixel_values` is the same. This is much faster for large photographs; values differ by one or
      two levels on average. It has no effect on decoded images.
    - do_rescale, rescale_factor: 8-bit levels times the factor; 16-bit levels (0 to 65535) and floats (0 to 1) are scaled to the
      same range without rounding to 8 bits. Without do_rescale, values are unchanged.
    - do_normalize, image_mean, image_std: per channel.

    A call takes one image, or lists of them: Pillow images of any mode, arrays and tensors of uint8, uint16, bool or float,
    (H, W), (H, W, C) or (C, H, W) or a batch with one more axis in front, paths, URLs and bytes. Modes I and I;16 hold 16-bit
    levels, mode F floats. The channel axis is the one that has num_channels entries; where both the first and the last
    have, it is the last in arrays and the first in tensors, unless `input_data_format` is given. The EXIF orientation
    is applied to files, not to Pillow images.

    It returns `pixel_values`, float32 (B, C, H, W), or a list of (C, H, W) without `return_tensors`; (H, W, C) if
    `data_format` is "channels_last". Raises ValueError for a file that does not decode, naming it, and for images and
    arguments that do not fit.
    """

    valid_kwargs = VitrailImageProcessorKwargs
    after_save = None  # a function of the folder, called by save_pretrained; a class attribute, which vitrail sets to add its code

    backend = "pil"
    num_channels = 3
    do_resize = True
    size = SizeDict(shortest_edge=256)
    resample = Image.Resampling.BICUBIC
    size_divisor = None
    do_pad = False
    jpeg_draft = False
    do_center_crop = True
    crop_size = SizeDict(height=224, width=224)
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)

    def __init__(self, **kwargs: Unpack[VitrailImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)
        self._set_attributes(**kwargs)
        self._settings({})

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read also the files of transformers' ViT, which squash images (to an int `size` in old files) and never crop."""
        image_processor_dict = {name: value for name, value in image_processor_dict.items() if name != "auto_map"}  # no setting
        size = image_processor_dict.get("size")
        if isinstance(size, int | list | tuple) or (isinstance(size, Mapping) and "height" in size):
            image_processor_dict = {"do_center_crop": False, **image_processor_dict}
        return super().from_dict(image_processor_dict, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super()._standardize_kwargs(**kwargs)
        for name in ("image_mean", "image_std"):
            if isinstance(kwargs[name], int | float):
                kwargs[name] = (float(kwargs[name]),) * kwargs["num_channels"]
            elif kwargs[name] is not None:
                kwargs[name] = tuple(kwargs[name])
        if isinstance(kwargs["size_divisor"], list):
            kwargs["size_divisor"] = tuple(kwargs["size_divisor"])
        if kwargs["resample"] is not None:
            kwargs["resample"] = _filter_number(kwargs["resample"])
        return kwargs

    def decode(self, file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
        """Decode the image in a file, upright, as a call does: see jpeg_draft. Raises what Pillow raises, one of DECODE_ERRORS."""
        return decode(file, self.settings)

    @property
    def settings(self) -> "Settings":
        """The settings of a call without arguments. Raises ValueError if they are wrong."""
        return self._settings({})

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Prepare images: the implementation of a call. `kwargs` take precedence over the settings of the image processor."""
        if kwargs.keys() - {"return_tensors"}:  # the only argument of most calls, which BatchFeature validates
            validate_typed_dict(self.valid_kwargs, kwargs)
        return _preprocess(images, self._settings(kwargs))

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[torch.Tensor]:
        """Return the class of each pixel of each image, (H, W), from the `logits` (B, K, h, w) of a segmentation model.

        target_sizes: (height, width) of each image, to which its logits are first resized, bilinearly; the size of the logits by default.
        """
        maps = _at_sizes(outputs.logits, target_sizes)
        return [logits.argmax(dim=0) for logits in maps]

    def post_process_depth_estimation(
        self, outputs: Any, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Return for each image {"predicted_depth": (H, W)} in meters, from the `predicted_depth` (B, H, W) of a depth model.

        target_sizes: (height, width) of each image, to which its depth is resized, bilinearly; the size of `predicted_depth` by default.
        """
        maps = _at_sizes(outputs.predicted_depth[:, None], target_sizes)
        return [{"predicted_depth": depth[0]} for depth in maps]

    def _settings(self, kwargs: dict[str, Any]) -> "Settings":
        values = {name: getattr(self, name) for name in self._valid_kwargs_names} | kwargs
        settings = Settings.from_kwargs(self._standardize_kwargs(**values))
        _validate(settings)
        return settings

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Write preprocessor_config.json, then call `after_save` with the folder, then upload it if `push_to_hub`.

        Returns:
            The paths of the files that transformers wrote.
        """
        written: list[str] = super().save_pretrained(save_directory, **({} if push_to_hub else kwargs))
        after_save = type(self).after_save
        if after_save is not None:
            after_save(Path(save_directory))
        if push_to_hub:  # not before the folder is complete
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return written


def _at_sizes(maps: torch.Tensor, sizes: Any) -> Iterator[torch.Tensor]:
    """Yield each map (C, h, w) of a batch, resized to the (height, width) of its image, or as it is without sizes."""
    if sizes is None:
        return iter(maps)
    if len(sizes) != len(maps):
        raise ValueError(f"found {len(sizes)} target_sizes for {len(maps)} images; pass the (height, width) of each one")
    sides = [(int(height), int(width)) for height, width in sizes]
    return (F.interpolate(one[None], size, mode="bilinear")[0] for one, size in zip(maps, sides, strict=True))


def _filter_number(resample: int | str) -> int:
    if not isinstance(resample, str):
        return int(resample)
    if resample.upper() not in Image.Resampling.__members__:
        raise ValueError(f'found resample="{resample}"; write a filter of Pillow, for example "bilinear" or "bicubic"')
    return int(Image.Resampling[resample.upper()])


class VitrailImageProcessorTorch(VitrailImageProcessor):
    """The class that `AutoImageProcessor.from_pretrained(..., backend="torch")` finds; it makes a VitrailImageProcessor.

    transformers consumes the argument to choose a class, so the class must carry it.
    """

    backend = "torch"

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a VitrailImageProcessor with `backend="torch"`."""
        return VitrailImageProcessor.from_dict(image_processor_dict, **(kwargs | {"backend": "torch"}))


class Sides(NamedTuple):
    """The numbers of a SizeDict, which cannot change."""

    height: int | None
    width: int | None
    longest_edge: int | None
    shortest_edge: int | None
    max_height: int | None
    max_width: int | None

    @classmethod
    def from_size(cls, size: SizeDict | None) -> "Sides | None":
        """Copy a SizeDict."""
        return None if size is None else cls(*(getattr(size, name) for name in cls._fields))

    def to_dict(self) -> dict[str, int]:
        """Return the sides that are given, by name."""
        return {name: side for name, side in zip(self._fields, self, strict=True) if side is not None}


@dataclass(frozen=True)
class Settings:
    """The settings of one call, as VitrailImageProcessor documents them; hashable, so that equal settings are validated once."""

    backend: str
    num_channels: int
    do_resize: bool
    size: Sides | None
    resample: int
    size_divisor: int | tuple[int, int] | None
    do_pad: bool
    pad_size: Sides | None
    jpeg_draft: bool
    do_center_crop: bool
    crop_size: Sides | None
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    input_data_format: ChannelDimension | str | None
    data_format: ChannelDimension | str | None
    device: torch.device | str | int | None
    return_tensors: Any

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> "Settings":
        """Select the settings among the standardized arguments of a call."""
        values = {name: kwargs[name] for name in SETTING_NAMES}
        for name in ("size", "pad_size", "crop_size"):
            values[name] = Sides.from_size(values[name])
        return cls(**values)

    @property
    def full_scale(self) -> float | None:
        """The value that rescaling makes of the largest possible one, or None if nothing is rescaled."""
        return 255 * self.rescale_factor if self.do_rescale else None

    @property
    def crop_sides(self) -> tuple[int, int]:
        """crop_size as (height, width), where do_center_crop is set."""
        assert self.crop_size is not None
        assert self.crop_size.height is not None
        assert self.crop_size.width is not None
        return self.crop_size.height, self.crop_size.width

    @property
    def divisors(self) -> tuple[int, int]:
        """size_divisor as (height, width); (1, 1) without one."""
        return _pair(1 if self.size_divisor is None else self.size_divisor)


SETTING_NAMES = tuple(field.name for field in fields(Settings))


@functools.lru_cache(maxsize=16)
def _validate(settings: Settings) -> None:
    """Raise ValueError for settings that are wrong or contradict each other."""
    _validate_geometry(settings)
    _validate_values(settings)


def _are_sides(sides: Iterable[Any]) -> bool:
    """Return True for numbers of pixels that an image may have after resizing; a file with larger ones is damaged, or a trap."""
    return all(isinstance(side, int) and 1 <= side <= MAX_SIDE for side in sides)


def _validate_geometry(settings: Settings) -> None:
    backend, size, crop_size = settings.backend, settings.size, settings.crop_size
    resample, size_divisor = settings.resample, settings.size_divisor
    if backend not in BACKENDS:
        raise ValueError(f"found backend={backend!r}; write 'pil' (exact) or 'torch' (fast, within 2 levels)")
    if settings.do_resize:
        if size is None or set(size.to_dict()) not in SIZE_KEYS or not _are_sides(size.to_dict().values()):
            raise ValueError(
                f"found size={None if size is None else size.to_dict()}; write positive numbers of pixels as "
                '{"shortest_edge": s}, {"shortest_edge": s, "longest_edge": l} or {"height": h, "width": w}'
            )
        if size.longest_edge is not None and size.longest_edge < (size.shortest_edge or 0):
            raise ValueError(f"found size={size.to_dict()}; the longest_edge must not be below the shortest_edge")
    if settings.do_resize or (size_divisor is not None and not settings.do_pad):
        if resample not in set(Image.Resampling):
            raise ValueError(f"found resample={resample}; write a filter of Pillow, for example 2 (bilinear) or 3 (bicubic)")
        if backend == "torch" and resample not in TORCH_FILTERS:
            raise ValueError(
                f"found resample={resample} ({Image.Resampling(resample).name}) with backend='torch', which has 2 (bilinear) "
                "and 3 (bicubic); write one of these, or backend='pil'"
            )
    if settings.do_center_crop:
        if crop_size is None or set(crop_size.to_dict()) != {"height", "width"} or not _are_sides(crop_size.to_dict().values()):
            found = None if crop_size is None else crop_size.to_dict()
            raise ValueError(f'found crop_size={found}; write positive numbers of pixels as {{"height": h, "width": w}}')
        if size_divisor is not None:
            raise ValueError(
                f"found size_divisor={size_divisor} with do_center_crop=True, but the crop alone makes the size; write "
                "do_center_crop=False, or size_divisor=None"
            )
    if size_divisor is not None:
        sides = _pair(size_divisor)
        if len(sides) != 2 or not _are_sides(sides):
            raise ValueError(f"found size_divisor={size_divisor}; write a positive int or a (height, width) pair")
    elif settings.do_pad:
        raise ValueError("found do_pad=True without a size_divisor to pad to; write size_divisor=<patch size>")
    if settings.pad_size is not None:
        raise ValueError(
            f"found pad_size={settings.pad_size.to_dict()}; images are padded to multiples of size_divisor, write that"
        )
    for name in ("do_resize", "do_center_crop", "do_pad", "do_rescale", "do_normalize"):
        if getattr(settings, name) not in (None, True, False):
            raise ValueError(f"found {name}={getattr(settings, name)!r}; write True or False")
    if not isinstance(settings.jpeg_draft, bool):
        raise ValueError(f"found jpeg_draft={settings.jpeg_draft!r}; write True to decode JPEG files at a reduced scale, or False")


def _validate_values(settings: Settings) -> None:
    num_channels, rescale_factor = settings.num_channels, settings.rescale_factor
    if not isinstance(num_channels, int) or num_channels < 1:
        raise ValueError(f"found num_channels={num_channels!r}; write the number of channels of the model, for example 3")
    if settings.do_rescale and not (rescale_factor is not None and 0 < rescale_factor < math.inf):
        raise ValueError(f"found rescale_factor={rescale_factor}; write 1 / 255, or do_rescale=False")
    if settings.do_normalize:
        for name, values in (("image_mean", settings.image_mean), ("image_std", settings.image_std)):
            if values is None or len(values) != num_channels:
                raise ValueError(
                    f"found {name}={values} with num_channels={num_channels}; write {num_channels} numbers, or do_normalize=False"
                )
        if not all(math.isfinite(value) for value in settings.image_mean):
            raise ValueError(f"found image_mean={settings.image_mean}; write finite numbers")
        if not all(0 < value < math.inf for value in settings.image_std):
            raise ValueError(f"found image_std={settings.image_std}; write numbers above 0")


def _preprocess(images: Any, settings: Settings) -> BatchFeature:
    sources = list(_flatten(images))
    if not sources:
        raise ValueError("found no image; pass at least one")
    images_read = (_read(source, settings) for source in sources)
    if settings.backend == "pil":  # one by one, so that a batch never holds more than one image in full
        pixels = [resize_and_crop(image, settings) for image in images_read]
    else:
        converted = (_convert(image, settings) for image in images_read)
        pixels = _in_order(
            (indices, _center_crop(_resize_with_torch(batch, settings), settings)) for indices, batch in _batches(converted)
        )
    batches = [(indices, rescale_and_normalize(group, settings)) for indices, group in _groups(enumerate(pixels))]
    if settings.return_tensors is None:
        return BatchFeature({"pixel_values": _in_order(batches)})
    pixel_values = _one_batch(batches)
    if settings.return_tensors != "pt":
        pixel_values = pixel_values.cpu()
    return BatchFeature({"pixel_values": pixel_values}, tensor_type=settings.return_tensors)


def _flatten(images: Any) -> Iterator[Any]:
    """Yield the images of nested lists and of batches with four axes."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    elif isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        yield from images
    else:
        yield images


def _read(source: Any, settings: Settings) -> Image.Image | np.ndarray | torch.Tensor:
    """Open a path, a URL or bytes; return images unchanged."""
    if isinstance(source, Image.Image | np.ndarray | torch.Tensor):
        return source
    if isinstance(source, bytes):
        return _decode(BytesIO(source), f"in {len(source)} bytes", settings)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            content = httpx.get(source, timeout=DOWNLOAD_TIMEOUT, follow_redirects=True).raise_for_status().content
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ValueError(f"cannot read the image {source}: {error}") from error
        return _decode(BytesIO(content), source, settings)
    if isinstance(source, str | os.PathLike):
        return _decode(source, os.fspath(source), settings)
    raise ValueError(
        f"found {type(source).__name__} in place of an image; pass a Pillow image, an array, a tensor, a path, a URL or bytes"
    )


def _decode(file: str | os.PathLike[str] | BytesIO, name: str, settings: Settings) -> Image.Image:
    try:
        return decode(file, settings)
    except FileNotFoundError as error:
        raise ValueError(f"the image {name} does not exist") from error
    except Image.UnidentifiedImageError as error:
        size = len(file.getvalue()) if isinstance(file, BytesIO) else os.path.getsize(file)
        raise ValueError(
            f"cannot read the image {name}: {'Pillow does not recognize its format' if size else 'it is empty'}"
        ) from error
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"cannot read the image {name}: {reason}") from error


def decode(file: str | os.PathLike[str] | BinaryIO, settings: Settings | None = None) -> Image.Image:
    """Decode the image in a file and apply its EXIF orientation; with settings whose jpeg_draft is set, at a reduced scale.

    Raises one of DECODE_ERRORS, also for a pipe, a device or a socket, which is not opened, and for one of PROGRAMS.
    """
    if isinstance(file, str | os.PathLike) and not stat.S_ISREG(mode := os.stat(file).st_mode) and not stat.S_ISDIR(mode):
        raise ValueError("it is not a regular file, but a pipe, a device or a socket")
    with Image.open(file) as image:
        if image.format in PROGRAMS:
            raise ValueError(f"{image.format} files are programs, which are not run")
        if settings is not None and settings.jpeg_draft and image.format in JPEG_FORMATS:
            _draft(image, settings)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) that an image has once it is turned as its EXIF orientation says, from its header."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
    return image.size[::-1] if turned else image.size


def _draft(image: Image.Image, settings: Settings) -> None:
    """Choose the smallest scale of a JPEG that leaves enough pixels to resize from and results in the same shape."""
    width, height = upright_size(image)
    target = _resized_size(height, width, settings)
    for scale in JPEG_SCALES:
        enough = height // scale >= target[0] and width // scale >= target[1]
        if enough and (settings.do_center_crop or _resized_size(-(-height // scale), -(-width // scale), settings) == target):
            image.draft(None, (image.width // scale, image.height // scale))
            return


def resize_and_crop(image: Image.Image | np.ndarray | torch.Tensor, settings: Settings) -> torch.Tensor:
    """Return an image (C, H, W) at its size for the model, as a call prepares it: all but `rescale_and_normalize`.

    uint8 levels, or float32 values if the image has more than 8 bits. Raises ValueError for an image that does not fit.
    """
    converted = _convert(image, settings)
    if settings.backend == "torch":
        return _center_crop(_resize_with_torch(converted[None], settings), settings)[0]
    cropped = _center_crop(_resize_with_pil(converted, settings), settings)
    return _planes(cropped) if isinstance(cropped, Image.Image) else cropped


def _convert(image: Image.Image | np.ndarray | torch.Tensor, settings: Settings) -> Any:
    return convert_channels(
        image,
        backend=settings.backend,
        num_channels=settings.num_channels,
        input_data_format=settings.input_data_format,
        device=settings.device,
        full_scale=settings.full_scale,
    )


def convert_channels(
    image: Image.Image | np.ndarray | torch.Tensor,
    *,
    backend: str,
    num_channels: int,
    input_data_format: ChannelDimension | str | None,
    device: torch.device | str | int | None,
    full_scale: float | None,
) -> Pixels:
    """Return the image with the channels of the model. `full_scale` is the value that rescaling makes of the largest possible one."""
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"found an image of {image.width} x {image.height} pixels; pass one with pixels")
        image = _convert_mode(image, num_channels)
        if isinstance(image, Image.Image):
            if backend == "pil":
                return image
            levels = torch.from_numpy(np.array(image))
            return (levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1)).to(device)
        input_data_format = ChannelDimension.LAST
    habit = ChannelDimension.LAST if isinstance(image, np.ndarray) else ChannelDimension.FIRST
    dtype = image.dtype.name if isinstance(image, np.ndarray) else str(image.dtype).removeprefix("torch.")
    if dtype not in FULL_RANGE:
        raise ValueError(f"found an image of type {dtype}; convert it to uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1)")
    if isinstance(image, np.ndarray):  # torch takes neither foreign byte orders nor negative strides nor read-only memory
        image = torch.from_numpy(np.require(image, image.dtype.newbyteorder("="), ["C", "W"]))
    image = _channels_first(image.detach(), num_channels, input_data_format, habit)
    image = image.to("cpu" if backend == "pil" else device)
    if dtype == "bool":
        return image.to(torch.uint8) * 255
    if dtype == "uint8":
        return image
    return _rescale(image.to(torch.float32), FULL_RANGE[dtype], full_scale)


def _convert_mode(image: Image.Image, num_channels: int) -> Image.Image | np.ndarray:
    """Return an 8-bit Pillow image in RGB or L, or an array (H, W[, C]) for other modes."""
    if image.mode == "I":
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(
                f"found values from {levels.min()} to {levels.max()} in an image of mode I, expected 16-bit levels, 0 to "
                '65535; for other ranges pass image.convert("F") and do_rescale=False'
            )
        return levels.astype(np.uint16)
    if image.mode == "F" or image.mode.startswith("I;16"):
        return np.asarray(image)
    if num_channels not in (1, 3):
        if len(image.getbands()) != num_channels or image.mode == "PA":
            raise ValueError(
                f"found an image of mode {image.mode}, but num_channels={num_channels}; pass an array of {num_channels} "
                "channels, or make the image processor and the model with num_channels=3"
            )
        return np.asarray(image)
    mode = "RGB" if num_channels == 3 else "L"
    if image.mode == mode:
        return image
    if image.mode == "LAB":  # has no direct conversion, as La; transparency per palette entry is warned about
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB")
    elif image.mode == "La":
        image = image.convert("LA")
    elif isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert(mode)


def _channels_first(
    image: torch.Tensor, num_channels: int, input_data_format: ChannelDimension | str | None, habit: ChannelDimension
) -> torch.Tensor:
    """Return (C, H, W) of an (H, W), (H, W, C) or (C, H, W); `habit` decides if both the first and the last axis fit."""
    shape = tuple(image.shape)
    if image.ndim not in (2, 3) or 0 in shape:
        raise ValueError(f"found an image of shape {shape}, expected (H, W), (H, W, C), (C, H, W) or a batch of those")
    if image.ndim == 2:
        image = image[None]
    else:
        if input_data_format is None:
            input_data_format = _channel_axis(shape, num_channels, habit)
        if ChannelDimension(input_data_format) == ChannelDimension.LAST:
            image = image.permute(2, 0, 1)
    if image.shape[0] == 1 and num_channels == 3:
        return image.expand(3, -1, -1)
    if image.shape[0] != num_channels:
        raise ValueError(
            f"found an image of shape {shape}, so of {image.shape[0]} channels, but num_channels={num_channels}; pass "
            f"{num_channels} channels, or make the image processor and the model with num_channels={image.shape[0]}"
        )
    return image


def _channel_axis(shape: tuple[int, ...], num_channels: int, habit: ChannelDimension) -> ChannelDimension:
    other = ChannelDimension.FIRST if habit == ChannelDimension.LAST else ChannelDimension.LAST
    length = {ChannelDimension.FIRST: shape[0], ChannelDimension.LAST: shape[-1]}
    for channels in (num_channels, 1):
        for axis in (habit, other):
            if length[axis] == channels:
                return axis
    raise ValueError(
        f"found an image of shape {shape}, but num_channels={num_channels} and neither the first nor the last axis has this "
        f"length; pass {num_channels} channels, or make the image processor and the model with another num_channels"
    )


def _rescale(values: torch.Tensor, full_range: float, full_scale: float | None) -> torch.Tensor:
    """Scale values from 0..`full_range` to 0..`full_scale`; unchanged if `full_scale` is None."""
    if full_scale is None:
        return values
    low, high = (bound.item() for bound in values.aminmax())
    if not 0 <= low <= high <= full_range:  # also true of NaN
        raise ValueError(
            f"found values from {low:g} to {high:g} in an image of floats, expected 0 to 1; divide by 255 if they are 8-bit "
            "levels, or pass do_rescale=False to use them as they are"
        )
    return values if full_range == full_scale else values.div(full_range / full_scale)


def _size_of(image: Pixels) -> tuple[int, int]:
    """Return (height, width)."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[-2], image.shape[-1])


def _resized_size(height: int, width: int, settings: Settings) -> tuple[int, int]:
    """Return the (height, width) to resize to; the longer side is rounded down, as in torchvision's Resize.

    Raises ValueError if an image, enlarged, would have more pixels than Pillow allows a file to have.
    """
    size, given = settings.size, (height, width)
    if settings.do_resize:
        assert size is not None
        if size.height is not None and size.width is not None:
            height, width = size.height, size.width
        else:
            assert size.shortest_edge is not None
            short, long = size.shortest_edge, int(size.shortest_edge * max(height, width) / min(height, width))
            if size.longest_edge is not None and long > size.longest_edge:
                short, long = max(int(size.longest_edge * short / long), 1), size.longest_edge
            height, width = (short, long) if height <= width else (long, short)
    if settings.size_divisor is not None and not settings.do_pad:
        height, width = (
            max((side + divisor // 2) // divisor, 1) * divisor
            for side, divisor in zip((height, width), settings.divisors, strict=True)
        )
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > max(limit, given[0] * given[1]):
        raise ValueError(
            f"an image of {given[1]} x {given[0]} pixels would be resized to {width} x {height}, more than Pillow's limit of "
            f"{limit} pixels: crop it, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    return height, width


def _pair(size_divisor: Any) -> tuple[int, int]:
    return size_divisor if isinstance(size_divisor, tuple) else (size_divisor, size_divisor)


def _resize_with_pil(image: Pixels, settings: Settings) -> Pixels:
    height, width = _resized_size(*_size_of(image), settings)
    if (height, width) == _size_of(image):
        return image
    if isinstance(image, Image.Image):
        return image.resize((width, height), settings.resample)
    # Channel by channel: as modes L and F these are resized without alpha and without rounding floats.
    channels = [np.asarray(Image.fromarray(channel.numpy()).resize((width, height), settings.resample)) for channel in image]
    return _clamp(torch.from_numpy(np.stack(channels)), settings.full_scale)


def _resize_with_torch(batch: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Resize (B, C, H, W), its axes in Pillow's order, because Pillow rounds to 8 bits in between."""
    (height, width), target = _size_of(batch), _resized_size(*_size_of(batch), settings)
    mode = TORCH_FILTERS.get(settings.resample, "")
    height_first = PILLOW_MAY_SHRINK_HEIGHT_FIRST and target[0] < height and height - target[0] > 2 * (width - target[1])
    halfway = (target[0], width) if height_first else (height, target[1])
    if not height_first and batch.device.type in UINT8_KERNELS:
        halfway = target  # one call does the same, in half the time
    for size in (halfway, target):
        if size == _size_of(batch):
            continue
        if batch.dtype == torch.uint8 and batch.device.type not in UINT8_KERNELS:
            resized = F.interpolate(batch.float(), size, mode=mode, antialias=True)
            batch = resized.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)  # halves go up, as in Pillow
        else:
            batch = F.interpolate(batch, size, mode=mode, antialias=True)
    return _clamp(batch, settings.full_scale)


def _clamp(values: torch.Tensor, full_scale: float | None) -> torch.Tensor:
    """Clamp the overshoot of a bicubic filter, as 8-bit levels are clamped."""
    return values if full_scale is None or values.dtype == torch.uint8 else values.clamp(0, full_scale)


def _center_crop(image: Pixels, settings: Settings) -> Any:
    """Crop, in the same memory, or pad with black; the same pixels as torchvision's CenterCrop."""
    if not settings.do_center_crop:
        return image
    crop_height, crop_width = settings.crop_sides
    height, width = _size_of(image)
    top, left = _crop_offset(height, crop_height), _crop_offset(width, crop_width)
    bottom, right = top + crop_height, left + crop_width
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    missing = [max(margin, 0) for margin in (-left, right - width, -top, bottom - height)]
    cropped = image[..., max(top, 0) : bottom, max(left, 0) : right]
    return F.pad(cropped, missing) if any(missing) else cropped


def _crop_offset(length: int, cropped: int) -> int:
    return round((length - cropped) / 2) if length >= cropped else -((cropped - length) // 2)


def _planes(image: Image.Image) -> torch.Tensor:
    """Return (C, H, W) of an image in RGB or L."""
    planes = bytearray().join(image.tobytes("raw", band) for band in image.getbands())
    return torch.frombuffer(planes, dtype=torch.uint8).view(-1, image.height, image.width)


def _groups(numbered: Iterable[tuple[int, torch.Tensor]]) -> Iterable[Group]:
    """Group images of one shape, dtype and device, with their indices."""
    groups: dict[Any, Group] = {}
    for number, image in numbered:
        numbers, group = groups.setdefault((image.shape, image.dtype, image.device), ([], []))
        numbers.append(number)
        group.append(image)
    return groups.values()


def _batches(images: Iterable[torch.Tensor]) -> Iterator[Batch]:
    """Yield batches (B, C, H, W) of images of one shape and dtype, with their indices.

    On a CPU each image is its own batch and is not copied, because the kernels process images one by one.
    """
    numbered = []
    for index, image in enumerate(images):
        if image.device.type in UINT8_KERNELS:
            yield [index], image[None]
        else:
            numbered.append((index, image))
    for indices, group in _groups(numbered):
        yield indices, torch.stack(group)


def _in_order(batches: Iterable[Batch]) -> list[torch.Tensor]:
    """Return the images of the batches in their original order."""
    images = {index: image for indices, batch in batches for index, image in zip(indices, batch, strict=True)}
    return [images[index] for index in range(len(images))]


def _one_batch(batches: list[Batch]) -> torch.Tensor:
    shapes = sorted({tuple(batch.shape[1:]) for _, batch in batches})
    if len(shapes) > 1:
        raise ValueError(
            f"found pixel_values of the shapes {', '.join(map(str, shapes))}, which cannot be batched; pass return_tensors=None "
            "for a list, images of one shape, or a fixed size (a crop, or height and width)"
        )
    return batches[0][1] if len(batches) == 1 else torch.stack(_in_order(batches))


def rescale_and_normalize(images: Sequence[torch.Tensor] | torch.Tensor, settings: Settings) -> torch.Tensor:
    """Return `pixel_values`, float32 (B, C, H, W), of images (C, H, W) of one shape, dtype and device, from `resize_and_crop`."""
    channels, height, width = images[0].shape
    divisors = settings.divisors if settings.do_pad else (1, 1)
    padded = [length + -length % divisor for length, divisor in zip((height, width), divisors, strict=True)]
    make = torch.zeros if settings.do_pad else torch.empty
    batch = make(len(images), channels, *padded, dtype=torch.float32, device=images[0].device)
    factor = settings.rescale_factor if settings.do_rescale and images[0].dtype == torch.uint8 else 1.0
    mean, std = (settings.image_mean, settings.image_std) if settings.do_normalize else ((0.0,), (1.0,))
    if settings.backend == "pil":  # divided by 255, not multiplied by 1/255: the last bit differs
        steps = [("divide", [1 / factor]), ("subtract", mean), ("divide", std)]
    else:
        shift = [-level / unit for level, unit in zip(mean, std, strict=True)]
        steps = [("multiply", [factor / unit for unit in std]), ("add", shift)]
    operands = [(name, np.array(numbers, np.float32)[:, None, None]) for name, numbers in steps]
    cropped = batch[..., :height, :width]
    on_accelerator = isinstance(images, torch.Tensor) and images.device.type != "cpu"
    for image, values in [(images, cropped)] if on_accelerator else zip(images, cropped, strict=True):
        _calculate(image, operands, values)
    if settings.data_format is not None and ChannelDimension(settings.data_format) == ChannelDimension.LAST:
        batch = batch.permute(0, 2, 3, 1).contiguous()
    return batch.to(settings.device)


def _calculate(image: Any, steps: list[tuple[str, Any]], values: Any) -> None:
    """Apply functions of an image (C, H, W) and an operand (C, 1, 1), one after the other.

    On a CPU numpy computes in this thread: torch would split this little work among threads and wait for busy ones.
    """
    library: Any = np
    if values.device.type == "cpu":
        image, values = image.numpy(), values.numpy()
    else:
        library, steps = torch, [(name, torch.from_numpy(operand).to(values.device)) for name, operand in steps]
    for name, operand in steps:
        image = getattr(library, name)(image, operand, out=values)
