"""DINO's .pth files: Caron et al., arXiv 2104.14294; github.com/facebookresearch/dino, vision_transformer.py, eval_linear.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...configuration.configuration_vit import ViTConfig
from .family import Family, RawCheckpoint
from .formats import ORIGINAL_HOLDS, SQUARE, Export, Exported, Holds, without_mask_token, write_torch
from .plain_vit import (
    ANCHOR,
    TRAINING_ROOTS,
    VIT_RULES,
    heads_warnings,
    linear_head,
    original_preprocessing,
    plain_vit_fields,
    square_image_fields,
)
from .rules import Deinterleave, Rule

# DINO's projection head, in full training checkpoints: its outputs are not classes
IGNORED = (r"head\.mlp\.\d+\.(weight|bias)", r"head\.last_layer\.(weight_g|weight_v|parametrizations\.weight\.original[01])")

# Input of the linear classifier, by its width in units of the model's: eval_linear.py, --n_last_blocks and --avgpool_patchtokens
HEAD_FIELDS: dict[int, dict[str, Any]] = {
    1: {},
    2: {"classifier_mean_patch": True},  # ViT-B: one [CLS] and the mean patch
    3: {"classifier_cls_layers": 3},
    4: {"classifier_cls_layers": 4},  # ViT-S: four [CLS]
}


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for [CLS], absolute positions and a fused qkv, without the tensors that DINOv2 and timm add."""
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    added = ("blocks.0.ls1.gamma", "mask_token", "register_tokens", "reg_token", "head.weight", "fc_norm.weight")
    return raw.config is None and all(name in raw.tensors for name in needed) and not any(name in raw.tensors for name in added)


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig for a backbone with these shapes."""
    fields = plain_vit_fields(raw, num_heads)
    return fields | square_image_fields(raw, fields["patch_size"]) | {"position_interpolation_offset": 0.1}


def head_rules(raw: RawCheckpoint, hidden_size: int) -> tuple[Sequence[Rule], dict[str, Any]]:
    """Return the rules for a linear-evaluation file, `{"state_dict": {"module.linear.weight", …}}`."""

    def rules(num_vectors: int) -> Sequence[Rule]:
        # The original interleaves [CLS] and mean patch element by element; ours are concatenated
        operations = [Deinterleave()] if num_vectors == 2 else []
        return Rule("linear.weight", "classifier.weight", *operations), Rule("linear.bias", "classifier.bias")

    return linear_head(raw, hidden_size, "linear.", HEAD_FIELDS, rules)


def assumption(raw: RawCheckpoint) -> str | None:
    """Return the warning for a bare file; only DINO's training checkpoints have a teacher and a student."""
    if raw.root in TRAINING_ROOTS:
        return None
    return (
        'read as a DINO file; timm\'s plain ViTs and MAE have the same layout: for their files, pass format="timm" or format="mae"'
    )


def holds(config: ViTConfig) -> Holds:
    """Return what DINO's code, which takes one number for the patch size, can hold."""
    return ORIGINAL_HOLDS | {
        "patch_size": SQUARE,
        "num_register_tokens": (0,),
        "mlp_type": ("mlp",),
        "layer_scale_init_value": (None,),
        "representation_size": (None,),
    }


def prepare(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Remove the mask token."""
    warnings += heads_warnings(config)
    return without_mask_token(config, tensors, warnings)


def write(exported: Exported, path: Path) -> list[Path]:
    """Write the weights and, as the original saves it, the classifier."""
    return write_torch(exported, path, lambda head: {"state_dict": {f"module.{name}": tensor for name, tensor in head.items()}})


DINO = Family(
    name="dino",
    containers=("torch",),
    recognizes=recognizes,
    rules=lambda raw: VIT_RULES,
    export_rules=lambda config, tensors: VIT_RULES,
    ignored=IGNORED,
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=lambda raw, config: original_preprocessing(raw, config, "dino"),
    assumption=assumption,
    head_rules=head_rules,
    export=Export(holds, prepare, write, suffixes=(".pth", ".pt")),
    catalog_format="dino-pth",
)
