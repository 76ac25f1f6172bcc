"""Datasets of the `datasets` library: loading with clear errors, and the columns of images and labels."""

import tarfile
from typing import Any

import datasets

from ..errors import SourceNotFoundError, VitrailError
from .image_labels import LABEL_NAMES

# What `datasets` raises for damaged files, missing configurations and an unreachable network
LOAD_ERRORS = (datasets.exceptions.DatasetsError, OSError, RuntimeError, ValueError, LookupError, tarfile.TarError)


def load_dataset(source: str, *args: str, **kwargs: Any) -> Any:
    """Return `datasets.load_dataset(*args, **kwargs)`; source: as the user gave it, for messages.

    Raises SourceNotFoundError if there is nothing of that name, VitrailError if it cannot be read.
    """
    try:
        return datasets.load_dataset(*args, **kwargs)
    except FileNotFoundError as error:
        raise SourceNotFoundError(
            f"found neither a file or folder {source} nor such a dataset on the Hub ({error}); check the name, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except LOAD_ERRORS as error:
        raise VitrailError(f"datasets cannot load {source}: {error.__cause__ or error}") from error


def declare_images(dataset: Any) -> Any:
    """Return a dataset in which every structure of "bytes" and "path" is declared an image."""
    for name, feature in dataset.features.items():
        if isinstance(feature, dict) and "bytes" in feature and set(feature) <= {"bytes", "path"}:
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def choose_image_column(features: datasets.Features, given: str | None) -> str:
    """Return the given column, or else the only column whose type is that of images.

    Raises VitrailError if there is no such column, it holds no images, or several columns do.
    """
    if given is not None:
        check_columns(features, given)
        feature = features[given]
        # bytes, or the paths of files
        if not isinstance(feature, datasets.Image) and getattr(feature, "dtype", None) not in ("binary", "large_binary", "string"):
            raise VitrailError(
                f"the column {given!r} holds no images; choose another with image_column, among {columns_and_types(features)}"
            )
        return given
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    # Parquet that datasets has not written: the bytes alone, or the structure that flatten() has made two columns of
    return _only("image", images or [name for name, feature in features.items() if feature == datasets.Value("binary")], features)


def choose_label_column(features: datasets.Features, given: str | None) -> str:
    """Return the given column, or else the only column of type ClassLabel, or with the name of labels.

    Raises VitrailError if there is no such column, or there are several.
    """
    if given is not None:
        check_columns(features, given)
        return given
    return _only("label", label_columns(features), features)


def label_columns(features: datasets.Features) -> list[str]:
    """Return the columns that could hold labels."""
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return labels or [name for name in features if name.rpartition(".")[2] in LABEL_NAMES]


def check_columns(features: datasets.Features, *columns: str) -> None:
    """Raise VitrailError if a column is missing."""
    for column in columns:
        if column not in features:
            raise VitrailError(f"there is no column {column!r}; found {columns_and_types(features)}")


def columns_and_types(features: datasets.Features) -> str:
    """Return all columns with their types, for a message."""
    return ", ".join(f"{name} ({getattr(feature, 'dtype', type(feature).__name__)})" for name, feature in features.items())


def _only(kind: str, found: list[str], features: datasets.Features) -> str:
    if len(found) == 1:
        return found[0]
    raise VitrailError(
        f"found {len(found) or 'no'} columns that could hold the {kind}{'s' if not found else ': ' + ', '.join(found)}; choose it with "
        f"{kind}_column, among {columns_and_types(features)}"
    )
