"""`jpeg_draft` of an image processor holds wherever the package decodes files for it, as it does where a call is given paths; `device`
does not, because worker processes cannot use a GPU.
"""

import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from image_folders import PHOTOS, small_model, small_processor
from vitrail.data import read_images
from vitrail.data.reader import ImageReader, Piece, TrainingViews
from vitrail.evaluation.training_data import ImageRows
from vitrail.features.embedding import ImageEmbedder
from vitrail.features.extraction import extract
from vitrail.features.store import StoredFeatures
from vitrail.processing.augmentation import rng_of, training_view
from vitrail.visualization.similar import find_similar

FILES = [str(path) for path in PHOTOS]  # JPEGs of 300 pixels and more, of which the model sees 36
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture
def drafts():
    return small_processor(jpeg_draft=True)


def pooled(image_processor):
    """Return the features of each file, computed alone."""
    with torch.no_grad():
        return np.concatenate([small_model()(**image_processor(file, return_tensors="pt")).pooler_output for file in FILES])


def rows(files):
    images = [{"bytes": None, "path": file} for file in files]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return datasets.Dataset.from_dict({"image": images}, features=features)


def test_extraction_and_the_query_of_similar(drafts, tmp_path):
    extract(small_model(), drafts, read_images(PHOTOS[0].parent), tmp_path, progress=False, num_workers=0)
    stored = StoredFeatures(tmp_path)
    found = {os.path.basename(path): vector for path, vector in zip(stored.paths(), stored.vectors("pooled"), strict=True)}
    ours, full = pooled(drafts), pooled(small_processor())
    for file, vector, other in zip(FILES, ours, full, strict=True):
        np.testing.assert_allclose(found[os.path.basename(file)], vector, atol=1e-6)
        assert np.abs(vector - other).max() > 1e-4
    _, cosines, _ = find_similar(small_model(), stored, FILES[0])
    assert cosines[0] == pytest.approx(1, abs=1e-6)


def test_columns_of_data_sets(drafts):
    column = ImageEmbedder(small_model(), drafts)({"image": FILES})["pooled"]
    np.testing.assert_allclose(np.array(column), pooled(drafts), atol=1e-6)


def test_probing_but_not_training_views(drafts):
    """A view may be a small part of the image, for which a reduced scale is not enough."""
    dataset, image = rows(FILES), Image.open(FILES[0])
    expected = drafts(FILES[0], return_tensors="pt")["pixel_values"]
    view = training_view(image, drafts, rng_of(0, 0, 0), resample=BICUBIC)

    def first_views(views):
        training_views = TrainingViews(views, seed=0, resample=BICUBIC) if views else None
        reader = ImageReader(read_images(dataset), drafts, batch_size=1, views=training_views)
        _, batch, *_ = reader.read([Piece(0, 0, 1)], chunk_size=1)
        return batch.pixel_values.flatten(0, -4)

    def first_row(seed):
        images = ImageRows(dataset, drafts, rows=np.arange(3), labels=np.zeros(3, np.int64), seed=seed, resample=BICUBIC)
        return images.__getitems__([0])["pixel_values"]

    for found, wanted in (
        (first_views(0), expected),
        (first_views(1), view[None]),
        (first_row(None), expected),
        (first_row(0), view[None]),
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("views", [0, 1])
def test_files_are_decoded_on_the_cpu(views):
    """On the device "meta" there are no pixels."""
    elsewhere, here = (small_processor(device=device, backend="torch") for device in ("meta", None))
    training_views = TrainingViews(views, seed=0, resample=BICUBIC) if views else None

    def found(image_processor):
        reader = ImageReader(read_images(rows(FILES)), image_processor, batch_size=1, views=training_views)
        _, batch, *_ = reader.read([Piece(0, 0, 1)], chunk_size=1)
        images = ImageRows(
            rows(FILES),
            image_processor,
            rows=np.arange(3),
            labels=np.zeros(3, np.int64),
            seed=0 if views else None,
            resample=BICUBIC,
        )
        return batch.pixel_values.flatten(0, -4), images.__getitems__([0])["pixel_values"]

    for one, other in zip(found(elsewhere), found(here), strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, other)
