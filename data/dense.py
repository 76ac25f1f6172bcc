"""Images with a class or a depth for each pixel, in a train and a validation split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import datasets
import numpy as np
from transformers.utils import logging

from ..errors import VitrailError
from ..utils.hashing import digest
from .columns import check_columns, choose_image_column, columns_and_types
from .dense_targets import IGNORE_INDEX, DenseTask, TargetFormat, image_size
from .digit_scenes import DIGIT_SCENES, digit_scene_splits, scene_names
from .files import Listing, as_text, list_folder
from .image_labels import TRAIN_NAMES, first_of
from .image_sources import FoundSource, ImageSource, find_source
from .labeled import check_fraction, check_paths, images_of
from .splits import choose_splits, read_splits

# Names of columns and of folders, the preferred names first
TARGET_NAMES = {
    "segmentation": (
        "mask",
        "masks",
        "segmentation",
        "segmentation_mask",
        "semantic_mask",
        "annotation",
        "annotations",
        "label",
        "labels",
    ),
    "depth": ("depth", "depths", "depth_map", "depth_maps"),
}
IMAGE_FOLDERS = ("images", "image")
MAX_CLASSES = 1000  # without names: more are rather instances, or depths
DEPTH_RANGE = (0.001, 10.0)  # meters, that of NYU and of the published linear heads

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DenseImages:
    """The train and validation splits of images with dense targets.

    train, validation: with the columns "image" and "target", {"bytes", "path"}; the `_fingerprint` of each is a digest of its rows.
    target_format: how targets are read.
    label_names: in the order of the class indices; empty for depth.
    depth_range: smallest and largest depth in meters that count; of depth only.
    source, fingerprint, warnings: see `vitrail.data.labeled.LabeledImages`.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    target_format: TargetFormat
    label_names: tuple[str, ...]
    depth_range: tuple[float, float]
    source: str
    fingerprint: str
    warnings: tuple[str, ...] = ()

    @property
    def task(self) -> DenseTask:
        """What the targets are: "segmentation" or "depth"."""
        return self.target_format.task


def load_dense_images(
    source: ImageSource,
    *,
    task: DenseTask = "segmentation",
    image_column: str | None = None,
    target_column: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    revision: str | None = None,
    allow_external: bool = False,
    label_names: Sequence[str] | None = None,
    reduce_labels: bool = False,
    depth_unit: float | None = None,
    depth_range: tuple[float, float] = DEPTH_RANGE,
) -> DenseImages:
    """Find images with a mask or a depth map each, check every target, and divide them into a train and a validation split.

    Args:
        source: a folder with the folders images/ and masks/ (or depth/) whose files have the same names, which may be in folders of splits
            on either side, such as train/images/ or images/train/; Parquet files; a dataset in memory, on disk or on the Hub;
            "digit-scenes" (`vitrail.data.digit_scenes`).
        task: "segmentation" for masks of class indices with one channel, where 255 is ignored; "depth" for maps of depth.
        target_column: by default a second column of images, or one named mask, annotation, label, depth and the like.
        image_column, train_split, validation_split, validation_fraction, seed, revision, allow_external: see `load_labeled_images`.
        label_names: of the classes; by default their numbers.
        reduce_labels: ignore label 0, and lower the others by 1, as for ADE20K.
        depth_unit: meters of one unit of integer depths (KITTI: 1 / 256); by default millimeters. Depths in floating point are meters.
        depth_range: smallest and largest depth in meters. Pixels without depth (0), or beyond, do not count.

    Raises VitrailError if a target is unreadable, in color, out of range, or not of the size of its image; SourceNotFoundError if there is
    nothing.
    """
    check_fraction(validation_fraction)
    if task not in TARGET_NAMES:
        raise VitrailError(f"found task={task!r}; expected {' or '.join(map(repr, TARGET_NAMES))}")
    target_format = TargetFormat(task, reduce_labels, depth_unit)
    warnings: tuple[str, ...] = ()
    if source == DIGIT_SCENES:
        name, label_names = DIGIT_SCENES, label_names or scene_names()
        train, validation = (_pair(scenes, "image", "mask") for scenes in digit_scene_splits().values())
    else:
        found = find_source(source)
        name = found.name
        splits = {"train_split": train_split, "validation_split": validation_split}
        if found.kind == "images":
            train, validation = _folder_splits(found, task, **splits)
            columns = "image", "target"
        else:
            warnings = found.warnings
            train, validation = read_splits(found, revision=revision, **splits)
            columns = _choose_columns(train.features, task, image_column, target_column)
        train, validation = (_checked_pair(split, columns, found, allow_external) for split in (train, validation))
    if validation is None:
        order = np.random.default_rng(seed).permutation(len(train))
        count = max(round(validation_fraction * len(train)), 1)
        train, validation = (_rows(train, np.sort(rows)) for rows in (order[count:], order[:count]))
    if not (len(train) and len(validation)):
        raise VitrailError(f"{name} leaves no images for train or for validation; expected two images or more.")
    if train._fingerprint == validation._fingerprint:
        raise VitrailError(f"{name} has the same images for train and for validation: choose another validation split.")
    both = {"train": train, "validation": validation}
    if task == "segmentation":
        label_names = _check_masks(both, target_format, label_names)
    else:
        _check_depths(both, target_format, depth_range)
    names = tuple(label_names or ())
    parts = [train._fingerprint, validation._fingerprint, repr((target_format, names, depth_range))]
    return DenseImages(
        train, validation, target_format, names, depth_range, name, digest([part.encode() for part in parts]), warnings
    )


# Sources


def _checked_pair(
    split: datasets.Dataset | None, columns: tuple[str, str], source: FoundSource, allow_external: bool
) -> datasets.Dataset | None:
    """Return a split as "image" and "target"; raise VitrailError for a column that it lacks, and for files that it must not name."""
    if split is None:
        return None
    check_columns(split.features, *columns)
    for column in columns:
        check_paths(split, column, source, allow_external)
    return _pair(split, *columns)


def _choose_columns(features: datasets.Features, task: DenseTask, image: str | None, target: str | None) -> tuple[str, str]:
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image) and name != image]
    target = target or first_of(TARGET_NAMES[task], images)
    others = [name for name in images if name != target]
    if target is None and image is not None and len(images) == 1:
        target = images[0]
    if target is None:
        raise VitrailError(
            f"found no column with the {'masks' if task == 'segmentation' else 'depths'}; choose it with label_column, among "
            f"{columns_and_types(features)}"
        )
    return image or (others[0] if len(others) == 1 else choose_image_column(features, image)), choose_image_column(features, target)


def _folder_splits(
    source: FoundSource, task: DenseTask, train_split: str | None, validation_split: str | None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the images of a folder with their targets, which are called as the images but for the folder and the suffix."""
    if not source.is_folder:
        raise VitrailError(f"{source.name} consists of image files; expected a folder with images/ and {TARGET_NAMES[task][1]}/.")
    files = list_folder(source.location)
    images = _by_key(files, IMAGE_FOLDERS)
    targets = _by_key(files, TARGET_NAMES[task])
    if not images or not targets:
        folders = sorted({name.rpartition("/")[0] or "." for name in files.names})
        kind = "masks/ for the masks" if task == "segmentation" else "depth/ for the maps of depth"
        raise VitrailError(f"{source.name} has the folders {', '.join(folders[:10])}; expected images/ for the images and {kind}.")
    if missing := sorted(set(images) ^ set(targets)):
        example = files.names[(images | targets)[missing[0]]]
        raise VitrailError(
            f"{source.name}: {len(missing)} files have no counterpart, for example {example}; expected a mask or map of the same name for "
            "each image"
        )
    split_of = {key: key.partition("/")[0] if "/" in key else None for key in images}
    names = sorted({split for split in split_of.values() if split is not None})

    def pairs_of(split: str | None) -> datasets.Dataset:
        keys = [key for key in images if split is None or split_of[key] == split]
        columns = {
            name: [{"bytes": None, "path": as_text(path)} for path in files.select([rows[key] for key in keys]).locations()]
            for name, rows in (("image", images), ("target", targets))
        }
        return datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image())))

    if train_split is None and validation_split is None and first_of(TRAIN_NAMES, names) is None:
        return pairs_of(None), None
    train, validation = choose_splits(names, train_split=train_split, validation_split=validation_split, source=source.name)
    return pairs_of(train), None if validation is None else pairs_of(validation)


def _by_key(files: Listing, folders: Sequence[str]) -> dict[str, int]:
    """Return the indices of the files that have one of the folders in their path, by the path without that folder and the suffix."""
    found = {}
    for index, name in enumerate(files.names):
        *parents, file = PurePosixPath(name).parts
        folder = first_of(folders, parents)
        if folder is not None:
            parents.remove(folder)
            found["/".join([*parents, PurePosixPath(file).stem])] = index
    return found


def _pair(split: datasets.Dataset, image_column: str, target_column: str) -> datasets.Dataset:
    """Return the columns "image" and "target", undecoded, with a digest of their content as the fingerprint."""
    images, targets = images_of(split, image_column), images_of(split, target_column).rename_column("image", "target")
    fingerprint = digest([images._fingerprint.encode(), targets._fingerprint.encode()])
    return _rows(datasets.concatenate_datasets([images, targets], axis=1), np.arange(len(images)), fingerprint)


def _rows(split: datasets.Dataset, rows: np.ndarray, fingerprint: str | None = None) -> datasets.Dataset:
    return split.select(rows, new_fingerprint=digest([(fingerprint or split._fingerprint).encode(), rows.tobytes()]))


# Checks


def _targets(splits: Mapping[str, datasets.Dataset], target_format: TargetFormat) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the content of each target, which has the size of its image."""
    for split, rows in splits.items():
        for number, row in enumerate(rows):
            name = f"{split}, row {number}"
            target = target_format.read(row["target"], name=name)
            size = image_size(row["image"], name)
            if size is not None and size != target.shape:
                raise VitrailError(
                    f"the image of {name} has {size[1]} x {size[0]} pixels, its target {target.shape[1]} x {target.shape[0]}; expected a "
                    "target of the same size"
                )
            yield str(row["target"]["path"] or name), target


def _check_masks(
    splits: Mapping[str, datasets.Dataset], target_format: TargetFormat, label_names: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the classes."""
    limit = MAX_CLASSES if label_names is None else len(label_names)
    largest = 0
    for name, mask in _targets(splits, target_format):
        valid = mask[mask != IGNORE_INDEX]
        highest = int(valid.max(initial=0))
        if highest >= limit:
            raise VitrailError(
                f"the mask {name} holds the class {highest}; expected indices below {limit}, or {IGNORE_INDEX} for pixels to ignore. Give "
                "the names of all classes with labels, or change the masks"
            )
        largest = max(largest, highest)
    if largest == 0:
        raise VitrailError(
            f"all masks hold class 0 alone, or {IGNORE_INDEX}, which is ignored: write 1, 2, … for what is not background."
        )
    return tuple(label_names or map(str, range(largest + 1)))


def _check_depths(splits: Mapping[str, datasets.Dataset], target_format: TargetFormat, depth_range: tuple[float, float]) -> None:
    low, high = depth_range
    known = beyond = 0
    deepest = 0.0
    for _, depths in _targets(splits, target_format):
        known += int((depths > 0).sum())
        beyond += int((depths > high).sum())
        deepest = max(deepest, float(depths.max(initial=0)))
    if known == beyond or deepest < low:
        raise VitrailError(
            f"no pixel has a depth from {low:g} to {high:g} m; the largest is {deepest:g} m. Set depth_range, or the unit of integer "
            "depths with depth_unit"
        )
    if beyond:
        logger.warning(
            f"{beyond / known:.1%} of the depths are beyond {high:g} m, up to {deepest:g} m, and do not count: depth_range changes that."
        )
