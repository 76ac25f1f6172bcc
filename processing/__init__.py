"""Images to pixel values: the image processor, one row of settings per published family, sizes, and training augmentation."""

from .image_processing_vit import VitrailImageProcessor, VitrailImageProcessorTorch
from .presets import PRESETS, Preset, make_image_processor

__all__ = ["VitrailImageProcessor", "VitrailImageProcessorTorch", "PRESETS", "Preset", "make_image_processor"]
