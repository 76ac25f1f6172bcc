"""Images to train on, with labels or without."""

import os
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..errors import VitrailError
from .columns import choose_image_column, label_columns
from .image_sources import DIGITS
from .labeled import LabeledImages, check_fraction, images_of, read_tables, two_halves
from .labeled_sources import holds_images, image_files


@dataclass(frozen=True)
class TrainingImages:
    """What a run without labels reads, and the labels, if there are any, by which it is measured.

    train: with the column "image", {"bytes", "path"} for `open_image`.
    labeled: `train` with its labels, and images to measure on that are not trained on; None without labels.
    source: what the user gave.
    fingerprint: as that of `LabeledImages`.
    """

    train: datasets.Dataset
    labeled: LabeledImages | None
    source: str
    fingerprint: str


def load_training_images(
    source: str | os.PathLike,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    revision: str | None = None,
    labels: bool = True,
) -> TrainingImages:
    """Reads a collection of images; no image is decoded yet.

    Args:
        source: whatever `vitrail.data.labeled.load_labeled_images` takes, or the like without labels: a folder in which images lie, and
            maybe folders with more; Parquet, WebDataset or a dataset of the Hub without a column of labels.
        image_column, label_column, train_split, revision: as there.
        validation_split, validation_fraction, seed: as there; they choose the labeled images to measure on, which are not trained on.
        labels: False to pay no heed to those that there are, and train on all images: of a folder, all that lie below it.

    Raises VitrailError, which says what was found; SourceNotFoundError where nothing was.
    """
    source = os.fspath(source)
    folder = Path(source).expanduser()
    without_classes = source != DIGITS and folder.is_dir() and (not labels or holds_images(folder))
    if without_classes and (files := image_files(folder.absolute())):
        named = {"image_column": image_column, "label_column": label_column, "train_split": train_split, "revision": revision}
        if given := [name for name, value in named.items() if value is not None]:
            raise VitrailError(f"{source} is a folder of images, which has no {' and no '.join(given)}: leave that out.")
        paths = [{"bytes": None, "path": file} for file in files]
        dataset = datasets.Dataset.from_dict({"image": paths}, features=datasets.Features({"image": datasets.Image()}))
        return _unlabeled(dataset, "image", source)
    measured = validation_split if labels else None
    train, validation = read_tables(source, train_split=train_split, validation_split=measured, revision=revision)
    if not labels or (label_column is None and len(label_columns(train.features)) != 1):
        return _unlabeled(train, choose_image_column(train.features, image_column), source)
    check_fraction(validation_fraction)
    labeled = two_halves(
        train,
        validation,
        source=source,
        image_column=image_column,
        label_column=label_column,
        validation_fraction=validation_fraction,
        seed=seed,
    )
    if len(labeled.label_names) < 2:  # one folder of images, say, which is no class
        return _unlabeled(train, choose_image_column(train.features, image_column), source)
    return TrainingImages(labeled.train, labeled, source, labeled.fingerprint)


def _unlabeled(dataset: datasets.Dataset, column: str, source: str) -> TrainingImages:
    images = images_of(dataset, column)
    return TrainingImages(images, None, source, images._fingerprint)
