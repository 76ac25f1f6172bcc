"""timm's checkpoints: github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py, vision_transformer_relpos.py."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...processing.image_processing_vit import VitrailImageProcessor
from ...processing.presets import image_processor_for, make_image_processor
from ...processing.resizing import output_size
from . import timm_dinov3 as dinov3
from .dino import recognizes as is_dino
from .family import Family, RawCheckpoint, setting
from .formats import Export, Exported, Holds, RunPeer, has_key_bias, has_labels, without_mask_token, without_periods, write_folder
from .plain_vit import ANCHOR, LAYER_SCALE_RULES, VIT_RULES, plain_vit_fields, square_grid
from .rules import AddRegisterPositions, Rule

INTERPOLATIONS = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
# By timm's name
ACTIVATIONS = {
    "gelu_tanh": "gelu_pytorch_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Fields that follow from neither names nor shapes, by the architecture in config.json: timm/models/vision_transformer.py
BY_ARCHITECTURE: tuple[tuple[str, dict[str, Any]], ...] = (
    (r".*_rpn(_.*)?", {"norm_position": "residual_post"}),
    (r"test_vit2?", {"num_attention_heads": 2}),
    (r"test_vit([34]|_relpos)", {"num_attention_heads": 3}),
    # positions of FlexiViT are resized as its authors do: _create_vision_transformer
    (r"flexivit_.*", {"position_interpolation_mode": "bilinear", "position_interpolation_antialias": False}),
    (r"vit_base_patch16_gap_\d+|vit_giantopt_.*", {"num_attention_heads": 16}),
    (
        r"vit_(base_patch32_siglip_gap_256|large_patch16_siglip_gap_512|(so400m|giantopt)_patch16_siglip_gap_\d+)",
        {"hidden_act": "gelu_pytorch_tanh"},
    ),
)
# Arguments of timm's classes that are read here, that names and shapes show, or that have no effect at inference
KNOWN_ARGUMENTS = dinov3.ARGUMENTS | {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("act_layer", "qkv_bias", "qk_norm", "proj_bias", "init_values", "class_token", "reg_tokens", "pos_embed", "no_embed_class"),
    *(
        "norm_layer",
        "pre_norm",
        "final_norm",
        "fc_norm",
        "rel_pos_type",
        "rel_pos_dim",
        "shared_rel_pos",
        "weight_init",
        "fix_init",
    ),
    *("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "features_only", "out_indices"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
}


def _relative_rules(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.mlp.fc1.weight", f"{target}.fc1.weight"),
        Rule(f"{source}.mlp.fc1.bias", f"{target}.fc1.bias"),
        Rule(f"{source}.mlp.fc2.weight", f"{target}.fc2.weight"),
        Rule(f"{source}.mlp.fc2.bias", f"{target}.fc2.bias"),
        Rule(f"{source}.relative_position_bias_table", f"{target}.table"),
    )


COMMON_RULES = (
    *(rule for rule in VIT_RULES if not rule.sources[0].startswith("norm.")),
    *LAYER_SCALE_RULES,
    *_relative_rules("blocks.{layer}.attn.rel_pos", "layers.{layer}.attention.relative_position"),
    *_relative_rules("shared_rel_pos", "relative_position"),
    Rule("reg_token", "embeddings.register_tokens"),
    Rule("pre_logits.fc.weight", "representation.weight"),
    Rule("pre_logits.fc.bias", "representation.bias"),
    Rule("head.weight", "classifier.weight"),
    Rule("head.bias", "classifier.bias"),
)
SWIGLU_RULES = tuple(
    Rule(rule.sources, rule.targets[0].replace("fc1", "gate_up_proj").replace("fc2", "down_proj"))
    if ".mlp.fc" in rule.targets[0]
    else rule
    for rule in COMMON_RULES
)


def is_swiglu(raw: RawCheckpoint) -> bool:
    """Return True for SwiGLU: fc1 holds gate and up, so that it is twice as wide as the input of fc2."""
    return raw.shape("blocks.0.mlp.fc1.weight", 2)[0] == 2 * raw.shape("blocks.0.mlp.fc2.weight", 2)[1]


def table(swiglu: bool, norm_before_pooling: bool, registers_after: int | None = None) -> list[Rule]:
    """Return the rules; the final norm is called `norm` before pooling and `fc_norm` after it.

    `registers_after` is the number of positions before those of registers, where registers have positions.
    """
    norm = "norm" if norm_before_pooling else "fc_norm"
    rules = SWIGLU_RULES if swiglu else COMMON_RULES
    if registers_after is not None:
        separate = ("reg_token", "pos_embed")
        ours = ("embeddings.register_tokens", "embeddings.position_embeddings")
        together = Rule(separate, ours, AddRegisterPositions(registers_after))
        rules = (*(rule for rule in rules if rule.sources[0] not in separate), together)
    return [
        *rules,
        Rule(f"{norm}.weight", "layernorm.weight"),
        Rule(f"{norm}.bias", "layernorm.bias"),
    ]


def rules(raw: RawCheckpoint) -> Sequence[Rule]:
    """Return the rules for the names of a checkpoint."""
    if dinov3.is_dinov3(raw):
        return dinov3.table(dinov3.is_gated(raw))
    return table(is_swiglu(raw), "fc_norm.weight" not in raw.tensors, registers_after(raw))


def export_rules(config: ViTConfig, tensors: Mapping[str, torch.Tensor]) -> Sequence[Rule]:
    """Return the rules to reverse for an export."""
    if config.position_embedding_type == "rotary":
        return dinov3.table(config.mlp_type == "swiglu")
    return table(config.mlp_type == "swiglu", config.norm_before_pooling)


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for timm's names of patch embedding and blocks, and timm's config.json where there is one."""
    if raw.config is not None and "architecture" not in raw.config:
        return False
    return "patch_embed.proj.weight" in raw.tensors and "blocks.0.attn.qkv.weight" in raw.tensors


def _model_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of timm's class; raise UnsupportedCheckpointError for an argument with another model as its effect."""
    arguments: dict[str, Any] = setting(config, "model_args", dict, {})
    odd = {name: value for name, value in arguments.items() if name not in KNOWN_ARGUMENTS and value not in (None, False)}
    if arguments.get("norm_layer") not in (None, "layernorm"):
        odd["norm_layer"] = arguments["norm_layer"]
    if arguments.get("proj_bias") is False:
        odd["proj_bias"] = False
    for name, value in odd.items():
        raise UnsupportedCheckpointError(f"timm's {name}={value!r} (model_args in config.json) is not supported: use timm.")
    return arguments


def _activation(act_layer: str | None, default: str, swiglu: bool) -> str:
    if act_layer is None:
        return default
    if swiglu and ACTIVATIONS.get(act_layer) != "silu":
        raise UnsupportedCheckpointError(f'timm\'s act_layer="{act_layer}" is not supported with SwiGLU; expected "silu".')
    if act_layer not in ACTIVATIONS:
        raise UnsupportedCheckpointError(
            f'timm\'s act_layer="{act_layer}" is not supported; expected one of {", ".join(ACTIVATIONS)}.'
        )
    return ACTIVATIONS[act_layer]


def _known_size(config: dict[str, Any]) -> tuple[int, int] | None:
    """Return the image size in config.json; the weights may have another."""
    size = setting(_model_args(config), "img_size", (int, list)) or setting(_pretrained_cfg_of(config), "input_size", list, [])[1:]
    pair = [size, size] if isinstance(size, int) else size
    if not all(isinstance(side, int) for side in pair):
        raise UnsupportedCheckpointError(
            f"config.json has the image size {pair}; expected whole numbers of pixels. Correct the file."
        )
    return (pair[0], pair[1]) if len(pair) == 2 else None


def _pretrained_cfg_of(config: dict[str, Any]) -> dict[str, Any]:
    return setting(config, "pretrained_cfg", dict) or config  # early files have the fields at the top level


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig: from the shapes, and pooling and image size from config.json where there is one."""
    config, tokens = raw.config or {}, raw.tensors
    architecture, model_args = setting(config, "architecture", str, ""), _model_args(config)
    if dinov3.is_dinov3(raw):
        fields = dinov3.configure(raw, num_heads, model_args)
        pooling = _pooling_fields(raw, config, {"global_pool": "token" if architecture.endswith("lingbot") else "avg"} | model_args)
        return fields | pooling | _rotary_image_size(config, fields) | _label_fields(raw, config)
    named: dict[str, Any] = {"norm_position": "pre", "hidden_act": "gelu", "position_interpolation_antialias": True}
    for pattern, particulars in BY_ARCHITECTURE:
        if re.fullmatch(pattern, architecture):
            named |= particulars
    num_heads = num_heads or setting(model_args, "num_heads", int) or named.get("num_attention_heads")
    fields = named | plain_vit_fields(raw, num_heads, published=bool(architecture) and "embed_dim" not in model_args)
    fields |= {
        "mlp_type": "swiglu" if is_swiglu(raw) else "mlp",
        "hidden_act": _activation(setting(model_args, "act_layer", str), named["hidden_act"], is_swiglu(raw)),
        "intermediate_size": raw.shape("blocks.0.mlp.fc2.weight", 2)[1],
        "use_cls_token": "cls_token" in tokens,
        "num_register_tokens": _num_registers(raw),
        "layer_scale_init_value": 1e-5 if "blocks.0.ls1.gamma" in tokens else None,
        "representation_size": raw.shape("pre_logits.fc.weight", 2)[0] if "pre_logits.fc.weight" in tokens else None,
    }
    return fields | _pooling_fields(raw, config, model_args) | _position_fields(raw, config, fields) | _label_fields(raw, config)


def _label_fields(raw: RawCheckpoint, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of the classes in config.json, if there is one for each: timm/models/_hub.py, save_config_for_hf."""
    names = setting(config, "label_names", list, [])
    descriptions = setting(config, "label_descriptions", dict, {})
    if not names or "head.weight" not in raw.tensors or len(names) != len(raw.tensors["head.weight"]):
        return {}
    described = {str(name): str(descriptions.get(str(name), name)) for name in names}
    labels = [described[str(name)] for name in names]
    fields: dict[str, Any] = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    return fields | ({"label_descriptions": described} if descriptions else {})  # timm's own form, for an export


def _pooling_fields(raw: RawCheckpoint, config: Mapping[str, Any], model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tokens are pooled, and where the final norm is."""
    if not any(f"{norm}.{kind}" in raw.tensors for norm in ("norm", "fc_norm") for kind in ("weight", "bias")):
        raise UnsupportedCheckpointError("The checkpoint has no final norm (RADIO, InternViT), which is not supported: use timm.")
    if "blocks.0.norm1.weight" in raw.tensors and "blocks.0.norm1.bias" not in raw.tensors:
        raise UnsupportedCheckpointError("The checkpoint has norms without a bias (RMSNorm), which are not supported: use timm.")
    after_pooling = "fc_norm.weight" in raw.tensors
    # save_config_for_hf writes an empty one into model_args alone
    global_pool = setting(config, "global_pool", str, setting(model_args, "global_pool", str))
    if global_pool == "" and "head.weight" in raw.tensors:
        raise UnsupportedCheckpointError(
            'timm\'s global_pool="" (logits for each token) is not supported; expected "token" or "avg".'
        )
    default = "avg" if after_pooling or "cls_token" not in raw.tensors else "cls"
    pooling = {"token": "cls", "avg": "avg", None: default}.get(global_pool or None)
    if pooling is None:
        raise UnsupportedCheckpointError(f'timm\'s global_pool="{global_pool}" is not supported; expected "token" or "avg".')
    return {"pooling": pooling, "norm_before_pooling": not after_pooling}


def _position_fields(raw: RawCheckpoint, config: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of positions and the image size that they are for; `fields` are those known so far."""
    patch_size, has_cls = fields["patch_size"], fields["use_cls_token"]
    size = _known_size(config)
    known = (size[0] // patch_size[0], size[1] // patch_size[1]) if size else None
    if size and (size[0] % patch_size[0] or size[1] % patch_size[1]):
        raw.warnings.append(
            f"timm prepares images of {size[0]}x{size[1]} pixels and drops the last pixels, which patches of "
            f"{patch_size[0]}x{patch_size[1]} do not cover; here, images of that scale are cropped at the center to whole patches"
        )
    if "pos_embed" not in raw.tensors:
        return _relative_fields(raw, known, patch_size, has_cls)
    prefix = _prefix_positions(raw)
    num_patches = raw.shape("pos_embed", 3)[1] - prefix
    if known and num_patches == known[0] * known[1]:
        grid = known
    else:
        side = square_grid(num_patches, "pos_embed")
        grid = (side, side)
    # resampled when a checkpoint is loaded at another size: timm/layers/pos_embed.py, resample_abs_pos_embed
    return {
        "image_size": tuple(count * length for count, length in zip(grid, patch_size, strict=True)),
        "use_cls_position": prefix > 0 or not has_cls,
    }


def _prefix_positions(raw: RawCheckpoint) -> int:
    """Return the number of positions before those of patches: none, one for [CLS], or also one for each register (so150m)."""
    num_positions, has_cls, registers = raw.shape("pos_embed", 3)[1], int("cls_token" in raw.tensors), _num_registers(raw)
    size, patch_size = _known_size(raw.config or {}), raw.shape(ANCHOR, 4)[2:]
    known = (size[0] // patch_size[0]) * (size[1] // patch_size[1]) if size else None
    choices = (0, has_cls, has_cls + registers)
    for fits in (lambda patches: patches == known, _is_square):
        if found := [prefix for prefix in choices if fits(num_positions - prefix)]:
            return found[0]
    return has_cls


def _num_registers(raw: RawCheckpoint) -> int:
    return raw.shape("reg_token", 3)[1] if "reg_token" in raw.tensors else 0


def registers_after(raw: RawCheckpoint) -> int | None:
    """Return the number of positions before those of registers; None where registers have none, as in DINOv2."""
    if "pos_embed" not in raw.tensors or not _num_registers(raw):
        return None
    has_cls = int("cls_token" in raw.tensors)
    return has_cls if _prefix_positions(raw) == has_cls + _num_registers(raw) else None


def _rotary_image_size(config: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the image size in config.json, in whole patches; 256 pixels without it, as in timm's published models."""
    size = _known_size(config) or (256, 256)
    return {"image_size": tuple(max(side // patch, 1) * patch for side, patch in zip(size, fields["patch_size"], strict=True))}


def _is_square(number: int) -> bool:
    return number >= 0 and math.isqrt(number) ** 2 == number


def _relative_fields(
    raw: RawCheckpoint, known: tuple[int, int] | None, patch_size: tuple[int, int], has_cls: bool
) -> dict[str, Any]:
    shared = any(name.startswith("shared_rel_pos.") for name in raw.tensors)
    prefix = "shared_rel_pos" if shared else "blocks.0.attn.rel_pos"
    if not any(name.startswith(f"{prefix}.") for name in raw.tensors):
        raise UnsupportedCheckpointError(
            "The checkpoint has neither pos_embed nor rel_pos; positions of another kind are not supported."
        )
    table = f"{prefix}.relative_position_bias_table"
    rows = raw.shape(table, 2)[0] if table in raw.tensors else None
    fields: dict[str, Any] = {
        "position_embedding_type": "relative_mlp" if rows is None else "relative_table",
        "share_relative_position": shared,
    }
    named = "relpos" in setting(raw.config or {}, "architecture", str, "")
    if not named and "blocks.0.ls1.gamma" not in raw.tensors:  # timm's blocks with norms before the layers have it by default
        fields["norm_position"] = "residual_post"
        raw.warnings.append(
            "no LayerScale, and no config.json with timm's name of the architecture: norms assumed after attention and MLP, as in the rpn "
            "models; otherwise pass the folder with its config.json"
        )
    grid = known
    if rows is None:  # the weights do not depend on the size; timm's published models without config.json are for 224 pixels
        fields["relative_position_hidden_size"] = raw.shape(f"{prefix}.mlp.fc1.weight", 2)[0]
        grid = known or (224 // patch_size[0], 224 // patch_size[1])
    elif not known or (2 * known[0] - 1) * (2 * known[1] - 1) != rows - 3 * has_cls:
        side = (square_grid(rows - 3 * has_cls, "relative_position_bias_table") + 1) // 2
        grid = (side, side)
    assert grid is not None
    image_size = tuple(count * length for count, length in zip(grid, patch_size, strict=True))
    return fields | {"image_size": image_size, "position_interpolation_antialias": False}


def _prepared_size(raw: RawCheckpoint, config: ViTConfig) -> tuple[int, int]:
    """Return the size that timm prepares images at: the model's, or a larger one whose last pixels no patch covers."""
    size = _known_size(raw.config or {})
    if size is None or tuple(side // patch for side, patch in zip(size, config.patch_shape, strict=True)) != config.patch_grid:
        return config.image_shape
    return size


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the preprocessing of `pretrained_cfg` in config.json: timm/data/transforms_factory.py, transforms_imagenet_eval."""
    cfg = _pretrained_cfg_of(raw.config or {})
    mode, interpolation = setting(cfg, "crop_mode", str, "center"), setting(cfg, "interpolation", str, "bicubic")
    if mode not in ("center", "squash") or interpolation not in INTERPOLATIONS:
        raise UnsupportedCheckpointError(
            f'pretrained_cfg has crop_mode="{mode}" and interpolation="{interpolation}"; supported are the crop modes "center" and '
            '"squash", and the interpolations "bicubic" and "bilinear". Edit config.json, or preprocess the images yourself.'
        )
    mean, std = setting(cfg, "mean", list), setting(cfg, "std", list)
    assumed = raw.assume_preprocessing(usual_preset(raw), config) if mean is None or std is None else None
    if assumed is not None and not any(cfg.get(name) for name in ("crop_mode", "crop_pct", "interpolation")):
        return assumed
    height, width = size = _prepared_size(raw, config)
    if mode == "squash" or height != width:
        processor = image_processor_for(config, "google", image_size=size)
    else:
        processor = make_image_processor(
            "inception",
            image_size=size,
            num_channels=config.num_channels,
            crop_pct=setting(cfg, "crop_pct", (int, float)) or 0.9,
        )
    options = processor.to_dict() | {"resample": INTERPOLATIONS[interpolation]}
    if size != config.image_shape:
        rows, columns = config.image_shape
        options |= {"do_center_crop": True, "crop_size": {"height": rows, "width": columns}}
    if assumed is not None:
        mean, std = assumed.image_mean, assumed.image_std
    return VitrailImageProcessor(**options | {"image_mean": mean, "image_std": std, "num_channels": len(mean)})


def usual_preset(raw: RawCheckpoint) -> str:
    """Return the preset of most published models with the parts of this one, where no config.json states it.

    Counted in pretrained_cfg of timm/models/{vision_transformer,vision_transformer_relpos,deit}.py, 1.0.31.
    """
    tokens = raw.tensors
    if dinov3.is_dinov3(raw):
        return "dinov3"
    if not {"cls_token", "pos_embed"} <= tokens.keys():
        return "inception"  # SigLIP, SBB, relative positions
    if "blocks.0.ls1.gamma" in tokens:  # DINOv2 and models trained from it, DeiT III; TIPSv2 alone has one register
        return "none" if "reg_token" in tokens and raw.shape("reg_token", 3)[1] == 1 else "imagenet"
    if "fc_norm.weight" in tokens or "head.weight" not in tokens:  # MAE, fine-tuned and not, EVA-L, DINO
        return "imagenet"
    return "imagenet" if raw.root == "model" else "inception"  # the files of DeiT's and MAE's own code, or AugReg, FlexiViT


def timm_config(config: ViTConfig, image_processor: VitrailImageProcessor, num_classes: int) -> dict[str, Any]:
    """Return the config.json for timm: a registered architecture, and the arguments that differ from it."""
    relative, rotary = config.position_embedding_type.startswith("relative"), config.position_embedding_type == "rotary"
    width = config.intermediate_size * (2 if config.mlp_type == "swiglu" and not rotary else 1)
    mlp_ratio = width / config.hidden_size
    if int(config.hidden_size * mlp_ratio) != width:  # timm rounds down
        mlp_ratio = (width + 0.5) / config.hidden_size
    shape = (output_size(image_processor) if rotary else None) or config.image_shape  # with rotary positions, any size is native
    arguments: dict[str, Any] = {
        "img_size": list(shape),
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "class_token": config.use_cls_token,
    }
    arguments |= {} if rotary else {"fc_norm": not config.norm_before_pooling}
    if config.hidden_act != "gelu" and config.mlp_type == "mlp":  # timm's SwiGLU would obey it; ours is SiLU always
        arguments["act_layer"] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.hidden_act)
    if rotary:
        architecture, rotary_arguments = dinov3.architecture(config)
        arguments |= rotary_arguments
    elif relative:
        architecture = "vit_relpos_base_patch16_224" if config.norm_position == "pre" else "vit_relpos_medium_patch16_rpn_224"
        arguments |= {
            "rel_pos_type": "mlp" if config.position_embedding_type == "relative_mlp" else "bias",
            "rel_pos_dim": config.relative_position_hidden_size,
            "shared_rel_pos": config.share_relative_position,
        }
    else:
        architecture = "vit_giant_patch14_dinov2" if config.mlp_type == "swiglu" else "vit_base_patch16_224"
        arguments |= {
            "reg_tokens": config.num_register_tokens,
            "no_embed_class": not (config.use_cls_token and config.use_cls_position),
        }
    # timm takes 0 for no LayerScale
    arguments["init_values"] = None if config.layer_scale_init_value is None else float(config.layer_scale_init_value or 1e-5)
    global_pool = "token" if config.pooling == "cls" else config.pooling
    return _labels(config, num_classes) | {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": global_pool,
        "model_args": arguments | {"global_pool": global_pool},
        "pretrained_cfg": _pretrained_cfg(config, image_processor, shape, num_classes),
    }


def _labels(config: ViTConfig, num_classes: int) -> dict[str, Any]:
    """Return the names of the classes, and their descriptions if the labels of the model are those of timm's config.json."""
    if not num_classes or not has_labels(config):
        return {}
    labels = [config.id2label[index] for index in range(num_classes)]
    described: dict[str, str] = getattr(config, "label_descriptions", None) or {}
    if list(described.values()) == labels:
        return {"label_names": list(described), "label_descriptions": described}
    return {"label_names": labels}


def _pretrained_cfg(
    config: ViTConfig, image_processor: VitrailImageProcessor, shape: tuple[int, int], num_classes: int
) -> dict[str, Any]:
    height, width = shape
    size = dict(image_processor.size)
    crops = image_processor.do_center_crop and "shortest_edge" in size
    interpolation = next((name for name, number in INTERPOLATIONS.items() if number == int(image_processor.resample)), None)
    if interpolation is None:
        raise UnsupportedCheckpointError(
            f"timm's config.json cannot hold resample={image_processor.resample}; it can hold {' or '.join(INTERPOLATIONS)}."
        )
    return {
        "input_size": [config.num_channels, height, width],
        "fixed_input_size": True,
        "interpolation": interpolation,
        "crop_pct": dict(image_processor.crop_size)["height"] / size["shortest_edge"] if crops else 1.0,
        "crop_mode": "center" if crops else "squash",
        "mean": list(image_processor.image_mean),
        "std": list(image_processor.image_std),
        "num_classes": num_classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def holds(config: ViTConfig) -> Holds:
    """Return what timm's VisionTransformer or VisionTransformerRelPos can hold."""
    if config.position_embedding_type == "rotary":
        return dinov3.holds(config)
    relative = config.position_embedding_type != "absolute"
    # timm's post-norm block with relative positions has no LayerScale
    unscaled = {"layer_scale_init_value": (None,)} if relative and config.norm_position == "residual_post" else {}
    return unscaled | {
        "pooling": ("cls", "avg"),
        "separate_cls_norm": (False,),
        "representation_size": (None,),
        "mlp_type": ("mlp",) if relative else ("mlp", "swiglu"),
        # the class with relative positions takes no activation by name
        "hidden_act": ("gelu",) if relative else tuple(ACTIVATIONS.values()),
    }


def prepare(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Add the position of [CLS] to [CLS] where there are registers: timm's models with registers have positions of patches only."""
    config = without_mask_token(config, tensors, warnings)
    without_periods(config, tensors, warnings)
    if config.position_embedding_type == "rotary" and has_key_bias(tensors):
        raise UnsupportedCheckpointError("timm's DINOv3 has no bias of the key, but in this model, with qkv_bias, it is not 0.")
    if config.position_embedding_type == "rotary" or not (
        config.num_register_tokens and config.use_cls_position and config.use_cls_token
    ):
        return config
    positions = tensors["embeddings.position_embeddings"]
    tensors["embeddings.cls_token"] = tensors["embeddings.cls_token"] + positions[:, :1]
    tensors["embeddings.position_embeddings"] = positions[:, 1:]
    warnings.append("the position of [CLS] is added to [CLS], as in timm's models with registers")
    return ViTConfig(**config.to_dict() | {"use_cls_position": False})


def describe(exported: Exported, config: ViTConfig, image_processor: VitrailImageProcessor, num_classes: int) -> None:
    """Fill in config.json."""
    exported.config = timm_config(config, image_processor, num_classes)


def load_peer(folder: Path, exported: Exported) -> RunPeer | None:
    """Return timm's own model of an exported folder; None where timm is not installed."""
    try:
        import timm
    except ImportError:
        return None
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().float()
    native = tuple(exported.config["pretrained_cfg"]["input_size"][1:]) if exported.config else None

    def run(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if tuple(pixel_values.shape[-2:]) != native:
            peer.set_input_size(img_size=tuple(pixel_values.shape[-2:]))
        features = peer.forward_features(pixel_values)
        outputs = {"features": features, "pooled": peer.forward_head(features, pre_logits=True)}
        return outputs | ({"logits": peer.forward_head(features)} if peer.num_classes else {})

    return run


def assumption(raw: RawCheckpoint) -> str:
    """Return the warning for a bare file."""
    other = '; for a file of DINO\'s own code, pass format="dino"' if is_dino(raw) else ""
    return (
        "no config.json next to the weights: read as a timm file, with the usual pooling, activation, and norms before attention and "
        f"MLP{other}"
    )


def official_fields(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows for a row of the catalog: positions are resized with antialiasing, but for FlexiViT."""
    absolute, flexible = architecture["position"] == "absolute", architecture["pos_interpolate_antialias"] is False
    return {"position_interpolation_antialias": not flexible} if absolute else {}


TIMM = Family(
    name="timm",
    containers=("safetensors", "torch"),
    recognizes=recognizes,
    understands=dinov3.is_dinov3,
    rules=rules,
    export_rules=export_rules,
    ignored=(),
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=image_processor,
    assumption=assumption,
    export=Export(holds, prepare, write_folder, describe, holds_labels=True, library="timm", load_peer=load_peer),
    catalog_format="timm-hub",
    official_fields=official_fields,
)
