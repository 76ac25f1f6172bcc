"""The numbers of each preset, as its family publishes them."""

import pytest
import torch
from PIL import Image

from vitrail.errors import VitrailError
from vitrail.processing.presets import PRESETS, make_image_processor
from vitrail.processing.resizing import keep_aspect

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SQUARE, SQUARE_256 = {"height": 224, "width": 224}, {"height": 256, "width": 256}


@pytest.mark.parametrize(
    ("preset", "resample", "size", "crop_size", "mean_std"),
    [
        ("dino", 3, {"shortest_edge": 256}, SQUARE, IMAGENET),
        ("dinov2", 3, {"shortest_edge": 256}, SQUARE, IMAGENET),
        ("mae", 3, {"shortest_edge": 256}, SQUARE, IMAGENET),
        ("deit", 3, {"shortest_edge": 256}, SQUARE, IMAGENET),
        ("ijepa", 3, {"shortest_edge": 256}, SQUARE, IMAGENET),
        ("google", 2, SQUARE, None, HALF),
        ("google-hub", 2, SQUARE, None, HALF),
        ("dino-hub", 2, SQUARE, None, IMAGENET),
        ("inception", 3, {"shortest_edge": 248}, SQUARE, HALF),
        ("imagenet", 3, {"shortest_edge": 248}, SQUARE, IMAGENET),
        ("dinov3", 2, SQUARE_256, None, IMAGENET),
        ("sat", 2, SQUARE_256, None, ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))),
        ("siglip", 3, SQUARE, None, HALF),
        ("clip", 3, {"shortest_edge": 224}, SQUARE, CLIP),
        ("none", 2, SQUARE, None, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        ("keep-aspect", 3, {"shortest_edge": 224}, None, IMAGENET),
        ("full-image", 3, None, None, IMAGENET),
    ],
)
def test_published_settings(preset, resample, size, crop_size, mean_std):
    image_processor = make_image_processor(preset, patch_size=16)
    assert image_processor.resample == resample
    assert image_processor.do_resize == (size is not None)
    assert size is None or image_processor.size == size
    assert image_processor.do_center_crop == (crop_size is not None)
    assert crop_size is None or image_processor.crop_size == crop_size
    assert (image_processor.image_mean, image_processor.image_std) == mean_std
    assert image_processor.rescale_factor == 1 / 255
    assert image_processor.backend == "pil"


def test_every_preset_is_tested():
    tested = test_published_settings.pytestmark[0].args[1]
    assert {row[0] for row in tested} == set(PRESETS)


@pytest.mark.parametrize(
    ("preset", "options", "shortest_edge", "crop"),
    [
        ("dinov2", {"image_size": 518}, 592, 518),
        ("dino", {"image_size": (384, 384)}, 438, 384),
        ("inception", {"image_size": 256}, 284, 256),
        ("inception", {"image_size": 384, "crop_pct": 1.0}, 384, 384),
        ("inception", {"crop_pct": 0.95}, 235, 224),
    ],
)
def test_crops_scale_with_the_model(preset, options, shortest_edge, crop):
    image_processor = make_image_processor(preset, **options)
    assert image_processor.size == {"shortest_edge": shortest_edge}
    assert image_processor.crop_size == {"height": crop, "width": crop}


@pytest.mark.parametrize("backend", ["pil", "torch"])
@pytest.mark.parametrize(
    ("preset", "options", "image_size", "shape"),
    [
        ("google", {"image_size": (64, 96)}, (50, 40), (64, 96)),
        ("full-image", {"patch_size": 14}, (100, 45), (42, 98)),  # 7.14 and 3.21 patches
        ("full-image", {"patch_size": (16, 8)}, (100, 40), (48, 104)),  # halves go up
        ("full-image", {"patch_size": 16, "image_size": 32}, (3, 60), (64, 16)),
        ("keep-aspect", {"image_size": 56, "patch_size": 14}, (100, 45), (56, 126)),  # 56 x 124
        ("keep-aspect", {"image_size": 56, "patch_size": 14}, (45, 100), (126, 56)),
        ("keep-aspect", {"image_size": 60, "patch_size": 14}, (45, 45), (56, 56)),
    ],
)
def test_shapes(preset, options, image_size, shape, backend):
    image_processor = make_image_processor(preset, backend=backend, **options)
    assert image_processor.backend == backend
    image = Image.new("RGB", image_size, (10, 20, 30))  # (width, height)
    found = image_processor(image, return_tensors="pt")["pixel_values"]
    assert found.shape == (1, 3, *shape)
    expected = (torch.tensor([10, 20, 30]) / 255 - torch.tensor(image_processor.image_mean)) / torch.tensor(
        image_processor.image_std
    )
    torch.testing.assert_close(found, expected.view(1, 3, 1, 1).expand(found.shape))


def test_other_numbers_of_channels():
    image_processor = make_image_processor("dino", num_channels=10)
    assert image_processor.num_channels == 10
    assert image_processor.image_mean == pytest.approx([0.449] * 10)
    assert image_processor.image_std == pytest.approx([0.226] * 10)
    assert make_image_processor("google", num_channels=1).image_mean == (0.5,)
    own = make_image_processor("full-image", patch_size=16, num_channels=2, image_mean=[0.1, 0.2], image_std=[0.3, 0.4])
    assert (own.image_mean, own.image_std) == ((0.1, 0.2), (0.3, 0.4))


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        (
            "timm",
            {},
            r"preset='timm'; write one of dino, dinov2, dinov3, sat, mae, .*, full-image, keep-aspect",
        ),
        ("full-image", {}, "pass patch_size"),
        ("keep-aspect", {}, "pass patch_size"),
        ("google", {"crop_pct": 0.9}, "'google', which does not crop"),
        ("dino", {"image_size": 0}, "found image_size=0; write a positive int"),
        ("google", {"image_size": (224,)}, r"found image_size=\(224,\)"),
        ("inception", {"crop_pct": 0.0}, "found crop_pct=0.0"),
        ("inception", {"crop_pct": 1.5}, "found crop_pct=1.5"),
        ("full-image", {"patch_size": -1}, "found patch_size=-1"),
        ("dino", {"backend": "numpy"}, "found backend='numpy'"),
    ],
)
def test_refusals(preset, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_image_processor(preset, **options)
    assert "backend" in options or isinstance(caught.value, VitrailError)


def test_no_family_crops_a_rectangle():
    processor = make_image_processor("dino", image_size=(224, 448))
    assert dict(processor.size) == {"height": 224, "width": 448}
    assert not processor.do_center_crop


@pytest.mark.parametrize(
    ("preset", "arguments", "image_size", "expected"),
    [
        ("dino", {"image_size": 56}, (100, 45), (56, 126)),  # of its crop: 56 x 124
        ("google", {"image_size": 56}, (45, 100), (126, 56)),  # of what it squashes to
        ("google", {"image_size": 56}, (3000, 2), (14, 448)),  # not 56 x 84000
        ("full-image", {"patch_size": 16}, (100, 45), (42, 98)),  # as it is, 45 x 100
    ],
)
def test_an_image_processor_that_keeps_the_aspect(preset, arguments, image_size, expected):
    image_processor = make_image_processor(preset, backend="torch" if preset == "dino" else "pil", **arguments)
    kept = keep_aspect(image_processor, 14)
    assert kept(Image.new("RGB", image_size), return_tensors="pt")["pixel_values"].shape[2:] == expected
    for name in ("backend", "resample", "image_mean", "image_std", "rescale_factor", "num_channels"):
        assert getattr(kept, name) == getattr(image_processor, name)
