"""I-JEPA's .pth.tar files: Assran et al., arXiv 2301.08243; github.com/facebookresearch/ijepa, src/models/vision_transformer.py.

A file is the checkpoint of a training run: "target_encoder", the averaged weights that the paper evaluates, "encoder", and "predictor",
each with the prefix "module.".
"""

from typing import Any

from ...processing.presets import image_processor_for
from .family import Family, RawCheckpoint
from .plain_vit import ANCHOR, VIT_RULES, plain_vit_fields, square_image_fields

ROOTS = ("target_encoder", "encoder")


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for an encoder without [CLS] under the keys of I-JEPA's training code."""
    return (
        raw.root in ROOTS and "cls_token" not in raw.tensors and all(name in raw.tensors for name in ("pos_embed", "norm.weight"))
    )


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig: the paper evaluates the mean of the patches, after the final norm."""
    fields = plain_vit_fields(raw, num_heads)
    size = square_image_fields(raw, fields["patch_size"], num_prefix_positions=0)
    return fields | size | {"use_cls_token": False, "pooling": "avg"}


IJEPA = Family(
    name="ijepa",
    containers=("torch",),
    recognizes=recognizes,
    rules=lambda raw: VIT_RULES,
    ignored=(),
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=lambda raw, config: image_processor_for(config, "ijepa"),
    catalog_format="ijepa-pth",
)
