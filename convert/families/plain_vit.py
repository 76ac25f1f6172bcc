"""The layout of names that DINO's, DINOv2's and timm's PyTorch checkpoints share, and what follows from its shapes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...processing.image_processing_vit import VitrailImageProcessor
from ...processing.presets import image_processor_for
from .family import RawCheckpoint
from .rules import Concatenate, Rule

ANCHOR = "patch_embed.proj.weight"
PUBLISHED_HEAD_WIDTH = 64  # of nearly every published ViT
PUBLISHED_WIDTHS = (192, 256, 320, 384, 512, 640, 768, 896, 1024, 1152, 1280, 1408, 1536, 1664)  # timm/models/vision_transformer.py
OTHER_HEAD_WIDTHS = {1152: 72, 1280: 80, 1408: 88, 1664: 104}  # SO400M, ViT-H, ViT-g and ViT-G: 16 heads each (arXiv 2106.04560)

TRAINING_ROOTS = ("teacher", "student")  # of the checkpoints that DINO's and DINOv2's training writes

VIT_RULES = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
    Rule("patch_embed.proj.bias", "embeddings.patch_embeddings.projection.bias"),
    Rule("blocks.{layer}.norm1.weight", "layers.{layer}.norm1.weight"),
    Rule("blocks.{layer}.norm1.bias", "layers.{layer}.norm1.bias"),
    Rule("blocks.{layer}.attn.qkv.weight", "layers.{layer}.attention.qkv.weight"),
    Rule("blocks.{layer}.attn.qkv.bias", "layers.{layer}.attention.qkv.bias"),
    Rule("blocks.{layer}.attn.proj.weight", "layers.{layer}.attention.proj.weight"),
    Rule("blocks.{layer}.attn.proj.bias", "layers.{layer}.attention.proj.bias"),
    Rule("blocks.{layer}.norm2.weight", "layers.{layer}.norm2.weight"),
    Rule("blocks.{layer}.norm2.bias", "layers.{layer}.norm2.bias"),
    Rule("blocks.{layer}.mlp.fc1.weight", "layers.{layer}.mlp.fc1.weight"),
    Rule("blocks.{layer}.mlp.fc1.bias", "layers.{layer}.mlp.fc1.bias"),
    Rule("blocks.{layer}.mlp.fc2.weight", "layers.{layer}.mlp.fc2.weight"),
    Rule("blocks.{layer}.mlp.fc2.bias", "layers.{layer}.mlp.fc2.bias"),
    Rule("norm.weight", "layernorm.weight"),
    Rule("norm.bias", "layernorm.bias"),
)
# Of layouts with rotary positions, where the bias of query, key and value has a separate rule
VIT_RULES_WITHOUT_POSITIONS = tuple(
    rule for rule in VIT_RULES if rule.sources[0] not in ("pos_embed", "blocks.{layer}.attn.qkv.bias")
)
LINEAR_HEAD_RULES = (Rule("weight", "classifier.weight"), Rule("bias", "classifier.bias"))
LAYER_SCALE_RULES = (
    Rule("blocks.{layer}.ls1.gamma", "layers.{layer}.layer_scale1"),
    Rule("blocks.{layer}.ls2.gamma", "layers.{layer}.layer_scale2"),
)


def gate_up_rules(gate: str, up: str) -> tuple[Rule, ...]:
    """Return the rules of a gated MLP whose gate and whose other layer are apart; names without ".weight" and ".bias"."""
    return tuple(
        Rule((f"{gate}.{kind}", f"{up}.{kind}"), f"layers.{{layer}}.mlp.gate_up_proj.{kind}", Concatenate(2))
        for kind in ("weight", "bias")
    )


def attention_heads(raw: RawCheckpoint, hidden_size: int, num_heads: int | None, *, published: bool = False) -> int:
    """Return the number of heads. A state dict does not hold it, but the head width of published models follows from the hidden size.

    published: config.json names a published architecture.
    """
    if num_heads is not None:
        return num_heads
    head_width = published_head_width(hidden_size)
    if hidden_size % head_width:
        raise UnsupportedCheckpointError(
            f"The number of attention heads does not follow from the shapes: the hidden size {hidden_size} is not a multiple of "
            f"{head_width}. Set num_heads=."
        )
    if not (raw.official or (published and hidden_size in PUBLISHED_WIDTHS)):
        raw.warnings.append(
            f"{hidden_size // head_width} attention heads assumed, each {head_width} wide as in published models: set num_heads= for others"
        )
    return hidden_size // head_width


def published_head_width(hidden_size: int) -> int:
    """Return the width of an attention head in published models of a hidden size."""
    return OTHER_HEAD_WIDTHS.get(hidden_size, PUBLISHED_HEAD_WIDTH)


def heads_warnings(config: ViTConfig) -> list[str]:
    """Return a warning where the number of heads, which a state dict does not hold, is not the one that readers assume."""
    if config.num_attention_heads * published_head_width(config.hidden_size) == config.hidden_size:
        return []
    return [f"the file does not hold the number of attention heads: load it with num_heads={config.num_attention_heads}"]


def original_preprocessing(raw: RawCheckpoint, config: ViTConfig, preset: str) -> VitrailImageProcessor:
    """Return the preprocessing of the original code, which is assumed for a backbone: other code writes the same layout."""
    return image_processor_for(config, preset) if raw.root in TRAINING_ROOTS else raw.assume_preprocessing(preset, config)


def square_grid(num_patches: int, name: str) -> int:
    """Return the side of the square grid of patches of a position embedding."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise UnsupportedCheckpointError(
            f"{name} holds positions of {num_patches} patches, which is not a square number, so rows and columns are unknown. "
            "All published checkpoints have a square grid, and positions of patches and [CLS] alone: check that the file is one of them."
        )
    return side


def plain_vit_fields(raw: RawCheckpoint, num_heads: int | None, *, published: bool = False) -> dict[str, Any]:
    """Return the fields of ViTConfig that follow from the shapes; the epsilon of the originals is 1e-6."""
    hidden_size, num_channels, *patch_size = raw.shape(ANCHOR, 4)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": raw.count_blocks("blocks."),
        "num_attention_heads": attention_heads(raw, hidden_size, num_heads, published=published),
        "patch_size": tuple(patch_size),
        "num_channels": num_channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in raw.tensors,
        "layer_norm_eps": 1e-6,
    }


def square_image_fields(raw: RawCheckpoint, patch_size: tuple[int, int], num_prefix_positions: int = 1) -> dict[str, Any]:
    """Return the width of the MLP, and the image size that follows from `pos_embed`, whose grid is square."""
    grid = square_grid(raw.shape("pos_embed", 3)[1] - num_prefix_positions, "pos_embed")
    return {
        "intermediate_size": raw.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "image_size": tuple(grid * side for side in patch_size),
    }


def linear_head(
    raw: RawCheckpoint,
    hidden_size: int,
    prefix: str,
    fields_by_width: Mapping[int, dict[str, Any]],
    rules: Callable[[int], Sequence[Rule]],
) -> tuple[Sequence[Rule], dict[str, Any]]:
    """Return the rules and config fields of a linear classifier, chosen by its width in units of the backbone's."""
    weight = raw.tensors.get(f"{prefix}weight")
    if (
        weight is None
        or weight.ndim != 2
        or weight.shape[-1] % hidden_size
        or weight.shape[-1] // hidden_size not in fields_by_width
    ):
        found = f"{prefix}weight of shape {tuple(weight.shape)}" if weight is not None else ", ".join(list(raw.tensors)[:5])
        raise UnsupportedCheckpointError(
            f"The head file holds {found}; expected {prefix}weight of shape (classes, n * {hidden_size}) with n in "
            f"{', '.join(map(str, fields_by_width))}. Use the head that was published with the backbone."
        )
    num_vectors = weight.shape[-1] // hidden_size
    return rules(num_vectors), fields_by_width[num_vectors]
