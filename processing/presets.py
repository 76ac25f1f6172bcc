"""Preprocessing of each published family for evaluation, as one table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from .image_processing_vit import VitrailImageProcessor
from .resizing import as_pair, output_size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# facebookresearch/dinov3@6876159, notebooks/chmv2_inference.ipynb; the mean of its encoder begins with .430
CHMV2_MEAN, CHMV2_STD = (0.420, 0.411, 0.296), (0.213, 0.156, 0.143)
DENSE_ASPECT = 4  # longest side / shortest side of an image that is resized for a segmentation: mmsegmentation's (2048, 512)
MIN_CROP_PCT = 0.01  # a smaller one would make images without a bound on their size
HALF, ZERO, ONE = (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
BILINEAR, BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Preset:
    """One row of PRESETS.

    layout: "crop" resizes the shorter side to floor(image_size / crop_pct) and crops the center; "squash" resizes to
        image_size and drops the aspect; "keep-aspect" resizes the shorter side to image_size, then both sides to the nearest
        multiples of the patch; "full-image" does only the latter.
    resample: Pillow's filter number.
    image_mean, image_std: per channel, of values from 0 to 1.
    image_size: the side of the images in the publisher's evaluation, where it is not the model's.
    """

    layout: Literal["crop", "squash", "keep-aspect", "full-image"]
    resample: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    crop_pct: float | None = None
    image_size: int | None = None


PRESETS = {
    # facebookresearch/dino, eval_knn.py and eval_linear.py: 256, crop 224. Caron et al. 2021, arXiv:2104.14294.
    "dino": Preset("crop", BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop_pct=224 / 256),
    # facebookresearch/dinov2, dinov2/data/transforms.py, make_classification_eval_transform: 224 pixels, although the positions are for
    # 518. Oquab et al. 2023, arXiv:2304.07193.
    "dinov2": Preset("crop", BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop_pct=224 / 256, image_size=224),
    # facebookresearch/dinov3, README.md, make_transform: LVD-1689M and, with its own mean and std, SAT-493M. Siméoni et al. 2025,
    # arXiv:2508.10104.
    "dinov3": Preset("squash", BILINEAR, IMAGENET_MEAN, IMAGENET_STD, image_size=256),
    "sat": Preset("squash", BILINEAR, (0.430, 0.411, 0.296), (0.213, 0.156, 0.143), image_size=256),
    # facebookresearch/mae, util/datasets.py. He et al. 2021, arXiv:2111.06377.
    "mae": Preset("crop", BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop_pct=224 / 256),
    # facebookresearch/deit, datasets.py, main.py (--eval-crop-ratio). Touvron et al. 2020, arXiv:2012.12877.
    "deit": Preset("crop", BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop_pct=224 / 256),
    # facebookresearch/ijepa, src/transforms.py: mean and std. Assran et al. 2023, arXiv:2301.08243, evaluate with VISSL: size and crop.
    "ijepa": Preset("crop", BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop_pct=224 / 256),
    # google-research/vision_transformer, vit_jax/input_pipeline.py, test images; bilinear is the default of the tf.image.resize
    # there, which does not antialias, as Pillow does. Dosovitskiy et al. 2020, arXiv:2010.11929.
    "google": Preset("squash", BILINEAR, HALF, HALF),
    # Hub, google/vit-base-patch16-224 and its siblings, preprocessor_config.json; bilinear is transformers' ViTImageProcessor's.
    "google-hub": Preset("squash", BILINEAR, HALF, HALF),
    # Hub, facebook/dino-vits8 and its siblings, preprocessor_config.json.
    "dino-hub": Preset("squash", BILINEAR, IMAGENET_MEAN, IMAGENET_STD),
    # huggingface/pytorch-image-models, timm/models/vision_transformer.py, default config; timm/data/transforms_factory.py. The mean and
    # std are IMAGENET_INCEPTION_MEAN and IMAGENET_INCEPTION_STD of timm/data/constants.py.
    "inception": Preset("crop", BICUBIC, HALF, HALF, crop_pct=0.9),
    # The same with IMAGENET_DEFAULT_MEAN and IMAGENET_DEFAULT_STD, as deit_base_patch16_224 in timm/models/deit.py.
    "imagenet": Preset("crop", BICUBIC, IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.9),
    # huggingface/transformers, models/siglip/image_processing_siglip.py. Zhai et al. 2023, arXiv:2303.15343.
    "siglip": Preset("squash", BICUBIC, HALF, HALF),
    # openai/CLIP, clip/clip.py, _transform; huggingface/transformers, models/clip/image_processing_clip.py. Radford et al. 2021,
    # arXiv:2103.00020.
    "clip": Preset("crop", BICUBIC, CLIP_MEAN, CLIP_STD, crop_pct=1.0),
    # Values from 0 to 1: huggingface/transformers, models/tipsv2/image_processing_tipsv2.py.
    "none": Preset("squash", BILINEAR, ZERO, ONE),
    # For dense features, with DINO's mean and std.
    "full-image": Preset("full-image", BICUBIC, IMAGENET_MEAN, IMAGENET_STD),
    "keep-aspect": Preset("keep-aspect", BICUBIC, IMAGENET_MEAN, IMAGENET_STD),
}


def make_image_processor(
    preset: str,
    *,
    image_size: int | Sequence[int] | None = None,
    patch_size: int | Sequence[int] | None = None,
    crop_pct: float | None = None,
    num_channels: int = 3,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    backend: str = "pil",
) -> VitrailImageProcessor:
    """Make the image processor of a preset for a model.

    preset: a name in PRESETS.
    image_size: image size of the model in pixels, int or (height, width); by default that of the preset, or 224; unused by
        "full-image". Presets that crop a square squash images to a rectangle.
    patch_size: patch size of the model in pixels, int or (height, width); "full-image" and "keep-aspect" require it.
    crop_pct: overrides the preset, as in timm's configs: image_size / crop_pct is the shorter side before the crop.
    num_channels: number of channels of the model; unless it is 3, every channel gets the average of the preset's mean and std.
    image_mean, image_std: override the preset.
    backend: "pil" or "torch", see VitrailImageProcessor.

    Raises VitrailError for an unknown preset, and for arguments that are missing or do not apply to it.
    """
    row = find_preset(preset)
    if crop_pct is not None and row.layout != "crop":
        raise VitrailError(f"found crop_pct={crop_pct} with the preset {preset!r}, which does not crop; leave crop_pct out")
    height, width = as_pair("image_size", (row.image_size or 224) if image_size is None else image_size)
    crops = row.layout == "crop" and height == width  # no family defines a rectangular crop: images are squashed
    options: dict[str, object] = {"do_center_crop": crops}
    if crops:
        shorter_side = _shorter_side(height, row.crop_pct if crop_pct is None else crop_pct)
        options |= {"size": {"shortest_edge": shorter_side}, "crop_size": {"height": height, "width": width}}
    elif row.layout in ("crop", "squash"):
        options |= {"size": {"height": height, "width": width}}
    else:
        if patch_size is None:
            raise VitrailError(f"the preset {preset!r} resizes to multiples of the patch; pass patch_size, for example 16")
        options |= {"size_divisor": as_pair("patch_size", patch_size)}
        options |= {"do_resize": False} if row.layout == "full-image" else {"size": {"shortest_edge": min(height, width)}}
    return VitrailImageProcessor(
        backend=backend,
        num_channels=num_channels,
        resample=row.resample,
        image_mean=_per_channel(row.image_mean, num_channels) if image_mean is None else tuple(image_mean),
        image_std=_per_channel(row.image_std, num_channels) if image_std is None else tuple(image_std),
        **options,
    )


def find_preset(name: str) -> Preset:
    """Return the preset with a name; raise VitrailError where there is none."""
    if name not in PRESETS:
        raise VitrailError(f"found preset={name!r}; write one of {', '.join(PRESETS)}")
    return PRESETS[name]


def image_processor_for(config: ViTConfig, preset: str, *, image_size: tuple[int, int] | None = None) -> VitrailImageProcessor:
    """Return the image processor of a preset for a model.

    Images have `image_size`, or else the size of the preset, if it has one that the patches divide, or else the model's.
    """
    own = find_preset(preset).image_size
    size = image_size or ((own, own) if own and not any(own % side for side in config.patch_shape) else config.image_shape)
    return make_image_processor(preset, image_size=size, patch_size=config.patch_shape, num_channels=config.num_channels)


def for_dense_head(image_processor: VitrailImageProcessor, config: ViTConfig, *, segments: bool) -> VitrailImageProcessor:
    """Return a copy of an encoder's image processor for a head that segments, or else estimates depths.

    Images are never cropped, and the model pads them. For a segmentation, the shorter side is resized, bilinearly; for a depth, none.
    """
    changes: dict[str, object] = {"do_center_crop": False, "do_resize": False}
    side = config.segmentation_size
    if segments and side is not None:
        size = {"shortest_edge": side, "longest_edge": DENSE_ASPECT * side}
        changes |= {"do_resize": True, "size": size, "resample": BILINEAR}
    elif config.depth_bins == "mixed_log" and config.num_channels == len(CHMV2_MEAN):
        changes |= {"image_mean": CHMV2_MEAN, "image_std": CHMV2_STD}
    return VitrailImageProcessor.from_dict(image_processor.to_dict(), **changes)


def describe_preprocessing(image_processor: VitrailImageProcessor) -> str:
    """Return the size, mean and std of prepared images in words."""
    sides = output_size(image_processor)
    size = "of their own size" if sides is None else f"of {sides[0]}x{sides[1]} pixels"
    return f"images {size}, mean {_short(image_processor.image_mean)}, std {_short(image_processor.image_std)}"


def _short(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in dict.fromkeys(values))


def _shorter_side(length: int, crop_pct: float | None) -> int:
    if crop_pct is None or not MIN_CROP_PCT <= crop_pct <= 1:
        raise VitrailError(f"found crop_pct={crop_pct}; write a number from {MIN_CROP_PCT} to 1, for example 0.9")
    return math.floor(length / crop_pct)


def _per_channel(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    return values if num_channels == len(values) else (sum(values) / len(values),) * num_channels
