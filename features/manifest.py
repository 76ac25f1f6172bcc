"""The records of extracted features: manifest.json, and one record for each file while features are extracted.

manifest.json grows with the number of files, and with nothing else: unreadable images are in errors.parquet.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..utils.records import Record

MAX_FILES = 500_000  # of features in a folder: manifest.json is read whole


@dataclass(kw_only=True)
class UnreadableRow:
    """An image without features: its id, its path, and the reason; `retry`: whether a repeated run tries it again."""

    id: int
    path: str
    reason: str
    retry: bool = False


@dataclass(kw_only=True)
class Shard:
    """The features of one chunk of a partition.

    file: relative to the folder; None, with sha256, if the chunk has no features.
    errors: number of unreadable images. unreachable: number of these that a repeated run tries again.
    """

    partition: int
    number: int
    file: str | None = None
    rows: int = 0
    bytes: int = 0
    sha256: str | None = None
    errors: int = 0
    unreachable: int = 0


@dataclass(kw_only=True)
class FinishedChunk(Record):
    """A chunk that has been written since the manifest."""

    shard: Shard
    unreadable: list[UnreadableRow]


@dataclass(kw_only=True)
class PartitionEnd(Record):
    """The number of rows of a partition that has been read to its end."""

    partition: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class UnreadableImage:
    """An image that cannot be used: its row in the dataset, its path, and the reason."""

    row: int
    path: str
    reason: str


@dataclass(kw_only=True)
class CacheManifest(Record):
    """The content of manifest.json in a folder of `vitrail.features.cache`.

    settings: everything that determines the features.
    num_cls_layers: see `vitrail.features.cache.CachedFeatures`.
    sha256: the SHA-256 of each array, by its file name.
    """

    settings: dict[str, Any]
    num_cls_layers: int
    sha256: dict[str, str]
    unreadable: list[UnreadableImage]


@dataclass(kw_only=True)
class Manifest(Record):
    """The content of manifest.json.

    settings: everything that determines the features; see `vitrail.features.job.Job.settings`.
    batch_size: of the last run, if it was given or selected. A run that resumes may have another.
    rows, errors: numbers of images with features, and of unreadable images.
    partitions: the number of rows of each partition that has been read to its end, by its number.
    """

    max_bytes: ClassVar[int] = 1 << 28  # 500 bytes for each of MAX_FILES
    remedy: ClassVar[str] = "copy the whole folder again, or extract into a new one"

    finished: bool = False
    settings: dict[str, Any]
    batch_size: int | None = None
    rows: int = 0
    errors: int = 0
    partitions: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
