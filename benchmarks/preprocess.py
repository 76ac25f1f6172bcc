"""Milliseconds from an image to `pixel_values`: both backends of our image processor against transformers' two and timm's transforms.

The images are the photographs on board side by side, cut to size: decoded ones of 640 x 480 pixels, alone and 8 at a time, and a JPEG file
of 1600 x 1200. All do the same work in a row of the table: transformers' ViT squashes to 224, bilinearly; timm's ViT resizes the shorter
side to 248, bicubically, and cuts out 224. That nobody skips any is checked: `pil` equals timm bit for bit and transformers' Pillow
backend to the order of its float32 operations; whoever resizes tensors is within 2 grey levels; a JPEG draft
is so on average.
The runs alternate, and their medians are compared. Peers are left out where they are not installed.
"""

import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .timing import interleaved

if TYPE_CHECKING:
    import torch

    Prepare = Callable[[Any], torch.Tensor]  # of an image, a path or a list of images, (B, 3, 224, 224)

PHOTOS = sorted(Path(__file__).parents[1].glob("tests/images/*.jpg"))
BATCH_SIZE = 8
REPEATS, SECONDS = 200, 15.0
HALF_MEAN = HALF_STD = (0.5, 0.5, 0.5)  # of transformers' ViT, and of timm's
LEVEL = 1 / 255 / 0.5  # a grey level in `pixel_values`


def mosaic(width: int, height: int) -> Image.Image:
    """The photographs in their own sizes, side by side, so that details are as fine as a camera's."""
    canvas, photos = Image.new("RGB", (width, height)), itertools.cycle(PHOTOS)
    for top, left in itertools.product(range(0, height, 300), range(0, width, 400)):
        with Image.open(next(photos)) as photo:
            canvas.paste(photo.convert("RGB").crop((0, 0, 400, 300)), (left, top))
    return canvas


def ours(preset: str) -> "dict[str, Prepare]":
    import vitrail

    def run(backend: str, **options: bool) -> "Prepare":
        image_processor = vitrail.make_image_processor(preset, backend=backend)
        return lambda images: image_processor(images, return_tensors="pt", **options)["pixel_values"]

    return {"vitrail torch": run("torch"), "vitrail pil": run("pil"), "vitrail torch, jpeg_draft": run("torch", jpeg_draft=True)}


def transformers_backends() -> "dict[str, Prepare]":
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    classes: dict[str, Any] = {"transformers pil": ViTImageProcessorPil}
    if importlib.util.find_spec("torchvision"):
        from transformers.models.vit.image_processing_vit import ViTImageProcessor

        classes["transformers torchvision"] = ViTImageProcessor

    def run(image_processor: Any) -> "Prepare":
        def prepare(images: Any) -> "torch.Tensor":
            images = Image.open(images).convert("RGB") if isinstance(images, Path) else images
            return image_processor(images, return_tensors="pt")["pixel_values"]

        return prepare

    return {name: run(kind()) for name, kind in classes.items()}


def timm_transforms() -> "dict[str, Prepare]":
    if not importlib.util.find_spec("timm"):
        return {}
    import timm
    import torch

    transform = timm.data.create_transform(224, interpolation="bicubic", crop_pct=0.9, mean=HALF_MEAN, std=HALF_STD)

    def prepare(images: Any) -> "torch.Tensor":
        images = [Image.open(images).convert("RGB")] if isinstance(images, Path) else images
        return torch.stack([transform(image) for image in (images if isinstance(images, list) else [images])])

    return {"timm": prepare}


def check_work(prepared: "dict[str, torch.Tensor]") -> None:
    """Raises AssertionError where the ways of one row do not give the same picture."""
    exact = prepared["vitrail pil"]
    for name, found in prepared.items():
        difference = (found - exact).abs() / LEVEL
        if name == "timm":
            assert not difference.any(), "pil and timm differ"
        elif name.endswith("jpeg_draft"):
            assert difference.mean() < 2, f"{name} shows another picture"
        else:
            assert difference.max() < (1e-3 if name.endswith(" pil") else 2.001), f"{name} does other work"


def run() -> list[dict[str, Any]]:
    """One row for each way of preparing each source."""
    photo = mosaic(640, 480)
    plans = {"squash": ours("google-hub") | transformers_backends(), "crop": ours("inception") | timm_transforms()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "photo.jpg")
        mosaic(1600, 1200).save(file, quality=90)
        sources = {"640x480": photo, f"{BATCH_SIZE} of 640x480": [photo.copy() for _ in range(BATCH_SIZE)], "1600x1200 JPEG": file}
        for (source, images), (plan, ways) in itertools.product(sources.items(), plans.items()):
            ways = {name: way for name, way in ways.items() if images is file or not name.endswith("jpeg_draft")}
            check_work({name: way(images) for name, way in ways.items()})
            seconds = interleaved({name: partial(way, images) for name, way in ways.items()}, repeats=REPEATS, seconds=SECONDS)
            number = BATCH_SIZE if isinstance(images, list) else 1
            rows += [
                {
                    "images": source,
                    "plan": plan,
                    "way": name,
                    "ms_per_image": round(1000 * median / number, 3),
                    "vitrail_torch_is_faster_by": round(median / seconds["vitrail torch"], 2),
                    "vitrail_pil_is_faster_by": round(median / seconds["vitrail pil"], 2),
                }
                for name, median in seconds.items()
            ]
    return rows
