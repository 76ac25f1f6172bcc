"""transformers' own models as folders on the Hub: model types vit, deit, dinov2, dinov2_with_registers, vit_mae, dinov3_vit.

Source: github.com/huggingface/transformers, src/transformers/models/{vit,dinov2,dinov2_with_registers,vit_mae,dinov3_vit}.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...processing.image_processing_vit import VitrailImageProcessor
from ...processing.resizing import as_pair
from . import transformers_dinov3 as dinov3
from .family import Family, RawCheckpoint, setting
from .formats import SQUARE, Export, Exported, Holds, RunPeer, with_mask_token, without_mask_token, without_periods, write_folder
from .plain_vit import gate_up_rules
from .rules import Concatenate, Rule, Unsqueeze

CLASS_KEYS = ("image_processor_type", "feature_extractor_type")
VIT_TYPES, DINOV2_TYPES = ("vit", "deit", "vit_mae"), ("dinov2", "dinov2_with_registers")
# Prefixes of the encoder's names in models with a head
BASE_PREFIXES = {name: f"{name.removesuffix('_mae')}." for name in (*VIT_TYPES, *DINOV2_TYPES)} | {dinov3.MODEL_TYPE: ""}

MODEL_CLASSES = {
    "vit": "ViT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    dinov3.MODEL_TYPE: "DINOv3ViT",
}

ANCHOR = "embeddings.patch_embeddings.projection.weight"
BACKBONE_FIELDS = ("out_features", "out_indices", "apply_layernorm", "reshape_hidden_states")

EMBEDDING_RULES = (
    Rule("embeddings.cls_token", "embeddings.cls_token"),
    Rule("embeddings.position_embeddings", "embeddings.position_embeddings"),
    Rule(ANCHOR, "embeddings.patch_embeddings.projection.weight"),
    Rule("embeddings.patch_embeddings.projection.bias", "embeddings.patch_embeddings.projection.bias"),
    Rule("embeddings.register_tokens", "embeddings.register_tokens"),
    Rule("layernorm.weight", "layernorm.weight"),
    Rule("layernorm.bias", "layernorm.bias"),
    Rule("classifier.weight", "classifier.weight"),
    Rule("classifier.bias", "classifier.bias"),
)

# Names inside a block, as on the Hub ("hub") and as in transformers' modules today ("module"): block, pattern of query, key and value,
# their names, and the other layers of the block
VIT_BLOCKS = {
    "hub": (
        "encoder.layer.{layer}",
        "attention.attention.{}",
        ("query", "key", "value"),
        {
            "attention.output.dense": "attention.proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
        },
    ),
    "module": (
        "layers.{layer}",
        "attention.{}_proj",
        ("q", "k", "v"),
        {
            "attention.o_proj": "attention.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
        },
    ),
}
DINOV2_BLOCKS = {
    "hub": (
        "encoder.layer.{layer}",
        "attention.attention.{}",
        ("query", "key", "value"),
        {
            "attention.output.dense": "attention.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.weights_in": "mlp.gate_up_proj",
            "mlp.weights_out": "mlp.down_proj",
            "norm1": "norm1",
            "norm2": "norm2",
        },
    ),
    "module": (
        "encoder.layer.{layer}",
        "attention.{}_proj",
        ("q", "k", "v"),
        {
            "attention.o_proj": "attention.proj",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "mlp.down_proj": "mlp.down_proj",
            "norm1": "norm1",
            "norm2": "norm2",
        },
    ),
}


def layout(raw: RawCheckpoint) -> str:
    """Return "hub" where blocks are named as on the Hub, "module" where they are named as in transformers' modules today."""
    return "module" if any(name.endswith(".attention.q_proj.weight") for name in raw.tensors) else "hub"


def table(model_type: str, layout: str = "hub") -> Sequence[Rule]:
    """Return the rules for a model type and the layout of its names."""
    is_dinov2 = model_type in DINOV2_TYPES
    block, projection, parts, others = (DINOV2_BLOCKS if is_dinov2 else VIT_BLOCKS)[layout]
    rules = list(EMBEDDING_RULES)
    for kind in ("weight", "bias"):
        query_key_value = [f"{block}.{projection.format(part)}.{kind}" for part in parts]
        rules.append(Rule(query_key_value, f"layers.{{layer}}.attention.qkv.{kind}", Concatenate(3)))
        rules += [Rule(f"{block}.{theirs}.{kind}", f"layers.{{layer}}.{ours}.{kind}") for theirs, ours in others.items()]
        if not is_dinov2:
            rules.append(Rule(f"pooler.dense.{kind}", f"representation.{kind}"))
    if layout == "module" and is_dinov2:
        rules += gate_up_rules(f"{block}.mlp.gate_proj", f"{block}.mlp.up_proj")
    if is_dinov2:
        rules += [Rule(f"{block}.layer_scale{which}.lambda1", f"layers.{{layer}}.layer_scale{which}") for which in (1, 2)]
    # DINOv2's mask token is (1, D), ViT's (1, 1, D) as ours
    return [*rules, Rule("embeddings.mask_token", "embeddings.mask_token", *([Unsqueeze()] if is_dinov2 else []))]


def model_type(raw: RawCheckpoint) -> str:
    """Return the `model_type` of config.json."""
    return (raw.config or {}).get("model_type", "")


def export_model_type(config: ViTConfig) -> str:
    """Return the model type that a config exports to: with rotary positions a DINOv3, with LayerScale a DINOv2."""
    if config.position_embedding_type == "rotary":
        return dinov3.MODEL_TYPE
    if config.layer_scale_init_value is None:
        return "vit"
    return "dinov2_with_registers" if config.num_register_tokens else "dinov2"


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for a config.json with a supported model type; activation and epsilon are recorded nowhere else."""
    return model_type(raw) in (*VIT_TYPES, *DINOV2_TYPES, dinov3.MODEL_TYPE)


def rules(raw: RawCheckpoint) -> Sequence[Rule]:
    """Return the rules for the model type and the names of a checkpoint."""
    return dinov3.rules(raw) if model_type(raw) == dinov3.MODEL_TYPE else table(model_type(raw), layout(raw))


def export_rules(config: ViTConfig, tensors: Mapping[str, torch.Tensor]) -> Sequence[Rule]:
    """Return the rules for the model type that a config exports to."""
    if export_model_type(config) == dinov3.MODEL_TYPE:
        return dinov3.export_rules(config, tensors)
    return table(export_model_type(config))


def normalize(name: str) -> str:
    """Rename a block of DINOv3 as in transformers' modules, `model.layer.0`, to its name on the Hub, `layer.0`."""
    return re.sub(r"^model\.(?=layer\.\d+\.)", "", name)


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig from config.json.

    transformers interpolates positions bicubically to the target size, without DINO's offset, and antialiased only with registers.
    """
    config = raw.config or {}
    _note_differences(raw)
    defaults = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3, "qkv_bias": True}
    fields = {name: config.get(name, default) for name, default in defaults.items()}
    if num_heads is not None:
        fields["num_attention_heads"] = num_heads
    fields |= {
        "hidden_act": config.get("hidden_act", "gelu"),
        "hidden_dropout_prob": config.get("hidden_dropout_prob", 0.0),
        "attention_probs_dropout_prob": config.get("attention_probs_dropout_prob", 0.0),
        "image_size": config.get("image_size", 224),
        "use_mask_token": "embeddings.mask_token" in raw.tensors,
    }
    if config.get("problem_type"):
        fields["problem_type"] = config["problem_type"]
    if labels := setting(config, "id2label", dict):
        fields |= {"id2label": labels, "label2id": config.get("label2id") or {label: int(index) for index, label in labels.items()}}
    if is_backbone(raw):
        fields |= {name: config[name] for name in BACKBONE_FIELDS if config.get(name) is not None}
    if model_type(raw) == dinov3.MODEL_TYPE:
        return fields | dinov3.configure(raw, config) | ({"num_attention_heads": num_heads} if num_heads is not None else {})
    if model_type(raw) in VIT_TYPES:
        dropped = drops(raw)
        has_pooler = "pooler.dense.weight" in raw.tensors and "pooler.dense.weight" not in dropped
        if has_pooler and (activation := config.get("pooler_act", "tanh")) != "tanh":
            raise UnsupportedCheckpointError(f'The pooler\'s activation is "{activation}"; only "tanh" is supported.')
        return fields | {
            "intermediate_size": config.get("intermediate_size", 3072),
            "patch_size": config.get("patch_size", 16),
            "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
            "representation_size": raw.shape("pooler.dense.weight", 2)[0] if has_pooler else None,
        }
    swiglu = setting(config, "use_swiglu_ffn", bool, False)
    width = int(setting(config, "hidden_size", int, 768) * setting(config, "mlp_ratio", (int, float), 4))
    registers = config.get("num_register_tokens", 4) if model_type(raw) == "dinov2_with_registers" else 0
    return fields | {
        "intermediate_size": (int(width * 2 / 3) + 7) // 8 * 8 if swiglu else width,
        "mlp_type": "swiglu" if swiglu else "mlp",
        "patch_size": config.get("patch_size", 16 if registers else 14),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-6),
        "layer_scale_init_value": config.get("layerscale_value", 1.0),
        "drop_path_rate": config.get("drop_path_rate", 0.0),
        "num_register_tokens": registers,
        "position_interpolation_antialias": bool(registers),
        "classifier_mean_patch": "classifier.weight" in raw.tensors,
    }


def is_backbone(raw: RawCheckpoint) -> bool:
    """Return True where config.json names a backbone class, such as Dinov2Backbone."""
    return any(str(name).endswith("Backbone") for name in _architectures(raw))


def _architectures(raw: RawCheckpoint) -> list[Any]:
    return setting(raw.config or {}, "architectures", list, [])


def _note_differences(raw: RawCheckpoint) -> None:
    """Add a warning where the model that config.json names does more than the encoder."""
    if any(str(name).endswith("ForImageClassification") for name in _architectures(raw)) and "classifier.weight" not in raw.tensors:
        raw.warnings.append("config.json names a classifier, but the file has none: the model is the encoder")
    if model_type(raw) == "vit_mae":
        raw.warnings.append("ViTMAE masks patches at random unless its mask_ratio is 0; this encoder reads all patches")
    if any(name.startswith("decoder.") for name in raw.tensors):
        raw.warnings.append("the decoder of the pre-training is left out: the model is the encoder")
    if is_backbone(raw):
        raw.warnings.append("a backbone is loaded as its encoder: for its stages, save the model and load vitrail.ViTBackbone")


def drops(raw: RawCheckpoint) -> dict[str, str]:
    """Return an empty tensor of registers, and a pooler that no classifier reads, or that was never trained: then its bias is zero."""
    registers = raw.tensors.get("embeddings.register_tokens")
    if registers is not None and not registers.numel():
        return {"embeddings.register_tokens": "the tensor of registers is empty"}
    pooler = ("pooler.dense.weight", "pooler.dense.bias")
    if not all(name in raw.tensors for name in pooler):
        return {}
    if "classifier.weight" in raw.tensors:
        return dict.fromkeys(pooler, "the pooler is dropped: transformers' classifier does not read it")
    if not raw.tensors["pooler.dense.bias"].any():
        return dict.fromkeys(pooler, "the pooler is dropped: its bias is all zero, so it was never trained")
    return {}


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the preprocessing of a preprocessor_config.json of any age, or else the default of the model type."""
    saved = raw.preprocessor_config
    if saved is None:
        if model_type(raw) in VIT_TYPES:
            return raw.assume_preprocessing("google-hub", config)
        return raw.assume_preprocessing("dinov3" if model_type(raw) == dinov3.MODEL_TYPE else "dinov2", config)
    class_name = "".join(str(saved.get(key)) for key in CLASS_KEYS)
    crops = saved.get("do_center_crop", any(name in class_name for name in ("Bit", "CLIP", "DeiT")))  # their default
    size = saved.get("size", 224)
    if isinstance(size, int):  # an early form; a single number is the shorter side where a processor keeps the aspect ratio
        keeps_aspect = any(name in class_name for name in ("Bit", "CLIP", "ConvNext"))
        size = {"shortest_edge": size} if keeps_aspect else {"height": size, "width": size}
    crop_size = saved.get("crop_size", {"height": 224, "width": 224})
    image_mean, image_std = (saved.get(name) or [0.5, 0.5, 0.5] for name in ("image_mean", "image_std"))
    return VitrailImageProcessor(
        num_channels=len(image_mean),
        do_resize=saved.get("do_resize", True),
        size=size,
        resample=saved.get("resample", 2),
        do_center_crop=crops,
        crop_size={"height": crop_size, "width": crop_size} if isinstance(crop_size, int) else crop_size,
        do_rescale=saved.get("do_rescale", True),
        rescale_factor=saved.get("rescale_factor", 1 / 255),
        do_normalize=saved.get("do_normalize", True),
        image_mean=image_mean,
        image_std=image_std,
    )


def transformers_config(config: ViTConfig, *, classifies: bool, use_mask_token: bool, key_bias: bool = False) -> dict[str, Any]:
    """Return the config.json for transformers' own class."""
    model_type = export_model_type(config)
    model_class = MODEL_CLASSES[model_type]
    result: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [f"{model_class}{'ForImageClassification' if classifies else 'Model'}"],
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    same = [
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "qkv_bias", "hidden_act", "layer_norm_eps"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "problem_type"),
    ]
    result |= {name: getattr(config, name) for name in same}
    if classifies:
        result |= {"id2label": config.id2label, "label2id": config.label2id}
    if model_type == "vit":
        pooler = {} if config.representation_size is None else {"pooler_output_size": config.representation_size}
        return result | {"intermediate_size": config.intermediate_size} | pooler
    if model_type == dinov3.MODEL_TYPE:
        return result | dinov3.config_fields(config, key_bias=key_bias)
    swiglu = config.mlp_type == "swiglu"
    registers = {"num_register_tokens": config.num_register_tokens} if model_type == "dinov2_with_registers" else {}
    return result | registers | {
        "mlp_ratio": max(1, round(config.intermediate_size / config.hidden_size * (1.5 if swiglu else 1))),
        "use_swiglu_ffn": swiglu,
        "layerscale_value": float(config.layer_scale_init_value or 1.0),
        "drop_path_rate": config.drop_path_rate,
        "use_mask_token": use_mask_token,
    }  # fmt: skip


def transformers_preprocessor_config(image_processor: VitrailImageProcessor) -> dict[str, Any]:
    """Return the preprocessor_config.json for transformers' own image processor."""
    if image_processor.size_divisor is not None:
        raise UnsupportedCheckpointError(
            "transformers' image processors have no size_divisor: use an image processor with a cropping or squashing preset."
        )
    saved = image_processor.to_dict()
    same = (
        *("do_resize", "size", "resample", "do_center_crop", "do_rescale", "rescale_factor"),
        *("do_normalize", "image_mean", "image_std"),
    )
    result = {name: saved[name] for name in same if name in saved}
    if image_processor.do_center_crop:
        result["crop_size"] = saved["crop_size"]
    return result | {"image_processor_type": "BitImageProcessor" if image_processor.do_center_crop else "ViTImageProcessor"}


def holds(config: ViTConfig) -> Holds:
    """Return what transformers' class for this config can hold."""
    if export_model_type(config) == dinov3.MODEL_TYPE:
        return dinov3.holds()
    common: Holds = {
        "use_cls_token": (True,),
        "use_cls_position": (True,),
        "position_embedding_type": ("absolute",),
        "separate_cls_norm": (False,),
    }
    if export_model_type(config) == "vit":
        return common | {"num_register_tokens": (0,), "mlp_type": ("mlp",)}
    return common | {
        "patch_grid": SQUARE,
        "representation_size": (None,),
        "mlp_type": ("mlp", "swiglu"),
    }  # positions of a rectangle are read as those of a square


def prepare(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Add or remove the mask token: DINOv3ViTModel and Dinov2WithRegistersModel always have one, the others if their config says so."""
    without_periods(config, tensors, warnings)
    if export_model_type(config) == dinov3.MODEL_TYPE and not config.num_register_tokens:
        tensors["embeddings.register_tokens"] = tensors["embeddings.cls_token"][:, :0].clone()
    if config.num_register_tokens or export_model_type(config) == dinov3.MODEL_TYPE:
        return with_mask_token(config, tensors, warnings)
    return config if config.layer_scale_init_value is not None else without_mask_token(config, tensors, warnings)


def describe(exported: Exported, config: ViTConfig, image_processor: VitrailImageProcessor, num_classes: int) -> None:
    """Fill in the JSON files, and a pooler of zeros where transformers' ViTModel would initialize one at random."""
    classifies = num_classes > 0
    exported.config = transformers_config(
        config,
        classifies=classifies,
        use_mask_token="embeddings.mask_token" in exported.tensors,
        key_bias=dinov3.KEY_BIAS in exported.tensors,
    )
    exported.preprocessor_config = transformers_preprocessor_config(image_processor)
    if native_size_only(config):
        exported.warnings.append("transformers runs this model at its own image size only, without interpolate_pos_encoding")
    exported.base_prefix = BASE_PREFIXES[exported.config["model_type"]] if classifies else ""
    if not classifies and not pools(config):
        tokens = exported.tensors["embeddings.cls_token"]
        exported.tensors["pooler.dense.weight"] = tokens.new_zeros(config.hidden_size, config.hidden_size)
        exported.tensors["pooler.dense.bias"] = tokens.new_zeros(config.hidden_size)  # a pooler that loading drops again
        exported.warnings.append(
            "a pooler of zeros is written: transformers' ViTModel has one, but this model has none; use last_hidden_state[:, 0]"
        )


def fixed_size(config: ViTConfig) -> bool:
    """Return True where the exported model interpolates positions only on request."""
    return export_model_type(config) == "vit" and not native_size_only(config)


def native_size_only(config: ViTConfig) -> bool:
    """Return True where the exported model cannot interpolate positions: ViTModel takes every grid and every patch for a square."""
    if export_model_type(config) == dinov3.MODEL_TYPE:
        return False
    return len(set(config.patch_grid)) > 1 or (export_model_type(config) == "vit" and not isinstance(config.patch_size, int))


def pools(config: ViTConfig) -> bool:
    """Return True where `pooler_output` of the exported encoder is a feature of the model."""
    return export_model_type(config) != "vit" or config.representation_size is not None


def load_peer(folder: Path, exported: Exported) -> RunPeer:
    """Return transformers' own model of an exported folder, which must find every name and no other."""
    config = exported.config
    assert config is not None
    model_class = getattr(transformers, config["architectures"][0])
    peer, loading = model_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    classifies = hasattr(peer, "classifier")

    def run(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        resizes = config["model_type"] == "vit" and tuple(pixel_values.shape[-2:]) != native
        options = {"interpolate_pos_encoding": True} if resizes else {}
        outputs = peer(pixel_values, output_hidden_states=classifies, **options)
        if not classifies:
            has_pooler = config["model_type"] != "vit" or "pooler_output_size" in config
            return {"features": outputs.last_hidden_state} | ({"pooled": outputs.pooler_output} if has_pooler else {})
        layernorm = peer.base_model.layernorm
        return {"features": layernorm(outputs.hidden_states[-1]), "logits": outputs.logits}

    native = as_pair("image_size", config["image_size"])
    peer.eval()
    return run


def peer_image_processor(folder: Path) -> Callable[..., Any]:
    """Return transformers' own image processor, on Pillow."""
    return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")


def official_fields(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return what follows for a row of the catalog: positions are antialiased only with registers."""
    return {"position_interpolation_antialias": architecture["position"] == "absolute" and architecture["registers"] > 0}


TRANSFORMERS = Family(
    name="transformers",
    containers=("safetensors", "torch"),
    recognizes=recognizes,
    rules=rules,
    export_rules=export_rules,
    ignored=(r"decoder\..*",),  # of MAE's pre-training and of SimMIM
    configure=configure,
    anchors=(ANCHOR, dinov3.ANCHOR),
    normalize=normalize,
    requires="The names are those of transformers: pass the folder that also holds its config.json.",
    image_processor=image_processor,
    base_prefixes=BASE_PREFIXES,
    drops=drops,
    export=Export(
        holds,
        prepare,
        write_folder,
        describe,
        holds_labels=True,
        library="transformers",
        load_peer=load_peer,
        peer_image_processor=peer_image_processor,
        native_size_only=native_size_only,
        fixed_size=fixed_size,
        pools=pools,
    ),
    catalog_format="transformers-hub",
    official_fields=official_fields,
)
