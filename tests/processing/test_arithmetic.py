"""How levels become `pixel_values`, against Pillow and numpy or torch, one operation after the other."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import paths
from vitrail.processing import image_processing_vit
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.processing.presets import PRESETS, make_image_processor

IMAGES = paths.IMAGES
LEVELS = {"do_rescale": False, "do_normalize": False}

# The result of each layout for an image of 600x400, by hand: the (width, height) to resize to, and the box to cut out
COFFEE = IMAGES / "coffee.jpg"
CROP_OF_256, CROP_OF_248 = ((384, 256), (80, 16, 304, 240)), ((372, 248), (74, 12, 298, 236))
PLANS = {
    "dino": CROP_OF_256,
    "dinov2": CROP_OF_256,
    "mae": CROP_OF_256,
    "deit": CROP_OF_256,
    "ijepa": CROP_OF_256,
    "inception": CROP_OF_248,
    "imagenet": CROP_OF_248,
    "clip": ((336, 224), (56, 0, 280, 224)),
    **dict.fromkeys(("dinov3", "sat"), ((256, 256), None)),
    **dict.fromkeys(("google", "google-hub", "dino-hub", "siglip", "none"), ((224, 224), None)),
    "full-image": ((608, 400), None),
    "keep-aspect": ((336, 224), None),
}


def photograph(size=(600, 400)):
    return Image.open(COFFEE).convert("RGB").resize(size)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
@pytest.mark.parametrize("preset", PRESETS)
def test_pil_backend_rounds_as_one_operation_after_the_other(preset, mode):
    image = photograph().convert(mode)
    size, box = PLANS[preset]
    resized = image.convert("RGB").resize(size, PRESETS[preset].resample).crop(box)
    mean, std = (np.array(values, np.float32) for values in (PRESETS[preset].image_mean, PRESETS[preset].image_std))
    levels = np.asarray(resized).astype(np.float32)
    expected = ((levels / np.float32(255) - mean) / std).transpose(2, 0, 1)
    found = make_image_processor(preset, patch_size=16)([image, image], return_tensors="np")["pixel_values"]
    assert found.dtype == np.float32
    for values in found:
        assert np.array_equal(values, expected)


def test_pil_backend_of_one_channel():
    image = photograph().convert("L")
    levels = np.asarray(image.resize((224, 224), 2)).astype(np.float32)
    found = make_image_processor("google-hub", num_channels=1)(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(found[0, 0], (levels / np.float32(255) - np.float32(0.5)) / np.float32(0.5))


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (97, 400)])
@pytest.mark.parametrize("preset", PRESETS)
def test_torch_backend_rescales_and_normalizes_together(preset, size):
    image_processor = make_image_processor(preset, patch_size=16, backend="torch")
    levels = image_processor(photograph(size), return_tensors="pt", **LEVELS)["pixel_values"]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (PRESETS[preset].image_mean, PRESETS[preset].image_std))
    expected = (levels / 255 - mean) / std
    found = image_processor(photograph(size), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(224, 224), (330, 248), (640, 100), (700, 500), (33, 481)])
def test_torch_resizes_both_axes_together_as_one_after_the_other(size, resample):
    """The speed of the torch backend relies on this: bit for bit, resizing goes to the width and then to the height."""
    image, mode = photograph((640, 480)), {2: "bilinear", 3: "bicubic"}[resample]
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    for target in ((480, size[0]), size[::-1]):
        levels = F.interpolate(levels, target, mode=mode, antialias=True)
    options = {"size": {"height": size[1], "width": size[0]}, "resample": resample, "do_center_crop": False}
    found = VitrailImageProcessor(backend="torch", **options)(image, return_tensors="pt", **LEVELS)["pixel_values"]
    assert torch.equal(found, levels.float())


@pytest.mark.parametrize("size", [(90, 60), (2100, 2000)])  # Pillow shares the memory of small images only
@pytest.mark.parametrize("settings", [{}, {"do_resize": False}])
def test_pillow_images_in_their_own_memory_equal_copied_ones(size, settings):
    image_processor = VitrailImageProcessor(backend="torch", **settings)
    image = photograph(size)
    levels = np.array(image)
    shared = image_processing_vit._pillow_memory(image)
    assert (shared is None) == (size[0] > 90)
    found = image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, image_processor(levels, return_tensors="pt")["pixel_values"])
    if shared is not None:
        image.close()
        del image
        gc.collect()
        assert torch.equal(shared[:3].permute(1, 2, 0), torch.from_numpy(levels)), "the memory outlives the image"


def test_images_of_one_size_are_one_batch_on_other_devices_than_cpus(monkeypatch):
    """Without kernels for uint8, an empty set of devices takes their way on the CPU; images keep their places."""
    monkeypatch.setattr(image_processing_vit, "UINT8_KERNELS", set())
    images = [photograph((90, 60)), photograph((60, 90)), np.array(photograph((90, 60)))[::-1], photograph((60, 90)).convert("L")]
    shapes, resize = [], image_processing_vit._resize_with_torch

    def watched(batch, *arguments, **settings):
        shapes.append(tuple(batch.shape))
        return resize(batch, *arguments, **settings)

    image_processor = VitrailImageProcessor(backend="torch")
    singles = [image_processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
    monkeypatch.setattr(image_processing_vit, "_resize_with_torch", watched)
    assert torch.equal(image_processor(images, return_tensors="pt")["pixel_values"], torch.stack(singles))
    assert shapes == [(2, 3, 60, 90), (2, 3, 90, 60)]


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_values_are_float32_whatever_torch_makes_by_default(backend):
    image_processor = VitrailImageProcessor(backend=backend)
    expected = image_processor(photograph(), return_tensors="pt")["pixel_values"]
    torch.set_default_dtype(torch.float64)
    try:
        found = image_processor(photograph(), return_tensors="pt")["pixel_values"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
