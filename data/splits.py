"""The train and validation splits of a source of labeled images, as datasets with random access.

Image files stay where they are. Archives, tables and datasets of the Hub have no random access: `datasets` reads them once, into its cache.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import datasets
from transformers.utils import logging

from ..errors import VitrailError
from .columns import declare_images, load_dataset
from .digits import digit_splits
from .files import Listing, as_text
from .hf_datasets import load_saved
from .image_labels import (
    TRAIN_NAMES,
    VALIDATION_NAMES,
    Label,
    class_folders,
    first_of,
    label_column_of,
    split_folders,
    top_folders,
)
from .image_sources import FoundSource
from .remote import is_url
from .tables import check_tables

BUILDERS = {"archives": "webdataset", "tables": "parquet"}  # of `datasets`, by the kind of the source

logger = logging.get_logger(__name__)

Splits = tuple[datasets.Dataset, datasets.Dataset | None]


def read_splits(
    source: FoundSource,
    *,
    train_split: str | None,
    validation_split: str | None,
    revision: str | None,
    label_column: str | None = None,
) -> Splits:
    """Return the training images and, if the source has such a split, the validation images.

    Images are declared as such, and the fields of structures are columns. The arguments are those of `load_labeled_images`.
    """
    source.check_options(revision=revision)
    if source.kind == "images":
        train, validation = _image_splits(
            source, train_split=train_split, validation_split=validation_split, label_column=label_column
        )
    else:
        splits = _load(source, revision)
        names = choose_splits(splits, train_split=train_split, validation_split=validation_split, source=source.name)
        train, validation = splits[names[0]], None if names[1] is None else splits[names[1]]
    return declare_images(train).flatten(), None if validation is None else declare_images(validation).flatten()


def image_table(listing: Listing, labels: Sequence[Label] | None = None, *, label_column: str | None = None) -> datasets.Dataset:
    """Return a dataset of image files, with their labels if there are any, in a column of that name, by default "label"."""
    columns: dict[str, list] = {"image": [{"bytes": None, "path": as_text(file)} for file in listing.locations()]}
    features = datasets.Features({"image": datasets.Image()})
    if labels is not None:
        kind = "string" if any(isinstance(label, str) for label in labels) else "int64"
        name = label_column or "label"
        columns[name], features[name] = list(labels), datasets.Value(kind)
    return datasets.Dataset.from_dict(columns, features=features)


def _load(source: FoundSource, revision: str | None) -> Mapping[str, datasets.Dataset]:
    if source.kind == "dataset":
        splits = source.location if isinstance(source.location, dict) else {"train": source.location}
        if not all(isinstance(split, datasets.Dataset) for split in splits.values()):
            raise VitrailError(f"found {source.name}, which has no random access; give a datasets.Dataset or DatasetDict")
        return splits
    if source.kind == "digits":
        return digit_splits()
    if source.kind == "saved":
        return load_saved(source.name, source.location)
    if source.kind == "hub":
        return load_dataset(source.name, source.location, revision=revision)
    if source.kind == "tables":
        check_tables(source.listing.locations())
    files = {"data_dir": source.location} if source.is_folder else {"data_files": source.listing.locations()}
    return load_dataset(source.name, BUILDERS[source.kind], **files)


def choose_splits(
    names: Iterable[str], *, train_split: str | None, validation_split: str | None, source: str
) -> tuple[str, str | None]:
    names = list(names)
    for given in (train_split, validation_split):
        if given is not None and given not in names:
            raise VitrailError(f"{source} has no split {given!r}; found {', '.join(names)}")
    train = train_split or first_of(TRAIN_NAMES, names) or (names[0] if len(names) == 1 else None)
    if train is None:
        raise VitrailError(f"{source} has the splits {', '.join(names)}, none of them named train; choose one with train_split")
    return train, validation_split or first_of(VALIDATION_NAMES, [name for name in names if name != train])


def _image_splits(
    source: FoundSource, *, train_split: str | None, validation_split: str | None, label_column: str | None
) -> Splits:
    """Return the images of a list; of a folder with tables of labels, or a folder for each class; or of split folders of such."""
    listing = source.listing
    if source.is_list:
        if source.labels is None:
            raise VitrailError(f"{source.name} has no labels; write a tab and the label after each path")
        return image_table(listing, source.labels, label_column=label_column), None
    column = label_column_of(source.metadata, label_column)
    splits = split_folders(listing.names) if column is None else top_folders(listing.names)

    def images_of(split: str | None) -> datasets.Dataset:
        if column is None:
            return _class_folders(listing if split is None else listing.below(split))
        labels = source.metadata[column]
        rows = [row for row, name in enumerate(listing.names) if split is None or name.startswith(f"{split}/")]
        rows = [row for row in rows if labels[row] is not None]
        return image_table(listing.select(rows), [labels[row] for row in rows], label_column=column)

    if train_split is None and validation_split is None and first_of(TRAIN_NAMES, splits) is None:
        return images_of(None), None
    train, validation = choose_splits(splits, train_split=train_split, validation_split=validation_split, source=source.name)
    return images_of(train), None if validation is None else images_of(validation)


def _class_folders(listing: Listing) -> datasets.Dataset:
    """Return the images in the folders of classes, without images outside the folders."""
    labels = class_folders(listing.names)
    if labels is None:
        raise VitrailError(
            f"{listing.root} holds no folders; put the images of each class into a folder with the name of the class"
        )
    if not is_url(listing.root):
        for folder in sorted(filter(Path.is_dir, Path(listing.root).iterdir())):
            if not (folder.name.startswith(".") or folder.is_symlink() or as_text(folder.name) in labels):
                logger.warning(f"{folder} holds no images: the class is left out. Add images, or remove the folder.")
    chosen = [index for index, label in enumerate(labels) if label is not None]
    return image_table(listing.select(chosen), [labels[index] for index in chosen])
