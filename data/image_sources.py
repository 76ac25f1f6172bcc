"""The one grammar of sources of images: a folder, a list, WebDataset shards, a dataset, here or in any store that fsspec reaches."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from ..errors import VitrailError
from .decoding import image_suffixes
from .entries import ImageCollection
from .external import ANY_PATHS, RowPaths
from .files import FileCollection, Listing, is_pattern, list_folder, list_pattern, read_list, suffix_of
from .image_labels import METADATA, Label, Metadata, folder_labels, label_column_of, read_metadata
from .remote import is_url
from .webdataset import TAR_SUFFIXES, TarCollection

if TYPE_CHECKING:
    import datasets

ImageSource: TypeAlias = Union[
    str, "os.PathLike[str]", "datasets.Dataset", "datasets.IterableDataset", "datasets.DatasetDict", "datasets.IterableDatasetDict"
]
SourceKind = Literal["dataset", "digits", "saved", "images", "archives", "tables", "hub"]

DIGITS = "digits"
PARQUET = ".parquet"
LIST = ".txt"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# What a folder that Dataset.save_to_disk has written holds; the second is that of a DatasetDict
SAVED = ("state.json", "dataset_dict.json")

# What each kind of source has, among the options of `read_images`
COLUMNS = ("image_column", "label_column")
OPTIONS: dict[SourceKind, tuple[str, ...]] = {
    "dataset": ("split", *COLUMNS),
    "digits": ("split", *COLUMNS),
    "saved": ("split", *COLUMNS),
    "images": (),
    "archives": COLUMNS,
    "tables": ("split", *COLUMNS),
    "hub": ("split", *COLUMNS, "revision"),
}


NO_FILES = Listing("", [], [])


@dataclass(frozen=True)
class FoundSource:
    """A source of images, found and classified; no image is opened yet.

    kind: "dataset" (an object of `datasets`), "digits", "saved" (by `save_to_disk`), "images", "archives" or "tables" (files), or "hub".
    name: the source as the user gave it, for messages.
    location: what `read_images` finds it by: an absolute path, a URL, a Hub id, or the object.
    listing: the files.
    labels: of the images in a list, in the order of the listing. metadata: see `read_metadata`.
    is_folder, is_list: whether the files are those of a folder, or named in a list.
    left_out: numbers of other files, by their suffix.
    """

    kind: SourceKind
    name: str
    location: Any
    listing: Listing = NO_FILES
    labels: list[Label] | None = None
    metadata: Metadata = field(default_factory=dict)
    is_folder: bool = False
    is_list: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)

    def check_options(self, **options: Any) -> None:
        """Raise VitrailError for an option that is given and that this kind of source does not have."""
        for option, value in options.items():
            if value is not None and option not in (*OPTIONS[self.kind], *(["label_column"] if self.metadata else [])):
                raise VitrailError(f"found {option}={value!r}, but {self.name} has no {option}: leave it out")

    def row_paths(self, allow_external: bool) -> RowPaths:
        """Return the files and URLs that the rows of a dataset may name: those of the source itself, unless `allow_external`."""
        if allow_external or self.kind not in ("saved", "tables", "hub"):  # objects of `datasets` are the caller's own
            return ANY_PATHS
        if self.kind != "hub":
            return RowPaths([self.listing.root or self.location])
        from datasets import config
        from huggingface_hub import constants

        caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
        return RowPaths([f"hf://datasets/{self.location}@", f"hf://datasets/{self.location}/", *map(str, caches)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warning about files that were left out of a folder."""
        number = sum(self.left_out.values())
        if not number:
            return ()
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in self.left_out.items())
        left_out = "1 file with another extension was" if number == 1 else f"{number} files with other extensions were"
        return (f"{self.name}: {left_out} left out: {kinds}",)

    def image_labels(self, label_column: str | None = None) -> list[Label] | None:
        """Return the labels of image files: those in a list, a column of metadata, or else the names of folders."""
        if self.is_list:
            return self.labels
        column = label_column_of(self.metadata, label_column)
        return folder_labels(self.listing.names) if column is None else self.metadata[column]


def find_source(source: ImageSource) -> FoundSource:
    """Find a source of images; its forms are those of `read_images`.

    Raises VitrailError with what was found; SourceNotFoundError if there is nothing.
    """
    if not isinstance(source, str | os.PathLike):
        return FoundSource("dataset", f"the {type(source).__name__}", source)
    name = os.fspath(source)
    if is_url(name) and "::" in name:
        raise VitrailError(f"{name} is a chain of URLs, which cannot be listed: unpack it, or give a list file of such URLs")
    if name == DIGITS:
        return FoundSource("digits", name, name)
    location = name if is_url(name) else os.path.abspath(os.path.expanduser(name))
    if any(os.path.isfile(os.path.join(location, file)) for file in SAVED):
        return FoundSource("saved", name, location)
    known = suffix_of(location) in {LIST, PARQUET, *TAR_SUFFIXES, *image_suffixes()}
    if os.path.isdir(location) or (is_url(location) and not known and not is_pattern(location)):
        return _classify(list_folder(location), name, location, is_folder=True)
    if not (known or is_url(location) or is_pattern(location) or os.path.exists(location)) and HUB_ID.fullmatch(name):
        return FoundSource("hub", name, name)
    if suffix_of(location) != LIST or is_pattern(location):
        return _classify(list_pattern(location), name, location, is_folder=False)
    listing, labels = read_list(location)
    if not listing.names:
        raise VitrailError(f"{name} lists no images; write a path or URL on each line")
    return FoundSource("images", name, location, listing, labels, is_list=True)


def read_images(
    source: ImageSource,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    allow_external: bool = False,
) -> ImageCollection:
    """Find the images of a source, in an order that is always the same; no image is opened.

    Args:
        source: one of
            - a folder, with the folders in it: its images or, if it has none, its .tar or .parquet files. The first
              inner folder on the way to an image is its label. Hidden files are left out;
            - a pattern of files, such as "photos/**/*.jpg" or "shards/{0000..0127}.tar";
            - a .txt file with a path or URL on each line, relative to its folder, and optionally a tab and a label; lines that begin
              with # are left out;
            - .tar files of WebDataset: members of the same name up to the first dot are a sample. Its image is the member with the
              suffix of an image, its label the text of NAME.cls;
            - .parquet files, and a folder that `Dataset.save_to_disk` has written;
            - any of these as a URL of fsspec, such as s3://bucket/folder/, hf://datasets/user/name/images/; with https, files only;
            - the id of a dataset on the Hub, which is streamed;
            - a dataset of the `datasets` library;
            - "digits", the 1797 images that scikit-learn contains, in the splits train and validation.
        split: of a dataset; by default its only split, or train.
        image_column, label_column: of a dataset; by default the columns whose type or name is that of images or labels. In .tar files
            what follows NAME and a dot, such as "seg.png".
        revision: of a dataset on the Hub.
        allow_external: read files and URLs outside of a dataset that its rows name in place of an image. Otherwise such images are
            unreadable: whoever wrote the dataset would choose what is read on this machine and requested from it.

    Raises VitrailError with what was found; SourceNotFoundError if there is nothing.
    """
    found = find_source(source)
    options = {"split": split, "image_column": image_column, "label_column": label_column, "revision": revision}
    found.check_options(**options)
    settings = {"source": found.location, **options} | ({"allow_external": True} if allow_external else {})
    collection = _collect(found, source, settings)
    collection.warnings = found.warnings
    return collection


def _collect(found: FoundSource, source: ImageSource, settings: dict[str, Any]) -> ImageCollection:
    if found.kind == "images":
        return FileCollection(
            found.listing, source=found.name, settings=settings, labels=found.image_labels(settings["label_column"])
        )
    if found.kind == "archives":
        return TarCollection(found.listing.measured(), source=found.name, settings=settings)

    from . import hf_datasets  # imports datasets, not needed for files and archives

    paths = found.row_paths(settings.get("allow_external", False))
    if found.kind == "dataset":
        return hf_datasets.collect_dataset(source, settings)
    if found.kind == "digits":
        return hf_datasets.collect_digits(settings)
    if found.kind == "saved":
        return hf_datasets.collect_saved(found.name, settings, paths)
    if found.kind == "tables":
        return hf_datasets.collect_parquet(found.listing.measured(), found.name, settings, paths, folder=found.is_folder)
    return hf_datasets.collect_from_hub(found.name, settings, paths)


def _classify(listing: Listing, name: str, location: str, *, is_folder: bool) -> FoundSource:
    """Return the images among files or, if there are none, the archives or tables."""
    kinds: dict[SourceKind, Collection[str]] = {"images": image_suffixes(), "archives": TAR_SUFFIXES, "tables": {PARQUET}}
    for kind, suffixes in kinds.items():
        files = listing.only(suffixes)
        if not files.names:
            continue
        others = [other for other in listing.names if suffix_of(listing.root + other) not in suffixes]
        others = [other for other in others if other.rpartition("/")[2] not in METADATA] if kind == "images" else others
        local = kind == "images" and is_folder and not is_url(location)
        metadata = read_metadata(listing.root, listing.names, files.names) if local else {}
        return FoundSource(kind, name, location, files, metadata=metadata, is_folder=is_folder, left_out=_by_suffix(others))
    raise VitrailError(
        f"{name} holds no images: found {len(listing.names)} files, none of them with the suffix of an image (.jpg, .png, …), .tar or "
        ".parquet; give files with other suffixes in a list, a .txt file"
    )


def _by_suffix(names: Iterable[str]) -> dict[str, int]:
    """Return the number of files of each suffix, the most frequent first."""
    counted = Counter(suffix_of(name) or "no extension" for name in names)
    return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))
