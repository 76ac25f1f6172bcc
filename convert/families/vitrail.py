"""vitrail's own folders, written by `vitrail.save` and `save_pretrained`: every name stays."""

from typing import Any

from ...configuration.configuration_vit import ViTConfig
from ...processing.image_processing_vit import VitrailImageProcessor
from .family import Family, RawCheckpoint
from .rules import Rule

# Keys that transformers adds to the fields of a config.json
NOT_FIELDS = ("model_type", "architectures", "transformers_version", "dtype", "auto_map", "stage_names")


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of config.json."""
    fields = {name: value for name, value in (raw.config or {}).items() if name not in NOT_FIELDS}
    return fields if num_heads is None else fields | {"num_attention_heads": num_heads}


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the image processor of preprocessor_config.json."""
    return VitrailImageProcessor.from_dict(raw.preprocessor_config or {"num_channels": config.num_channels})


VITRAIL = Family(
    name=ViTConfig.model_type,
    containers=("safetensors", "torch"),
    recognizes=lambda raw: (raw.config or {}).get("model_type") == ViTConfig.model_type,
    rules=lambda raw: [Rule(name, name) for name in raw.tensors if not name.startswith("decoder.")],
    export_rules=lambda config: (),
    ignored=(r"decoder\..*",),  # of masked image modeling
    base_prefixes={ViTConfig.model_type: "vit."},
    configure=configure,
    image_processor=image_processor,
)
