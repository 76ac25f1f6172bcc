"""Collections of images from anywhere: a folder, a list, WebDataset shards, a data set, here or in any store that fsspec reaches."""

import os
import re
from typing import TYPE_CHECKING, Any

from ..errors import VitrailError
from .decoding import image_suffixes
from .entries import ImageCollection
from .files import FileCollection, Listing, class_folders, is_pattern, list_folder, list_pattern, read_list, suffix_of
from .remote import is_url
from .webdataset import TAR_SUFFIXES, TarCollection

if TYPE_CHECKING:
    import datasets

DIGITS = "digits"
PARQUET = ".parquet"
LIST = ".txt"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# What a folder that Dataset.save_to_disk has written holds; the second is that of a DatasetDict
SAVED = ("state.json", "dataset_dict.json")


def read_images(
    source: "str | os.PathLike[str] | datasets.Dataset | datasets.IterableDataset",
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
) -> ImageCollection:
    """Finds the images of a source, in an order that is always the same; no image is opened.

    Args:
        source: one of
            - a folder, with the folders in it: its images or, if it has none, its .tar or .parquet files. The first
              inner folder on the way to an image is its label. Hidden files are left out;
            - a pattern of files, as "photos/**/*.jpg" or "shards/{0000..0127}.tar";
            - a .txt file with a path or URL on each line, relative to its folder, and perhaps a tab and a label; lines that begin
              with # are left out;
            - .tar files of WebDataset: members of the same name up to the first dot are a sample. Its image is the member that ends
              as images do, its label the text of NAME.cls;
            - .parquet files, and a folder that `Dataset.save_to_disk` has written;
            - any of these as a URL of fsspec, as s3://bucket/folder/, hf://datasets/user/name/images/; of https, files only;
            - the id of a data set on the Hub, which is streamed;
            - a data set of the `datasets` library;
            - "digits", 1797 images on board of scikit-learn, in the splits train and validation.
        split: of a data set; otherwise the only one, or train.
        image_column, label_column: of a data set; otherwise those that are images, and labels, by their type or name. In .tar files
            what follows NAME and a dot, as "seg.png".
        revision: of a data set on the Hub.

    Raises VitrailError, which says what was found; SourceNotFoundError where nothing was.
    """
    settings: dict[str, Any] = {"source": source, "split": split, "image_column": image_column, "label_column": label_column}
    settings["revision"] = revision
    if not isinstance(source, str | os.PathLike):
        from .hf_datasets import collect_dataset  # imports datasets, which files and archives do without

        return collect_dataset(source, _only(settings, "split", "image_column", "label_column", source="a data set in memory"))
    name = os.fspath(source)
    if is_url(name) and "::" in name:
        raise VitrailError(
            f"{name} is a chain of URLs, which is not searched for images; unpack it, or give a list file of such URLs"
        )
    where = name if name == DIGITS or is_url(name) else os.path.abspath(os.path.expanduser(name))
    settings["source"] = where
    known = suffix_of(where) in {LIST, PARQUET, *TAR_SUFFIXES, *image_suffixes()}
    if name == DIGITS or any(os.path.isfile(os.path.join(where, file)) for file in SAVED):
        from .hf_datasets import collect_digits, collect_saved

        settings = _only(settings, "split", "image_column", "label_column", source=name)
        return collect_digits(settings) if name == DIGITS else collect_saved(name, settings)
    if os.path.isdir(where) or (is_url(where) and not known and not is_pattern(where)):
        return _collect_files(list_folder(where), name, settings, folder=True)
    if known or is_url(where) or is_pattern(where) or os.path.exists(where) or not HUB_ID.fullmatch(name):
        if suffix_of(where) != LIST or is_pattern(where):
            return _collect_files(list_pattern(where), name, settings, folder=False)
        listing, labels = read_list(where)
        if not listing.names:
            raise VitrailError(f"{name} names no images; write a path or URL on each line")
        return FileCollection(listing, source=name, settings=_only(settings, source=name), labels=labels)

    from .hf_datasets import collect_from_hub

    return collect_from_hub(name, {**settings, "source": name})


def _collect_files(listing: Listing, source: str, settings: dict[str, Any], *, folder: bool) -> ImageCollection:
    """The images among the files or, if there are none, their archives or tables."""
    images, archives, tables = (listing.only(suffixes) for suffixes in (image_suffixes(), TAR_SUFFIXES, {PARQUET}))
    if images.names:
        return FileCollection(images, source=source, settings=_only(settings, source=source), labels=class_folders(images.names))
    if archives.names:
        return TarCollection(
            archives.measured(), source=source, settings=_only(settings, "image_column", "label_column", source=source)
        )
    if tables.names:
        from .hf_datasets import collect_parquet

        settings = _only(settings, "split", "image_column", "label_column", source=source)
        return collect_parquet(tables.measured(), source, settings, folder=folder)
    raise VitrailError(
        f"{source} holds no images: found {len(listing.names)} files, none of which ends as images do (.jpg, .png, …) or in .tar or "
        ".parquet; give the files in a list, a .txt file, if they are called otherwise"
    )


def _only(settings: dict[str, Any], *names: str, source: str) -> dict[str, Any]:
    """The settings; raises VitrailError if one is given that this source has not."""
    for name, value in settings.items():
        if value is not None and name not in ("source", *names):
            raise VitrailError(f"found {name}={value!r}, which means nothing for {source}; leave it out")
    return settings
