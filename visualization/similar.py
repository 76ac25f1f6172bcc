"""The nearest images, among those whose features are stored, to an image that is given."""

import json
import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..data.decoding import open_image
from ..errors import VitrailError
from ..features.feature_types import FeatureType, compute_features, parse_features
from ..features.neighbors import nearest, unit_rows
from ..features.store import StoredFeatures
from ..modeling.fingerprint import config_fields, weights_digest
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .pictures import contact_sheet
from .stored_images import map_images, thumbnail

CHUNK = 65536  # stored vectors that are compared at a time
CELL = 224  # pixels of a picture in the contact sheet
MISSING = Image.new("RGB", (CELL, CELL), "#d9d9d9")  # in the place of an image that is not there any more


def find_similar(
    model: ViTPreTrainedModel,
    stored: StoredFeatures,
    query: str | os.PathLike[str] | Image.Image,
    *,
    top: int = 15,
    column: str | None = None,
) -> tuple[np.ndarray, np.ndarray, Image.Image]:
    """The stored images whose features have the largest cosines with those of the query, which is prepared as they were.

    Args:
        model: the one whose features are stored.
        query: an image file, or an image that is upright.
        top: how many images.
        column: of the features that are compared, one that holds vectors; without it, the first.

    Returns:
        The ids of the nearest images, (top,) int64, and their cosines, (top,) float32, both from the nearest on, or of all images where
        there are fewer; and a contact sheet: the query, then these. An image that is not there any more is grey.

    Raises VitrailError if it is another model, or there is no such column of vectors; UnreadableImageError if the query cannot be read.
    """
    check_same_model(model, stored)
    kind = vector_type(model, stored, column)
    image_processor = VitrailImageProcessor.from_dict(stored.manifest["settings"]["image_processor"])
    image = query
    if not isinstance(query, Image.Image):
        image = open_image({"path": os.fspath(query), "bytes": None}, image_processor.decode)
    vector = _unit_vector(model, image_processor, image, kind)
    cosines, rows = nearest(vector, stored.vectors(kind.column), k=top, chunk=CHUNK, device="cpu")
    ids = stored.ids()[rows[0].numpy()]
    return ids, cosines[0].numpy(), _sheet(image, stored, ids, cosines[0].tolist())


def check_same_model(model: ViTPreTrainedModel, stored: StoredFeatures) -> None:
    """Raises VitrailError if the stored features are another model's."""
    settings, vit = stored.manifest["settings"], model.base_model
    weights = weights_digest(vit)
    remedy = "give the model that they were extracted with, or extract them again with this one."
    if weights != settings["weights"]:
        raise VitrailError(
            f"{stored.folder} holds features of the model {settings['model']}, whose weights have the SHA-256 {settings['weights'][:12]}…; "
            f"those of this model have {weights[:12]}…: {remedy}"
        )
    config = json.loads(json.dumps(config_fields(vit)))
    different = [name for name in config if config[name] != settings["config"].get(name)]
    if different:
        raise VitrailError(
            f"{stored.folder} holds features of a model with these weights, but another {' and '.join(different)}: {remedy}"
        )


def vector_type(model: ViTPreTrainedModel, stored: StoredFeatures, column: str | None) -> FeatureType:
    """The kind of features in a column of vectors, or in the first one.

    Raises VitrailError if there is no such column.
    """
    kinds = parse_features(stored.manifest["settings"]["features"], model.base_model.config)
    vectors = {kind.column: kind for kind in kinds if kind.is_vector}
    if not vectors:
        raise VitrailError(
            f"{stored.folder} holds no vectors, but {', '.join(kind.name for kind in kinds)}: extract pooled, for example."
        )
    if column is not None and column not in vectors:
        raise VitrailError(f"{stored.folder} has no vectors {column!r}; choose among {', '.join(vectors)}")
    return vectors[column or next(iter(vectors))]


@torch.inference_mode()
def _unit_vector(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, image: Image.Image, kind: FeatureType
) -> torch.Tensor:
    """The features of an image, (1, D), of length 1."""
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    return unit_rows(compute_features(model.base_model.eval(), pixel_values, [kind])[kind.column], 0, 1, "cpu")


def _sheet(query: Image.Image, stored: StoredFeatures, ids: np.ndarray, cosines: Sequence[float]) -> Image.Image:
    path_of = dict(zip(stored.ids().tolist(), stored.paths(), strict=True))
    paths = {number: path_of[number] for number in ids.tolist()}
    try:
        pictures = map_images(lambda number, image: thumbnail(image, CELL), stored, paths)
    except (VitrailError, OSError):  # the collection is gone, and with it all images
        pictures = {}
    cells = [("the query", thumbnail(query, CELL))]
    cells += [
        (f"{cosine:.3f}  {path}" if number in pictures else f"{cosine:.3f}  not there: {path}", pictures.get(number, MISSING))
        for (number, path), cosine in zip(paths.items(), cosines, strict=True)
    ]
    return contact_sheet([cells])
