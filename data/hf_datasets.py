"""Images in datasets of the `datasets` library: in memory, on disk, or streamed from Parquet files and the Hub."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx  # public there: httpx or httpx2, whichever the client of the Hub uses

from ..errors import VitrailError
from ..utils.hashing import digest
from .columns import (
    LOAD_ERRORS,
    check_columns,
    choose_image_column,
    choose_label_column,
    columns_and_types,
    declare_images,
    label_columns,
    load_dataset,
)
from .digits import digit_splits
from .entries import ImageCollection, ImageEntry, LabelType
from .external import ANY_PATHS, RowPaths
from .files import Listing, as_text
from .remote import is_url
from .tables import check_tables

AnyDataset: TypeAlias = datasets.Dataset | datasets.IterableDataset

ROWS_AT_ONCE = 16  # read from a stream together
MAX_INT64 = 2**63 - 1
TIMEOUT = 30  # seconds


class DatasetCollection(ImageCollection):
    """The rows of a dataset: with random access, or of each shard of a stream.

    identity: values that distinguish this dataset from others. split: the beginning of the names of rows without a path. paths: the files
    and URLs that rows may name.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        source: str,
        split: str,
        settings: dict[str, Any],
        *,
        identity: list[str | int | None],
        paths: RowPaths = ANY_PATHS,
    ) -> None:
        self.random_access = isinstance(dataset, datasets.Dataset)
        dataset = declare_images(dataset if dataset.features is not None else dataset._resolve_features())
        self.image_column = choose_image_column(dataset.features, settings["image_column"])
        self.label_column = _choose_label_column(dataset.features, settings["label_column"], self.image_column)
        label = None if self.label_column is None else dataset.features[self.label_column]
        self.label_type = None if label is None else _label_type(label)
        self.label_names = label.names if isinstance(label, datasets.ClassLabel) else None
        columns = [column for column in (self.image_column, self.label_column) if column is not None]
        self.dataset = dataset.select_columns(columns).cast_column(self.image_column, datasets.Image(decode=False))
        self.source = source
        self.split = split
        self.settings = {**settings, "split": split, "image_column": self.image_column, "label_column": self.label_column}
        self.paths = paths
        allowed = [] if settings.get("allow_external") is None else ["allow_external"]
        self.fingerprint = digest([*identity, split, self.image_column, self.label_column, *allowed])
        self.num_partitions = 1 if self.random_access else dataset.num_shards
        self.num_rows = len(dataset) if self.random_access else _announced_rows(dataset, split)
        self._halves: list[tuple[int, int, AnyDataset]] = [(0, self.num_partitions, self.dataset)]  # each contains the next one

    def read(self, partition: int = 0, start: int = 0) -> Iterator[ImageEntry]:
        """Yield the images of a shard, from the row `start`."""
        if self.random_access and start >= len(self.dataset):
            return
        dataset = self._partition(partition)
        dataset = dataset.skip(start) if start else dataset
        row = start
        try:
            # in batches, because a stream that is iterated over gives each worker of a DataLoader only some of its rows
            for batch in dataset.iter(batch_size=ROWS_AT_ONCE):
                labels = batch[self.label_column] if self.label_column else [None] * ROWS_AT_ONCE
                for image, label in zip(batch[self.image_column], labels, strict=False):
                    yield self._entry(partition, row, image or {}, label)
                    row += 1
        except LOAD_ERRORS as error:
            if isinstance(error, pa.ArrowInvalid) and row == 0:  # a file that is not Parquet, or is truncated, has no rows at all
                yield ImageEntry(row, self._name(partition, row), problem=f"the file ends early, or is damaged: {error}")
                return
            # the reader runs ahead within a file: how many rows come before the damage is not deterministic
            found = str(error.__cause__ or error).strip()
            raise VitrailError(
                f"cannot read {self.source} from row {row} of partition {partition} on: {found}; repeat the command, or repair the file"
            ) from error

    def _partition(self, partition: int) -> AnyDataset:
        """Return the dataset of a partition.

        `datasets` copies the descriptions of all shards to select some. Halves are kept, so that following partitions need few copies.
        """
        while not self._halves[-1][0] <= partition < self._halves[-1][1]:
            self._halves.pop()
        start, stop, dataset = self._halves[-1]
        while stop - start > 1:
            middle = (start + stop + 1) // 2  # as `datasets` divides an odd number of shards
            half = int(partition >= middle)
            start, stop = (middle, stop) if half else (start, middle)
            dataset = dataset.shard(num_shards=2, index=half)
            self._halves.append((start, stop, dataset))
        return dataset

    def _entry(self, partition: int, row: int, image: Mapping[str, Any], label: Any) -> ImageEntry:
        content, path = image.get("bytes"), image.get("path")
        name = self._name(partition, row) if path is None else as_text(path)
        if self.label_names is not None:
            label = None if label is None or label < 0 else self.label_names[label]
        elif self.label_type == "int64" and label is not None:
            label = int(label)
            if label > MAX_INT64:
                return ImageEntry(row, name, problem=f"its label {label} does not fit into 64 bits with a sign")
        if content is not None:
            return ImageEntry(row, name, content=content, label=label)
        if path is None:
            return ImageEntry(row, name, label=label, problem="the row holds no image")
        if refusal := self.paths.refusal(path):
            return ImageEntry(row, name, label=label, problem=refusal)
        return ImageEntry(row, name, location=path, label=label, own_store=is_url(path) and not self.paths.contain(path))

    def _name(self, partition: int, row: int) -> str:
        return f"{self.split}/{row}" if self.num_partitions == 1 else f"{self.split}/{partition}/{row}"


def collect_dataset(source: Any, settings: dict[str, Any]) -> DatasetCollection:
    """Return the rows of an object of `datasets`, or of one of its splits. Raises VitrailError for another object."""
    splits = source if isinstance(source, dict) else {str(getattr(source, "split", None) or "train"): source}
    kind = type(source).__name__
    split, dataset = _choose_split(splits, settings["split"], f"the {kind}")
    if isinstance(dataset, datasets.Dataset):
        name = f"{kind} {dataset._fingerprint}"
        return DatasetCollection(dataset, name, split, {**settings, "source": name}, identity=[dataset._fingerprint])
    if not isinstance(dataset, datasets.IterableDataset):
        raise VitrailError(f"found {kind}; give a path, a URL, the id of a dataset on the Hub, or a datasets.Dataset")
    # a stream has no digest: its shards, columns and first image identify it
    stream = DatasetCollection(dataset, kind, split, settings, identity=[dataset.num_shards, repr(dataset.features)])
    stream.fingerprint = digest([stream.fingerprint, repr(next(stream.read(), None))])
    stream.source = stream.settings["source"] = f"{kind} {stream.fingerprint[:16]}"
    return stream


def collect_digits(settings: dict[str, Any]) -> DatasetCollection:
    """Return a split of scikit-learn's digits."""
    source = settings["source"]
    split, dataset = _choose_split(digit_splits(), settings["split"], source)
    return DatasetCollection(dataset, source, split, settings, identity=[source])


def collect_saved(source: str, settings: dict[str, Any], paths: RowPaths) -> DatasetCollection:
    """Return a dataset that `save_to_disk` has written."""
    split, dataset = _choose_split(load_saved(source, settings["source"]), settings["split"], source)
    return DatasetCollection(dataset, source, split, settings, identity=[dataset._fingerprint], paths=paths)


def load_saved(source: str, folder: str) -> Mapping[str, datasets.Dataset]:
    """Return the splits that `save_to_disk` has written to a folder; source: the user's name of it, for messages."""
    try:
        saved = datasets.load_from_disk(folder)
    except LOAD_ERRORS as error:
        raise VitrailError(f"datasets cannot load {source}: {error.__cause__ or error}") from error
    return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}


def collect_parquet(listing: Listing, source: str, settings: dict[str, Any], paths: RowPaths, *, folder: bool) -> DatasetCollection:
    """Return the rows of Parquet files, each of them a shard or more. In a folder, the names of the files may give splits."""
    files = [listing.root + name for name in listing.names]
    check_tables(files)
    given: dict[str, Any] = {"data_dir": settings["source"]} if folder else {"data_files": files}
    splits = load_dataset(source, "parquet", streaming=True, batch_size=ROWS_AT_ONCE, **given)
    split, dataset = _choose_split(splits, settings["split"], source)
    return DatasetCollection(dataset, source, split, settings, identity=[*listing.names, *listing.sizes], paths=paths)


def collect_from_hub(source: str, settings: dict[str, Any], paths: RowPaths) -> DatasetCollection:
    """Return a dataset on the Hub, streamed from the current commit of the revision."""
    revision = settings["revision"]
    with contextlib.suppress(HfHubHTTPError, httpx.HTTPError, OfflineModeIsEnabled):  # `datasets` raises a better error
        revision = HfApi().dataset_info(source, revision=revision, timeout=TIMEOUT).sha
    splits = load_dataset(source, source, revision=revision, streaming=True)
    split, dataset = _choose_split(splits, settings["split"], source)
    settings = {**settings, "revision": revision}
    return DatasetCollection(dataset, source, split, settings, identity=[source, revision], paths=paths)


def _choose_split(splits: Mapping[str, AnyDataset], split: str | None, source: str) -> tuple[str, AnyDataset]:
    """Return the split with a name, or the only split, or train."""
    names = [str(name) for name in splits]
    chosen = split or (names[0] if len(names) == 1 else "train")
    if chosen not in names:
        raise VitrailError(f"{source} has no split {chosen!r}; found {', '.join(names)}: choose one with split")
    return chosen, splits[chosen]


def _choose_label_column(features: datasets.Features, given: str | None, image_column: str) -> str | None:
    """Return the given column, or else the column that could hold labels, if there is one."""
    if given is not None:
        check_columns(features, given)
        if _label_type(features[given]) is None:
            raise VitrailError(f"the column {given!r} holds no strings or integers; found {columns_and_types(features)}")
        return given
    found = [column for column in label_columns(features) if column != image_column and _label_type(features[column]) is not None]
    return choose_label_column(features, None if len(found) > 1 else found[0]) if found else None


def _label_type(feature: Any) -> LabelType | None:
    if isinstance(feature, datasets.ClassLabel):
        return "string"
    dtype = getattr(feature, "dtype", "") if isinstance(feature, datasets.Value) else ""
    return "string" if dtype in ("string", "large_string") else "int64" if dtype.startswith(("int", "uint", "bool")) else None


def _announced_rows(dataset: datasets.IterableDataset, split: str) -> int | None:
    announced = (dataset.info.splits or {}).get(split)
    return (announced and announced.num_examples) or None
