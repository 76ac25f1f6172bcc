"""Images as a run reads them: the same crops for the same seed, epoch and row in every process, and other crops otherwise."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from image_folders import small_processor, write_broken, write_images
from vitrail.data.decoding import open_image
from vitrail.data.labeled import load_training_images
from vitrail.errors import UnreadableImageError, VitrailError
from vitrail.pretraining.crops import MAX_UNREADABLE, MultiCropImages
from vitrail.processing.augmentation import rng_of
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.processing.multi_crop import CropAugmentation, MultiCropAugmentation, make_crops

pytestmark = pytest.mark.usefixtures("cache_of_datasets")

GLOBAL = CropAugmentation(16, (0.4, 1.0), blur_probability=0.5)
AUGMENTATION = MultiCropAugmentation((GLOBAL, GLOBAL), CropAugmentation(8, (0.1, 0.4)), num_local_crops=3)


@pytest.fixture
def pictures(tmp_path):
    """Nine images in three folders."""
    write_images(tmp_path / "pictures", 9)
    return tmp_path / "pictures"


@pytest.fixture
def warnings_of_crops():
    """Collect the warnings that the user receives."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = transformers_logging.get_logger("vitrail.pretraining.crops")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def crops_of(folder, *, processor=None, **options):
    images = load_training_images(folder, validation_fraction=0.01)
    return MultiCropImages(images.train, processor or small_processor(), AUGMENTATION, **options)


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in ("pixel_values", "local_pixel_values"))


def one_by_one(loader):
    """The items that a loader of batches of one image gives."""
    return [{name: values[0] for name, values in batch.items()} for batch in loader]


@pytest.mark.parametrize(
    ("settings", "factor", "summand"),
    [
        ({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}, (2, 4, 5), (-1, -1.6, -1.5)),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, (2, 2, 2), (-1, -1, -1)),
        ({"do_rescale": False, "do_normalize": False}, (255, 255, 255), (0, 0, 0)),
    ],
    ids=["normalized", "to -1 to 1", "levels"],
)
def test_crops_have_the_values_of_the_image_processor(pictures, settings, factor, summand):
    plain = crops_of(pictures, processor=VitrailImageProcessor(do_normalize=False))[0]
    item = crops_of(pictures, processor=VitrailImageProcessor(**settings))[0]
    for name, values in plain.items():
        assert 0 <= values.min() < values.max() <= 1
        expected = values * torch.tensor(factor)[:, None, None] + torch.tensor(summand)[:, None, None]
        torch.testing.assert_close(item[name], expected.float(), rtol=0, atol=2e-6 * max(factor))


def test_an_item_has_the_crops_of_its_image(pictures):
    crops = crops_of(pictures, seed=5)
    crops.set_epoch(2)
    assert len(crops) == len(crops.dataset) == 6
    processor = small_processor()
    for row in range(6):
        item = crops[row]
        image = open_image(crops.dataset[row]["image"])
        global_crops, local_crops = make_crops(
            image, AUGMENTATION, rng_of(5, 2, row), mean=processor.image_mean, std=processor.image_std
        )
        assert equal(item, {"pixel_values": global_crops, "local_pixel_values": local_crops})
    assert item["pixel_values"].shape == (2, 3, 16, 16)
    assert item["local_pixel_values"].shape == (3, 3, 8, 8)
    assert item.keys() == {"pixel_values", "local_pixel_values"}


def test_seed_epoch_and_row_each_matter(pictures):
    crops = crops_of(pictures)
    first = crops[0]
    assert equal(crops[0], first)
    assert equal(crops_of(pictures)[0], first)
    assert not equal(crops_of(pictures, seed=1)[0], first)
    assert not equal(crops[1], first)
    crops.set_epoch(1)
    assert not equal(crops[0], first)
    crops.set_epoch(0)
    assert equal(crops[0], first)


def test_the_normalization_is_the_image_processors(pictures):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    plain = crops_of(pictures, processor=small_processor(do_normalize=False))[0]["pixel_values"]
    assert 0 <= plain.min() < plain.max() <= 1
    normalized = crops_of(pictures, processor=small_processor(image_mean=mean, image_std=std))[0]["pixel_values"]
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalized, expected)


def test_the_channels_are_the_image_processors(pictures):
    processor = small_processor(num_channels=1, image_mean=[0.5], image_std=[0.5])
    item = crops_of(pictures, processor=processor)[0]
    assert item["pixel_values"].shape == (2, 1, 16, 16)
    assert item["local_pixel_values"].shape == (3, 1, 8, 8)
    assert crops_of(pictures, processor=small_processor(num_channels=1, do_normalize=False))[0]["pixel_values"].shape[1] == 1


@pytest.mark.parametrize("persistent", [False, True])
def test_processes_that_read_ahead_draw_the_same_and_see_the_epoch(pictures, persistent):
    crops, here = crops_of(pictures), crops_of(pictures)
    loader = DataLoader(crops, batch_size=1, num_workers=1, persistent_workers=persistent)
    for epoch in (0, 3):
        crops.set_epoch(epoch)
        here.set_epoch(epoch)
        items = one_by_one(loader)
        assert len(items) == 6
        assert all(equal(item, here[row]) for row, item in enumerate(items))


def test_the_next_image_takes_the_place_of_one_that_cannot_be_read(pictures, warnings_of_crops):
    """The crops use the random draws of the requested row, and each image causes one warning."""
    crops = crops_of(pictures)
    intact = [crops[row] for row in range(6)]
    images = [row["image"]["path"] for row in crops.dataset]
    for row in (1, 2, 5):
        with open(images[row], "wb") as file:
            file.write(b"no image")
    for epoch in (0, 1):
        crops.set_epoch(epoch)
        items = [crops[row] for row in range(6)]
        for row, other in ((1, 3), (2, 3), (5, 0)):
            processor = small_processor()
            image = open_image(crops.dataset[other]["image"])
            expected, _ = make_crops(image, AUGMENTATION, rng_of(0, epoch, row), mean=processor.image_mean, std=processor.image_std)
            assert torch.equal(items[row]["pixel_values"], expected)
        if epoch == 0:
            assert all(equal(items[row], intact[row]) for row in (0, 3, 4))
    assert len(warnings_of_crops) == 3
    for row in (1, 2, 5):
        (message,) = [warning for warning in warnings_of_crops if images[row] in warning]
        assert message.startswith("unreadable image, replaced by the next one: cannot read the image")


def test_strict_refuses_it(pictures):
    crops = crops_of(pictures, strict=True)
    path = crops.dataset[4]["image"]["path"]
    with open(path, "wb") as file:
        file.write(b"no image")
    assert crops[3]["pixel_values"].shape == (2, 3, 16, 16)
    with pytest.raises(UnreadableImageError, match="cannot read the image") as raised:
        crops[4]
    assert raised.value.path == path


def test_an_error_in_a_process_that_reads_ahead_is_one_sentence(pictures):
    """The message omits the traceback that torch puts into it."""
    crops = crops_of(pictures, strict=True)
    path = crops.dataset[4]["image"]["path"]
    with open(path, "wb") as file:
        file.write(b"no image")
    batches = iter(DataLoader(crops, batch_size=1, num_workers=1))
    for _ in range(4):
        next(batches)
    with pytest.raises(VitrailError) as raised:
        next(batches)
    assert len(list(batches)) == 1  # so that the process ends immediately
    assert str(raised.value) == f"cannot read the image {path}: Pillow does not recognize its format"


def test_all_that_can_be_wrong_with_a_file_is_survived(pictures):
    """The broken images are in a separate folder, the first by name."""
    write_broken(pictures)
    crops = crops_of(pictures)
    assert all(crops[row]["pixel_values"].isfinite().all() for row in range(len(crops)))
    assert len(crops.reported) > 10


@pytest.mark.parametrize("number", [5, MAX_UNREADABLE + 50])
def test_a_run_in_which_nothing_can_be_read_gives_up(tmp_path, number, warnings_of_crops):
    for index in range(number):
        (tmp_path / f"{index:03d}.png").write_bytes(b"")
    crops = crops_of(tmp_path)
    expected = min(number, MAX_UNREADABLE)
    with pytest.raises(VitrailError, match=f"{expected} images in a row, from row 3 on, cannot be read"):
        crops[3]
    assert len(warnings_of_crops) == expected


def test_one_good_image_among_bad_ones_is_enough(tmp_path):
    write_images(tmp_path, 1)
    next(tmp_path.glob("*/*.jpg")).rename(tmp_path / "good.jpg")
    for index in range(9):
        (tmp_path / f"{index}.png").write_bytes(b"")
    crops = crops_of(tmp_path)
    assert len(crops) == 10
    assert all(crops[row]["pixel_values"].shape == (2, 3, 16, 16) for row in range(10))


def test_an_image_of_values_that_do_not_fit_is_a_bad_one(tmp_path):
    """The image decodes, but floats must be from 0 to 1."""
    Image.fromarray(np.full((20, 20), 7.0, np.float32)).save(tmp_path / "0.tif")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "1.png")
    images = load_training_images(tmp_path).train
    views = MultiCropImages(images, small_processor(), AUGMENTATION)[0]
    assert torch.equal(views["pixel_values"].isfinite(), torch.ones_like(views["pixel_values"], dtype=torch.bool))
    with pytest.raises(UnreadableImageError, match=r"0\.tif"):
        MultiCropImages(images, small_processor(), AUGMENTATION, strict=True)[0]


def test_other_numbers_of_channels_are_refused_immediately(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "1.png")
    processor = VitrailImageProcessor(num_channels=4, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    with pytest.raises(VitrailError, match="found num_channels=4"):
        MultiCropImages(load_training_images(tmp_path).train, processor, AUGMENTATION)
