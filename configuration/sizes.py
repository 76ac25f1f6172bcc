"""Sizes of the published Vision Transformers: one table, with a source for each row.

`ViTConfig(**SIZES["small"], patch_size=8)` is DINO's ViT-S/8.
"""

from typing import Literal, TypedDict

from .configuration_vit import ViTConfig


class Size(TypedDict):
    """The fields of `ViTConfig` that a size sets."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    mlp_type: Literal["mlp", "swiglu"]


def _size(
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    mlp_type: Literal["mlp", "swiglu"] = "mlp",
) -> Size:
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size,
        "mlp_type": mlp_type,
    }


SIZES: dict[str, Size] = {
    "tiny": _size(192, 12, 3, 768),  # DeiT-Ti: Touvron et al., arXiv 2012.12877, table 1
    "small": _size(384, 12, 6, 1536),  # DeiT-S, DINO's ViT-S: arXiv 2012.12877, table 1; arXiv 2104.14294, table 1
    "small_plus": _size(384, 12, 6, 1536, "swiglu"),  # DINOv3's ViT-S+: Siméoni et al., arXiv 2508.10104; its hub/backbones.py
    "medium": _size(512, 12, 8, 2048),  # timm, models/vision_transformer_relpos.py: vit_relpos_medium_patch16_224
    "base": _size(768, 12, 12, 3072),  # ViT-B: Dosovitskiy et al., arXiv 2010.11929, table 1
    "large": _size(1024, 24, 16, 4096),  # ViT-L: arXiv 2010.11929, table 1
    "large_plus": _size(1024, 24, 16, 4096, "swiglu"),  # DINOv3's ViT-L+: its hub/backbones.py
    "huge": _size(1280, 32, 16, 5120),  # ViT-H: arXiv 2010.11929, table 1
    "huge_plus": _size(1280, 32, 20, 5120, "swiglu"),  # DINOv3's ViT-H+: arXiv 2508.10104; its hub/backbones.py
    "giant": _size(1536, 40, 24, 4096, "swiglu"),  # DINOv2's ViT-g, SwiGLU after gating: Oquab et al., arXiv 2304.07193, table 16
    "7b": _size(4096, 40, 32, 8192, "swiglu"),  # DINOv3's ViT-7B: arXiv 2508.10104, table 2; its hub/backbones.py
}


def size_name(config: ViTConfig) -> str | None:
    """Return the name in `SIZES` of the size of a config, or None."""
    return next((name for name, size in SIZES.items() if all(getattr(config, k) == v for k, v in size.items())), None)
