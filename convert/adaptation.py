"""Adapting a checkpoint to another image size, patch size, number of channels, or other classes while it is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..configuration.class_names import IMAGENET, SEGMENTATIONS, dataset_labels
from ..configuration.configuration_vit import ViTConfig
from ..errors import ConversionError, UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTPreTrainedModel, interpolate_positions, resize_relative_table, rotary_periods
from ..modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import at_size
from .families.family import make_config
from .families.formats import PERIODS
from .heads import HEAD_PREFIXES, model_class

POSITIONS, PROJECTION = "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"
RELATIVE_TABLE = "relative_position.table"
LABEL_FIELDS = ("id2label", "label2id", "label_descriptions")
CHANNEL_RULES = ("sum", "repeat", "average")
DENSE = (ViTForSemanticSegmentation, ViTForDepthEstimation)
# The weights whose rows are classes: the number of axes, and datasets with their numbers of classes
LABELED = {"classifier.weight": (2, IMAGENET), "segmentation_head.classifier.weight": (4, SEGMENTATIONS)}


def may_be_adapted(name: str) -> bool:
    """Return True for a tensor that the functions of this module may change."""
    return name in (POSITIONS, PROJECTION) or name.endswith(RELATIVE_TABLE) or name.startswith("classifier.")


def adapt_grid(
    tensors: dict[str, torch.Tensor],
    fields: dict[str, Any],
    *,
    image_size: tuple[int, int] | None = None,
    patch_size: tuple[int, int] | None = None,
) -> list[str]:
    """Resize the patch projection to another patch size, and positions to another grid of patches; return warnings."""
    before = make_config(fields)
    fields["image_size"], fields["patch_size"] = image_size or before.image_shape, patch_size or before.patch_shape
    after = make_config(fields)
    warnings = []
    if before.patch_shape != after.patch_shape:
        tensors[PROJECTION] = resize_patches(tensors[PROJECTION], after.patch_shape)
        (height, width), (new_height, new_width) = before.patch_shape, after.patch_shape
        warnings = [
            f"patch projection of {height}x{width} pixels resized to {new_height}x{new_width}, by FlexiViT's pseudo-inverse"
        ]
    return warnings + _resize_positions(tensors, before, after)


def resize_patches(weight: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """Resize the patch projection (D, C, ph, pw) by the pseudo-inverse of resizing images (FlexiViT, arXiv 2212.08013, section 3.4).

    Tokens of enlarged patches stay the same; those of reduced patches are as close as least squares allow. Patches are resized
    bicubically with antialiasing, as in timm/layers/patch_embed.py, resample_patch_embed. Resizing is separable, and so is its inverse.
    """
    rows, columns = (_pseudo_inverse(old, new) for old, new in zip(weight.shape[2:], patch_size, strict=True))
    return (rows @ weight.double() @ columns.T).to(weight.dtype)


def _pseudo_inverse(old: int, new: int) -> torch.Tensor:
    """Return the pseudo-inverse (new, old) of the matrix that resizes `old` pixels to `new`."""
    pixels = torch.eye(old, dtype=torch.float64)[None, None]
    resized = F.interpolate(pixels, size=(old, new), mode="bicubic", antialias=True)[0, 0]  # (old, new), a row for each pixel
    return torch.linalg.pinv(resized)


def _resize_positions(tensors: dict[str, torch.Tensor], before: ViTConfig, after: ViTConfig) -> list[str]:
    """Resize position embeddings or relative bias tables to another grid of patches, by the family's rule; return warnings."""
    if before.patch_grid == after.patch_grid:
        return []
    if POSITIONS in tensors:
        first = int(before.use_cls_token and before.use_cls_position)
        positions = tensors[POSITIONS]
        tensors[POSITIONS] = torch.cat(
            (positions[:, :first], interpolate_positions(positions[:, first:], after.patch_grid, before)), dim=1
        )
    tables = [name for name in tensors if name.endswith(RELATIVE_TABLE)]
    for name in tables:
        num_offsets = (2 * before.patch_grid[0] - 1) * (2 * before.patch_grid[1] - 1)
        table = tensors[name]
        resized = resize_relative_table(table[:num_offsets], before.patch_grid, after.patch_grid)
        tensors[name] = torch.cat((resized, table[num_offsets:]))
    if POSITIONS not in tensors and not tables:  # the relative MLP works at any size
        return []
    (height, width), (new_height, new_width) = before.patch_grid, after.patch_grid
    return [f"positions of {height}x{width} patches resized to {new_height}x{new_width}, by the family's rule"]


def complete_periods(tensors: dict[str, torch.Tensor], fields: dict[str, Any], *, published: bool) -> list[str]:
    """Compute the rotary periods where the file has none, or the published ones, which are rounded to bfloat16; return warnings."""
    config = make_config(fields)
    if config.position_embedding_type != "rotary":
        if published:
            raise UnsupportedCheckpointError(
                "published_periods=True is for rotary positions (DINOv3), and this model has others: leave it out."
            )
        return []
    computed = rotary_periods(config)
    if published:
        tensors[PERIODS] = computed.bfloat16().float()
        return ["rotary periods rounded to bfloat16, as in the published .pth files"]
    if PERIODS in tensors:
        if not (tensors[PERIODS] > 0).all():
            raise ConversionError(f"{PERIODS} has values that are not positive: the file is damaged. Download it again.")
        return []
    tensors[PERIODS] = computed
    return [
        "rotary periods computed in float32, as timm and transformers do, for the file has none; the published .pth files round them to "
        "bfloat16, which changes outputs by 1e-3 to 3e-3: for these, set published_periods=True"
    ]


def adapt_num_channels(tensors: dict[str, torch.Tensor], fields: dict[str, Any], num_channels: int, rule: str | None) -> list[str]:
    """Adapt the patch projection (D, C, ph, pw) to another number of channels; return warnings.

    "sum" adds the channels' weights: the outputs for a gray image stay the same. "repeat" cycles through the channels and "average"
    gives each new channel their mean, both scaled by old / new, so that the outputs for equal channels stay the same (with "repeat",
    only if the new number is a multiple of the old one). The default is timm's rule: "sum" for one channel, else "repeat"
    (timm/models/_manipulate.py, adapt_input_conv).
    """
    weight = tensors[PROJECTION]
    old = weight.shape[1]
    if num_channels == old:
        return []
    rule = rule or ("sum" if num_channels == 1 else "repeat")
    if rule not in CHANNEL_RULES or (rule == "sum" and num_channels != 1):
        raise UnsupportedCheckpointError(
            f'channel_rule="{rule}" does not apply to {num_channels} channels; expected "repeat" or "average", or "sum" for one channel.'
        )
    fields["num_channels"] = num_channels
    make_config(fields)  # refuses more channels than a model may have
    values = weight.float()
    if rule == "sum":
        values = values.sum(dim=1, keepdim=True)
    elif rule == "repeat":
        values = values[:, torch.arange(num_channels) % old] * (old / num_channels)
    else:
        values = values.mean(dim=1, keepdim=True).expand(-1, num_channels, -1, -1) * (old / num_channels)
    tensors[PROJECTION] = values.to(weight.dtype)
    return [f"patch projection adapted from {old} to {num_channels} channels by the rule {rule}"]


def adapt_image_processor(
    image_processor: VitrailImageProcessor,
    *,
    image_size: tuple[int, int] | None,
    patch_size: tuple[int, int],
    num_channels: int,
) -> VitrailImageProcessor:
    """Return a copy for another image size (a crop keeps its share of the shorter side) or number of channels."""
    resizes = image_processor.do_resize or image_processor.do_center_crop
    if image_size is not None and resizes and image_processor.size_divisor is None:
        image_processor = at_size(image_processor, patch_size, image_size)
    options = image_processor.to_dict()
    if num_channels != image_processor.num_channels:
        mean, std = (torch.tensor(options[name]).mean().item() for name in ("image_mean", "image_std"))
        options |= {"num_channels": num_channels, "image_mean": [mean] * num_channels, "image_std": [std] * num_channels}
    return VitrailImageProcessor.from_dict(options)


def fresh_classifier(tensors: dict[str, torch.Tensor], fields: dict[str, Any], num_labels: int) -> list[str]:
    """Replace the classifier of the checkpoint, if any, with an untrained one, or any head with none for 0 classes; return warnings."""
    found = model_class(tensors)
    if issubclass(found, DENSE) and num_labels:
        raise UnsupportedCheckpointError(
            f"num_labels={num_labels} replaces a classifier of images, but the checkpoint has the head of a {found.__name__}: leave "
            "num_labels out, or set it to 0 for the encoder alone."
        )
    had = tensors.get("classifier.weight")
    for name in [name for name in tensors if name.startswith(HEAD_PREFIXES)]:
        del tensors[name]
    for name in ("num_labels", *LABEL_FIELDS):
        fields.pop(name, None)
    if num_labels == 0 and issubclass(found, DENSE):
        return [f"the head of the {found.__name__} is left out"]
    if num_labels == 0:
        return [] if had is None else [f"the classifier for {len(had)} classes is left out"]
    fields["num_labels"] = num_labels
    config = make_config(fields)
    dtype = tensors[PROJECTION].dtype
    weight = torch.empty(num_labels, config.classifier_input_size)
    tensors["classifier.weight"] = nn.init.trunc_normal_(weight, std=config.initializer_range).to(dtype)
    tensors["classifier.bias"] = torch.zeros(num_labels, dtype=dtype)
    replaced = "" if had is None else f"; it replaces one for {len(had)}"
    return [f"the classifier for {num_labels} classes is untrained{replaced}"]


def name_classes(fields: dict[str, Any], tensors: Mapping[str, torch.Tensor], *, published: bool, bare: bool) -> list[str]:
    """Set the number of classes of the checkpoint's head, and the labels of a dataset if they are known or likely; return warnings.

    published: the head is one of the catalog; bare: no config.json describes it.
    """
    head = next((name for name in LABELED if name in tensors), None)
    if head is None or "id2label" in fields or tensors[head].ndim != LABELED[head][0]:  # loading refuses another number of axes
        return []
    fields["num_labels"] = num_labels = len(tensors[head])
    name = next((name for name, count in LABELED[head][1].items() if count == num_labels), None)
    if name is None:
        return []
    if not (published or bare):
        return [f'config.json does not name the {num_labels} classes: if they are ImageNet\'s, set labels="{name}"']
    _set_id2label(fields, dataset_labels(name))
    return [] if published else [f'labels="{name}" is assumed for the {num_labels} classes: set labels= for others']


def set_labels(fields: dict[str, Any], labels: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Set the names of the classes; raise UnsupportedCheckpointError unless there is one for each."""
    classifier = next((tensors[name] for name in LABELED if name in tensors), None)
    if classifier is None or len(classifier) != len(labels):
        found = "no classifier" if classifier is None else f"{len(classifier)} classes"
        raise UnsupportedCheckpointError(
            f"labels= holds {len(labels)} names, but the model has {found}; expected one for each class."
        )
    for name in ("num_labels", *LABEL_FIELDS):
        fields.pop(name, None)
    _set_id2label(fields, labels)


def _set_id2label(fields: dict[str, Any], labels: Sequence[str]) -> None:
    fields.pop("num_labels", None)
    fields |= {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


# ----------------------------------------------------------------------------------------------------------------- dense heads


def with_depth_range(fields: dict[str, Any], depth_range: Sequence[float], found: type[ViTPreTrainedModel]) -> None:
    """Set the range of depths; raise UnsupportedCheckpointError for a model that predicts none."""
    if found is not ViTForDepthEstimation:
        raise UnsupportedCheckpointError(
            f"depth_range={tuple(depth_range)} is for a depth head, but the checkpoint and head= make a {found.__name__}: leave it out, or "
            'give a depth head, such as head="nyu_linear".'
        )
    fields["depth_range"] = tuple(depth_range)
    make_config(fields)
