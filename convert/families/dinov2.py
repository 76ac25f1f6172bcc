"""DINOv2's .pth files: Oquab et al., arXiv 2304.07193; Darcet et al., arXiv 2309.16588; github.com/facebookresearch/dinov2."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from .dense_heads import DINOV2_HEADS
from .family import Family, RawCheckpoint, only_head
from .formats import ORIGINAL_HOLDS, SQUARE, Export, with_mask_token, write_torch
from .plain_vit import (
    ANCHOR,
    LAYER_SCALE_RULES,
    LINEAR_HEAD_RULES,
    VIT_RULES,
    heads_warnings,
    linear_head,
    original_preprocessing,
    plain_vit_fields,
    square_grid,
)
from .rules import Rule, Unsqueeze

RULES = (
    *VIT_RULES,
    *LAYER_SCALE_RULES,
    Rule("mask_token", "embeddings.mask_token", Unsqueeze()),
    Rule("register_tokens", "embeddings.register_tokens"),
    Rule("blocks.{layer}.mlp.w12.weight", "layers.{layer}.mlp.gate_up_proj.weight"),
    Rule("blocks.{layer}.mlp.w12.bias", "layers.{layer}.mlp.gate_up_proj.bias"),
    Rule("blocks.{layer}.mlp.w3.weight", "layers.{layer}.mlp.down_proj.weight"),
    Rule("blocks.{layer}.mlp.w3.bias", "layers.{layer}.mlp.down_proj.bias"),
)

# The projection heads of a training run
IGNORED = (r"(dino|ibot)_head\..*",)

# Input of the linear classifier, by its width in units of the model's: hubconf, classifiers.py; eval/linear.py
HEAD_FIELDS: dict[int, dict[str, Any]] = {
    1: {},
    2: {"classifier_mean_patch": True},
    4: {"classifier_cls_layers": 4},
    5: {"classifier_cls_layers": 4, "classifier_mean_patch": True},
}


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for a mask token in addition to [CLS] and positions, which only DINOv2's files have."""
    return raw.config is None and all(
        name in raw.tensors for name in ("cls_token", "pos_embed", "mask_token", "blocks.0.ls1.gamma")
    )


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig; with registers, the original interpolates positions by another rule."""
    fields = plain_vit_fields(raw, num_heads)
    grid = square_grid(raw.shape("pos_embed", 3)[1] - 1, "pos_embed")
    swiglu = "blocks.0.mlp.w12.weight" in raw.tensors
    registers = raw.shape("register_tokens", 3)[1] if "register_tokens" in raw.tensors else 0
    return fields | {
        "intermediate_size": raw.shape("blocks.0.mlp.w3.weight", 2)[1] if swiglu else raw.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "mlp_type": "swiglu" if swiglu else "mlp",
        "image_size": tuple(grid * side for side in fields["patch_size"]),
        "num_register_tokens": registers,
        "use_mask_token": True,
        "layer_scale_init_value": 1.0,
        "position_interpolation_offset": 0.0 if registers else 0.1,
        "position_interpolation_antialias": bool(registers),
    }


def flatten_chunks(name: str) -> str:
    """Rename a block in a chunk, `blocks.1.7.norm1.weight` to `blocks.7.norm1.weight`; the second number counts through all chunks."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def choose_head(tensors: Mapping[str, torch.Tensor], head_name: str | None) -> Mapping[str, torch.Tensor]:
    """Return one classifier of a linear-evaluation checkpoint, which holds many (`classifiers_dict.NAME.linear.weight`)."""
    names = sorted({match[1] for name in tensors if (match := re.match(r"classifiers_dict\.(\w+)\.", name))})
    if not names:
        return only_head(tensors, head_name)
    if head_name not in names:
        found = f'no classifier "{head_name}"' if head_name else f"{len(names)} classifiers"
        raise UnsupportedCheckpointError(f"The head file holds {found}: set head_name= to one of {', '.join(names)}.")
    prefix = f"classifiers_dict.{head_name}.linear."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def head_rules(raw: RawCheckpoint, hidden_size: int) -> tuple[Sequence[Rule], dict[str, Any]]:
    """Return the rules for an official linear head (`weight`, `bias`) or one classifier of a linear evaluation."""
    return linear_head(raw, hidden_size, "", HEAD_FIELDS, lambda num_vectors: LINEAR_HEAD_RULES)


def prepare(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Add a mask token."""
    warnings += heads_warnings(config)
    return with_mask_token(config, tensors, warnings)


DINOV2 = Family(
    name="dinov2",
    containers=("torch",),
    recognizes=recognizes,
    rules=lambda raw: RULES,
    export_rules=lambda config, tensors: RULES,
    ignored=IGNORED,
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=lambda raw, config: original_preprocessing(raw, config, "dinov2"),
    normalize=flatten_chunks,
    head_rules=head_rules,
    choose_head=choose_head,
    dense_heads=DINOV2_HEADS,
    export=Export(
        lambda config: ORIGINAL_HOLDS | {"patch_size": SQUARE, "representation_size": (None,)},
        prepare,
        write_torch,
        suffixes=(".pth", ".pt"),
    ),
    catalog_format="dinov2-pth",
)
