"""vitrail's own folders, written by `vitrail.save` and `save_pretrained`: every name stays."""

import re
from dataclasses import fields
from typing import Any

from ...configuration.configuration_vit import ViTConfig, without_foreign_attention
from ...processing.image_processing_vit import VitrailImageProcessor
from .dense_heads import DINOV2_HEADS, DINOV3_HEADS
from .family import Family, RawCheckpoint
from .rules import Rule

# Keys that transformers adds to the fields of a config.json
NOT_FIELDS = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map", "stage_names")
FIELDS = {field.name for field in fields(ViTConfig)} | {
    *("num_labels", "out_features", "out_indices", "output_attentions", "_attn_implementation")
}


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of config.json, without those that would hide a method or a property of the config."""
    config, ignored = without_foreign_attention(raw.config or {})
    if ignored is not None:
        raw.warnings.append(ignored)
    named = {name: config[name] for name in config if name not in NOT_FIELDS and (name in FIELDS or not hasattr(ViTConfig, name))}
    return named if num_heads is None else named | {"num_attention_heads": num_heads}


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the image processor of preprocessor_config.json."""
    if raw.preprocessor_config is not None:
        return VitrailImageProcessor.from_dict(raw.preprocessor_config)
    return raw.assume_preprocessing("dinov3" if config.position_embedding_type == "rotary" else "dino", config)


VITRAIL = Family(
    name=ViTConfig.model_type,
    containers=("safetensors", "torch"),
    recognizes=lambda raw: (raw.config or {}).get("model_type") == ViTConfig.model_type,
    rules=lambda raw: [Rule(name, name) for name in raw.tensors if re.fullmatch(r"(?!decoder\.)[\w.]+", name)],
    ignored=(r"decoder\..*",),  # of masked image modeling
    base_prefixes={ViTConfig.model_type: "vit."},
    configure=configure,
    anchors=("embeddings.patch_embeddings.projection.weight",),
    image_processor=image_processor,
    dense_heads=(*DINOV2_HEADS, *DINOV3_HEADS),
)
