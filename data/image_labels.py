"""Labels of the image files in a folder: a column of tables next to the images, or else the names of folders."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import VitrailError
from ..utils.file_kinds import check_kind
from .files import INTEGER, as_text

# Names of a column of labels, if no column has the type ClassLabel; `cls` is that of WebDataset
LABEL_NAMES = ("label", "labels", "cls", "class", "target")

# Names of splits and of their folders, the preferred names first; capitals do not matter
TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val", "test", "testing")

METADATA = ("metadata.csv", "metadata.jsonl")  # as `datasets` has them: one in any folder, about the images in and below it
FILE_NAME = "file_name"  # the column with the path of the image, relative to the table

Label: TypeAlias = str | int | None
Metadata: TypeAlias = Mapping[str, list[Label]]


def first_of(preferred: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the name that comes first among the preferred ones, or None."""
    found = {name.lower(): name for name in names}
    return next((found[name] for name in preferred if name in found), None)


def top_folders(names: Sequence[str]) -> list[str]:
    """Return the folders at the top that hold files."""
    return sorted({name.partition("/")[0] for name in names if "/" in name})


def split_folders(names: Sequence[str]) -> list[str]:
    """Return the folders at the top that hold folders: those of splits hold folders of classes."""
    return sorted({name.partition("/")[0] for name in names if name.count("/") >= 2})


def class_folders(names: Sequence[str]) -> list[Label] | None:
    """Return the first folder on the way to each image as its label, or None for an image outside; None if all are outside."""
    labels: list[Label] = [as_text(name.partition("/")[0]) if "/" in name else None for name in names]
    return labels if any(labels) else None


def folder_labels(names: Sequence[str]) -> list[Label] | None:
    """Return the labels of images by the names of their folders, below the folders of splits if there are any, such as train/."""
    if first_of(TRAIN_NAMES, split_folders(names)) is not None:
        names = [name.partition("/")[2] for name in names]
    return class_folders(names)


def read_metadata(root: str, names: Sequence[str], images: Sequence[str]) -> Metadata:
    """Return the columns of the tables in a local folder, with a value for each image, None without one; no columns without a table.

    names: of all files; images: of the images.

    Raises VitrailError for a table that cannot be read, or that names none of the images.
    """
    row_of = {name: row for row, name in enumerate(images)}
    columns: dict[str, list[Label]] = {}
    for table in (name for name in names if name.rpartition("/")[2] in METADATA):
        folder, found = table.rpartition("/")[0], False
        for record in _records(root + table):
            row = row_of.get(os.path.normpath(os.path.join(folder, str(record.pop(FILE_NAME, None)))))
            if row is None:
                continue
            found = True
            for column, value in record.items():
                columns.setdefault(column, [None] * len(images))[row] = value
        if not found:
            raise VitrailError(
                f"{root}{table} names no image: write the path of each image, relative to the table, into its column {FILE_NAME}, or "
                "remove the table."
            )
    return {column: _integers(values) for column, values in columns.items()}


def label_column_of(metadata: Metadata, given: str | None) -> str | None:
    """Return the column of labels: the given one, or the only one with the name of labels, or None.

    Raises VitrailError if there is no such column, or there are several.
    """
    if not metadata:
        return None
    found = [column for column in metadata if column == given or (given is None and column in LABEL_NAMES)]
    if len(found) > 1 or (given is not None and not found):
        raise VitrailError(
            f"found the columns {', '.join(metadata)} in the metadata of the images"
            + (f", but no {given!r}" if given is not None else "; choose the column of labels with label_column")
        )
    return found[0] if found else None


def _records(file: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, with the fields of structures as columns, such as "info.label"."""
    check_kind(file)
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            if file.endswith(".csv"):
                yield from csv.DictReader(stream, restkey="(more)")
            else:
                yield from (_flat(json.loads(line)) for line in stream if line.strip())
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise VitrailError(f"cannot read {file}: {error}; expected a table with the column {FILE_NAME}") from error


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"found {record!r:.50}")
    flat: dict[str, Any] = {}
    for name, value in record.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _integers(values: list[Any]) -> list[Label]:
    """Return labels as integers if all of them are, else as text."""
    texts = [None if value in (None, "") else str(value) for value in values]
    if all(text is None or INTEGER.fullmatch(text) for text in texts):
        return [None if text is None else int(text) for text in texts]
    return list(texts)
