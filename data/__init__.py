"""Images from any source: collections in a fixed order, labeled splits, decoding and preprocessing.

`image_sources.py` is the one grammar of sources, `reader.py` the one way from images to batches.
"""

from .entries import ImageCollection, ImageEntry, row_id
from .image_sources import read_images

__all__ = ["ImageCollection", "ImageEntry", "read_images", "row_id"]
