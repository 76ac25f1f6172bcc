"""Images with random access for training and evaluation: with labels, in a train and a validation split; or to train on without labels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc

from ..errors import VitrailError
from ..utils.hashing import digest
from .columns import check_columns, choose_image_column, choose_label_column, label_columns
from .digits import stratified_split
from .external import ANY_PATHS
from .image_sources import FoundSource, ImageSource, find_source
from .splits import image_table, read_splits


@dataclass(frozen=True)
class LabeledImages:
    """The train and validation splits of a labeled collection.

    train, validation: with the columns "image", {"bytes", "path"} for `open_image`, and "label", int (a ClassLabel). The
        `_fingerprint` of each is a digest of its rows, the same in every process.
    label_names: in the order of the class indices.
    source: as the user gave it.
    warnings: about files that were left out.
    fingerprint: of both splits. It differs if a row, a label, a name or a file differs, and is stable between processes. A file is
        identified by its path, size and time of change, an image in a Parquet or WebDataset file by the version of that file.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    label_names: tuple[str, ...]
    source: str
    fingerprint: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on without labels, and their labels, if there are any, for evaluation.

    train: with the column "image", {"bytes", "path"} for `open_image`.
    labeled: `train` with its labels, and validation images that are not trained on; None without labels.
    source: as the user gave it.
    fingerprint, warnings: see `LabeledImages`.
    """

    train: datasets.Dataset
    labeled: LabeledImages | None
    source: str
    fingerprint: str
    warnings: tuple[str, ...] = ()


def load_labeled_images(
    source: ImageSource,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    revision: str | None = None,
    allow_external: bool = False,
) -> LabeledImages:
    """Find labeled images and divide them into a train and a validation split; no image is decoded.

    Args:
        source: any source of `vitrail.read_images`, with labels: a folder with a folder for each class, or with train/ and
            validation/ folders of such; a list with labels; Parquet or WebDataset files; a dataset in memory, on disk or on the Hub;
            "digits" (1797 digits of 8 x 8 pixels, which scikit-learn contains, in two fixed splits).
        image_column, label_column: by default the column of type Image and that of type ClassLabel, or one named label, labels,
            cls, class or target. A field of a structure is written with a dot, such as "json.label".
        train_split, validation_split: names of splits or of their folders; by default the usual names. Without a validation split,
            validation_fraction of each class of train becomes it, drawn with the seed, and at least one image if the class has two.
        revision: of a dataset on the Hub.
        allow_external: read files and URLs outside of a dataset that its rows name, which are refused otherwise; see `read_images`.

    Labels that are not of type ClassLabel may be strings or integers; their sorted values become the names.

    Raises VitrailError with what was found; SourceNotFoundError if there is nothing.
    """
    check_fraction(validation_fraction)
    found = find_source(source)
    train, validation = read_splits(
        found, train_split=train_split, validation_split=validation_split, revision=revision, label_column=label_column
    )
    columns = choose_image_column(train.features, image_column), choose_label_column(train.features, label_column)
    for split in (train, validation):
        check_paths(split, columns[0], found, allow_external)
    images = _label(found.name, train, validation, columns, fraction=validation_fraction, seed=seed)
    return replace(images, warnings=found.warnings)


def load_training_images(
    source: ImageSource,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    revision: str | None = None,
    allow_external: bool = False,
    labels: bool = True,
) -> TrainingImages:
    """Find images to train on without labels; no image is decoded.

    Args:
        source: any source of `vitrail.read_images`, with labels or without.
        image_column, label_column, train_split, revision, allow_external: see `load_labeled_images`.
        validation_split, validation_fraction, seed: see `load_labeled_images`. They choose the labeled images for evaluation, which
            are not trained on.
        labels: False to ignore labels, and train on all images: of a folder, all images below it.

    Raises VitrailError with what was found; SourceNotFoundError if there is nothing.
    """
    found = find_source(source)
    if found.kind == "images" and not (labels and _has_classes(found, label_column)):
        named = {"image_column": image_column, "label_column": label_column, "train_split": train_split, "revision": revision}
        if given := [name for name, value in named.items() if value is not None]:
            raise VitrailError(f"{found.name} consists of image files, which have no {' and no '.join(given)}: leave that out")
        return _unlabeled(found, image_table(found.listing), "image")
    train, validation = read_splits(
        found,
        train_split=train_split,
        validation_split=validation_split if labels else None,
        revision=revision,
        label_column=label_column,
    )
    column = choose_image_column(train.features, image_column)
    for split in (train, validation):
        check_paths(split, column, found, allow_external)
    if not labels or (label_column is None and len(label_columns(train.features)) != 1):
        return _unlabeled(found, train, column)
    check_fraction(validation_fraction)
    columns = column, choose_label_column(train.features, label_column)
    labeled = _label(found.name, train, validation, columns, fraction=validation_fraction, seed=seed)
    if len(labeled.label_names) < 2:  # a single folder of images, for example, is not a class
        return _unlabeled(found, train, column)
    return TrainingImages(labeled.train, labeled, found.name, labeled.fingerprint, found.warnings)


def check_fraction(validation_fraction: float) -> None:
    if not 0 < validation_fraction < 1:
        raise VitrailError(f"found validation_fraction={validation_fraction}; expected a number between 0 and 1, such as 0.2")


def _has_classes(source: FoundSource, label_column: str | None) -> bool:
    """Whether image files have labels: each of them in a list, or a folder for each class and no image outside these folders."""
    labels = source.image_labels(label_column)
    return labels is not None and (source.is_list or None not in labels)


def _label(
    source: str,
    train: datasets.Dataset,
    validation: datasets.Dataset | None,
    columns: tuple[str, str],
    *,
    fraction: float,
    seed: int,
) -> LabeledImages:
    """Return the splits with the columns "image" and "label"; columns: their present names."""
    image_column, label_column = columns
    feature = train.features[label_column]
    train_values = train[label_column][:]
    _check_labeled(feature, train_values, "train")
    names = _label_names(feature, train_values, label_column)
    train_labels = _labels(feature, train_values, names, "train")
    train_images = images_of(train, image_column)
    if validation is None:
        train_rows, validation_rows = stratified_split(train_labels, fraction=fraction, seed=seed)
        validation_images, validation_labels = train_images, train_labels
    else:
        check_columns(validation.features, image_column, label_column)
        feature, validation_values = validation.features[label_column], validation[label_column][:]
        _check_labeled(feature, validation_values, "validation")
        validation_labels = _labels(feature, validation_values, names, "validation")
        validation_images = images_of(validation, image_column)
        train_rows, validation_rows = np.arange(len(train_labels)), np.arange(len(validation_labels))
    splits = {
        "train": _split(train_images, train_labels, train_rows, names),
        "validation": _split(validation_images, validation_labels, validation_rows, names),
    }
    if splits["train"]._fingerprint == splits["validation"]._fingerprint:
        raise VitrailError(
            f"{source} has the same images for train and for validation, so that an evaluation would measure what it has learned: choose "
            "another validation split, or leave it out to hold out a part of train."
        )
    for name, split in splits.items():
        if len(split) == 0:
            raise VitrailError(f"{source} leaves no images for {name}; at least one class needs two or more images")
    fingerprint = digest([*(split._fingerprint.encode() for split in splits.values()), *(name.encode() for name in names)])
    return LabeledImages(**splits, label_names=names, source=source, fingerprint=fingerprint)


def _unlabeled(source: FoundSource, dataset: datasets.Dataset, column: str) -> TrainingImages:
    images = images_of(dataset, column)
    return TrainingImages(images, None, source.name, images._fingerprint, source.warnings)


def check_paths(images: datasets.Dataset | None, column: str, source: FoundSource, allow_external: bool) -> None:
    """Raise VitrailError if a row names a file or URL that must not be read."""
    paths = source.row_paths(allow_external)
    if images is None or paths is ANY_PATHS:
        return
    row = 0
    for batch in (
        images.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format("arrow").iter(10_000)
    ):
        in_file = pc.struct_field(batch[column], "bytes").is_null().to_pylist()
        for named, path in zip(in_file, pc.struct_field(batch[column], "path").to_pylist(), strict=True):
            if named and path is not None and (refusal := paths.refusal(path)):
                raise VitrailError(f"{source.name}, row {row}: {refusal}")
            row += 1


# Columns: from any to "image" and "label"


def images_of(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Return the column of images as "image", undecoded, with a digest of its content as the fingerprint."""
    images = dataset.select_columns([column])
    images = images if column == "image" else images.rename_column(column, "image")
    images = images.cast_column("image", datasets.Image(decode=False))
    return images.select(range(len(images)), new_fingerprint=digest(_content(images)))


def _label_names(feature: Any, values: list, column: str) -> tuple[str, ...]:
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {int, str, bool}:
        first = {kind.__name__: next(row for row, value in enumerate(values) if type(value) is kind) for kind in kinds}
        found = ", ".join(f"{kind} (row {row}: {values[row]!r})" for kind, row in sorted(first.items())) or "nothing"
        raise VitrailError(
            f"the labels in the column {column!r} are of the type {found}; expected one integer or string per image: change these "
            "labels, or choose another column with label_column"
        )
    return tuple(str(value) for value in sorted(set(values)))


def _labels(feature: Any, values: list, names: tuple[str, ...], split: str) -> np.ndarray:
    if not isinstance(feature, datasets.ClassLabel):
        indices = {name: index for index, name in enumerate(names)}
        unknown = sorted({str(value) for value in values} - set(names))
        if unknown:
            raise VitrailError(
                f"{split} has labels that train does not have: {', '.join(unknown[:10])}; add them to train or remove them"
            )
        return np.array([indices[str(value)] for value in values], dtype=np.int64)
    return np.array(values, dtype=np.int64)


def _check_labeled(feature: Any, values: list, split: str) -> None:
    """Raise VitrailError if labels are missing: null, or the -1 of a ClassLabel."""
    is_class = isinstance(feature, datasets.ClassLabel)
    rows = [row for row, value in enumerate(values) if value is None or (is_class and value < 0)]
    if rows:
        raise VitrailError(
            f"{len(rows)} of {len(values)} images of {split} have no label, the first of them in row {rows[0]}: label them, remove "
            f"them, or choose another split with {split}_split"
        )


def _split(images: datasets.Dataset, labels: np.ndarray, rows: np.ndarray, names: tuple[str, ...]) -> datasets.Dataset:
    whole = images.add_column("label", labels, feature=datasets.ClassLabel(names=list(names)))
    fingerprint = digest([images._fingerprint.encode(), rows.tobytes(), labels[rows].tobytes()])
    return whole.select(rows, new_fingerprint=fingerprint)


# Fingerprints


def _content(images: datasets.Dataset) -> Iterator[bytes]:
    """Yield what identifies a column of images, without reading files.

    `datasets` caches what it has read in files whose path depends on the version of the source. Images in memory are identified by their
    bytes, images in files by path, size and time of change.
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
