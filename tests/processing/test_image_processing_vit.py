"""VitrailImageProcessor against the pixels of torchvision's PIL transforms, Pillow, and transformers' ViTImageProcessorPil."""

import ast
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageCms
from safetensors.torch import load_file
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import paths
from vitrail.processing import image_processing_vit
from vitrail.processing.image_processing_vit import VitrailImageProcessor, VitrailImageProcessorTorch
from vitrail.processing.presets import make_image_processor

CHELSEA = paths.IMAGES / "chelsea.jpg"  # 451x300
COFFEE = paths.IMAGES / "coffee.jpg"  # 600x400
GOLDEN = load_file(paths.GOLDEN / "preprocessing.safetensors")
PLANS = {
    "dino_eval": ("dino", {}),
    "dinov2_logreg": ("dinov2", {"crop_pct": 1.0}),
    "google_hub_224": ("google-hub", {}),
    "timm_crop0.9_half": ("inception", {}),
    "timm_crop0.9_imagenet": ("imagenet", {}),
}
BACKENDS = ("pil", "torch")
LEVELS = {"do_rescale": False, "do_normalize": False}
AS_IS = {"do_resize": False, "do_center_crop": False, "do_normalize": False}


def pixel_values(image, **options):
    """(C, H, W) of one image."""
    return VitrailImageProcessor(**options)(image, return_tensors="pt")["pixel_values"][0]


def photograph(path=CHELSEA, size=None):
    image = Image.open(path).convert("RGB")
    return image if size is None else image.resize(size)


def chw(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def encoded(image, image_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


# --- the numbers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_pil_backend_equals_torchvision_bit_for_bit(case):
    name, plan = case.split("/")
    preset, options = PLANS[plan]
    image_processor = make_image_processor(preset, **options)
    path = paths.IMAGES / f"{name}.jpg"
    levels = image_processor(path, **LEVELS, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(levels, GOLDEN[case].float())

    # ToTensor and Normalize, in numpy's float32
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std))
    expected = (GOLDEN[case].numpy().astype(np.float32) / np.float32(255) - mean) / std
    values = image_processor(path, return_tensors="np")["pixel_values"]
    assert values.dtype == np.float32
    assert np.array_equal(values[0], expected)


def assert_near_pillow(found, expected):
    """Check the promise of the torch backend: values differ by 2 levels at most, and under 1 % of them differ at all."""
    difference = (found - expected).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.01
    assert (difference > 1).float().mean() < 1e-4


# Devices other than CPUs have no uint8 kernels; an empty set takes their way on the CPU.
@pytest.fixture(params=[{"cpu"}, set()], ids=["uint8", "float"])
def kernels(request, monkeypatch):
    monkeypatch.setattr(image_processing_vit, "UINT8_KERNELS", request.param)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_torch_backend_is_near_torchvision(case):
    name, plan = case.split("/")
    preset, options = PLANS[plan]
    image_processor = make_image_processor(preset, backend="torch", **options)
    levels = image_processor(paths.IMAGES / f"{name}.jpg", **LEVELS, return_tensors="pt")["pixel_values"][0]
    assert_near_pillow(levels, GOLDEN[case].float())


# Pillow 13 shrinks the height first in the second, third and fourth; the other order makes a sixth of the values differ.
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        ((300, 200), (112, 112)),
        ((200, 300), (112, 112)),
        ((90, 330), (64, 225)),
        ((203, 207), (203, 190)),
        ((200, 300), (141, 201)),
        ((200, 200), (261, 211)),
    ],
)
def test_torch_backend_resizes_the_axes_in_the_order_of_pillow(image_size, size, resample):
    image = photograph(COFFEE, image_size)
    expected = chw(image.resize(size, resample)).float()
    options = {"size": {"height": size[1], "width": size[0]}, "resample": resample, "do_center_crop": False}
    assert_near_pillow(pixel_values(image, backend="torch", **options, **LEVELS), expected)


def test_torch_backend_on_cuda(cuda):
    found = make_image_processor("dino", backend="torch")(CHELSEA, **LEVELS, return_tensors="pt", device="cuda")["pixel_values"]
    assert found.device.type == "cuda"
    assert_near_pillow(found[0].cpu(), GOLDEN["chelsea/dino_eval"].float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalization_on_cuda(backend, cuda):
    image_processor = make_image_processor("dino", backend=backend)
    batch = torch.randint(0, 256, (3, 3, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = image_processing_vit.rescale_and_normalize(list(batch), image_processor.settings)
    found = image_processing_vit.rescale_and_normalize(batch.to(cuda), image_processor.settings)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", [CHELSEA, COFFEE])
def test_squash_agrees_with_transformers(path):
    image = photograph(path)
    theirs = ViTImageProcessorPil()(image, return_tensors="np")["pixel_values"]
    ours = make_image_processor("google-hub")(image, return_tensors="np")["pixel_values"]
    # The levels are equal; the float32 operations after them have another order.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


# --- sizes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "shape"),  # of an image of 451x300; int(256 * 451 / 300) = 384, int(300 * 256 / 384) = 200
    [
        ({"size": {"shortest_edge": 256}}, (256, 384)),
        ({"size": {"shortest_edge": 256, "longest_edge": 300}}, (200, 300)),
        ({"size": {"shortest_edge": 256, "longest_edge": 301}}, (200, 301)),  # 200.67
        ({"size": {"shortest_edge": 256, "longest_edge": 384}}, (256, 384)),
        ({"size": {"height": 50, "width": 70}}, (50, 70)),
        ({"size": {"shortest_edge": 256}, "size_divisor": 14}, (252, 378)),  # 18.29 and 27.43 patches
        ({"size": {"shortest_edge": 256}, "size_divisor": (16, 48)}, (256, 384)),
        ({"do_resize": False, "size_divisor": 16}, (304, 448)),  # 18.75 and 28.19 patches
        ({"do_resize": False, "size_divisor": 16, "do_pad": True}, (304, 464)),
        ({"do_resize": False, "size_divisor": [100, 90], "do_pad": True}, (300, 540)),
        ({"do_resize": False, "size_divisor": 1000}, (1000, 1000)),
        ({"do_resize": False}, (300, 451)),
    ],
)
def test_sizes(options, shape, backend):
    image_processor = VitrailImageProcessor(backend=backend, do_center_crop=False, **options)
    image = photograph()
    assert image_processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, *shape)
    if "longest_edge" not in str(options):
        return
    sliver = image_processor(Image.new("RGB", (30000, 2)), return_tensors="pt")["pixel_values"]
    assert sliver.shape == (1, 3, 1, options["size"]["longest_edge"])
    portrait = image_processor(image.transpose(Image.Transpose.ROTATE_90), return_tensors="pt")["pixel_values"]
    assert portrait.shape == (1, 3, *shape[::-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "top"), [(10, 0), (11, 0), (12, 1), (13, 2), (14, 2), (15, 2), (9, 0), (8, -1), (7, -1)])
def test_center_crop_starts_where_torchvision_starts(height, top, backend):
    """CenterCrop(10): half to even where it cuts, the smaller part first where it fills up with black."""
    image = np.arange(1, height * 10 + 1, dtype=np.uint8).reshape(height, 10)
    options = {"do_resize": False, "crop_size": {"height": 10, "width": 10}, **LEVELS}
    expected = np.zeros((10, 10))
    for row in range(10):
        if 0 <= top + row < height:
            expected[row] = image[top + row]
    for turned, wanted in ((image, expected), (image.T, expected.T)):
        assert np.array_equal(pixel_values(turned, backend=backend, **options)[0], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_the_mean_color(backend):
    options = {"backend": backend, "do_resize": False, "do_center_crop": False}
    image = photograph(size=(30, 20))
    padded = pixel_values(image, size_divisor=16, do_pad=True, **options)
    assert padded.shape == (3, 32, 32)
    assert torch.equal(padded[:, :20, :30], pixel_values(image, **options))
    assert not padded[:, 20:].any()
    assert not padded[:, :, 30:].any()


# --- what an image may be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_container_gives_the_same_values(backend, tmp_path, monkeypatch):
    image = photograph()
    path = tmp_path / "cat.png"
    image.save(path)
    array = np.array(image)
    read_only = np.asarray(image)
    assert not read_only.flags.writeable
    web = {
        "https://example.org/cat.png": httpx.Response(
            200, content=path.read_bytes(), request=httpx.Request("GET", "https://example.org/cat.png")
        )
    }
    monkeypatch.setattr(httpx, "get", lambda url, **_: web[url])
    image_processor = VitrailImageProcessor(backend=backend)
    expected = image_processor(image, return_tensors="pt")["pixel_values"]
    singles = {
        "HWC array": array,
        "CHW array": array.transpose(2, 0, 1),
        "read-only array": read_only,
        "mirrored view": array[:, ::-1].copy()[:, ::-1],
        "CHW tensor": chw(image),
        "HWC tensor": torch.from_numpy(array),
        "path": path,
        "str": str(path),
        "bytes": path.read_bytes(),
        "URL": "https://example.org/cat.png",
    }
    for name, single in singles.items():
        assert torch.equal(image_processor(single, return_tensors="pt")["pixel_values"], expected), name
    batches = {
        "list": [image, array],
        "4-D array": np.stack([array] * 2),
        "4-D tensor": torch.stack([chw(image)] * 2),
        "tuple": (path, path),
    }
    for name, batch in batches.items():
        assert torch.equal(image_processor(batch, return_tensors="pt")["pixel_values"], expected.expand(2, -1, -1, -1)), name
    nested = [[image, np.stack([array] * 2)], [chw(image)[None]]]
    assert image_processor(nested, return_tensors="pt")["pixel_values"].shape == (4, 3, 224, 224)


def test_eight_bit_modes_become_rgb():
    """Each mode made from RGB and back: exactly where the mode keeps all, within its own rounding where not."""
    rgb = photograph(size=(90, 60))
    gray = rgb.convert("L")
    palette = rgb.quantize(200)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transparent = palette.copy()
    transparent.info["transparency"] = bytes(range(200))
    with_alpha = rgb.copy()
    with_alpha.putalpha(51)
    colors = np.array(palette.getpalette()).reshape(-1, 3)[np.array(palette)]
    cases = [
        (rgb, np.array(rgb), 0),
        (with_alpha, np.array(rgb), 0),
        (with_alpha.convert("RGBa"), np.array(rgb), 3),  # 51 levels of alpha leave 52 of color
        (rgb.convert("CMYK"), np.array(rgb), 0),
        (rgb.convert("YCbCr"), np.array(rgb), 3),
        (rgb.convert("HSV"), np.array(rgb), 4),
        (ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB"), np.array(rgb), 5),
        (gray, np.array(gray)[..., None].repeat(3, 2), 0),
        (gray.convert("LA"), np.array(gray)[..., None].repeat(3, 2), 0),
        (gray.convert("LA").convert("La"), np.array(gray)[..., None].repeat(3, 2), 0),
        (gray.point(lambda level: 255 * (level > 99), "1"), (np.array(gray)[..., None].repeat(3, 2) > 99) * 255, 0),
        (palette, colors, 0),
        (transparent, colors, 0),
        (palette.convert("PA"), colors, 0),
    ]
    for image, expected, tolerance in cases:
        found = pixel_values(image, **{**AS_IS, "do_rescale": False}).permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() <= tolerance, (image.mode, np.abs(found - expected).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "uint16", ">u2", "tensor"])
def test_sixteen_bits_stay_sixteen_bits(mode, backend):
    levels = np.random.default_rng(0).integers(0, 65536, (40, 60), dtype=np.uint16)
    image = {
        "I;16": lambda: Image.fromarray(levels),
        "I;16B": lambda: Image.frombytes("I;16B", (60, 40), levels.astype(">u2").tobytes()),
        "I": lambda: Image.fromarray(levels.astype(np.int32)),
        "uint16": lambda: levels,
        ">u2": lambda: levels.astype(">u2"),
        "tensor": lambda: torch.from_numpy(levels),
    }[mode]()
    expected = np.broadcast_to(levels.astype(np.float32) / np.float32(65535), (3, 40, 60))
    assert np.array_equal(pixel_values(image, backend=backend, **AS_IS), expected)
    assert np.array_equal(pixel_values(image, backend=backend, **{**AS_IS, "do_rescale": False})[0], levels)
    # Resized as floats, and what the filter overshoots cut off.
    resized = pixel_values(image, backend=backend, size={"height": 70, "width": 90}, do_center_crop=False, do_normalize=False)
    reference = Image.fromarray(levels.astype(np.float32) / 65535).resize((90, 70), Image.Resampling.BICUBIC)
    assert np.asarray(reference).max() > 1
    np.testing.assert_allclose(resized[0], np.asarray(reference).clip(0, 1), rtol=0, atol=1e-6 if backend == "pil" else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.float32, torch.bfloat16])
def test_floats_are_values_from_0_to_1(dtype, backend):
    photo = np.array(photograph(size=(60, 40)))
    values = photo / 255
    image = torch.from_numpy(values).to(dtype) if isinstance(dtype, torch.dtype) else values.astype(dtype)
    exact = image.float().numpy() if isinstance(dtype, torch.dtype) else image.astype(np.float32)
    kept = pixel_values(image, backend=backend, **AS_IS).permute(1, 2, 0)
    assert np.array_equal(kept, exact)
    # Resized like the same image in 8 bits but for their rounding, overshoot cut off.
    options = {"backend": backend, "size": {"height": 33, "width": 47}, "do_center_crop": False, "do_normalize": False}
    found, reference = pixel_values(image, **options), pixel_values(photo, **options)
    assert (found - reference).abs().max() < (3 / 255 if dtype == torch.bfloat16 else 2 / 255)
    assert found.min() >= 0
    assert found.max() <= 1
    assert len(found.unique()) > 256


def test_mode_f_bool_and_rescale_factor():
    ramp = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    assert np.array_equal(pixel_values(Image.fromarray(ramp), **AS_IS)[2], ramp)
    assert np.array_equal(pixel_values(ramp > 0.5, **AS_IS)[0], ramp > 0.5)
    doubled = pixel_values(ramp, rescale_factor=2 / 255, **AS_IS)
    np.testing.assert_allclose(doubled[0], ramp * 2, rtol=1e-6)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(pixel_values(levels, rescale_factor=1 / 127.5, **AS_IS)[0], levels / 127.5, rtol=1e-6)
    wild = np.random.default_rng(0).normal(0, 1000, (20, 30)).astype(np.float32)
    assert np.array_equal(pixel_values(wild, do_rescale=False, **AS_IS)[0], wild)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_number_of_channels_is_processed_one_by_one(dtype, backend):
    rng = np.random.default_rng(0)
    bands = (
        rng.random((60, 50, 10), np.float32) if dtype == np.float32 else rng.integers(0, np.iinfo(dtype).max, (60, 50, 10), dtype)
    )
    options = {"backend": backend, "size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    found = pixel_values(bands, num_channels=10, image_mean=[0.1 * band for band in range(10)], image_std=[0.5] * 10, **options)
    assert found.shape == (10, 32, 32)
    for band in range(10):
        alone = pixel_values(bands[..., band], num_channels=1, image_mean=[0.1 * band], image_std=[0.5], **options)
        assert torch.equal(found[band], alone[0])
    last = pixel_values(bands.transpose(2, 0, 1), num_channels=10, image_mean=0.5, image_std=0.5, **options)
    assert torch.equal(last[9], pixel_values(bands[..., 9], num_channels=1, image_mean=0.5, image_std=0.5, **options)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_four_channels_are_not_alpha(backend):
    """Pillow would multiply the colors by a fourth channel before it resizes."""
    image = photograph(size=(60, 40))
    image.putalpha(Image.linear_gradient("L").resize((60, 40)))
    options = {"backend": backend, "size": {"height": 20, "width": 30}, "do_center_crop": False, **LEVELS}
    colors = pixel_values(image.convert("RGB"), **options)
    for four in (image, np.array(image)):
        found = pixel_values(four, num_channels=4, **options)
        assert torch.equal(found[:3], colors)


def test_grayscale_models():
    image = photograph(size=(60, 40))
    found = pixel_values(image, num_channels=1, do_rescale=False, **AS_IS)
    assert np.array_equal(found, np.array(image.convert("L"))[None])


@pytest.mark.parametrize(
    ("shape", "tensor", "array"),  # (C, H, W) found
    [
        ((5, 7), (3, 5, 7), (3, 5, 7)),
        ((5, 7, 1), (3, 5, 7), (3, 5, 7)),
        ((1, 5, 7), (3, 5, 7), (3, 5, 7)),
        ((3, 5, 7), (3, 5, 7), (3, 5, 7)),
        ((3, 5, 3), (3, 5, 3), (3, 3, 5)),
        ((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        ((1, 5, 3), (3, 1, 5), (3, 1, 5)),
        ((1, 5, 1), (3, 5, 1), (3, 1, 5)),
    ],
)
def test_channel_axis_is_last_in_arrays_and_first_in_tensors(shape, tensor, array):
    values = np.random.default_rng(0).random(shape, np.float32)
    assert pixel_values(torch.from_numpy(values), **AS_IS).shape == tensor
    assert pixel_values(values, **AS_IS).shape == array


def test_input_data_format_decides():
    values = np.random.default_rng(0).random((3, 3, 3), np.float32)
    first, last = torch.from_numpy(values), torch.from_numpy(values).permute(2, 0, 1)
    for image, habit in ((values, last), (torch.from_numpy(values), first)):
        assert torch.equal(pixel_values(image, **AS_IS), habit)
        assert torch.equal(pixel_values(image, input_data_format="channels_first", **AS_IS), first)
        assert torch.equal(pixel_values(image, input_data_format="channels_last", **AS_IS), last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_handed_over_are_not_written_to(backend):
    array = np.random.default_rng(0).random((3, 20, 30), np.float32)
    tensor = torch.from_numpy(array.copy())
    image_processor = VitrailImageProcessor(backend=backend, do_resize=False, do_center_crop=False)
    first = image_processor([array, tensor], return_tensors="pt")["pixel_values"]
    for single in (array, tensor):
        image_processor(single, return_tensors="pt")
    assert np.array_equal(array, np.random.default_rng(0).random((3, 20, 30), np.float32))
    assert np.array_equal(array, tensor)
    assert torch.equal(image_processor([array, tensor], return_tensors="pt")["pixel_values"], first)


# --- files ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied_to_files_only(image_format, tmp_path):
    image = photograph(size=(60, 40))
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by 90 degrees
    data = encoded(image, image_format, exif=exif)
    path = tmp_path / "turned"
    path.write_bytes(data)
    stored = Image.open(io.BytesIO(data))
    upright = torch.from_numpy(np.rot90(np.array(stored), -1).copy()).permute(2, 0, 1).float()
    for source in (path, str(path), data):
        assert torch.equal(pixel_values(source, do_rescale=False, **AS_IS), upright)
    assert torch.equal(pixel_values(stored, do_rescale=False, **AS_IS), chw(stored).float())


def test_files_keep_what_a_mode_can_hold(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    path = tmp_path / "sixteen.png"
    Image.fromarray(levels).save(path)
    assert np.array_equal(pixel_values(path, do_rescale=False, **AS_IS)[0], levels)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.jpg", None, "missing.jpg does not exist"),
        ("empty.jpg", b"", "empty.jpg: it is empty"),
        ("text.jpg", b"no image", "text.jpg: Pillow does not recognize its format"),
        ("short.jpg", CHELSEA.read_bytes()[:9000], "short.jpg: .*truncated"),
        ("short.png", encoded(photograph())[:9000], "short.png: .*truncated"),
        ("short.qoi", b"qoif" + bytes(12), "short.qoi: "),
    ],
)
def test_files_that_do_not_decode_are_named(name, content, reason, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"in {len(content)} bytes: "):
            VitrailImageProcessor()(content)
    for source in (path, str(path)):
        with pytest.raises(ValueError, match=reason) as caught:
            VitrailImageProcessor()([photograph(), source])
        assert str(path) in str(caught.value)


def test_folders_and_decompression_bombs_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"{tmp_path}: Is a directory"):
        VitrailImageProcessor()(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"chelsea.jpg: .*decompression bomb"):
        VitrailImageProcessor()(CHELSEA)


def test_urls_that_cannot_be_read_are_named(monkeypatch):
    def refuse(url, **_):
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(httpx, "get", refuse)
    with pytest.raises(ValueError, match=r"https://example.org/cat.png: connection refused"):
        VitrailImageProcessor()("https://example.org/cat.png")
    for status, message in ((404, "404 Not Found"), (200, "Pillow does not recognize its format")):
        response = httpx.Response(status, content=b"<html>", request=httpx.Request("GET", "https://example.org/cat.png"))
        monkeypatch.setattr(httpx, "get", lambda url, response=response, **_: response)
        with pytest.raises(ValueError, match=f"https://example.org/cat.png: .*{message}"):
            VitrailImageProcessor()("https://example.org/cat.png")


# --- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "torchvision"}, "found backend='torchvision'; write 'pil'"),
        ({"num_channels": 0}, "found num_channels=0"),
        ({"num_channels": 4}, "image_mean=.* with num_channels=4; write 4 numbers"),
        ({"image_mean": [0.5]}, "image_mean=.* with num_channels=3; write 3 numbers"),
        ({"image_std": [0.5, 0.5]}, "image_std=.* with num_channels=3; write 3 numbers"),
        ({"image_std": 0.0}, "found image_std"),
        ({"rescale_factor": -1.0}, "found rescale_factor=-1.0"),
        ({"size": {"longest_edge": 256}}, 'write positive numbers of pixels as {"shortest_edge": s}'),
        ({"size": {"shortest_edge": 0}}, "write positive numbers of pixels"),
        ({"size": {"shortest_edge": 256, "longest_edge": 100}}, "longest_edge must not be below"),
        ({"crop_size": {"shortest_edge": 224}}, "found crop_size={'shortest_edge': 224}"),
        ({"resample": 9}, "found resample=9"),
        ({"resample": 1, "backend": "torch"}, r"resample=1 \(LANCZOS\) with backend='torch'.*or backend='pil'"),
        ({"size_divisor": 16}, "size_divisor=16 with do_center_crop=True"),
        ({"size_divisor": 0, "do_center_crop": False}, "found size_divisor=0; write a positive int"),
        ({"size_divisor": [16], "do_center_crop": False}, r"found size_divisor=\(16,\)"),
        ({"do_pad": True}, "do_pad=True without a size_divisor"),
        ({"jpeg_draft": 2}, "found jpeg_draft=2; write True"),
        ({"pad_size": {"height": 256, "width": 256}}, "multiples of size_divisor"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VitrailImageProcessor(**options)
    if "jpeg_draft" not in options and options.get("resample") != 9:  # transformers itself refuses these in a call
        with pytest.raises(ValueError, match=message):
            VitrailImageProcessor()(photograph(), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "found no image"),
        ([[]], "found no image"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\), but num_channels=3"),
        (torch.zeros(10, 8, 8), r"shape \(10, 8, 8\), but num_channels=3"),
        (np.zeros((2, 8, 8, 5), np.uint8), r"shape \(8, 8, 5\)"),
        (np.zeros((2, 2, 2, 8, 3), np.uint8), r"shape \(2, 2, 2, 8, 3\), expected"),
        (np.zeros(8, np.uint8), r"shape \(8,\), expected"),
        (np.zeros((0, 8, 3), np.uint8), r"shape \(0, 8, 3\), expected"),
        (Image.new("RGB", (0, 8)), "found an image of 0 x 8 pixels"),
        (np.zeros((8, 8, 3), np.int64), "type int64; convert it to uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "type int32; convert it to uint8"),
        (np.full((8, 8, 3), 200.0), "values from 200 to 200 .* divide by 255"),
        (np.full((8, 8, 3), -0.5, np.float32), "values from -0.5 to -0.5"),
        (np.full((8, 8, 3), np.nan), "values from nan to nan"),
        (Image.fromarray(np.full((8, 8), 70000, np.int32)), "values from 70000 to 70000 in an image of mode I"),
        (7, "found int in place of an image"),
        ([[1.0, 2.0]], "found float in place of an image"),
        (None, "found NoneType in place of an image"),
    ],
)
def test_images_that_do_not_fit_are_refused(image, message, backend):
    with pytest.raises(ValueError, match=message):
        VitrailImageProcessor(backend=backend)(image)


def test_wrong_channels_of_pillow_images_and_named_axes():
    with pytest.raises(ValueError, match="mode RGB, but num_channels=4; pass an array of 4"):
        VitrailImageProcessor(num_channels=4, image_mean=0.5, image_std=0.5)(photograph())
    with pytest.raises(ValueError, match=r"shape \(3, 8, 9\), so of 9 channels, but num_channels=3"):
        VitrailImageProcessor(input_data_format="channels_last")(np.zeros((3, 8, 9), np.uint8))


# --- what comes out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_images_one_by_one(backend):
    rng = np.random.default_rng(0)
    images = [photograph(), photograph(COFFEE), rng.random((90, 80, 3), np.float32), photograph(), photograph(COFFEE, (80, 90))]
    images += [images[2][::-1], rng.integers(0, 65536, (90, 80, 3), np.uint16), photograph(size=(80, 90)).convert("L")]
    image_processor = VitrailImageProcessor(backend=backend)
    batch = image_processor(images, return_tensors="pt")["pixel_values"]
    assert batch.shape == (8, 3, 224, 224)
    for image, values in zip(images, batch, strict=True):
        assert torch.equal(values, image_processor(image, return_tensors="pt")["pixel_values"][0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_return_tensors_and_data_format(backend):
    image_processor = VitrailImageProcessor(backend=backend)
    images = [photograph(), photograph(COFFEE)]
    batch = image_processor(images, return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    expected = batch["pixel_values"]
    assert expected.dtype == torch.float32
    assert expected.is_contiguous()
    array = image_processor(images, return_tensors="np")["pixel_values"]
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, expected)
    plain = image_processor.preprocess(images)["pixel_values"]
    assert isinstance(plain, list)
    assert torch.equal(torch.stack(plain), expected)
    last = image_processor(images, return_tensors="pt", data_format="channels_last")["pixel_values"]
    assert last.shape == (2, 224, 224, 3)
    assert torch.equal(last, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_that_make_no_batch(backend):
    image_processor = VitrailImageProcessor(backend=backend, do_center_crop=False)
    images = [photograph(), photograph(COFFEE, (100, 150))]
    assert [tuple(image.shape) for image in image_processor(images)["pixel_values"]] == [(3, 256, 384), (3, 384, 256)]
    with pytest.raises(ValueError, match=r"\(3, 256, 384\), \(3, 384, 256\), which cannot be batched; pass return_tensors=None"):
        image_processor(images, return_tensors="pt")


# --- the file ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backend": "torch", "size": {"height": 48, "width": 32}, "do_center_crop": False, "resample": 2},
        {"num_channels": 1, "image_mean": [0.25], "image_std": [0.5], "crop_size": 32, "size": {"shortest_edge": 40}},
        {"do_resize": False, "size_divisor": [14, 16], "do_pad": True, "do_center_crop": False, "do_normalize": False},
        {"size": {"shortest_edge": 40, "longest_edge": 60}, "do_center_crop": False, "rescale_factor": 1 / 127.5},
        {"jpeg_draft": True},
    ],
)
def test_saved_and_loaded_it_is_the_same(options, tmp_path):
    image_processor = VitrailImageProcessor(**options)
    image_processor.save_pretrained(tmp_path)
    loaded = VitrailImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    image = photograph(size=(90, 60))
    expected = image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(loaded(image, return_tensors="pt")["pixel_values"], expected)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "VitrailImageProcessor"
    assert written["backend"] == image_processor.backend
    assert not [name for name in written if name.startswith("_")]


def test_a_call_overrides_and_leaves_no_trace():
    image_processor = VitrailImageProcessor()
    before = image_processor.to_dict()
    image = photograph()
    expected = image_processor(image, return_tensors="pt")["pixel_values"]
    options = {"size": {"shortest_edge": 64}, "do_center_crop": False, "size_divisor": 16, "backend": "torch", "image_mean": 0.5}
    assert image_processor(image, return_tensors="pt", **options)["pixel_values"].shape == (1, 3, 64, 96)
    assert image_processor.to_dict() == before
    assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], expected)
    assert VitrailImageProcessor().to_dict() == before
    with pytest.raises(TypeError):
        image_processor(image, sise=3)


def test_loading_overrides(tmp_path):
    VitrailImageProcessor().save_pretrained(tmp_path)
    loaded, unused = VitrailImageProcessor.from_pretrained(
        tmp_path, backend="torch", size={"shortest_edge": 300}, color="blue", return_unused_kwargs=True
    )
    assert (loaded.backend, loaded.size, loaded.crop_size) == ("torch", {"shortest_edge": 300}, {"height": 224, "width": 224})
    assert unused["color"] == "blue"
    assert VitrailImageProcessorTorch().backend == "torch"
    by_auto_class = VitrailImageProcessorTorch.from_pretrained(tmp_path)
    assert type(by_auto_class) is VitrailImageProcessor
    assert by_auto_class.to_dict() == VitrailImageProcessor(backend="torch").to_dict()
    assert by_auto_class.to_dict() != VitrailImageProcessor().to_dict()


def test_a_filter_by_name():
    image_processor = VitrailImageProcessor()
    expected = image_processor(photograph(), resample=2, return_tensors="pt")["pixel_values"]
    assert torch.equal(image_processor(photograph(), resample="bilinear", return_tensors="pt")["pixel_values"], expected)
    assert VitrailImageProcessor(resample="bilinear").to_dict()["resample"] == 2
    with pytest.raises(ValueError, match='found resample="cubic"; write a filter of Pillow'):
        image_processor(photograph(), resample="cubic")


@pytest.mark.parametrize("size", [384, [384, 384], {"height": 384, "width": 384}])
def test_files_of_transformers_vit_squash_and_do_not_crop(size):
    options = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "feature_extractor_type": "x"}
    loaded = VitrailImageProcessor.from_dict(options)
    assert loaded(photograph(), return_tensors="pt")["pixel_values"].shape == (1, 3, 384, 384)
    assert loaded.size == {"height": 384, "width": 384}
    cropped = VitrailImageProcessor.from_dict(options | {"size": 256, "do_center_crop": True, "crop_size": 224})
    assert cropped(photograph(), return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)


def test_the_file_stands_alone():
    """It is uploaded next to the model: nothing relative, nothing of the package, no torchvision."""
    tree = ast.parse(Path(image_processing_vit.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module or "." if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert not [node for node in imports if isinstance(node, ast.ImportFrom) and node.level]
    assert not [name for name in names if name.split(".")[0] in ("vitrail", "torchvision")]
