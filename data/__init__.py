"""Collections of images from anywhere."""

from .entries import ImageCollection, ImageEntry, row_id
from .image_sources import read_images

__all__ = ["ImageCollection", "ImageEntry", "read_images", "row_id"]
