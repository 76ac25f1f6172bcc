"""Files of dense heads: DINOv2's (mmsegmentation's and mmcv's layout) and DINOv3's.

Names and shapes tell a layout and nearly every field of its head; `configuration/published_heads.py` has the others.

Sources: facebookresearch/dinov2@b8931f7, hub/depthers.py, hub/depth, eval/segmentation, notebooks/semantic_segmentation.ipynb;
facebookresearch/dinov3@6876159, hub/depthers.py, hub/segmentors.py, eval/depth, eval/segmentation.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...configuration.published_heads import (
    CHMV2,
    LINEAR_SLIDE,
    MULTI_SCALE_SLIDE,
    NYU,
    SYNTHMIX,
    evenly_spaced,
    four_blocks,
)
from ...errors import UnsupportedCheckpointError
from ...utils.tensor_names import list_names
from .family import DenseHead, RawCheckpoint, Tensors
from .rules import Rule

IGNORED = (r".*\.num_batches_tracked",)  # a counter that a batch norm reads in training
# Heads and whole models that are not supported, by a name in their files, and the remedy
UNSUPPORTED_HEADS = (
    (
        r"segmentation_model\.0\..*|decode_head\.(pixel_decoder|transformer_decoder|query_embed|mask_embed)\..*",
        "a Mask2Former decoder with a ViT-Adapter",
        "use a linear head (ade20k_linear, ade20k_ms), or the original code",
    ),
    (r"(.*\.)?(bbox_embed|class_embed)\..*", "a DETR detector", "use the original code"),
)


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of a batch norm."""
    return tuple(Rule(f"{source}.{name}", f"{target}.{name}") for name in ("weight", "bias", "running_mean", "running_var"))


def layer(source: str, target: str) -> tuple[Rule, ...]:
    """Return the rules of a layer with a bias, or without."""
    return Rule(f"{source}.weight", f"{target}.weight"), Rule(f"{source}.bias", f"{target}.bias")


def segmentation_rules(norm: str, convolution: str) -> tuple[Rule, ...]:
    """Return the rules of a linear segmentation head."""
    return (*batch_norm(norm, "segmentation_head.batch_norm"), *layer(convolution, "segmentation_head.classifier"))


def dpt_rules(prefix: str) -> tuple[Rule, ...]:
    """Return the rules of DPT; the names of both originals differ by a prefix."""
    blocks, fusion, head = f"{prefix}reassemble_blocks.", f"{prefix}fusion_blocks.{{index}}.", f"{prefix}conv_depth.head."
    level, fused = "depth_head.levels.{level}.", "depth_head.fusion.{index}."
    return (
        *batch_norm(f"{blocks}batchnorm_layers.{{level}}", f"{level}batch_norm"),
        *layer(f"{blocks}readout_projects.{{level}}.0", f"{level}readout"),
        *layer(f"{blocks}projects.{{level}}.conv", f"{level}projection"),
        *layer(f"{blocks}resize_layers.{{level}}", f"{level}resize"),
        Rule(f"{prefix}convs.{{level}}.conv.weight", f"{level}convolution.weight"),
        *layer(f"{fusion}res_conv_unit1.conv{{number}}.conv", f"{fused}residual1.convolution{{number}}"),
        *layer(f"{fusion}res_conv_unit2.conv{{number}}.conv", f"{fused}residual2.convolution{{number}}"),
        *layer(f"{fusion}project.conv", f"{fused}projection"),
        *layer(f"{prefix}project.conv", "depth_head.projection"),
        *(rule for index in range(3) for rule in layer(f"{head}{2 * index}", f"depth_head.convolution{index + 1}")),
    )


def num_vectors(raw: RawCheckpoint, name: str, width: int, expected: Sequence[int]) -> int:
    """Return how many vectors of a width a 1x1 convolution reads."""
    inputs = raw.shape(name, 4)[1]
    if inputs % width or inputs // width not in expected:
        raise UnsupportedCheckpointError(
            f"The head file holds {name} with {inputs} inputs; expected {' or '.join(str(number * width) for number in expected)} for "
            f"this backbone. Use the head that was published with it."
        )
    return inputs // width


def configure_segmentation(convolution: str) -> Callable[[RawCheckpoint, Mapping[str, Any]], dict[str, Any]]:
    """Return the function that configures a linear segmentation head on the last one or four blocks."""

    def configure(raw: RawCheckpoint, encoder: Mapping[str, Any]) -> dict[str, Any]:
        blocks, number = encoder["num_hidden_layers"], num_vectors(raw, convolution, encoder["hidden_size"], (1, 4))
        slide = LINEAR_SLIDE if number == 1 else MULTI_SCALE_SLIDE
        return {"dense_layers": [*range(blocks - number, blocks)], "dense_norm": True, **slide}

    return configure


def configure_dinov2_linear(raw: RawCheckpoint, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Configure DINOv2's linear depth head: patches and [CLS] of one or four blocks, without the final norm."""
    blocks, name = encoder["num_hidden_layers"], "decode_head.conv_depth.weight"
    number = num_vectors(raw, name, 2 * encoder["hidden_size"], (1, 4))
    return {
        "dense_layers": four_blocks(blocks) if number == 4 else [blocks - 1],
        "dense_norm": False,
        "depth_head": "linear",
        "depth_readout": "concatenate",
        "depth_upsampling": 4,
        "depth_num_bins": raw.shape(name, 4)[0],
        "depth_clamp": True,
        "depth_range": NYU,
    }


def configure_dinov3_linear(raw: RawCheckpoint, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Configure DINOv3's linear depth head: normed patches of one or four blocks."""
    blocks, name = encoder["num_hidden_layers"], "conv_depth.weight"
    number = num_vectors(raw, name, encoder["hidden_size"], (1, 4))
    return {
        "dense_layers": four_blocks(blocks) if number == 4 else [blocks - 1],
        "dense_norm": True,
        "depth_head": "linear",
        "depth_batch_norm": "batchnorm_layer.weight" in raw.tensors,
        "depth_num_bins": raw.shape(name, 4)[0],
        "depth_range": NYU,
    }


def configure_dpt(raw: RawCheckpoint, prefix: str, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of DPT that follow from the shapes."""
    blocks = f"{prefix}reassemble_blocks."
    return {
        "dense_layers": four_blocks(encoder["num_hidden_layers"]),
        "depth_head": "dpt",
        "depth_readout": "project" if f"{blocks}readout_projects.0.0.weight" in raw.tensors else "ignore",
        "depth_batch_norm": f"{blocks}batchnorm_layers.0.weight" in raw.tensors,
        "depth_level_sizes": [raw.shape(f"{blocks}projects.{level}.conv.weight", 4)[0] for level in range(4)],
        "depth_fusion_size": raw.shape(f"{prefix}convs.0.conv.weight", 4)[0],
        "depth_hidden_size": raw.shape(f"{prefix}conv_depth.head.2.weight", 4)[0],
        "depth_fusion_bias": f"{prefix}fusion_blocks.0.res_conv_unit2.conv1.conv.bias" in raw.tensors,
        "depth_fusion_projection": f"{prefix}project.conv.weight" in raw.tensors,
        "depth_num_bins": raw.shape(f"{prefix}conv_depth.head.4.weight", 4)[0],
    }


def configure_dinov2_dpt(raw: RawCheckpoint, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Configure DINOv2's DPT: blocks without the final norm, depths clamped to the range."""
    return configure_dpt(raw, "decode_head.", encoder) | {"dense_norm": False, "depth_clamp": True, "depth_range": NYU}


def configure_dinov3_dpt(raw: RawCheckpoint, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Configure DINOv3's DPT: normed blocks. Without a projection after the fusion, it is CHMv2's."""
    fields = configure_dpt(raw, "", encoder) | {"dense_norm": True}
    if fields["depth_fusion_projection"]:
        return fields | {"depth_range": SYNTHMIX}
    layers = evenly_spaced(encoder["num_hidden_layers"])
    return fields | {"dense_layers": layers, "depth_bins": "mixed_log", "depth_range": CHMV2}


DINOV2_HEADS = (
    DenseHead(
        "decode_head.conv_seg.weight",
        segmentation_rules("decode_head.bn", "decode_head.conv_seg"),
        configure_segmentation("decode_head.conv_seg.weight"),
    ),
    DenseHead(
        "decode_head.conv_depth.weight",
        layer("decode_head.conv_depth", "depth_head.projection"),
        configure_dinov2_linear,
    ),
    DenseHead("decode_head.conv_depth.head.0.weight", dpt_rules("decode_head."), configure_dinov2_dpt),
)
DINOV3_HEADS = (
    DenseHead(
        "segmentation_model.1.conv.weight",
        segmentation_rules("segmentation_model.1.batchnorm_layer", "segmentation_model.1.conv"),
        configure_segmentation("segmentation_model.1.conv.weight"),
    ),
    DenseHead(
        "conv_depth.weight",
        (*batch_norm("batchnorm_layer", "depth_head.batch_norm"), *layer("conv_depth", "depth_head.projection")),
        configure_dinov3_linear,
    ),
    DenseHead("conv_depth.head.0.weight", dpt_rules(""), configure_dinov3_dpt),
)


def find_dense_head(tensors: Tensors, heads: Sequence[DenseHead]) -> DenseHead | None:
    """Return the layout of a head file; None for a file that holds none of these layouts.

    Raises UnsupportedCheckpointError for a head that the model does not support.
    """
    for pattern, found, remedy in UNSUPPORTED_HEADS:
        if names := [name for name in tensors if re.fullmatch(pattern, name)]:
            raise UnsupportedCheckpointError(
                f"The head file holds {found} ({list_names(names, 1)}), which is not supported: {remedy}."
            )
    return next((head for head in heads if head.anchor in tensors), None)
