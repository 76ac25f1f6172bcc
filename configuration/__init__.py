"""ViTConfig, and the sizes of the published architectures."""

from .configuration_vit import ViTConfig
from .sizes import SIZES

__all__ = ["SIZES", "ViTConfig"]
