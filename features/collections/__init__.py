"""Collections of images from anywhere."""

from .entries import ImageCollection, ImageEntry, row_id
from .read import read_collection

__all__ = ["ImageCollection", "ImageEntry", "read_collection", "row_id"]
