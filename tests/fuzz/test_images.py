"""Images of every format, archives, tables and lists, damaged: each image is read, or listed with the reason."""

import io
import tarfile
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from damage import mutate, truncate
from fuzzing import Fault, check_message
from image_folders import PHOTOS, small_processor
from image_formats import image_files
from vitrail.data.entries import ImageCollection, ImageEntry
from vitrail.data.image_sources import read_images
from vitrail.data.reader import Batch, ImageReader, Piece, UnreadableEntry
from vitrail.errors import VitrailError

pytestmark = pytest.mark.usefixtures("one_thread")
FILES = cache(image_files)


class OneImage(ImageCollection):
    """A collection of one file."""

    random_access = True
    num_rows = num_partitions = 1
    label_type = None

    def __init__(self, content):
        self.content = content

    def read(self, partition=0, start=0):
        yield ImageEntry(0, "image", content=self.content)


def read_all(collection):
    """Return the paths, labels and pixels of all images, and the paths of unreadable ones."""
    found = []
    for partition in range(collection.num_partitions):
        piece = Piece(partition, 0, 1 if isinstance(collection, OneImage) else None)
        for item in ImageReader(collection, small_processor(), 4).read([piece], chunk_size=8):
            if isinstance(item, Batch):
                pixels = [pixel_values.numpy().tobytes() for pixel_values in item.pixel_values]
                found += [(entry.path, entry.label, raw) for entry, raw in zip(item.entries, pixels, strict=True)]
            elif isinstance(item, UnreadableEntry):
                check_message(VitrailError(item.reason))
                found.append((item.entry.path, item.entry.label, "unreadable"))
    return found


def read_one(image):
    """Return what `read_all` returns; raise VitrailError where the image is listed as unreadable."""
    found = read_all(image)
    if found == [("image", None, "unreadable")]:
        raise VitrailError("listed")
    return found


def damaged(content, rng):
    return truncate(content, rng) if rng.random() < 0.2 else mutate(content, rng)


@pytest.mark.parametrize("half", ["header", "all"])
def test_damaged_images(half, fuzz):
    """Half of the inputs are damaged in the first 64 bytes."""
    files = FILES()

    def attempt(rng):
        content = files[rng.choice(sorted(files))]
        places = range(min(64, len(content))) if half == "header" else None
        return read_one(OneImage(mutate(content, rng, places) if places else damaged(content, rng)))

    fuzz(attempt, 600)


def members():
    """Return names and contents of three images with their labels, small enough that headers are a good part of an archive."""
    images = [FILES()[kind] for kind in ("JPEG", "PNG", "WEBP")]
    return [
        item
        for number, (content, suffix) in enumerate(zip(images, ("jpg", "png", "webp"), strict=True))
        for item in ((f"{number}.{suffix}", content), (f"{number}.cls", b"%d" % number))
    ]


def tar_bytes(mode, format):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=format) as archive:
        for name, content in members():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            header.pax_headers = {"comment": "x"} if format == tarfile.PAX_FORMAT else {}
            archive.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def parquet_bytes():
    images = [{"bytes": content, "path": name} for name, content in members()[::2]]
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), stream)
    return stream.getvalue()


def list_bytes():
    return "".join(f"{path}\t{number}\n" for number, path in enumerate(PHOTOS)).encode()


SOURCES = {
    "ustar.tar": (lambda: tar_bytes("w", tarfile.USTAR_FORMAT), 40),
    "pax.tar": (lambda: tar_bytes("w", tarfile.PAX_FORMAT), 40),
    "gnu.tar.gz": (lambda: tar_bytes("w:gz", tarfile.GNU_FORMAT), 40),
    "images.tar.bz2": (lambda: tar_bytes("w:bz2", tarfile.GNU_FORMAT), 20),
    "images.tar.xz": (lambda: tar_bytes("w:xz", tarfile.GNU_FORMAT), 20),
    "images.parquet": (parquet_bytes, 25),
    "images.txt": (list_bytes, 30),
}


@pytest.mark.parametrize("name", SOURCES)
def test_damaged_sources(name, tmp_path, cache_of_datasets, fuzz):
    make, number = SOURCES[name]
    content = make()
    (tmp_path / name).write_bytes(content)
    whole = read_all(read_images(tmp_path / name))
    assert len(whole) == 3
    assert "unreadable" not in [pixels for *_, pixels in whole]

    def attempt(rng):
        (tmp_path / name).write_bytes(damaged(content, rng))
        found = read_all(read_images(tmp_path / name))
        if len(found) < len(whole) and not name.endswith(".txt") and "unreadable" not in [pixels for *_, pixels in found]:
            raise Fault("images are lost, and nothing is listed")

    fuzz(attempt, number)
