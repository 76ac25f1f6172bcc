"""Sizes of prepared images: the size that an image processor produces, and copies of it for other sizes and aspects."""

from collections.abc import Sequence
from typing import Any

from ..errors import VitrailError
from .image_processing_vit import VitrailImageProcessor

MAX_ASPECT = 8  # longer side / shorter side where an image keeps its aspect: a strip of 3000 x 2 would become too large to run


def as_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return a number of pixels, or a (height, width) pair, as a pair; raise VitrailError for anything else."""
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise VitrailError(f"found {name}={value}; write a positive int or a (height, width) pair of them")
    return sides[0], sides[1]


def output_size(image_processor: VitrailImageProcessor) -> tuple[int, int] | None:
    """Return the (height, width) of every image that an image processor produces, or None if it depends on the image."""
    if image_processor.do_center_crop:
        size = dict(image_processor.crop_size)
    elif image_processor.do_resize and image_processor.size_divisor is None:
        size = dict(image_processor.size)
    else:
        return None
    return (size["height"], size["width"]) if "height" in size else None


def output_grid(image_processor: VitrailImageProcessor, patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the number of patches, (rows, columns), of every image that an image processor produces.

    Raises VitrailError if images differ in size, or patches do not divide them.
    """
    size = output_size(image_processor)
    if size is None:
        raise VitrailError("Images of this image processor differ in size: set a size with height and width.")
    _check_size(size, patch_size)
    return size[0] // patch_size[0], size[1] // patch_size[1]


def at_size(
    image_processor: VitrailImageProcessor, patch_size: tuple[int, int], size: int | tuple[int, int]
) -> VitrailImageProcessor:
    """Return a copy of an image processor for another image size, for a finer or a coarser patch grid.

    If the processor crops a square, the crop and the size before the crop scale together. For a rectangle, images are squashed. If images
    keep their aspect, `size` is the shorter side, and both sides become the nearest multiples of the patch size.

    Args:
        patch_size: patch size of the model, (height, width) in pixels.
        size: the new image size in pixels, int or (height, width).

    Raises:
        VitrailError: the patch size does not divide `size`.
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


def keep_aspect(image_processor: VitrailImageProcessor, patch_size: int | Sequence[int]) -> VitrailImageProcessor:
    """Return a copy of an image processor that keeps the aspect of each image, as the preset "keep-aspect" does.

    The shorter side becomes the shorter side of the crop, or of the size; an image that is not resized keeps its size. The longer side is
    at most 8 times as long. Then both sides become the nearest multiples of the patch size.

    patch_size: patch size of the model in pixels, int or (height, width).
    """
    changes: dict[str, object] = {"do_center_crop": False, "do_pad": False, "size_divisor": as_pair("patch_size", patch_size)}
    if image_processor.do_center_crop or image_processor.do_resize:
        sides = dict(image_processor.crop_size if image_processor.do_center_crop else image_processor.size)
        shorter = min(sides.values())
        changes |= {"do_resize": True, "size": {"shortest_edge": shorter, "longest_edge": MAX_ASPECT * shorter}}
    return VitrailImageProcessor.from_dict(image_processor.to_dict(), **changes)


def uncropped(image_processor: VitrailImageProcessor, *, size: dict[str, int] | None = None) -> VitrailImageProcessor:
    """Return a copy of an image processor that resizes to `size`, or not at all, and neither crops nor pads."""
    changes = {"do_resize": size is not None, "do_center_crop": False, "do_pad": False, "size_divisor": None}
    return VitrailImageProcessor.from_dict(image_processor.to_dict(), **changes, **({} if size is None else {"size": size}))


def _check_size(size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    if all(side > 0 and side % patch == 0 for side, patch in zip(size, patch_size, strict=True)):
        return
    lower = tuple(max(side // patch, 1) * patch for side, patch in zip(size, patch_size, strict=True))
    upper = tuple(max(-(-side // patch), 1) * patch for side, patch in zip(size, patch_size, strict=True))
    choices = [_text(lower)] if lower == upper else [_text(lower), _text(upper)]
    raise VitrailError(
        f"Images of {_text(size)} pixels cannot be cut into patches of {_text(patch_size)}: choose the size {' or '.join(choices)}."
    )


def _text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
