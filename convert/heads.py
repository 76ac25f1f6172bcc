"""Head files: a classifier, a segmentation head or a depth head that was published separately from its encoder."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..configuration.published_heads import published_range
from ..errors import UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation
from .families.dense_heads import IGNORED, find_dense_head
from .families.family import Family, RawCheckpoint
from .families.rules import Coverage, Rule, convert_tensors
from .sources.resolver import ResolvedSource

# The class of a model with a head, by a name of its head's tensors
MODEL_CLASSES: dict[str, type[ViTPreTrainedModel]] = {
    "classifier.weight": ViTForImageClassification,
    "segmentation_head.classifier.weight": ViTForSemanticSegmentation,
    "depth_head.projection.weight": ViTForDepthEstimation,
    "depth_head.convolution3.weight": ViTForDepthEstimation,
}
HEAD_PREFIXES = ("classifier.", "segmentation_head.", "depth_head.")
DENSE_NAME = r"ade20k|voc2012|nyu|kitti"  # in the names of files with dense heads


def model_class(tensors: Mapping[str, torch.Tensor]) -> type[ViTPreTrainedModel]:
    """Return the class of the model with these parameters."""
    return next((kind for name, kind in MODEL_CLASSES.items() if name in tensors), ViTModel)


def head_source(resolved: ResolvedSource, head: str | os.PathLike) -> str | os.PathLike:
    """Return the URL of a head that was published with the checkpoint and is given by its short name."""
    published = (resolved.checkpoint.head_urls or {}) if resolved.checkpoint else {}
    return published.get(os.fspath(head), head)


def read_head(
    raw: RawCheckpoint, family: Family, head_name: str | None, file: str, fields: Mapping[str, Any], coverage: Coverage
) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
    """Return the parameters of a head, the config fields for its input, and warnings.

    Args:
        raw: the head file; `file`: its name, which for a published depth head determines the range of depths.
        family: of the encoder; `fields`: the config fields of the encoder.
        head_name: the classifier to use from a file with several.
        coverage: completed.
    """
    if re.search(DENSE_NAME, file) and set(raw.tensors) == {"weight", "bias"}:
        raise UnsupportedCheckpointError(
            f"{file} holds a classifier of images, weight {tuple(raw.tensors['weight'].shape)}, in place of the dense head that it is "
            'named for. Links in the README of DINOv2 confuse the two: give the head by its name, such as head="nyu_linear".'
        )
    if find_dense_head(raw.tensors, family.dense_heads) is None and family.head_rules is not None:
        raw = replace(raw, tensors=family.choose_head(raw.tensors, head_name))
    rules, head_fields = head_rules(raw, family, fields)
    tensors, found = convert_tensors(raw.tensors, rules, IGNORED)
    for name in ("converted", "ignored", "unexpected", "missing"):
        getattr(coverage, name).extend(getattr(found, name))
    published = published_range(file)
    if "depth_range" not in head_fields or head_fields.get("depth_bins") == "mixed_log":  # CHMv2 alone has such bins
        return tensors, head_fields, []
    if published is not None:
        return tensors, head_fields | {"depth_range": published}, []
    low, high = head_fields["depth_range"]
    warning = (
        f"{file} does not hold the range of its depths: {low:g} to {high:g} m assumed; for another range, such as KITTI's, set "
        "depth_range=(0.001, 80)"
    )
    return tensors, head_fields, [warning]


def head_rules(raw: RawCheckpoint, family: Family, fields: Mapping[str, Any]) -> tuple[Sequence[Rule], dict[str, Any]]:
    """Return the rules of a head file for an encoder with these config fields, and the fields for its input."""
    dense = find_dense_head(raw.tensors, family.dense_heads)
    if dense is not None:
        return dense.rules, dense.configure(raw, fields)
    if family.head_rules is None:
        raise UnsupportedCheckpointError(f"Checkpoints of the family {family.name} contain their classifier: leave head= out.")
    return family.head_rules(raw, fields["hidden_size"])
