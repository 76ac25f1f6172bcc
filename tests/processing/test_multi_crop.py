"""DINO's augmentation against torchvision's transforms of Pillow images.

`golden/augmentation.safetensors` was made once with torchvision 0.28 and Pillow 13 by this script, from the tables below:

    from torchvision.transforms import functional as F

    def view(image, draw):  # in the order of facebookresearch/dino, main_dino.py, class DataAugmentationDINO
        left, top, right, bottom = draw.box
        image = F.resized_crop(image, top, left, bottom - top, right - left, [draw.size] * 2, F.InterpolationMode.BICUBIC)
        image = F.hflip(image) if draw.mirrored else image
        for name, factor in draw.jitter:
            image = getattr(F, f"adjust_{name}")(image, factor)
        image = F.rgb_to_grayscale(image, num_output_channels=len(image.getbands())) if draw.grayscale else image
        image = image.filter(ImageFilter.GaussianBlur(draw.blur_radius)) if draw.blur_radius is not None else image
        return F.solarize(image, draw.solarize_threshold) if draw.solarize_threshold is not None else image

    photo = Image.open("astronaut.jpg").crop((128, 352, 256, 448))
    levels = {"photo": np.array(photo)}
    for mode in ("RGB", "L"):
        image = photo.convert(mode)
        for name, factors in FACTORS.items():
            for factor in factors:
                levels[f"{mode}/{name}/{factor}"] = np.array(getattr(F, f"adjust_{name}")(image.crop(PART), factor))
        for name, draw in DRAWS.items():
            levels[f"{mode}/{name}"] = np.array(view(image, draw))
    tensors = {name: torch.from_numpy(array) for name, array in levels.items()}
    all_steps = F.to_tensor(view(photo, DRAWS["all steps"]))
    tensors["pixel_values"] = F.normalize(all_steps, IMAGENET_MEAN, IMAGENET_STD)
    save_file(tensors, "augmentation.safetensors")
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

import paths
import vitrail
from vitrail.processing import multi_crop as module
from vitrail.processing.augmentation import rng_of
from vitrail.processing.color_ops import JITTER, adjust_hue
from vitrail.processing.multi_crop import (
    DINO_AUGMENTATION,
    CropAugmentation,
    CropDraw,
    MultiCropAugmentation,
    draw_crops,
    make_crop,
    make_crops,
)
from vitrail.processing.presets import IMAGENET_MEAN, IMAGENET_STD

GOLDEN = load_file(paths.GOLDEN / "augmentation.safetensors")
PHOTO = Image.fromarray(GOLDEN["photo"].numpy())  # 128 x 96
PART = (40, 20, 80, 60)
FACTORS = {
    "brightness": (0.0, 0.613, 1.387),
    "contrast": (0.0, 0.613, 1.387),
    "saturation": (0.0, 0.807, 1.193),
    "hue": (-0.5, -0.0971, 0.0, 0.0013, 0.0971),
}
DRAWS = {
    "resized up": CropDraw((30, 10, 61, 45), 40),
    "resized down": CropDraw((3, 0, 128, 94), 32),
    "of its size": CropDraw((40, 20, 72, 52), 32),
    "mirrored": CropDraw((30, 10, 61, 45), 32, mirrored=True),
    "greyscale": CropDraw((20, 0, 128, 90), 32, grayscale=True),
    "blurred a little": CropDraw((20, 0, 128, 90), 32, blur_radius=0.1),
    "blurred": CropDraw((20, 0, 128, 90), 32, blur_radius=1.937),
    "greyscale, blurred": CropDraw((20, 0, 128, 90), 32, grayscale=True, blur_radius=0.871),
    "solarized": CropDraw((20, 0, 128, 90), 32, solarize_threshold=128),
    "solarized above 60": CropDraw((20, 0, 128, 90), 32, solarize_threshold=60),
    "jitter": CropDraw(
        (20, 0, 128, 90), 32, jitter=(("hue", 0.071), ("contrast", 1.31), ("saturation", 0.84), ("brightness", 0.7))
    ),
    "all steps": CropDraw(
        (9, 7, 120, 91),
        40,
        mirrored=True,
        jitter=(("brightness", 1.22), ("saturation", 1.17), ("hue", -0.083), ("contrast", 0.69)),
        blur_radius=0.533,
        solarize_threshold=128,
    ),
    "all steps, greyscale": CropDraw(
        (9, 7, 120, 91),
        32,
        mirrored=True,
        jitter=(("contrast", 0.69), ("hue", 0.093), ("brightness", 1.22), ("saturation", 1.17)),
        grayscale=True,
        blur_radius=1.533,
        solarize_threshold=128,
    ),
}
SMALL = MultiCropAugmentation(
    global_crops=(CropAugmentation(24, (0.4, 1.0), 1.0), CropAugmentation(24, (0.4, 1.0), 0.1, 0.2)),
    local_crop=CropAugmentation(16, (0.05, 0.4), 0.5),
    num_local_crops=3,
)
NORMALIZATION = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


# --- the numbers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("name", "factor"), [(name, factor) for name, factors in FACTORS.items() for factor in factors])
def test_changes_of_color_equal_torchvision_bit_for_bit(mode, name, factor):
    changed = JITTER[name](PHOTO.convert(mode).crop(PART), factor)
    assert changed.mode == mode
    np.testing.assert_array_equal(np.asarray(changed), GOLDEN[f"{mode}/{name}/{factor}"])


@pytest.mark.parametrize("factor", [0.0, -0.0971, 0.4])
def test_every_hue_saturation_and_value_comes_back_as_by_pillow(monkeypatch, factor):
    """Over all 2**24 colors of HSV, of which an image in RGB reaches only some."""
    monkeypatch.setattr(Image.Image, "convert", lambda image, mode: image)
    colors = np.stack(np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3), axis=-1).reshape(4096, 4096, 3)
    changed = adjust_hue(Image.fromarray(colors), factor)
    monkeypatch.undo()
    colors[..., 0] += np.array(int(factor * 255)).astype(np.uint8)  # overflows as torchvision's
    assert changed.tobytes() == Image.frombytes("HSV", (4096, 4096), colors.tobytes()).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", DRAWS)
def test_views_equal_torchvision_bit_for_bit(mode, name):
    """A view in L stands for one in RGB whose channels are equal."""
    expected = GOLDEN[f"{mode}/{name}"].numpy()
    view = make_crop(PHOTO.convert(mode), DRAWS[name])
    assert view.mode == ("L" if mode == "L" or DRAWS[name].grayscale else "RGB")
    np.testing.assert_array_equal(np.asarray(view.convert(mode)), expected)


def drawn(monkeypatch, name, num_local_crops=0):
    """SMALL, of which all views are drawn as one of DRAWS."""
    monkeypatch.setattr(module, "draw_crops", lambda augmentation, *_: [DRAWS[name] for _ in augmentation.crops])
    crop = CropAugmentation(DRAWS[name].size, (0.4, 1.0))
    return dataclasses.replace(SMALL, global_crops=(crop, crop), local_crop=crop, num_local_crops=num_local_crops)


def test_pixel_values_equal_torchvision_bit_for_bit(monkeypatch):
    global_crops, local_crops = make_crops(PHOTO, drawn(monkeypatch, "all steps", 1), None, **NORMALIZATION)
    for view in (*global_crops, *local_crops):
        assert view.equal(GOLDEN["pixel_values"])


@pytest.mark.parametrize("name", ["jitter", "all steps, greyscale"])
@pytest.mark.parametrize(("mode", "mean", "std"), [("RGB", IMAGENET_MEAN, IMAGENET_STD), ("L", (0.45,), (0.23,))])
def test_pixel_values_have_the_channels_of_the_model(monkeypatch, name, mode, mean, std):
    global_crops, _ = make_crops(PHOTO, drawn(monkeypatch, name), None, mean=mean, std=std, num_channels=len(mean))
    levels = np.atleast_3d(GOLDEN[f"{mode}/{name}"].numpy())
    assert global_crops.shape == (2, len(mean), 32, 32)
    np.testing.assert_allclose(global_crops[0].permute(1, 2, 0), (levels / 255 - mean) / std, atol=1e-6)


# --- what is drawn -------------------------------------------------------------------------------------------------------------


def draws_of(count, augmentation=DINO_AUGMENTATION, side=2000):
    """Return the draws of this number of images for each kind of view: two lists for large views and one for small views."""
    rng = np.random.default_rng(0)
    images = [list(draw_crops(augmentation, side, side, rng)) for _ in range(count)]
    return [draws[0] for draws in images], [draws[1] for draws in images], [draw for draws in images for draw in draws[2:]]


@pytest.fixture(scope="module")
def many():
    return draws_of(1500)


def assert_probability(events, probability):
    events = list(events)
    assert stats.binomtest(sum(events), len(events), probability).pvalue > 0.001


def assert_uniform(values, low, high):
    assert low <= min(values) <= max(values) <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_the_preset_is_the_published_one():
    """facebookresearch/dino, main_dino.py, read as numbers."""
    assert dataclasses.asdict(DINO_AUGMENTATION) == {
        "global_crops": (
            {"size": 224, "scale": (0.4, 1.0), "blur_probability": 1.0, "solarize_probability": 0.0},
            {"size": 224, "scale": (0.4, 1.0), "blur_probability": 0.1, "solarize_probability": 0.2},
        ),
        "local_crop": {"size": 96, "scale": (0.05, 0.4), "blur_probability": 0.5, "solarize_probability": 0.0},
        "num_local_crops": 8,
        "ratio": (3 / 4, 4 / 3),
        "flip_probability": 0.5,
        "jitter_probability": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
        "hue": 0.1,
        "grayscale_probability": 0.2,
        "blur_radius": (0.1, 2.0),
        "solarize_threshold": 128,
    }


@pytest.mark.parametrize("kind", range(3))
def test_steps_are_as_frequent_as_published(many, kind):
    draws = many[kind]
    assert len(draws) == (1500, 1500, 8 * 1500)[kind]
    assert {draw.size for draw in draws} == {(224, 224, 96)[kind]}
    assert_probability((draw.mirrored for draw in draws), 0.5)
    assert_probability((draw.jitter != () for draw in draws), 0.8)
    assert_probability((draw.grayscale for draw in draws), 0.2)
    assert_probability((draw.blur_radius is not None for draw in draws), (1.0, 0.1, 0.5)[kind])
    assert_probability((draw.solarize_threshold is not None for draw in draws), (0.0, 0.2, 0.0)[kind])
    assert {draw.solarize_threshold for draw in draws} <= {None, 128}


def test_steps_are_independent(many):
    steps = [(draw.mirrored, draw.jitter != (), draw.grayscale, draw.blur_radius is not None) for draw in many[2]]
    assert np.abs(np.corrcoef(np.array(steps, float), rowvar=False) - np.eye(4)).max() < 0.03


def test_strengths_are_uniform(many):
    jitter = [dict(draw.jitter) for draw in many[2] if draw.jitter]
    bounds = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    assert all(factors.keys() == bounds.keys() for factors in jitter)
    for name, (low, high) in bounds.items():
        assert_uniform([factors[name] for factors in jitter], low, high)
    assert_uniform([draw.blur_radius for draw in many[2] if draw.blur_radius is not None], 0.1, 2.0)


def test_every_order_is_as_likely(many):
    orders = [tuple(name for name, _ in draw.jitter) for draw in many[2] if draw.jitter]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_areas_are_within_the_scale_of_each_kind(many):
    """Up to half of the area every aspect fits a square, so that areas stay uniform; larger ones are the rarer."""
    areas = [[(right - left) * (bottom - top) / 2000**2 for left, top, right, bottom in (d.box for d in kind)] for kind in many]
    assert_uniform([area for area in areas[2] if 0.05 <= area <= 0.4], 0.05, 0.4)
    for shares, (low, high) in zip(areas, [(0.4, 1.0), (0.4, 1.0), (0.05, 0.4)], strict=True):
        assert low - 0.001 < min(shares) < low + 0.01
        assert high - 0.1 < max(shares) <= high + 0.001


def test_aspects_are_within_the_ratio():
    narrow = dataclasses.replace(SMALL, ratio=(0.5, 0.6))
    for kind in draws_of(100, narrow):
        assert all(0.49 < (d.box[2] - d.box[0]) / (d.box[3] - d.box[1]) < 0.61 for d in kind)


def test_a_factor_is_never_below_0():
    strong = dataclasses.replace(SMALL, brightness=3.0, jitter_probability=1.0)
    factors = [dict(draw.jitter)["brightness"] for draw in draws_of(400, strong)[2]]
    assert_uniform(factors, 0.0, 4.0)


def test_a_strength_of_0_leaves_the_operation_out():
    still = dataclasses.replace(SMALL, hue=0.0, contrast=0, jitter_probability=1)
    assert all(dict(draw.jitter).keys() == {"brightness", "saturation"} for draw in draws_of(20, still)[2])
    calm = dataclasses.replace(SMALL, brightness=0, contrast=0, saturation=0, hue=0)
    assert not any(draw.jitter for draw in draws_of(20, calm)[2])


def test_a_probability_changes_nothing_else():
    without = dataclasses.replace(SMALL, flip_probability=0, jitter_probability=0)
    pairs = zip(draws_of(20, SMALL)[2], draws_of(20, without)[2], strict=True)
    assert all(dataclasses.replace(one, mirrored=False, jitter=()) == other for one, other in pairs)


def test_draws_stay_what_they_are():
    """A run that is resumed draws what it would have drawn."""
    draw = next(draw_crops(DINO_AUGMENTATION, 640, 480, rng_of(1, 2, 3)))
    names, factors = zip(*draw.jitter, strict=True)
    assert draw.box == (280, 25, 625, 429)
    assert names == ("hue", "saturation", "contrast", "brightness")
    assert factors == pytest.approx((-0.07200677674242398, 0.9106593175936614, 1.0232590867912874, 1.299186783257849), abs=1e-12)
    assert draw.blur_radius == pytest.approx(0.11200282198608218, abs=1e-12)
    assert (draw.mirrored, draw.grayscale, draw.solarize_threshold) == (False, True, None)


# --- views ---------------------------------------------------------------------------------------------------------------------


def test_a_view_depends_on_seed_view_and_row_alone():
    views = {numbers: make_crops(PHOTO, SMALL, rng_of(*numbers), **NORMALIZATION) for numbers in [(0, 0, 0), (0, 0, 1), (0, 1, 0)]}
    for numbers, (global_crops, local_crops) in views.items():
        again = make_crops(PHOTO, SMALL, rng_of(*numbers), **NORMALIZATION)
        assert again[0].equal(global_crops)
        assert again[1].equal(local_crops)
    assert len({crops[0].sum().item() for crops in views.values()}) == 3


def test_views_of_an_image_differ():
    global_crops, local_crops = make_crops(PHOTO, SMALL, rng_of(0, 0, 0), **NORMALIZATION)
    assert not global_crops[0].equal(global_crops[1])
    assert len({crop.sum().item() for crop in local_crops}) == 3


@pytest.mark.parametrize(("num_local_crops", "num_channels"), [(8, 3), (2, 1), (0, 3)])
def test_shapes(num_local_crops, num_channels):
    augmentation = dataclasses.replace(DINO_AUGMENTATION, num_local_crops=num_local_crops)
    normalization = {"mean": [0.5] * num_channels, "std": [0.5] * num_channels}
    crops = make_crops(PHOTO, augmentation, rng_of(0, 0, 0), **normalization, num_channels=num_channels)
    assert [tuple(crop.shape) for crop in crops] == [
        (2, num_channels, 224, 224),
        (num_local_crops, num_channels, 96, 96),
    ]
    assert all(crop.dtype == torch.float32 and crop.is_contiguous() for crop in crops)
    assert all(-1 <= crop.min() < crop.max() <= 1 for crop in crops if len(crop))


def test_an_image_smaller_than_the_views():
    digit = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    for row in range(20):
        global_crops, local_crops = make_crops(digit, SMALL, rng_of(0, 0, row), **NORMALIZATION)
        assert global_crops.shape == (2, 3, 24, 24)
        assert local_crops.shape == (3, 3, 16, 16)
    single = make_crops(digit.resize((1, 1)), SMALL, rng_of(0, 0, 0), **NORMALIZATION)
    assert all(crop.isfinite().all() for crop in single)


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "CMYK", "1", "L"])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_images_of_any_mode(mode, num_channels):
    image = PHOTO.convert(mode)
    normalization = {"mean": [0.5] * num_channels, "std": [0.5] * num_channels, "num_channels": num_channels}
    expected = make_crops(image.convert("L" if num_channels == 1 else "RGB"), SMALL, rng_of(0, 0, 0), **normalization)
    for crops, known in zip(make_crops(image, SMALL, rng_of(0, 0, 0), **normalization), expected, strict=True):
        assert crops.equal(known)


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(("factor", "dtype"), [(257, np.uint16), (257, np.int32), (1 / 255, np.float32)])
def test_16_bits_and_floats_are_rounded_to_8(factor, dtype, num_channels):
    levels = np.asarray(PHOTO.convert("L"))
    normalization = {"mean": [0.5] * num_channels, "std": [0.5] * num_channels, "num_channels": num_channels}
    expected = make_crops(Image.fromarray(levels), SMALL, rng_of(0, 0, 0), **normalization)
    image = Image.fromarray((levels * np.float64(factor)).astype(dtype))
    assert image.mode in ("I;16", "I", "F")
    for crops, known in zip(make_crops(image, SMALL, rng_of(0, 0, 0), **normalization), expected, strict=True):
        assert crops.equal(known)


def test_the_image_stays_as_it_is():
    image = PHOTO.copy()
    make_crops(image, SMALL, rng_of(0, 0, 0), **NORMALIZATION)
    assert image == PHOTO


# --- settings ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [DINO_AUGMENTATION, SMALL])
def test_json_round_trip(augmentation):
    written = json.dumps(dataclasses.asdict(augmentation))
    assert MultiCropAugmentation.from_dict(json.loads(written)) == augmentation
    assert MultiCropAugmentation.from_dict(dataclasses.asdict(augmentation)) == augmentation
    changed = dataclasses.replace(augmentation, hue=0.25, ratio=(0.5, 2.0))
    assert MultiCropAugmentation.from_dict(json.loads(json.dumps(dataclasses.asdict(changed)))) == changed


def test_what_json_leaves_out_is_the_default():
    values = dataclasses.asdict(SMALL)
    assert MultiCropAugmentation.from_dict({"global_crops": values["global_crops"], "local_crop": values["local_crop"]}) == (
        dataclasses.replace(SMALL, num_local_crops=8)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tint": 1}, "found tint in a MultiCropAugmentation; it has global_crops, "),
        ({"local_crop": {"size": 96, "scale": [0.05, 0.4], "blur": 1}}, "found blur in a CropAugmentation; it has size, "),
        ({"local_crop": {"size": 96}}, "missing 1 required positional argument: 'scale'"),
        ({"local_crop": 96}, "found 96 in place of a CropAugmentation"),
        ({"global_crops": []}, "found 0 global_crops"),
    ],
)
def test_json_that_does_not_fit(change, message):
    with pytest.raises(vitrail.VitrailError, match=message):
        MultiCropAugmentation.from_dict({**dataclasses.asdict(SMALL), **change})


@pytest.mark.parametrize(
    ("field", "value", "write"),
    [
        ("num_local_crops", -1, "a whole number of at least 0"),
        ("num_local_crops", 8.0, "a whole number of at least 0"),
        ("solarize_threshold", "128", "a whole number of at least 0"),
        ("ratio", (4 / 3, 3 / 4), "two numbers"),
        ("ratio", 1.0, "two numbers"),
        ("blur_radius", (0.0, 2.0), "two numbers (low, high), from above 0 upwards"),
        ("blur_radius", (0.1, 1.0, 2.0), "two numbers"),
        ("flip_probability", 1.5, "a number from 0 to 1"),
        ("jitter_probability", -0.1, "a number from 0 to 1"),
        ("grayscale_probability", float("nan"), "a number from 0 to 1"),
        ("brightness", -0.4, "a number from 0 upwards"),
        ("contrast", "0.4", "a number from 0 upwards"),
        ("saturation", None, "a number from 0 upwards"),
        ("hue", 0.6, "a number from 0 to 0.5"),
    ],
)
def test_augmentations_that_do_not_fit(field, value, write):
    with pytest.raises(vitrail.VitrailError) as caught:
        dataclasses.replace(SMALL, **{field: value})
    assert str(caught.value).startswith(f"found {field}={value!r}; write {write}")


@pytest.mark.parametrize(
    ("field", "value", "write"),
    [
        ("size", 0, "a whole number of at least 1"),
        ("size", 96.0, "a whole number of at least 1"),
        ("scale", (0.4, 0.05), "two numbers"),
        ("scale", (0.0, 0.4), "two numbers"),
        ("scale", (0.4, 1.1), "two numbers (low, high), from above 0 to 1"),
        ("blur_probability", 2, "a number from 0 to 1"),
        ("solarize_probability", -1, "a number from 0 to 1"),
    ],
)
def test_crops_that_do_not_fit(field, value, write):
    with pytest.raises(vitrail.VitrailError) as caught:
        dataclasses.replace(SMALL.local_crop, **{field: value})
    assert str(caught.value).startswith(f"found {field}={value!r}; write {write}")


def test_large_views_are_two_of_one_size():
    crop, other = SMALL.global_crops[0], SMALL.local_crop
    for crops, found in [((crop, other), r"2 global_crops, of the sizes \[24, 16\]"), ((crop,) * 3, "3 global_crops")]:
        with pytest.raises(vitrail.VitrailError, match=found):
            dataclasses.replace(SMALL, global_crops=crops)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,) * 4, "std": (0.5,) * 4, "num_channels": 4}, r"found num_channels=4; .* 3 \(RGB\) and 1 \(grayscale\)"),
        ({"mean": (0.5,), "std": (0.5,)}, r"found mean=\(0.5,\) and std=\(0.5,\) with num_channels=3; write 3 numbers"),
        ({"mean": (0.5,), "std": (0.5,) * 3, "num_channels": 1}, "write 1 numbers"),
    ],
)
def test_channels_that_do_not_fit(arguments, message):
    with pytest.raises(vitrail.VitrailError, match=message):
        make_crops(PHOTO, SMALL, rng_of(0, 0, 0), **arguments)


def test_images_that_do_not_fit():
    for image, message in [(Image.new("RGB", (0, 5)), "0 x 5 pixels"), (Image.new("F", (5, 5), 300), "values from 300 to 300")]:
        with pytest.raises(ValueError, match=message):
            make_crops(image, SMALL, rng_of(0, 0, 0), **NORMALIZATION)
