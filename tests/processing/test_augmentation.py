import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import paths
import vitrail
from vitrail.processing.augmentation import RATIO, random_resized_crop_box, rng_of, training_view

PHOTO = paths.IMAGES / "chelsea.jpg"
SIDE = 10_000  # so large that rounding to pixels does not show


def boxes(count, width, height, **settings):
    rng = np.random.default_rng(0)
    return np.array([random_resized_crop_box(width, height, rng, **settings) for _ in range(count)])


def sizes(drawn):
    return drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]


def test_area_aspect_and_place_are_distributed_as_defined():
    """Up to half of the area every aspect fits a square, so that nothing is drawn twice."""
    drawn = boxes(2000, SIDE, SIDE, scale=(0.08, 0.5))
    width, height = sizes(drawn)
    uniform = {
        "area": (width * height / SIDE**2 - 0.08) / 0.42,
        "aspect": (np.log(width / height) - math.log(3 / 4)) / math.log(16 / 9),
        "left": drawn[:, 0] / (SIDE - width),
        "top": drawn[:, 1] / (SIDE - height),
    }
    for name, values in uniform.items():
        assert stats.kstest(values, "uniform").pvalue > 0.01, name
    correlation = np.corrcoef(list(uniform.values())) - np.eye(4)
    assert np.abs(correlation).max() < 0.08


def test_parts_that_do_not_fit_are_drawn_again():
    """An aspect r fits a square at the area a where |log r| <= -log a: the large areas are the rarer."""
    width, height = sizes(boxes(4000, SIDE, SIDE))
    areas = np.linspace(0.08, 1, 100_001)
    fitting = np.minimum(1, -np.log(areas) / math.log(4 / 3))
    cumulative = np.cumsum(fitting) / fitting.sum()
    assert stats.kstest(width * height / SIDE**2, lambda area: np.interp(area, areas, cumulative)).pvalue > 0.01
    assert width.max() <= SIDE
    assert height.max() <= SIDE


def test_every_place_is_as_likely():
    drawn = boxes(2000, 3, 2, scale=(1 / 6, 1 / 6), ratio=(1, 1))
    counts = np.zeros((2, 3))
    np.add.at(counts, (drawn[:, 1], drawn[:, 0]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1000, 100, (433, 0, 566, 100)),  # 4:3 of the height
        (100, 1000, (0, 433, 100, 566)),  # 3:4 of the width
        (100, 100, (0, 0, 100, 100)),
        (100, 90, (0, 0, 100, 90)),
    ],
)
def test_what_never_fits_becomes_the_center(width, height, box):
    drawn = boxes(3, width, height, scale=(2, 2))
    assert {tuple(row) for row in drawn.tolist()} == {box}


def test_ten_tries():
    class Counting:
        calls = 0

        def uniform(self, low, high):
            Counting.calls += 1
            return high

    random_resized_crop_box(100, 100, Counting(), scale=(2, 2))
    assert Counting.calls == 10 * 2


def test_one_pixel_is_enough():
    assert set(map(tuple, boxes(20, 1, 1).tolist())) == {(0, 0, 1, 1)}


def test_a_draw_depends_on_seed_view_and_row_alone():
    drawn = {numbers: rng_of(*numbers).random() for numbers in np.ndindex(4, 4, 4)}
    assert len(set(drawn.values())) == 4**3
    assert all(rng_of(*numbers).random() == value for numbers, value in drawn.items())
    assert rng_of(2**32, 0, 0).random() != rng_of(0, 1, 0).random()


def test_draws_stay_what_they_are():
    """Features of augmented images are kept on disk under these three numbers, so the numbers must go on meaning the same."""
    assert rng_of(1, 2, 3).integers(2**32, size=3).tolist() == [3974119640, 384473206, 175544772]
    assert random_resized_crop_box(640, 480, rng_of(1, 2, 3)) == (410, 80, 617, 321)


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_a_view_is_the_crop_resized_mirrored_half_of_the_time(resample):
    image = Image.open(PHOTO)
    processor = vitrail.make_image_processor("dino", image_size=32)
    mirrored = []
    for row in range(60):
        box = random_resized_crop_box(*image.size, rng_of(0, 0, row))
        levels = np.asarray(image.crop(box).resize((32, 32), resample))
        expected = (levels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        view = training_view(image, processor, rng_of(0, 0, row), resample=resample).numpy().transpose(1, 2, 0)
        mirrored.append(not np.allclose(view, expected, atol=1e-5))
        np.testing.assert_allclose(view[:, ::-1] if mirrored[-1] else view, expected, atol=1e-5)
    assert stats.binomtest(sum(mirrored), len(mirrored)).pvalue > 0.01


def test_the_image_processor_converts_colors():
    """The indices of a palette are not levels of color: resizing them directly would mix them."""
    image = Image.open(PHOTO).convert("P")
    processor = vitrail.make_image_processor("dino", image_size=32)
    views = [training_view(mode, processor, rng_of(0, 0, 0)) for mode in (image, image.convert("RGB"))]
    assert views[0].equal(views[1])
    gray = vitrail.make_image_processor("dino", image_size=32, num_channels=1)
    assert training_view(image, gray, rng_of(0, 0, 0)).shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"preset": "dino", "image_size": 48}, (3, 48, 48)),
        ({"preset": "google", "image_size": (32, 48)}, (3, 32, 48)),
        ({"preset": "keep-aspect", "image_size": 50, "patch_size": 16}, (3, 48, 48)),
    ],
)
def test_a_view_has_the_size_of_the_model(settings, shape):
    assert training_view(Image.open(PHOTO), vitrail.make_image_processor(**settings), rng_of(0, 0, 0)).shape == shape


def test_without_a_size_there_is_no_view():
    processor = vitrail.make_image_processor("full-image", patch_size=16)
    with pytest.raises(vitrail.VitrailError, match="image_size=224"):
        training_view(Image.open(PHOTO), processor, rng_of(0, 0, 0))


def test_aspects_are_the_published_ones():
    width, height = sizes(boxes(500, SIDE, SIDE))
    assert RATIO[0] - 1e-3 < (width / height).min() < 0.78
    assert 1.28 < (width / height).max() < RATIO[1] + 1e-3
