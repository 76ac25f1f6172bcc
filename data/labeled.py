"""Labeled images from wherever they lie, as two halves: one to learn from, one to be measured on."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from ..errors import VitrailError
from ..utils.hashing import digest
from .columns import check_columns, choose_image_column, choose_label_column, declare_images
from .digits import stratified_split
from .labeled_sources import read_splits


@dataclass(frozen=True)
class LabeledImages:
    """Two halves of a labeled collection.

    train, validation: with the columns "image", {"bytes", "path"} for `open_image`, and "label", int (a ClassLabel). The
        `_fingerprint` of each is a digest of its own rows, stable between processes.
    label_names: by label.
    source: what the user gave.
    fingerprint: of all of it. Differs when a row, a label, a name or a file differs; stable between processes. A file is known
        by its path, size and time of change, an image in a Parquet or WebDataset file by the version of that file.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    label_names: tuple[str, ...]
    source: str
    fingerprint: str


def load_labeled_images(
    source: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    revision: str | None = None,
) -> LabeledImages:
    """Reads a labeled collection of images; no image is decoded yet.

    Args:
        source: "digits" (1797 real digits of 8 x 8 pixels, on board of scikit-learn, in two fixed halves); a folder with a folder
            for each class, or with train/ and validation/ folders of such; a .parquet or .tar (WebDataset) file, a pattern of
            such files, as "shards/*.tar", or a folder of them; the id of a dataset on the Hub.
        image_column, label_column: their names; otherwise the column of type Image and that of type ClassLabel, or one called
            label, labels, cls, class or target. A field of a structure is written with a dot, as "json.label".
        train_split, validation_split: their names (of folders, in a folder); otherwise the usual ones. Where there is no
            validation split, validation_fraction of every class of train becomes it, drawn with the seed, and at least one
            image unless there is no other.
        revision: of the dataset on the Hub.

    Labels that are not of type ClassLabel may be strings or integers; their sorted values become the names.

    Raises VitrailError, which says what was found; SourceNotFoundError where nothing was.
    """
    check_fraction(validation_fraction)
    train, validation = read_tables(source, train_split=train_split, validation_split=validation_split, revision=revision)
    return two_halves(
        train,
        validation,
        source=source,
        image_column=image_column,
        label_column=label_column,
        validation_fraction=validation_fraction,
        seed=seed,
    )


def check_fraction(validation_fraction: float) -> None:
    """Raises VitrailError for what is no share of the images."""
    if not 0 < validation_fraction < 1:
        raise VitrailError(f"found validation_fraction={validation_fraction}; write a number between 0 and 1, as 0.2")


def read_tables(
    source: str | Path, *, train_split: str | None, validation_split: str | None, revision: str | None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """What `read_splits` reads, with images declared as such and the fields of structures as columns."""
    train, validation = read_splits(str(source), train_split=train_split, validation_split=validation_split, revision=revision)
    return declare_images(train).flatten(), None if validation is None else declare_images(validation).flatten()


def two_halves(
    train: datasets.Dataset,
    validation: datasets.Dataset | None,
    *,
    source: str | Path,
    image_column: str | None,
    label_column: str | None,
    validation_fraction: float,
    seed: int,
) -> LabeledImages:
    """The second step of `load_labeled_images`, whose arguments and errors it has: what `read_tables` has read becomes two halves."""
    image_column = choose_image_column(train.features, image_column)
    label_column = choose_label_column(train.features, label_column)
    feature = train.features[label_column]
    train_values = train[label_column][:]
    names = _label_names(feature, train_values, label_column)
    train_labels = _labels(feature, train_values, names, "train")
    train_images = images_of(train, image_column)
    if validation is None:
        train_rows, validation_rows = stratified_split(train_labels, fraction=validation_fraction, seed=seed)
        validation_images, validation_labels = train_images, train_labels
    else:
        check_columns(validation.features, image_column, label_column)
        validation_labels = _labels(validation.features[label_column], validation[label_column][:], names, "validation")
        validation_images = images_of(validation, image_column)
        train_rows, validation_rows = np.arange(len(train_labels)), np.arange(len(validation_labels))
    halves = [
        _half(train_images, train_labels, train_rows, names),
        _half(validation_images, validation_labels, validation_rows, names),
    ]
    for name, half in zip(("train", "validation"), halves, strict=True):
        if len(half) == 0:
            raise VitrailError(f"{source} leaves no images for {name}; at least one class needs two images or more")
    fingerprint = digest([*(half._fingerprint.encode() for half in halves), *(name.encode() for name in names)])
    return LabeledImages(halves[0], halves[1], names, str(source), fingerprint)


# Columns: from any to "image" and "label"


def images_of(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """The one column "image", not to be decoded, with a digest of its content as the fingerprint."""
    images = dataset.select_columns([column])
    images = images if column == "image" else images.rename_column(column, "image")
    images = images.cast_column("image", datasets.Image(decode=False))
    return images.select(range(len(images)), new_fingerprint=digest(_content(images)))


def _label_names(feature: Any, values: list, column: str) -> tuple[str, ...]:
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {int, str, bool}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise VitrailError(f"the labels in the column {column!r} are of the type {found}; expected one integer or string per image")
    return tuple(str(value) for value in sorted(set(values)))


def _labels(feature: Any, values: list, names: tuple[str, ...], split: str) -> np.ndarray:
    if not isinstance(feature, datasets.ClassLabel):
        indices = {name: index for index, name in enumerate(names)}
        unknown = sorted({str(value) for value in values} - set(names))
        if unknown:
            raise VitrailError(
                f"{split} has labels that train has not: {', '.join(unknown[:10])}; add them to train or remove them"
            )
        return np.array([indices[str(value)] for value in values], dtype=np.int64)
    unlabeled = sum(value is None or value < 0 for value in values)
    if unlabeled:
        raise VitrailError(
            f"{unlabeled} of {len(values)} images of {split} have no label; choose another with {split}_split, or remove them"
        )
    return np.array(values, dtype=np.int64)


def _half(images: datasets.Dataset, labels: np.ndarray, rows: np.ndarray, names: tuple[str, ...]) -> datasets.Dataset:
    whole = images.add_column("label", labels, feature=datasets.ClassLabel(names=list(names)))
    fingerprint = digest([images._fingerprint.encode(), rows.tobytes(), labels[rows].tobytes()])
    return whole.select(rows, new_fingerprint=fingerprint)


# Fingerprints


def _content(images: datasets.Dataset) -> Iterator[bytes]:
    """What tells one column of images from another, without reading what lies in files.

    datasets keeps what it has read in files of its own; their path says which version of which files it was. Images in memory
    count by their bytes, images in files by size and time of change.
    """
    cached = [Path(file["filename"]) for file in images.cache_files]
    for file in cached:
        yield "/".join([*file.parts[-5:], str(file.stat().st_size)]).encode()
    for batch in images.with_format("arrow").iter(batch_size=10_000):
        column = batch["image"]
        contents = pc.struct_field(column, "bytes")
        in_file = contents.is_null().to_pylist()
        for index, path in enumerate(pc.struct_field(column, "path").to_pylist()):
            yield (path or "").encode()
            if in_file[index] and path is not None:
                yield _version(path)
            elif not cached:
                yield contents[index].as_py() or b""


def _version(path: str) -> bytes:
    try:
        status = os.stat(path)
    except OSError:
        return b"not there"
    return f"{status.st_size} {status.st_mtime_ns}".encode()
