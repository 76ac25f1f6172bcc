"""ViTConfig, and the sizes of the published architectures."""

from .configuration_vit import ViTConfig
from .presets import SIZES

__all__ = ["SIZES", "ViTConfig"]
