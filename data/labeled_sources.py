"""Where labeled images lie: digits, image folders, Parquet, WebDataset and the Hub, as `datasets` with their splits."""

import glob
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import datasets

from ..errors import SourceNotFoundError, VitrailError
from .columns import load_dataset
from .decoding import image_suffixes
from .digits import digit_splits
from .image_sources import DIGITS

# What splits and the folders of splits are called, the preferred names first; capitals do not matter
TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("validation", "valid", "val", "test", "testing")

# Kinds of files that datasets reads by itself. A folder with such files is one that datasets reads as a whole.
BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
TABLES = ("*.parquet", "*.tar", "metadata.csv", "metadata.jsonl")


def read_splits(
    source: str, *, train_split: str | None, validation_split: str | None, revision: str | None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """The images to learn from and, where the source has such a split, to be measured on, with whatever columns they have.

    The arguments are those of `load_labeled_images`.
    """
    path = Path(source).expanduser()
    local = source == DIGITS or path.exists() or path.suffix in BUILDERS
    if local and revision is not None:
        raise VitrailError(f"found revision={revision!r} for {source}, which is not on the Hub; leave the revision out")
    if source == DIGITS:
        splits: Mapping[str, datasets.Dataset] = digit_splits()
    elif path.is_dir() and not any(next(path.glob(f"{depth}{kind}"), None) for depth in ("", "*/") for kind in TABLES):
        return _image_folder(path, train_split=train_split, validation_split=validation_split)
    elif path.is_dir():
        splits = load_dataset(source, str(path))
    elif path.suffix in BUILDERS:
        files = sorted(glob.glob(str(path)))
        if not files:
            raise SourceNotFoundError(f"found no file at {source}; give an existing file, a pattern of files, or a folder")
        splits = load_dataset(source, BUILDERS[path.suffix], data_files=[str(Path(file).absolute()) for file in files])
    elif path.exists():
        raise VitrailError(
            f"{source} is a file of a kind that holds no collection of images; give a folder, or a file that ends in "
            f"{' or '.join(BUILDERS)}"
        )
    else:
        splits = load_dataset(source, source, revision=revision)
    train, validation = _choose_splits(splits, train_split=train_split, validation_split=validation_split, source=source)
    return splits[train], None if validation is None else splits[validation]


def _choose_splits(
    names: Iterable[str], *, train_split: str | None, validation_split: str | None, source: str
) -> tuple[str, str | None]:
    names = list(names)
    for given in (train_split, validation_split):
        if given is not None and given not in names:
            raise VitrailError(f"{source} has no split {given!r}; found {', '.join(names)}")
    train = train_split or _first_of(TRAIN_NAMES, names) or (names[0] if len(names) == 1 else None)
    if train is None:
        raise VitrailError(
            f"{source} has the splits {', '.join(names)}, none of them called train; name the one to learn from with train_split"
        )
    return train, validation_split or _first_of(VALIDATION_NAMES, [name for name in names if name != train])


def _first_of(preferred: Iterable[str], names: Iterable[str]) -> str | None:
    found = {name.lower(): name for name in names}
    return next((found[name] for name in preferred if name in found), None)


def _image_folder(
    folder: Path, *, train_split: str | None, validation_split: str | None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """A folder for each class, or split folders of such; a split folder holds folders, a class folder that is called so images."""
    folder = folder.absolute()
    splits = [inner.name for inner in _folders(folder) if _folders(inner)]
    if train_split is None and validation_split is None and _first_of(TRAIN_NAMES, splits) is None:
        return _class_folders(folder), None
    train, validation = _choose_splits(splits, train_split=train_split, validation_split=validation_split, source=str(folder))
    return _class_folders(folder / train), None if validation is None else _class_folders(folder / validation)


def _class_folders(folder: Path) -> datasets.Dataset:
    classes = _folders(folder)
    if not classes:
        raise VitrailError(f"{folder} holds no folders; put the images of each class into a folder that is called as the class")
    paths, labels = [], []
    for folder_of_class in classes:
        files = image_files(folder_of_class)
        if not files:
            raise VitrailError(f"{folder_of_class} holds no images; add some, or remove the folder of that class")
        paths += [{"bytes": None, "path": file} for file in files]
        labels += [folder_of_class.name] * len(files)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)


def image_files(folder: Path) -> list[str]:
    """The paths of all images below a folder, in their order."""
    suffixes = image_suffixes()
    walk = os.walk(folder, followlinks=True)
    return sorted(os.path.join(parent, name) for parent, _, names in walk for name in names if _is_image(name, suffixes))


def holds_images(folder: Path) -> bool:
    """Whether images lie in a folder itself."""
    suffixes = image_suffixes()
    return any(_is_image(file.name, suffixes) and file.is_file() for file in folder.iterdir())


def _is_image(name: str, suffixes: Collection[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _folders(folder: Path) -> list[Path]:
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))
