"""ViTConfig, the sizes of the published architectures, and names of classes."""

from .configuration_vit import ViTConfig
from .sizes import SIZES

__all__ = ["SIZES", "ViTConfig"]
