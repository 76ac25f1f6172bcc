"""Search: the stored images that are most similar to a query image."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..data.decoding import open_image
from ..errors import VitrailError
from ..features.feature_types import FeatureType, compute_features, parse_features
from ..features.neighbors import unit_rows
from ..features.search import Neighbors, find_neighbors
from ..features.store import StoredFeatures
from ..modeling.fingerprint import config_fields, weights_digest
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.run_folder import differences
from .pictures import contact_sheet
from .stored_images import map_images, thumbnail

CELL = 224  # pixels, side of a picture in the contact sheet
MISSING = Image.new("RGB", (CELL, CELL), "#d9d9d9")  # takes the place of an image that no longer exists

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class SimilarImages:
    """The stored images nearest to a query.

    neighbors: ids and cosines, and how they were found.
    paths: the path of each image in its collection, by its id, in the order of the neighbors.
    sheet: a contact sheet, if it was asked for.
    """

    neighbors: Neighbors
    paths: Mapping[int, str]
    sheet: Image.Image | None


def find_similar(
    model: ViTPreTrainedModel,
    stored: StoredFeatures,
    query: str | os.PathLike[str] | Image.Image,
    *,
    top: int = 15,
    column: str | None = None,
    exact: bool = False,
    allow_external: bool = False,
) -> tuple[np.ndarray, np.ndarray, Image.Image]:
    """Return the stored images whose features have the largest cosines with those of a query image, and a contact sheet of them.

    If `build_index` has indexed the column, the index is searched; otherwise all vectors are compared, in bounded memory.

    Args:
        model: the model whose features are stored.
        query: an image file, or an upright image. It is preprocessed as the stored images were.
        top: number of images; fewer are returned if fewer are stored.
        column: column of vectors to compare; by default the first one.
        exact: compare all vectors, even if there is an index.
        allow_external: for the contact sheet, read images at URLs and on the Hub, and files that rows of a dataset name.

    Returns:
        The ids of the most similar images, (top,) int64, and their cosines, (top,) float32, in descending order; and a contact sheet of the
        query and these images. An image that no longer exists is gray.

    Raises:
        VitrailError: the features belong to another model, or the column of vectors does not exist; the index belongs to other features, is
            damaged, or needs FAISS.
        UnreadableImageError: the query cannot be read.
    """
    found = search_images(model, stored, query, top=top, column=column, exact=exact, draw=True, allow_external=allow_external)
    if found.neighbors.warning is not None:
        logger.warning(found.neighbors.warning)
    assert found.sheet is not None
    return found.neighbors.ids, found.neighbors.cosines, found.sheet


def search_images(
    model: ViTPreTrainedModel,
    stored: StoredFeatures,
    query: str | os.PathLike[str] | Image.Image,
    *,
    top: int,
    column: str | None,
    exact: bool,
    draw: bool,
    allow_external: bool,
) -> SimilarImages:
    """Return what `find_similar` finds, and how it was found. draw: make the contact sheet."""
    if top < 1:
        raise VitrailError(f"found top={top}; expected 1 or more")
    check_same_model(model, stored)
    feature_type = vector_type(model, stored, column)
    image_processor = VitrailImageProcessor.from_dict(stored.manifest.settings["image_processor"])
    image = query
    if not isinstance(query, Image.Image):
        image = open_image({"path": os.fspath(query), "bytes": None}, image_processor.decode)
    vector = _unit_vector(model, image_processor, image, feature_type)
    neighbors = find_neighbors(stored, vector, k=top, column=feature_type.column, exact=exact)
    path_of = stored.paths_of(neighbors.ids)
    paths = {number: path_of[number] for number in neighbors.ids.tolist()}
    sheet = _sheet(image, stored, paths, neighbors.cosines.tolist(), allow_external) if draw else None
    return SimilarImages(neighbors, paths, sheet)


def check_same_model(model: ViTPreTrainedModel, stored: StoredFeatures) -> None:
    """Raise VitrailError if the stored features belong to another model."""
    settings, vit = stored.manifest.settings, model.base_model
    weights = weights_digest(vit)
    remedy = "pass the model they were extracted with, or extract them again with this model."
    if weights != settings["weights"]:
        raise VitrailError(
            f"{stored.folder} contains features of the model {settings['model']}, whose weights have the SHA-256 "
            f"{settings['weights'][:12]}…; the weights of this model have {weights[:12]}…: {remedy}"
        )
    config = json.loads(json.dumps(config_fields(vit)))
    if different := list(differences("config", {name: settings["config"].get(name) for name in config}, config)):
        raise VitrailError(
            f"{stored.folder} contains features of a model with these weights and other settings ({'; '.join(different)}): {remedy}"
        )


def vector_type(model: ViTPreTrainedModel, stored: StoredFeatures, column: str | None) -> FeatureType:
    """Return the feature type of a column of vectors, by default of the first one.

    Raises VitrailError if the column does not exist.
    """
    types = parse_features(stored.manifest.settings["features"], model.base_model.config)
    vectors = {feature_type.column: feature_type for feature_type in types if feature_type.is_vector}
    if not vectors:
        names = ", ".join(feature_type.name for feature_type in types)
        raise VitrailError(f"{stored.folder} contains {names} but no vectors: extract pooled, for example.")
    if column is not None and column not in vectors:
        raise VitrailError(f"{stored.folder} has no column of vectors {column!r}; expected one of {', '.join(vectors)}")
    return vectors[column or next(iter(vectors))]


@torch.inference_mode()
def _unit_vector(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, image: Image.Image, feature_type: FeatureType
) -> torch.Tensor:
    """Return the normalized features of an image, (1, D)."""
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    return unit_rows(compute_features(model.base_model.eval(), pixel_values, [feature_type])[feature_type.column], 0, 1, "cpu")


def _sheet(
    query: Image.Image, stored: StoredFeatures, paths: Mapping[int, str], cosines: Sequence[float], allow_external: bool
) -> Image.Image:
    try:
        pictures = map_images(lambda number, image: thumbnail(image, CELL), stored, paths, allow_external=allow_external)
    except (VitrailError, OSError):  # the whole collection is gone, or must not be read
        pictures = {}
    cells = [("query", thumbnail(query, CELL))]
    cells += [
        (f"{cosine:.3f}  {path}" if number in pictures else f"{cosine:.3f}  missing: {path}", pictures.get(number, MISSING))
        for (number, path), cosine in zip(paths.items(), cosines, strict=True)
    ]
    return contact_sheet([cells])
