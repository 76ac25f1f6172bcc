"""Collections of images from anywhere."""

from .entries import ImageCollection, ImageEntry, row_id
from .image_sources import read_collection

__all__ = ["ImageCollection", "ImageEntry", "read_collection", "row_id"]
