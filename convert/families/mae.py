"""MAE's .pth files: He et al., arXiv 2111.06377; github.com/facebookresearch/mae, models_mae.py, models_vit.py.

A file of the published pretraining holds the encoder alone and has DINO's layout: `format="mae"` reads it as MAE's. Checkpoints of a
training run, and the files for visualization, hold the decoder, too; fine-tuned files hold a classifier.
"""

from typing import Any

from ...configuration.configuration_vit import ViTConfig
from ...processing.image_processing_vit import VitrailImageProcessor
from ...processing.presets import image_processor_for, make_image_processor
from .family import Family, RawCheckpoint
from .plain_vit import ANCHOR, plain_vit_fields, square_image_fields
from .timm import table

DECODER = ("decoder_", "mask_token")  # the mask token has the width of the decoder, which alone reads it


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for a decoder, for fc_norm in a file that MAE's code saved, `{"model": …}`, and for DINO's layout."""
    needed, added = (ANCHOR, "cls_token", "pos_embed", "blocks.0.attn.qkv.weight"), ("blocks.0.ls1.gamma", "reg_token")
    if raw.config is not None or not all(name in raw.tensors for name in needed) or any(name in raw.tensors for name in added):
        return False
    if is_fine_tuned(raw):
        return raw.root == "model"
    return "decoder_embed.weight" in raw.tensors or not ({"mask_token", "head.weight"} & raw.tensors.keys())


def is_fine_tuned(raw: RawCheckpoint) -> bool:
    """Return True for the norm after pooling, which fine-tuning adds (`--global_pool`)."""
    return "fc_norm.weight" in raw.tensors


def drops(raw: RawCheckpoint) -> dict[str, str]:
    """Return the tensors of the decoder."""
    decoder = [name for name in raw.tensors if name.startswith(DECODER)]
    return dict.fromkeys(decoder, f"the decoder of masked image modeling is left out, with the mask token: {len(decoder)} tensors")


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig: linear probing reads [CLS], fine-tuned models the mean of the patches (FINETUNE.md)."""
    fields = plain_vit_fields(raw, num_heads)
    pooling = {"pooling": "avg", "norm_before_pooling": False} if is_fine_tuned(raw) else {"pooling": "cls"}
    return fields | square_image_fields(raw, fields["patch_size"]) | pooling


def image_processor(raw: RawCheckpoint, config: ViTConfig) -> VitrailImageProcessor:
    """Return the preprocessing of the original evaluation, assumed for a fine-tuned file: util/datasets.py."""
    image_processor = raw.assume_preprocessing("mae", config) if is_fine_tuned(raw) else image_processor_for(config, "mae")
    if min(config.image_shape) <= 224:
        return image_processor
    # above 224 pixels it crops nothing
    return make_image_processor("mae", image_size=config.image_shape, num_channels=config.num_channels, crop_pct=1.0)


def assumption(raw: RawCheckpoint) -> str | None:
    """Return the warning for a file without a decoder, which the layout does not tell from other fine-tuned models."""
    if "decoder_embed.weight" in raw.tensors:
        return None
    return 'read as a fine-tuned MAE file: mean of the patches, ImageNet\'s mean and std, crop 224/256; for a timm file, pass format="timm"'


MAE = Family(
    name="mae",
    containers=("torch",),
    recognizes=recognizes,
    rules=lambda raw: table(swiglu=False, norm_before_pooling=not is_fine_tuned(raw)),
    ignored=(),
    drops=drops,
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=image_processor,
    assumption=assumption,
    catalog_format="mae-pth",
)
