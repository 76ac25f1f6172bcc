"""Images to pixel values: the image processor, and one row of settings per published family."""

from .image_processing_vit import VitrailImageProcessor, VitrailImageProcessorTorch
from .presets import PRESETS, Preset, make_image_processor

__all__ = ["VitrailImageProcessor", "VitrailImageProcessorTorch", "PRESETS", "Preset", "make_image_processor"]
