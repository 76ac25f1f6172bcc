"""DeiT's .pth files: Touvron et al., arXiv 2012.12877 and 2204.07118; github.com/facebookresearch/deit, models.py, models_v2.py.

The files have timm's layout under the key "model". DeiT III adds LayerScale under other names, and has no position for [CLS].
"""

from typing import Any

from ...configuration.configuration_vit import ViTConfig
from ...processing.image_processing_vit import VitrailImageProcessor
from .family import Family, RawCheckpoint
from .plain_vit import ANCHOR, VIT_RULES, plain_vit_fields, square_image_fields
from .rules import Rule

LAYER_SCALE = "blocks.0.gamma_1"
RULES = (
    *VIT_RULES,
    Rule("blocks.{layer}.gamma_1", "layers.{layer}.layer_scale1"),
    Rule("blocks.{layer}.gamma_2", "layers.{layer}.layer_scale2"),
    Rule("head.weight", "classifier.weight"),
    Rule("head.bias", "classifier.bias"),
)


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for a classifier of [CLS] in a file that DeiT's code saved, `{"model": …}`."""
    needed = (ANCHOR, "cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight", "head.weight")
    added = ("blocks.0.ls1.gamma", "reg_token", "fc_norm.weight", "pre_logits.fc.weight", "blocks.0.attn.q_bias")
    if raw.config is not None or not all(name in raw.tensors for name in needed) or any(name in raw.tensors for name in added):
        return False
    return raw.root in ("model", "model_ema") or LAYER_SCALE in raw.tensors


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig."""
    fields, scaled = plain_vit_fields(raw, num_heads), LAYER_SCALE in raw.tensors
    return (
        fields
        | square_image_fields(raw, fields["patch_size"], num_prefix_positions=int(not scaled))
        | {"use_cls_position": not scaled, "layer_scale_init_value": 1e-4 if scaled else None}
    )


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the preprocessing of the original evaluation, which is assumed: datasets.py, and `--eval-crop-ratio` of main.py."""
    return raw.assume_preprocessing("deit", config)


def assumption(raw: RawCheckpoint) -> str:
    """Return the warning for a bare file, which other code may have saved in the same layout."""
    return 'read as a DeiT file; for a timm file, pass format="timm"'


DEIT = Family(
    name="deit",
    containers=("torch",),
    recognizes=recognizes,
    understands=lambda raw: LAYER_SCALE in raw.tensors and recognizes(raw),
    rules=lambda raw: RULES,
    ignored=(),
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=image_processor,
    assumption=assumption,
    catalog_format="deit-pth",
)
