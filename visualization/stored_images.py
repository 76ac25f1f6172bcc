"""The images that stored features were taken of, opened again where they still are."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from ..data import read_images
from ..data.decoding import open_entry
from ..data.entries import ImageCollection, ImageEntry
from ..errors import UnreadableImageError
from ..features.store import StoredFeatures
from ..processing.image_processing_vit import VitrailImageProcessor

Result = TypeVar("Result")

THREADS = 8  # that open images: decoders, and networks, do not wait for each other
ENTRIES = 256  # that are held at a time: those of archives hold their files


def map_images(
    function: Callable[[int, Image.Image], Result], stored: StoredFeatures, paths: Mapping[int, str]
) -> dict[int, Result]:
    """What a function makes of images, by their ids, without those that are not there any more, or not readable.

    Args:
        function: of an id and its image, decoded and upright. It runs in several threads.
        paths: by id, as `stored` has them.

    Raises VitrailError where the collection cannot be opened any more, or its store cannot be reached.
    """

    def run(item: tuple[int, ImageEntry]) -> tuple[int, Result] | None:
        number, entry = item
        try:
            return number, function(number, open_entry(entry))
        except UnreadableImageError:
            return None

    collection = read_images(**stored.manifest["settings"]["collection"])
    entries = _find(collection, paths)
    results: dict[int, Result] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        while block := list(islice(entries, ENTRIES)):
            results |= dict(made for made in pool.map(run, block) if made is not None)
    return results


def _find(collection: ImageCollection, paths: Mapping[int, str]) -> Iterator[tuple[int, ImageEntry]]:
    """The entries by id. Files that have come or gone move all rows after them: those images are looked for by their paths."""
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
    """The image in RGB, whatever its mode, its longer side `size` pixels."""
    to_size = VitrailImageProcessor(size={"shortest_edge": size, "longest_edge": size}, do_center_crop=False, do_normalize=False)
    levels = to_size(image, return_tensors="np")["pixel_values"][0] * 255  # (3, H, W)
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
