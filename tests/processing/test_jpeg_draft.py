"""`jpeg_draft`: files decoded at a reduced scale, never below what is resized from, against Pillow's own `Image.draft`."""

import io
import json

import numpy as np
import pytest
import torch
from huggingface_hub.utils import httpx
from PIL import Image

import paths
from vitrail.processing.image_processing_vit import VitrailImageProcessor

COFFEE = paths.IMAGES / "coffee.jpg"  # 600x400
SQUASHED = {"size": {"height": 224, "width": 224}, "do_center_crop": False}


def jpeg(size, image_format="JPEG", **options):
    stream = io.BytesIO()
    Image.open(COFFEE).resize(size).save(stream, image_format, **options)
    return stream.getvalue()


def turned(size, orientation):
    """A JPEG of a stored size, to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(size, exif=exif)


def decoded_size(data, **settings):
    """(width, height) of what the image processor decodes."""
    return VitrailImageProcessor(jpeg_draft=True, **settings).decode(io.BytesIO(data)).size


def test_it_is_off_and_is_reported(tmp_path):
    data, image_processor = jpeg((1600, 1200)), VitrailImageProcessor()
    assert image_processor.decode(io.BytesIO(data)).size == (1600, 1200)
    expected = image_processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
    assert torch.equal(image_processor(data, return_tensors="pt")["pixel_values"], expected)
    image_processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["jpeg_draft"] is False
    drafts = VitrailImageProcessor.from_pretrained(tmp_path, jpeg_draft=True)
    assert drafts.decode(io.BytesIO(data)).size == (400, 300)
    found = drafts(data, return_tensors="pt")["pixel_values"]
    assert not torch.equal(found, expected)
    assert torch.equal(image_processor(data, jpeg_draft=True, return_tensors="pt")["pixel_values"], found)
    assert torch.equal(drafts(data, jpeg_draft=False, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize(
    ("size", "settings", "decoded"),
    [
        ((1600, 1200), {}, (400, 300)),  # to 341x256, then cropped
        ((1600, 1200), {"size": {"shortest_edge": 300}}, (400, 300)),
        ((1600, 1200), {"size": {"shortest_edge": 301}}, (800, 600)),
        ((1600, 1200), SQUASHED, (400, 300)),
        ((1792, 1792), SQUASHED, (224, 224)),
        ((1791, 1792), SQUASHED, (448, 448)),  # rounded up, as by libjpeg: 447.75
        ((447, 900), SQUASHED, (447, 900)),
        ((600, 400), {"size": {"height": 40, "width": 300}, "do_center_crop": False}, (300, 200)),
        ((1600, 1200), {"do_resize": False}, (1600, 1200)),
        ((1600, 1200), {"do_resize": False, "do_center_crop": False, "size_divisor": 16}, (1600, 1200)),
        ((1600, 1200), {"size": {"shortest_edge": 224}, "do_center_crop": False, "size_divisor": 16}, (400, 300)),
        ((1600, 400), {"size": {"shortest_edge": 100, "longest_edge": 200}, "do_center_crop": False}, (200, 50)),
        # 1001x668 becomes 335x224, and 501x334 would become 336x224
        ((1001, 668), {"size": {"shortest_edge": 224}, "do_center_crop": False}, (1001, 668)),
        ((1001, 668), {"size": {"shortest_edge": 224}}, (501, 334)),
        ((5, 3), {"size": {"height": 1, "width": 1}, "do_center_crop": False}, (3, 2)),
    ],
)
def test_the_scale_leaves_enough(size, settings, decoded):
    assert decoded_size(jpeg(size), **settings) == decoded


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_sizes_are_those_of_the_upright_image(orientation):
    """Stored as 1200x1600, to be seen as 1600x1200."""
    data = turned((1200, 1600), orientation)
    assert decoded_size(data, size={"height": 300, "width": 400}, do_center_crop=False) == (400, 300)
    assert decoded_size(data, size={"height": 400, "width": 300}, do_center_crop=False) == (800, 600)
    upside_down = turned((1200, 1600), 3)
    assert decoded_size(upside_down, size={"height": 400, "width": 300}, do_center_crop=False) == (300, 400)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 32}, "crop_size": 28},
        {"size": {"shortest_edge": 32}, "do_center_crop": False},
        {"size": {"shortest_edge": 32, "longest_edge": 60}, "do_center_crop": False, "size_divisor": (4, 6)},
        {"size": {"height": 20, "width": 50}, "do_center_crop": False},
    ],
)
def test_shapes_stay_and_nothing_is_enlarged(settings):
    rng, reduced = np.random.default_rng(0), 0
    whole, drafts = VitrailImageProcessor(**settings), VitrailImageProcessor(jpeg_draft=True, **settings)
    for size in rng.integers(20, 400, (60, 2)).tolist():
        data = turned(size, int(rng.integers(1, 9)))
        full, small = (image_processor.decode(io.BytesIO(data)) for image_processor in (whole, drafts))
        resized = whole(full, do_center_crop=False, return_tensors="pt")["pixel_values"].shape
        assert small.size == full.size or (small.height >= resized[2] and small.width >= resized[3])
        reduced += small.size != full.size
        shape = whole(data, return_tensors="pt")["pixel_values"].shape
        assert drafts(data, return_tensors="pt")["pixel_values"].shape == shape
    assert reduced > 5


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_paths_bytes_and_urls_are_read_alike(backend, tmp_path, monkeypatch):
    data = jpeg((1600, 1200), quality=95)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, content=data, request=httpx.Request("GET", url)))
    drafted = Image.open(path)
    drafted.draft(None, (400, 300))
    image_processor = VitrailImageProcessor(jpeg_draft=True, backend=backend)
    expected = image_processor(drafted, return_tensors="pt")["pixel_values"]
    for source in (path, str(path), data, "https://example.org/photo.jpg"):
        assert torch.equal(image_processor(source, return_tensors="pt")["pixel_values"], expected)
    # It is the same picture: in gray levels
    settings = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    difference = image_processor(path, **settings)["pixel_values"] - image_processor(Image.open(path), **settings)["pixel_values"]
    assert difference.abs().mean() < 1


def test_other_formats_and_open_images_are_as_they_are():
    image_processor = VitrailImageProcessor(jpeg_draft=True)
    data = jpeg((1600, 1200), "PNG")
    assert image_processor.decode(io.BytesIO(data)).size == (1600, 1200)
    image = Image.open(io.BytesIO(jpeg((1600, 1200))))
    assert torch.equal(
        image_processor(image, return_tensors="pt")["pixel_values"],
        VitrailImageProcessor()(image, return_tensors="pt")["pixel_values"],
    )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes(mode):
    stream = io.BytesIO()
    Image.open(COFFEE).convert(mode).resize((1200, 800)).save(stream, "JPEG")
    image = VitrailImageProcessor(jpeg_draft=True).decode(stream)
    assert (image.mode, image.size) == (mode, (600, 400))


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "short.jpg"
    path.write_bytes(jpeg((1600, 1200))[:9000])
    with pytest.raises(ValueError, match=r"short\.jpg: .*truncated"):
        VitrailImageProcessor(jpeg_draft=True)(path)
