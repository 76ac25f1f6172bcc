"""The images that stored features were computed from, read again."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from ..data import read_images
from ..data.decoding import open_entry
from ..data.entries import ImageCollection, ImageEntry
from ..data.image_sources import DIGITS
from ..data.remote import is_url
from ..errors import UnreadableImageError, VitrailError
from ..features.store import StoredFeatures
from ..processing.image_processing_vit import VitrailImageProcessor

Result = TypeVar("Result")

THREADS = 8  # that read images: decoding and network transfers overlap
ENTRIES = 256  # in memory at a time: entries of archives contain their files


def map_images(
    function: Callable[[int, Image.Image], Result], stored: StoredFeatures, paths: Mapping[int, str], *, allow_external: bool
) -> dict[int, Result]:
    """Return the results of a function over stored images, by id, without the images that are missing or unreadable.

    Args:
        function: receives an id and its image, decoded and upright. It runs in several threads.
        paths: the paths of the images by id, from `stored`.
        allow_external: read images that are not in local files and folders, or that rows of a dataset name by path. Whoever wrote the
            features chose them.

    Raises VitrailError if the collection cannot be opened or must not be, or its store cannot be reached.
    """

    def run(item: tuple[int, ImageEntry]) -> tuple[int, Result] | None:
        number, entry = item
        if not allow_external and entry.location is not None and is_url(entry.location):
            return None
        try:
            return number, function(number, open_entry(entry))
        except UnreadableImageError:
            return None

    settings = {**stored.manifest.settings["collection"], "allow_external": allow_external}
    source = str(settings["source"])
    if not (allow_external or is_local(source)):
        raise VitrailError(f"they are at {source}; allow_external=True reads them.")
    collection = read_images(**settings)
    entries = _find(collection, paths)
    results: dict[int, Result] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        while block := list(islice(entries, ENTRIES)):
            results |= dict(result for result in pool.map(run, block) if result is not None)
    return results


def is_local(source: str) -> bool:
    """Whether a recorded source is read without a request to any server: it exists here, or is the digits, or a pattern of paths."""
    return not is_url(source) and (os.path.isabs(source) or source == DIGITS)


def _find(collection: ImageCollection, paths: Mapping[int, str]) -> Iterator[tuple[int, ImageEntry]]:
    """Yield (id, entry). A file that was added or removed shifts all rows after it: shifted images are found by their paths."""
    moved: dict[str, list[int]] = {}
    ids = sorted(paths)
    for start in range(0, len(ids), ENTRIES):
        block = ids[start : start + ENTRIES]
        found = collection.find(block)
        for number in block:
            if number in found and found[number].path == paths[number]:
                yield number, found[number]
            else:
                moved.setdefault(paths[number], []).append(number)
    if moved and collection.random_access:
        for entry in collection.read():
            yield from ((number, entry) for number in moved.get(entry.path, ()))


def thumbnail(image: Image.Image, size: int) -> Image.Image:
    """Return an image of any mode in RGB, with a longer side of `size` pixels."""
    to_size = VitrailImageProcessor(size={"shortest_edge": size, "longest_edge": size}, do_center_crop=False, do_normalize=False)
    levels = to_size(image, return_tensors="np")["pixel_values"][0] * 255  # (3, H, W)
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
