"""Folders of images made from the photographs on board, some of them broken; and a small model. Shared by tests of features."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import paths
from small_models import tiny_model
from vitrail.processing.image_processing_vit import VitrailImageProcessor

PHOTOS = sorted((paths.IMAGES).glob("*.jpg"))


def small_model(**fields):
    return tiny_model(**{"num_attention_heads": 2, "initializer_range": 0.2, **fields})


def small_processor(**settings):
    return VitrailImageProcessor(**{"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, **settings})


def write_images(folder, number, *, sizes=((64, 48),), seed=0):
    """`number` crops of the photographs as JPEG files, in three folders by photograph; returns their paths in `folder`, sorted."""
    rng = np.random.default_rng(seed)
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    paths = []
    for index in range(number):
        photo, name = photos[index % 3], PHOTOS[index % 3].stem
        width, height = sizes[index % len(sizes)]
        left, top = rng.integers(photo.width - 2 * width), rng.integers(photo.height - 2 * height)
        crop = photo.crop((left, top, left + 2 * width, top + 2 * height)).resize((width, height))
        path = Path(folder) / name / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, quality=90)
        paths.append(path.relative_to(folder).as_posix())
    return sorted(paths)


def bomb():
    """A PNG whose header declares 60000 x 60000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def _saved(image, kind):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def broken_files():
    """Contents of files that are not images, by name."""
    photo = Image.open(PHOTOS[0]).convert("RGB").resize((80, 60))
    jpeg, png = _saved(photo, "JPEG"), _saved(photo, "PNG")
    return {
        "empty.jpg": b"",
        "one-byte.jpg": b"\xff",
        "text.jpg": b"this is no image\n",
        "page.jpg": b"<html><body>404 Not Found</body></html>",
        "zeros.jpg": bytes(500),
        "header-only.jpg": jpeg[:20],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "cut-in-tables.jpg": jpeg[:200],
        "signature-only.png": png[:8],
        "half.png": png[: len(png) // 2],
        "wrong-checksum.png": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "bomb.png": bomb(),
        "empty.png": b"",
        "half.gif": _saved(photo, "GIF")[:100],
        "half.bmp": _saved(photo, "BMP")[:1000],
        "half.tif": _saved(photo, "TIFF")[:300],
        "half.webp": _saved(photo, "WEBP")[:100],
        "text.png": "kein Bild: äöü".encode(),
        "gzip.jpg": b"\x1f\x8b\x08\x00" + bytes(50),
        "quarter.jpg": jpeg[: len(jpeg) // 4],
    }


def write_broken(folder):
    """The broken files in a folder of images; returns their paths, sorted."""
    for name, content in broken_files().items():
        path = Path(folder) / "broken" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sorted(f"broken/{name}" for name in broken_files())
