"""What is extracted: the numbers that a classifier reads, of the views that are asked for."""

import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from small_models import make_images, make_model
from vitrail.errors import VitrailError
from vitrail.features.token_features import ImageViews, extract_chunks, extract_parts, parts_programs
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel
from vitrail.processing.augmentation import rng_of, training_view
from vitrail.processing.presets import make_image_processor

BICUBIC = Image.Resampling.BICUBIC
SIZES = ((20, 20), (31, 17), (16, 24), (40, 33), (20, 20))


def encode(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def photo(row, size):
    return Image.fromarray(np.random.default_rng(row).integers(256, size=(*size, 3), dtype=np.uint8))


def make_dataset(contents):
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(contents)]
    return datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(len(images))]}, features=features)


@pytest.fixture
def photos():
    return make_dataset([encode(photo(row, size)) for row, size in enumerate(SIZES)])


@pytest.fixture
def vit():
    return make_model(ViTModel, "absolute", image_size=16)


@pytest.fixture
def image_processor():
    return make_image_processor("dino", image_size=16)


def views_of(dataset, image_processor, views=0, seed=0):
    return ImageViews(dataset, image_processor, views=views, seed=seed, resample=BICUBIC)


def extract(vit, images, chunks=None, **changes):
    options = {"batch_size": 2, "num_workers": 0, "advance": lambda rows: None, **changes}
    return list(extract_chunks(parts_programs(vit, 2), images, chunks or [range(len(images))], **options))


def read_by_classifier(model, pixel_values):
    """What reaches the last linear layer of a model."""
    read = []
    handle = model.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(pixel_values)
    handle.remove()
    return read[0]


@pytest.mark.parametrize("name", ["absolute", "registers", "swiglu", "residual_post", "relative_mlp_shared"])
@pytest.mark.parametrize(("layers", "mean_patch"), [(1, True), (2, False), (3, True)])
def test_parts_are_what_a_classifier_of_tokens_reads(name, layers, mean_patch):
    model = make_model(ViTForImageClassification, name, classifier_cls_layers=layers, classifier_mean_patch=mean_patch)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        parts = extract_parts(model.vit, pixel_values, num_cls_layers=3)
        alone = extract_parts(model.vit, pixel_values, num_cls_layers=layers)
    assert parts.shape == (2, 4, 32)
    expected = read_by_classifier(model, pixel_values)
    torch.testing.assert_close(parts[:, 3 - layers : 3 + mean_patch].flatten(1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[:, : layers + mean_patch].flatten(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["no_cls", "relative_table", "relative_table_shared", "google", "no_cls_position"])
def test_the_one_part_of_other_models_is_what_their_classifier_reads(name):
    model = make_model(ViTForImageClassification, name)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        parts = extract_parts(model.vit, pixel_values, num_cls_layers=0)
    assert parts.shape == (2, 1, model.config.classifier_input_size)
    torch.testing.assert_close(parts.flatten(1), read_by_classifier(model, pixel_values), rtol=0, atol=1e-6)


def test_parts_of_a_bfloat16_model_are_its_own_in_float32():
    model = make_model(ViTForImageClassification, "several_cls_mean_patch").to(torch.bfloat16)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        parts = extract_parts(model.vit, pixel_values, num_cls_layers=2)
    assert parts.dtype == torch.float32
    assert torch.equal(parts.flatten(1), read_by_classifier(model, pixel_values).float())


def test_each_draw_depends_on_seed_view_and_row_alone(photos, image_processor):
    row, pixel_values = views_of(photos, image_processor, views=3, seed=7)[1]
    assert row == 1
    for view in range(3):
        expected = training_view(photo(1, SIZES[1]), image_processor, rng_of(7, view, 1), resample=BICUBIC)
        assert torch.equal(pixel_values[view], expected)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(pixel_values, 2))


def test_one_view_is_the_image_processors(photos, image_processor):
    _, pixel_values = views_of(photos, image_processor)[3]
    assert torch.equal(pixel_values, image_processor(photo(3, SIZES[3]), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1}, {"batch_size": 2}, {"batch_size": 100}, {"num_workers": 2}, {"chunks": [range(3), range(3, 5)]}]
)
def test_features_of_a_row_are_the_same_however_rows_are_divided(vit, photos, image_processor, changes):
    images = views_of(photos, image_processor, views=3)
    chunks = extract(vit, images, **changes)
    np.testing.assert_array_equal(np.concatenate([chunk.rows for chunk in chunks]), range(5))
    parts = np.concatenate([chunk.parts for chunk in chunks], axis=1)
    assert parts.shape == (3, 5, 3, 32)
    with torch.no_grad():
        expected = [extract_parts(vit, images[row][1], num_cls_layers=2) for row in range(5)]
    np.testing.assert_allclose(parts.swapaxes(0, 1), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "passes", "rows"), [(2, [2, 1] * 5, [1] * 5), (7, [6, 6, 3], [2, 2, 1]), (99, [15], [5])])
def test_the_model_runs_once_for_each_view_in_full_batches(vit, photos, image_processor, batch_size, passes, rows):
    ran, done = [], []
    vit.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
    extract(vit, views_of(photos, image_processor, views=3), batch_size=batch_size, advance=done.append)
    assert ran == passes
    assert done == rows


def test_images_of_several_shapes_stay_in_order(vit, photos):
    images = views_of(photos, make_image_processor("keep-aspect", image_size=16, patch_size=4))
    assert len({images[row][1].shape for row in range(5)}) > 2
    (chunk,) = extract(vit, images, batch_size=5)
    np.testing.assert_array_equal(chunk.rows, range(5))
    for row in range(5):
        with torch.no_grad():
            expected = extract_parts(vit, images[row][1], num_cls_layers=2)[0]
        np.testing.assert_allclose(chunk.parts[0, row], expected, atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_left_out_and_listed(vit, image_processor, num_workers):
    good = encode(photo(0, (20, 20)))
    below_zero = encode(Image.fromarray(np.full((20, 20), -5, dtype=np.int32)), "TIFF")
    dataset = make_dataset([b"", good, good[: len(good) // 2], b"<html>not found</html>", below_zero, good])
    (chunk,) = extract(vit, views_of(dataset, image_processor), num_workers=num_workers)
    np.testing.assert_array_equal(chunk.rows, [1, 5])
    assert chunk.parts.shape[:2] == (1, 2)
    assert [(image.row, image.path) for image in chunk.bad] == [(row, f"{row}.png") for row in (0, 2, 3, 4)]
    for image, word in zip(chunk.bad, ("empty", "truncated", "no such format", "-5"), strict=True):
        assert word in image.reason


def test_a_range_without_good_images(vit, image_processor):
    chunks = extract(vit, views_of(make_dataset([b"", encode(photo(0, (20, 20)))]), image_processor), [range(1), range(1, 2)])
    assert [chunk.parts.shape for chunk in chunks] == [(1, 0, 3, 32), (1, 1, 3, 32)]


def test_settings_that_fit_no_image_are_not_the_images_fault(photos):
    with pytest.raises(VitrailError, match="size"):
        views_of(photos, make_image_processor("full-image", patch_size=4), views=1)[0]


def test_torchs_own_random_numbers_are_left_alone(vit, photos, image_processor):
    before = torch.get_rng_state()
    extract(vit, views_of(photos, image_processor, views=2))
    assert torch.equal(torch.get_rng_state(), before)
