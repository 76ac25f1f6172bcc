"""DINOv3 in transformers, the model type `dinov3_vit`. Source: transformers/models/dinov3_vit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from .family import RawCheckpoint, setting
from .formats import Holds, has_key_bias
from .plain_vit import gate_up_rules
from .rules import Concatenate, InsertKey, Rule

MODEL_TYPE = "dinov3_vit"
ANCHOR = "embeddings.patch_embeddings.weight"
BLOCK = "layer.{layer}"  # on the Hub; "model.layer.{layer}" in transformers' modules
DEFAULT_RESCALE = 2.0
KEY_BIAS = "layer.0.attention.k_proj.bias"

_SAME = {
    "embeddings.cls_token": "embeddings.cls_token",
    "embeddings.mask_token": "embeddings.mask_token",
    "embeddings.register_tokens": "embeddings.register_tokens",
    ANCHOR: "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.bias": "embeddings.patch_embeddings.projection.bias",
    f"{BLOCK}.layer_scale1.lambda1": "layers.{layer}.layer_scale1",
    f"{BLOCK}.layer_scale2.lambda1": "layers.{layer}.layer_scale2",
}
_LAYERS = {
    f"{BLOCK}.norm1": "layers.{layer}.norm1",
    f"{BLOCK}.attention.o_proj": "layers.{layer}.attention.proj",
    f"{BLOCK}.norm2": "layers.{layer}.norm2",
    "norm": "layernorm",
}
_MLP = {f"{BLOCK}.mlp.up_proj": "layers.{layer}.mlp.fc1", f"{BLOCK}.mlp.down_proj": "layers.{layer}.mlp.fc2"}
_GATED_MLP = {f"{BLOCK}.mlp.down_proj": "layers.{layer}.mlp.down_proj"}


def table(gated: bool, key_bias: bool) -> Sequence[Rule]:
    """Return the rules for models with or without a gate in the MLP, and with or without a bias of the key."""
    rules = [Rule(theirs, ours) for theirs, ours in _SAME.items()]
    for kind in ("weight", "bias"):
        layers = _LAYERS | (_GATED_MLP if gated else _MLP)
        rules += [Rule(f"{theirs}.{kind}", f"{ours}.{kind}") for theirs, ours in layers.items()]
    if gated:
        rules += gate_up_rules(f"{BLOCK}.mlp.gate_proj", f"{BLOCK}.mlp.up_proj")
    query, key, value = (f"{BLOCK}.attention.{part}_proj" for part in "qkv")
    rules.append(
        Rule([f"{query}.weight", f"{key}.weight", f"{value}.weight"], "layers.{layer}.attention.qkv.weight", Concatenate(3))
    )
    target = "layers.{layer}.attention.qkv.bias"
    if key_bias:
        return [*rules, Rule([f"{query}.bias", f"{key}.bias", f"{value}.bias"], target, Concatenate(3))]
    return [*rules, Rule([f"{query}.bias", f"{value}.bias"], target, InsertKey(), Concatenate(3))]


def rules(raw: RawCheckpoint) -> Sequence[Rule]:
    """Return the rules for the names of a checkpoint."""
    return table("layer.0.mlp.gate_proj.weight" in raw.tensors, KEY_BIAS in raw.tensors)


def export_rules(config: ViTConfig, tensors: Mapping[str, torch.Tensor]) -> Sequence[Rule]:
    """Return the rules to reverse for an export."""
    return table(config.mlp_type != "mlp", has_key_bias(tensors))


def configure(raw: RawCheckpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ViTConfig in which this model type differs from transformers' other ViTs; absent ones have its defaults."""
    attention = "".join(part for part in "qkv" if f"layer.0.attention.{part}_proj.bias" in raw.tensors)
    if attention not in ("", "qv", "qkv") or not all(setting(config, name, bool, True) for name in ("proj_bias", "mlp_bias")):
        raise UnsupportedCheckpointError(
            "The model is without some biases (query_bias, key_bias, value_bias, proj_bias, mlp_bias in config.json), which is not "
            "supported; expected proj_bias, mlp_bias, and query_bias with value_bias, or no bias of all three: use transformers."
        )
    gated = setting(config, "use_gated_mlp", bool, False)
    activation = setting(config, "hidden_act", str, "gelu")
    gates = {"silu": "swiglu", "gelu": "geglu"}
    if gated and activation not in gates:
        raise UnsupportedCheckpointError(
            f'config.json has hidden_act="{activation}" for a gated MLP, which is not supported; expected {" or ".join(gates)}.'
        )
    if gated and activation == "gelu":
        raw.warnings.append(
            'the gate of the MLP is GELU, as config.json says and transformers computes; the published models have "silu": for one of '
            'them, write "hidden_act": "silu" into config.json'
        )
    defaults = {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-5,
        "rope_theta": 100.0,
    }
    ours = {"rope_shift": "pos_embed_shift", "rope_jitter": "pos_embed_jitter"}
    return {name: config.get(name, default) for name, default in defaults.items()} | {
        **{name: config.get(theirs) for name, theirs in ours.items()},
        "rope_rescale": _rescale(raw, config),
        "position_embedding_type": "rotary",
        "attention_probs_dropout_prob": config.get("attention_dropout", 0.0),
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": config.get("drop_path_rate", 0.0),
        "qkv_bias": "layer.0.attention.v_proj.bias" in raw.tensors,
        "patch_size": config.get("patch_size", 16),
        "mlp_type": gates[activation] if gated else "mlp",
        "hidden_act": "gelu" if gated else activation,
        "layer_scale_init_value": config.get("layerscale_value", 1.0),
        "num_register_tokens": config.get("num_register_tokens", 0),
    }


def _rescale(raw: RawCheckpoint, config: Mapping[str, Any]) -> float | None:
    """Return the augmentation of training, off at the default of transformers, which nobody chose."""
    rescale = setting(config, "pos_embed_rescale", (int, float)) if "pos_embed_rescale" in config else DEFAULT_RESCALE
    if rescale != DEFAULT_RESCALE:
        return rescale
    raw.warnings.append(
        f"in training, transformers scales rotary coordinates at random by up to {DEFAULT_RESCALE:g}; here this is off: for it, set "
        f"rope_rescale={DEFAULT_RESCALE:g} in the config"
    )
    return None


def config_fields(config: ViTConfig, *, key_bias: bool) -> dict[str, Any]:
    """Return the fields of config.json that this model type has beside those of transformers' other ViTs."""
    return {
        "intermediate_size": config.intermediate_size,
        "use_gated_mlp": config.mlp_type != "mlp",
        "hidden_act": {"mlp": config.hidden_act, "swiglu": "silu", "geglu": "gelu"}[config.mlp_type],
        "attention_dropout": config.attention_probs_dropout_prob,
        "query_bias": config.qkv_bias,
        "key_bias": config.qkv_bias and key_bias,
        "value_bias": config.qkv_bias,
        "layerscale_value": float(config.layer_scale_init_value or 1.0),
        "drop_path_rate": config.drop_path_rate,
        "num_register_tokens": config.num_register_tokens,
        "rope_theta": float(config.rope_theta),
        "pos_embed_shift": config.rope_shift,
        "pos_embed_jitter": config.rope_jitter,
        "pos_embed_rescale": config.rope_rescale,
    }


def holds() -> Holds:
    """Return what DINOv3ViTModel can hold."""
    return {
        "use_cls_token": (True,),
        "norm_position": ("pre",),
        "norm_before_pooling": (True,),
        "separate_cls_norm": (False,),
        "pooling": ("cls",),
        "representation_size": (None,),
    }
