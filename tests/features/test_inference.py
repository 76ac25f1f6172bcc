"""The loop from images to features: the numbers that a classifier reads, of the views that are requested."""

import io
import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from small_models import classifier_tokens, make_images, make_model
from vitrail.data import read_images
from vitrail.data.reader import Batch, ChunkEnd, ImageReader, Piece, TrainingViews, UnreadableEntry
from vitrail.errors import VitrailError
from vitrail.features.feature_types import classifier_features, feature_outputs
from vitrail.features.inference import run_model
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel
from vitrail.processing.augmentation import rng_of, training_view
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.processing.presets import make_image_processor
from vitrail.runtime.compiled import DEFAULT_RUNTIME, CompiledModel
from vitrail.runtime.workers import InferenceWorkers

pytestmark = pytest.mark.usefixtures("one_thread")

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


def reader_of(dataset, image_processor, views=0, seed=0, **options):
    training_views = TrainingViews(views, seed, BICUBIC) if views else None
    return ImageReader(read_images(dataset), image_processor, **{"batch_size": 2, "views": training_views, **options})


def pixel_values_of(reader, row):
    """(1, C, H, W), or (V, C, H, W) of views."""
    _, batch, _ = reader.read([Piece(0, row, row + 1)], chunk_size=1)
    return batch.pixel_values.flatten(0, -4)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"backend": "pil"}, torch.uint8),
        ({"backend": "torch"}, torch.uint8),
        ({"do_resize": False, "size_divisor": 8, "do_pad": True}, torch.float32),
    ],
)
def test_images_travel_as_levels_to_the_device_that_normalizes_them(photos, settings, dtype):
    """Padding follows the normalization, so images that are padded travel as float32."""
    image_processor = VitrailImageProcessor(**{"size": {"height": 16, "width": 16}, "do_center_crop": False, **settings})
    reader, found = reader_of(photos, image_processor), []

    def decode(function, readings):
        for decoded in map(function, readings):
            found.extend(group.pixel_values.dtype for group in decoded.groups)
            yield decoded

    arguments = ([Piece(0, 0, len(SIZES))],)
    here = [item for item in reader.read(*arguments, chunk_size=100) if isinstance(item, Batch)]
    there = reader.read(*arguments, chunk_size=100, prepare=decode, normalize_on=torch.device("cpu"))
    for expected, batch in zip(here, (item for item in there if isinstance(item, Batch)), strict=True):
        assert batch.entries == expected.entries
        assert torch.equal(batch.pixel_values, expected.pixel_values)
    assert set(found) == {dtype}


def extract(vit, reader, *, num_rows, chunk_size=100, done=None):
    """For each chunk its rows, in order, their tokens (N, V, T, D), and its unreadable images."""
    compiled = CompiledModel(
        feature_outputs(vit, classifier_features(vit.config, 2)), DEFAULT_RUNTIME, batch_size=reader.batch_size
    )
    workers = InferenceWorkers(torch.device("cpu"))
    chunks, rows, tokens, unreadable = [], [], [], []
    for item, features in run_model(compiled, reader, [Piece(0, 0, num_rows)], chunk_size=chunk_size, workers=workers):
        if isinstance(item, Batch):
            rows += [entry.row for entry in item.entries]
            layers, mean = (values if reader.views else values[:, None] for values in features)
            tokens += list(np.concatenate([layers, mean[:, :, None]], axis=2))
            if done is not None:
                done.append(len(item.entries))
        elif isinstance(item, UnreadableEntry):
            unreadable.append(item)
        elif isinstance(item, ChunkEnd):
            order = np.argsort(rows)
            chunks.append((np.array(rows, dtype=np.int64)[order], [tokens[index] for index in order], unreadable))
            rows, tokens, unreadable = [], [], []
    return chunks


def read_by_classifier(model, pixel_values):
    """Return the inputs of the last linear layer of a model."""
    read = []
    handle = model.classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(pixel_values)
    handle.remove()
    return read[0]


@pytest.mark.parametrize("name", ["absolute", "registers", "swiglu", "residual_post", "relative_mlp_shared"])
@pytest.mark.parametrize(("layers", "mean_patch"), [(1, True), (2, False), (3, True)])
def test_tokens_are_what_a_classifier_of_tokens_reads(name, layers, mean_patch):
    model = make_model(ViTForImageClassification, name, classifier_cls_layers=layers, classifier_mean_patch=mean_patch)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        tokens = classifier_tokens(model.vit, pixel_values, num_cls_layers=3)
        alone = classifier_tokens(model.vit, pixel_values, num_cls_layers=layers)
    assert tokens.shape == (2, 4, 32)
    expected = read_by_classifier(model, pixel_values)
    torch.testing.assert_close(tokens[:, 3 - layers : 3 + mean_patch].flatten(1), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(alone[:, : layers + mean_patch].flatten(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["no_cls", "relative_table", "relative_table_shared", "google", "no_cls_position"])
def test_the_one_token_of_other_models_is_what_their_classifier_reads(name):
    model = make_model(ViTForImageClassification, name)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        tokens = classifier_tokens(model.vit, pixel_values, num_cls_layers=0)
    assert tokens.shape == (2, 1, model.config.classifier_input_size)
    torch.testing.assert_close(tokens.flatten(1), read_by_classifier(model, pixel_values), rtol=0, atol=1e-6)


def test_tokens_of_a_bfloat16_model_are_its_own_in_float32():
    model = make_model(ViTForImageClassification, "several_cls_mean_patch").to(torch.bfloat16)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        tokens = classifier_tokens(model.vit, pixel_values, num_cls_layers=2)
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens.flatten(1), read_by_classifier(model, pixel_values).float())


def test_each_draw_depends_on_seed_view_and_row_alone(photos, image_processor):
    pixel_values = pixel_values_of(reader_of(photos, image_processor, views=3, seed=7), 1)
    for view in range(3):
        expected = training_view(photo(1, SIZES[1]), image_processor, rng_of(7, view, 1), resample=BICUBIC)
        assert torch.equal(pixel_values[view], expected)
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(pixel_values, 2))


def test_one_view_is_the_image_processors(photos, image_processor):
    pixel_values = pixel_values_of(reader_of(photos, image_processor), 3)
    assert torch.equal(pixel_values, image_processor(photo(3, SIZES[3]), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1}, {"batch_size": 2}, {"batch_size": 100}, {"num_workers": 2}, {"chunk_size": 3}]
)
def test_features_of_a_row_are_the_same_however_rows_are_divided(vit, photos, image_processor, changes):
    chunk_size = changes.get("chunk_size", 100)
    reader = reader_of(photos, image_processor, views=3, **{name: value for name, value in changes.items() if name != "chunk_size"})
    chunks = extract(vit, reader, num_rows=5, chunk_size=chunk_size)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _, _ in chunks]), range(5))
    tokens = np.concatenate([tokens for _, tokens, _ in chunks])
    assert tokens.shape == (5, 3, 3, 32)
    with torch.no_grad():
        expected = [classifier_tokens(vit, pixel_values_of(reader, row), num_cls_layers=2) for row in range(5)]
    np.testing.assert_allclose(tokens, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "passes", "rows"), [(2, [2, 1] * 5, [1] * 5), (7, [6, 6, 3], [2, 2, 1]), (99, [15], [5])])
def test_the_model_runs_once_for_each_view_in_full_batches(vit, photos, image_processor, batch_size, passes, rows):
    ran, done = [], []
    vit.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
    extract(vit, reader_of(photos, image_processor, views=3, batch_size=batch_size), num_rows=5, done=done)
    assert ran == passes
    assert done == rows


def test_images_of_several_shapes_stay_in_order(vit, photos):
    reader = reader_of(photos, make_image_processor("keep-aspect", image_size=16, patch_size=4), batch_size=5)
    assert len({pixel_values_of(reader, row).shape for row in range(5)}) > 2
    ((rows, tokens, _),) = extract(vit, reader, num_rows=5)
    np.testing.assert_array_equal(rows, range(5))
    for row in range(5):
        with torch.no_grad():
            expected = classifier_tokens(vit, pixel_values_of(reader, row), num_cls_layers=2)
        np.testing.assert_allclose(tokens[row], expected, atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_left_out_and_listed(vit, image_processor, num_workers):
    good = encode(photo(0, (20, 20)))
    below_zero = encode(Image.fromarray(np.full((20, 20), -5, dtype=np.int32)), "TIFF")
    dataset = make_dataset([b"", good, good[: len(good) // 2], b"<html>not found</html>", below_zero, good])
    ((rows, tokens, unreadable),) = extract(vit, reader_of(dataset, image_processor, num_workers=num_workers), num_rows=6)
    np.testing.assert_array_equal(rows, [1, 5])
    assert [values.shape for values in tokens] == [(1, 3, 32)] * 2
    assert [(image.entry.row, image.entry.path) for image in unreadable] == [(row, f"{row}.png") for row in (0, 2, 3, 4)]
    for image, word in zip(unreadable, ("empty", "truncated", "does not recognize its format", "-5"), strict=True):
        assert word in image.reason


def test_a_chunk_without_readable_images(vit, image_processor):
    reader = reader_of(make_dataset([b"", encode(photo(0, (20, 20)))]), image_processor)
    assert [rows.tolist() for rows, _, _ in extract(vit, reader, num_rows=2, chunk_size=1)] == [[], [1]]


def test_settings_that_fit_no_image_are_not_the_images_fault(photos):
    with pytest.raises(VitrailError, match="size"):
        pixel_values_of(reader_of(photos, make_image_processor("full-image", patch_size=4), views=1), 0)


def test_torchs_own_random_numbers_are_left_alone(vit, photos, image_processor):
    before = torch.get_rng_state()
    extract(vit, reader_of(photos, image_processor, views=2), num_rows=5)
    assert torch.equal(torch.get_rng_state(), before)
