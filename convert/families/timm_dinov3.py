"""DINOv3 in timm: its Eva class with rotary positions. Source: timm/models/eva.py, timm/layers/pos_embed_sincos.py."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from .family import RawCheckpoint, setting
from .formats import Holds
from .plain_vit import ANCHOR, VIT_RULES_WITHOUT_POSITIONS, gate_up_rules, plain_vit_fields
from .rules import Concatenate, InsertKey, Rule

ARCHITECTURES = re.compile(r"vit_\w+_patch16_(dinov3(_qkvb)?|lingbot)")
# Widths whose heads are not 64 wide in every other ViT: ViT-H+ and ViT-7B
HEADS = {1280: 20, 4096: 32}
# Arguments of Eva with one possible value here; those of VisionTransformer are in timm.py
FIXED_ARGUMENTS = {
    "rope_type": "dinov3",
    "rope_grid_offset": 0,
    "rope_grid_indexing": "ij",
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "use_fc_norm": False,
}
# Arguments that names and shapes show, or that are read by `configure`
ARGUMENTS = {
    *FIXED_ARGUMENTS,
    *("num_reg_tokens", "swiglu_mlp", "swiglu_align_to", "qkv_fused", "head_init_scale"),
    *("rope_temperature", "rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords"),
}
RULES = (
    *VIT_RULES_WITHOUT_POSITIONS,
    Rule("reg_token", "embeddings.register_tokens"),
    Rule("blocks.{layer}.gamma_1", "layers.{layer}.layer_scale1"),
    Rule("blocks.{layer}.gamma_2", "layers.{layer}.layer_scale2"),
    Rule(
        ("blocks.{layer}.attn.q_bias", "blocks.{layer}.attn.v_bias"),
        "layers.{layer}.attention.qkv.bias",
        InsertKey(),
        Concatenate(3),
    ),
    Rule("head.weight", "classifier.weight"),
    Rule("head.bias", "classifier.bias"),
)
GATED_RULES = (
    *(rule for rule in RULES if ".mlp." not in rule.sources[0]),
    *gate_up_rules("blocks.{layer}.mlp.fc1_g", "blocks.{layer}.mlp.fc1_x"),
    Rule("blocks.{layer}.mlp.fc2.weight", "layers.{layer}.mlp.down_proj.weight"),
    Rule("blocks.{layer}.mlp.fc2.bias", "layers.{layer}.mlp.down_proj.bias"),
)


def table(gated: bool) -> Sequence[Rule]:
    """Return the rules for models with or without a gate in the MLP."""
    return GATED_RULES if gated else RULES


def is_dinov3(raw: RawCheckpoint) -> bool:
    """Return True for timm's name of the architecture or, without config.json, for registers and LayerScale without any positions."""
    if raw.config is not None:
        return ARCHITECTURES.fullmatch(setting(raw.config, "architecture", str, "")) is not None
    needed = all(name in raw.tensors for name in (ANCHOR, "cls_token", "reg_token", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight"))
    return needed and not any(re.search(r"pos_embed|rope|rel_pos|relative_position", name) for name in raw.tensors)


def is_gated(raw: RawCheckpoint) -> bool:
    """Return True for SwiGLU, whose gate is a separate layer."""
    return "blocks.0.mlp.fc1_g.weight" in raw.tensors


def configure(raw: RawCheckpoint, num_heads: int | None, model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ViTConfig, without image size and pooling."""
    for name, value in FIXED_ARGUMENTS.items():
        if model_args.get(name, value) != value:
            raise UnsupportedCheckpointError(
                f"timm's {name}={model_args[name]!r} (model_args in config.json) is not supported with DINOv3; expected {value!r}."
            )
    hidden_size = raw.shape(ANCHOR, 4)[0]
    gated = is_gated(raw)
    num_heads = num_heads or setting(model_args, "num_heads", int) or HEADS.get(hidden_size)
    fields = plain_vit_fields(raw, num_heads, published=raw.config is not None and "embed_dim" not in model_args)
    numbers = {
        ours: setting(model_args, theirs, (int, float))
        for ours, theirs in (
            ("rope_theta", "rope_temperature"),
            ("rope_shift", "rope_shift_coords"),
            ("rope_jitter", "rope_jitter_coords"),
            ("rope_rescale", "rope_rescale_coords"),
        )
    }
    return fields | {name: value for name, value in numbers.items() if value is not None} | {
        "position_embedding_type": "rotary",
        "qkv_bias": "blocks.0.attn.q_bias" in raw.tensors,
        "mlp_type": "swiglu" if gated else "mlp",
        "intermediate_size": raw.shape("blocks.0.mlp.fc2.weight", 2)[1],
        "use_cls_token": "cls_token" in raw.tensors,
        "num_register_tokens": raw.shape("reg_token", 3)[1] if "reg_token" in raw.tensors else 0,
        "layer_scale_init_value": 1e-5 if "blocks.0.gamma_1" in raw.tensors else None,
        "layer_norm_eps": 1e-5,
    }  # fmt: skip


def holds(config: ViTConfig) -> Holds:
    """Return what timm's DINOv3 models can hold."""
    return {
        "use_cls_token": (True,),
        "mlp_type": ("mlp", "swiglu"),
        "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-5,),
        "norm_position": ("pre",),
        "norm_before_pooling": (True,),
        "separate_cls_norm": (False,),
        "pooling": ("cls", "avg"),
        "representation_size": (None,),
    }


def architecture(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """Return a registered architecture, and the arguments of Eva for a config beside those of every timm model."""
    gated = config.mlp_type == "swiglu"
    return "vit_small_plus_patch16_dinov3" if gated else "vit_small_patch16_dinov3", {
        "num_reg_tokens": config.num_register_tokens,
        "swiglu_mlp": gated,
        "swiglu_align_to": int(gated),
        "rope_temperature": config.rope_theta,
        "rope_shift_coords": config.rope_shift,
        "rope_jitter_coords": config.rope_jitter,
        "rope_rescale_coords": config.rope_rescale,
    }
