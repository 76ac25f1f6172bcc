"""DINOv3's .pth files: Siméoni et al., arXiv 2508.10104; github.com/facebookresearch/dinov3."""

from collections.abc import Sequence
from typing import Any

import torch

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...processing.image_processing_vit import VitrailImageProcessor
from .dense_heads import DINOV3_HEADS
from .dinov2 import choose_head
from .family import Family, RawCheckpoint
from .formats import SQUARE, Export, Holds, with_mask_token, write_torch
from .plain_vit import (
    ANCHOR,
    LAYER_SCALE_RULES,
    LINEAR_HEAD_RULES,
    TRAINING_ROOTS,
    VIT_RULES_WITHOUT_POSITIONS,
    gate_up_rules,
    linear_head,
    plain_vit_fields,
)
from .rules import Mask, Rule, Unsqueeze

PERIODS = "rope_embed.periods"
MAX_PERIOD = 1e6
QKV_BIAS = ("blocks.{layer}.attn.qkv.bias", "layers.{layer}.attention.qkv.bias")
PLAIN_RULES = (
    *VIT_RULES_WITHOUT_POSITIONS,
    *LAYER_SCALE_RULES,
    Rule("mask_token", "embeddings.mask_token", Unsqueeze()),
    Rule("storage_tokens", "embeddings.register_tokens"),
    Rule(PERIODS, "rotary_position.periods"),
    Rule("cls_norm.weight", "cls_layernorm.weight"),
    Rule("cls_norm.bias", "cls_layernorm.bias"),
    *gate_up_rules("blocks.{layer}.mlp.w1", "blocks.{layer}.mlp.w2"),
    Rule("blocks.{layer}.mlp.w3.weight", "layers.{layer}.mlp.down_proj.weight"),
    Rule("blocks.{layer}.mlp.w3.bias", "layers.{layer}.mlp.down_proj.bias"),
)
# mask_k_bias: the bias counts where its mask is 1
MASKED_RULES = (*PLAIN_RULES, Rule((QKV_BIAS[0], f"{QKV_BIAS[0]}_mask"), QKV_BIAS[1], Mask()))
UNMASKED_RULES = (*PLAIN_RULES, Rule(*QKV_BIAS))

# The norm of local crops, read in training alone, and the projection heads of a training run or of EUPE's distillation
IGNORED = (r"local_cls_norm\.(weight|bias)", r"(dino|ibot)_head\..*", r"projectors\..*")

# Input of the linear classifier, by its width in units of the model's: hub/classifiers.py
HEAD_FIELDS: dict[int, dict[str, Any]] = {1: {}, 2: {"classifier_mean_patch": True}}


def rules(raw: RawCheckpoint) -> Sequence[Rule]:
    """Return the table for a file with or without masks of biases."""
    return MASKED_RULES if "blocks.0.attn.qkv.bias_mask" in raw.tensors else UNMASKED_RULES


def base_of(periods: torch.Tensor) -> float:
    """Return the base of the series that rounded periods belong to, to two digits; that of the published models if there is none."""
    number, last = len(periods), float(periods[-1])
    return float(f"{last ** (number / (number - 1)):.2g}") if number > 1 and 1 < last < MAX_PERIOD else 100.0


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig; the width of a head is four times the number of periods."""
    head_width, hidden_size = 4 * raw.shape(PERIODS, 1)[0], raw.shape(ANCHOR, 4)[0]
    if num_heads is not None and num_heads * head_width != hidden_size:
        raise UnsupportedCheckpointError(
            f"num_heads={num_heads} contradicts the {head_width // 4} periods of the file, which are of heads {head_width} wide in a width "
            f"of {hidden_size}: leave num_heads out."
        )
    fields = plain_vit_fields(raw, max(hidden_size // head_width, 1))
    gated = "blocks.0.mlp.w1.weight" in raw.tensors
    return fields | {
        "position_embedding_type": "rotary",
        "rope_theta": base_of(raw.tensors[PERIODS]),
        "intermediate_size": raw.shape(f"blocks.0.mlp.{'w1' if gated else 'fc1'}.weight", 2)[0],
        "mlp_type": "swiglu" if gated else "mlp",
        "image_size": tuple(max(224 // side, 1) * side for side in fields["patch_size"]),  # any size, without interpolation
        "num_register_tokens": raw.shape("storage_tokens", 3)[1] if "storage_tokens" in raw.tensors else 0,
        "use_mask_token": "mask_token" in raw.tensors,
        "layer_scale_init_value": 1e-5 if "blocks.0.ls1.gamma" in raw.tensors else None,
        "layer_norm_eps": 1e-5,  # "layernormbf16" of models/vision_transformer.py, in every published config
        "separate_cls_norm": "cls_norm.weight" in raw.tensors,
    }


def is_satellite(raw: RawCheckpoint) -> bool:
    """Return whether the file is that of the ViT-L trained on SAT-493M: the other ViT-L has no norm of local crops."""
    return "local_cls_norm.weight" in raw.tensors and raw.shape(ANCHOR, 4)[0] == 1024


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the preprocessing of the README, which is assumed: the tensors do not show the images that the model was trained on."""
    return raw.assume_preprocessing("sat" if is_satellite(raw) else "dinov3", config)


def assumption(raw: RawCheckpoint) -> str | None:
    """Return the warning for a file of a training run, whose tensors do not show an epsilon."""
    if raw.root not in TRAINING_ROOTS:
        return None
    return (
        'the epsilon of LayerNorm is 1e-5, as in the published models: after a training with norm_layer "layernorm", save the model and '
        "load it with layer_norm_eps=1e-6"
    )


def head_rules(raw: RawCheckpoint, hidden_size: int) -> tuple[Sequence[Rule], dict[str, Any]]:
    """Return the rules for the official linear classifier (`weight`, `bias`), of the 7B model."""
    return linear_head(raw, hidden_size, "", HEAD_FIELDS, lambda num_vectors: LINEAR_HEAD_RULES)


def holds(config: ViTConfig) -> Holds:
    """Return what the original's DinoVisionTransformer can hold."""
    return {
        "use_cls_token": (True,),
        "position_embedding_type": ("rotary",),
        "patch_shape": SQUARE,
        "representation_size": (None,),
        "mlp_type": ("mlp", "swiglu"),
    }


def prepare(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Add a mask token."""
    return with_mask_token(config, tensors, warnings)


DINOV3 = Family(
    name="dinov3",
    containers=("torch",),
    recognizes=lambda raw: raw.config is None and PERIODS in raw.tensors and "blocks.0.attn.qkv.weight" in raw.tensors,
    rules=rules,
    export_rules=lambda config, tensors: MASKED_RULES,
    ignored=IGNORED,
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=image_processor,
    assumption=assumption,
    head_rules=head_rules,
    choose_head=choose_head,
    dense_heads=DINOV3_HEADS,
    export=Export(holds, prepare, write_torch, suffixes=(".pth", ".pt")),
    catalog_format="dinov3-pth",
)
