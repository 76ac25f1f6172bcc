from functools import partial

import numpy as np
import pytest
from PIL import Image

import paths
import vitrail
from small_models import tiny_model
from vitrail.errors import VitrailError
from vitrail.processing.resizing import at_size, keep_aspect
from vitrail.visualization import fonts
from vitrail.visualization.pictures import HEAT_COLORS, HEAT_OPACITY, contact_sheet, heat_map, overlay

PHOTO = paths.IMAGES / "chelsea.jpg"  # 451 x 300 pixels


def prepared(processor, **options):
    return processor(PHOTO, return_tensors="pt", **options)["pixel_values"][0]


@pytest.mark.parametrize("preset", ["dino", "dinov2", "google", "dino-hub"])
def test_at_size_is_the_preset_of_that_size(preset):
    """The presets scale by themselves: an image processor that was made for 480 pixels is the expected one."""
    scaled = at_size(vitrail.make_image_processor(preset), (16, 16), 480)
    assert scaled.to_dict() == vitrail.make_image_processor(preset, image_size=480).to_dict()
    assert prepared(scaled).shape == (3, 480, 480)
    squashed = at_size(vitrail.make_image_processor(preset), (16, 16), (240, 480))
    expected = prepared(vitrail.make_image_processor(preset, image_size=(240, 480)))
    assert (prepared(squashed) == expected).all()


def test_at_size_where_the_crop_takes_an_odd_share():
    """timm's 0.9 of 224 is rounded in the image processor already: what is cut off differs by less than a hundredth."""
    timm = at_size(vitrail.make_image_processor("inception"), (16, 16), 480)
    assert abs(timm.size.shortest_edge / vitrail.make_image_processor("inception", image_size=480).size.shortest_edge - 1) < 0.01
    assert dict(timm.crop_size) == {"height": 480, "width": 480}


def test_at_size_where_the_aspect_is_kept():
    for preset in ("keep-aspect", "full-image"):
        processor = at_size(vitrail.make_image_processor(preset, patch_size=14), (14, 14), 448)
        assert prepared(processor).shape == (3, 448, 672)  # 448 * 451 / 300 = 673.5
        assert prepared(at_size(processor, (14, 14), (140, 280))).shape == (3, 140, 280)
    cropping = at_size(vitrail.make_image_processor("dino"), (14, 14), 448)
    assert prepared(keep_aspect(cropping, (14, 14))).shape == (3, 448, 672)


def test_at_size_of_settings_that_no_preset_has():
    squash_then_crop = vitrail.VitrailImageProcessor(size={"height": 256, "width": 256}, crop_size={"height": 224, "width": 224})
    assert dict(at_size(squash_then_crop, (16, 16), 448).size) == {"height": 512, "width": 512}
    only_crop = at_size(vitrail.VitrailImageProcessor(do_resize=False), (16, 16), 32)  # from now on it resizes, too
    assert (prepared(only_crop) == prepared(vitrail.VitrailImageProcessor(size={"shortest_edge": 32}, crop_size=32))).all()
    without_crop = vitrail.VitrailImageProcessor(size={"shortest_edge": 224}, do_center_crop=False)
    assert prepared(at_size(without_crop, (16, 16), 320)).shape == (3, 320, 480)
    unnormalized = at_size(vitrail.VitrailImageProcessor(do_normalize=False, resample=2), (16, 16), 32)
    assert (unnormalized.do_normalize, unnormalized.resample) == (False, 2)


def test_a_size_that_patches_do_not_divide_is_refused_with_those_that_they_do():
    processor = vitrail.make_image_processor("dinov2")
    for size, words in (
        (480, "480x480 pixels cannot be cut into patches of 14x14: choose the size 476x476 or 490x490"),
        ((480, 490), "choose the size 476x490 or 490x490"),
        (5, "choose the size 14x14."),
    ):
        with pytest.raises(VitrailError, match=words):
            at_size(processor, (14, 14), size)
    with pytest.raises(VitrailError, match="choose the size 8x16 or 12x16"):
        at_size(processor, (4, 8), (10, 16))


def test_the_lightest_place_is_where_attention_is_largest():
    photo = Image.new("RGB", (64, 32), "black")
    attention = np.full((4, 8), 0.125, dtype=np.float32)
    attention[1, 6] = 0.25  # the patch around x = 52, y = 12
    picture = np.asarray(overlay(photo, attention)).astype(float)
    brightness = picture.sum(axis=-1)
    y, x = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (x // 8, y // 8) == (6, 1)
    np.testing.assert_allclose(picture[0, 0], HEAT_COLORS[0] * HEAT_OPACITY, atol=1)
    assert (
        np.asarray(overlay(Image.new("RGB", (64, 32), "white"), attention))[0, 0].min() > picture[0, 0].min()
    )  # the photo is seen


def test_a_grid_shows_each_patch_in_its_color():
    attention = np.linspace(0.2, 0.7, 6, dtype=np.float32).reshape(2, 3)
    picture = np.asarray(heat_map(Image.new("RGB", (30, 20)), attention))
    assert picture.shape == (20, 30, 3)
    for index, color in enumerate(HEAT_COLORS):
        row, column = divmod(index, 3)
        patch = picture[row * 10 : (row + 1) * 10, column * 10 : (column + 1) * 10]
        np.testing.assert_allclose(patch, np.broadcast_to(color, patch.shape), atol=1)


def test_attention_without_differences_has_a_picture():
    for value in (0, 0.1):
        picture = np.asarray(heat_map(Image.new("RGB", (8, 8)), np.full((2, 2), value, dtype=np.float32)))
        assert (picture == HEAT_COLORS[0]).all()


def test_heat_grows_lighter():
    lightness = HEAT_COLORS @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 10).all()


def cell(caption="", size=(200, 100), color=(255, 0, 0)):
    return caption, Image.new("RGB", size, color)


def places(sheet, color=(255, 0, 0)):
    """Left and top of each picture of a color on a sheet."""
    red = (np.asarray(sheet) == color).all(axis=-1)
    corners = red & ~np.roll(red, 1, axis=0) & ~np.roll(red, 1, axis=1)
    return [(int(x), int(y)) for y, x in zip(*corners.nonzero(), strict=True)]


def test_one_strip_is_cut_into_rows():
    sheet = contact_sheet([[cell() for _ in range(5)]])
    assert (np.asarray(sheet) == (255, 0, 0)).all(axis=-1).sum() == 5 * 200 * 100
    left, top = zip(*places(sheet), strict=True)
    assert left == (6, 212, 6, 212, 6)
    assert top[2] - top[0] == top[4] - top[2] > 100 + 16


def test_strips_stay_whole():
    """Side by side where the sheet would be a tower, but always one after the other; a cell without a picture keeps its place."""
    for number, length, columns in ((3, 13, 13), (12, 13, 13), (2, 2, 2), (12, 2, 4), (40, 2, 8)):
        sheet = contact_sheet([[cell(size=(200, 200))] * length] * number)
        assert (sheet.width - 6) // 206 == columns, (number, length)
    sheet = contact_sheet([[cell(), cell()], [("", None), cell()]])
    assert [left for left, _ in places(sheet)] == [6, 212, 212]


def test_pictures_of_other_shapes_fill_their_cells():
    red, blue = (255, 0, 0), (0, 0, 255)
    sheet = np.asarray(
        contact_sheet([[cell(size=(200, 100)), cell(size=(50, 100), color=blue), cell(size=(400, 200), color=blue)]])
    )
    assert (sheet == red).all(axis=-1).sum() == 400 * 200  # with the aspect of the largest cell
    assert (sheet == blue).all(axis=-1).sum() == 100 * 200 + 400 * 200


def test_small_pictures_are_enlarged_and_large_sheets_shrunk(monkeypatch):
    assert contact_sheet([[cell(size=(32, 16))]]).width == 6 + 160 + 6
    monkeypatch.setattr("vitrail.visualization.pictures.MAX_SHEET", 1_000_000)
    sheet = contact_sheet([[cell(size=(500, 250))] * 13] * 4)
    assert (sheet.width - 6) // 13 - 6 == 196  # 52 cells of 196 x 98 pixels are a million
    assert 0.98e6 < (np.asarray(sheet) == (255, 0, 0)).all(axis=-1).sum() < 1.02e6


def test_captions_can_be_read():
    """Capital letters have 11 pixels or more, and in wide sheets, which screens shrink, more; no caption reaches the next cell."""
    for columns, size in ((2, (40, 40)), (2, (224, 224)), (13, (224, 224)), (2, (600, 400))):
        white = Image.new("RGB", size, "white")
        sheet = contact_sheet([[("H" * 200, white)] + [("", white)] * (columns - 1)] * 2)
        ink = np.asarray(sheet.convert("L"))[: sheet.height // 2] < 128
        rows, columns = ink.any(axis=1).nonzero()[0], ink.any(axis=0).nonzero()[0]
        assert rows[-1] - rows[0] + 1 >= max(11, 0.005 * sheet.width)
        assert 6 + 0.8 * size[0] < columns[-1] <= 6 + max(size[0], 160)


def test_captions_of_any_script_are_drawn_or_escaped(monkeypatch):
    caption, font = fonts.caption_font("é ñ", 16)
    assert caption in ("é ñ", "\\xe9 \\xf1")
    assert caption.isascii() or bytes(font.getmask("é")) != bytes(font.getmask("ñ"))
    assert fonts.caption_font("a \U0010fffd", 16)[0] == "a \\U0010fffd"  # no font has it
    monkeypatch.setattr(fonts, "CANDIDATES", ())
    assert fonts.caption_font("é…", 16)[0] == "\\xe9\\u2026"
    assert fonts.caption_font("e…", 16)[0] == "e…"


def test_a_long_caption_keeps_both_ends():
    whole, middle_left_out = (
        np.asarray(contact_sheet([[(f"one end {middle} another", Image.new("RGB", (200, 50), "white"))]]))
        for middle in ("…", "-" * 99)
    )
    assert (whole[:, :60] == middle_left_out[:, :60]).all()
    ink = [(sheet < 128).any(axis=(0, 2)).nonzero()[0] for sheet in (whole, middle_left_out)]
    last_letters = [
        sheet[:30, columns[-1] - 40 : columns[-1] + 1] for sheet, columns in zip((whole, middle_left_out), ink, strict=True)
    ]
    assert np.abs(last_letters[0].astype(int) - last_letters[1]).mean() < 20  # letters may begin at other fractions of a pixel


@pytest.mark.parametrize(
    "plot",
    [vitrail.plot_attention, vitrail.plot_pca, partial(vitrail.plot_patch_similarity, points=[(30, 20)])],
    ids=["attention", "pca", "similarity"],
)
def test_pictures_on_cuda_as_on_the_cpu(plot, cuda):
    image_processor = vitrail.make_image_processor("dino", image_size=32)
    (expected, *_), (found, *_) = (plot(tiny_model().to(device), image_processor, [PHOTO]) for device in ("cpu", cuda))
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=0.02)
