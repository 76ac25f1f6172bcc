"""What a collection of images is, wherever they lie: partitions, each with its images in a fixed order."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

LabelType = Literal["string", "int64"]


@dataclass(frozen=True)
class ImageEntry:
    """One image that is to be read.

    row: in its partition, from 0.
    path: how results name it: relative to the folder; the line of the list; the URL; "00.tar/key.jpg"; "train/17" for a row of a
        data set without paths. Always text that can be written as UTF-8.
    location: the file or URL to open; content: the bytes of the file. One of them is None.
    label: None where the image has none.
    problem: why it cannot be read, where that is known already; then location and content are None.
    """

    row: int
    path: str
    location: str | None = None
    content: bytes | None = None
    label: str | int | None = None
    problem: str | None = None


def row_id(partition: int, row: int) -> int:
    """The number of an image in its collection, an int64; the same however the work is divided."""
    return partition << 32 | row


class ImageCollection(ABC):
    """Images in a fixed order, none of them decoded. It can be pickled, and reads the same in another process.

    source: what the user gave.
    fingerprint: a digest of what makes rows what they are: the paths of all files in order, and sizes where they come for free.
        The same in every process, and on a machine that has the same files elsewhere.
    random_access: there is one partition, and reading can start at any row at once.
    num_partitions: what can be read independently of each other: one, or a partition for each archive or shard.
    num_rows: of all partitions; None if that cannot be known without reading all.
    label_type: None where images have no labels.
    settings: the arguments of `read_images` that make it again; JSON.
    """

    source: str
    fingerprint: str
    random_access: bool
    num_partitions: int
    num_rows: int | None
    label_type: LabelType | None
    settings: dict[str, Any]

    @abstractmethod
    def read(self, partition: int = 0, start: int = 0) -> Iterator[ImageEntry]:
        """The images of a partition in order, from the row `start`.

        Nothing is raised for an image that cannot be read, or an archive that ends early: there its last entry says so.
        Raises VitrailError where a store cannot be reached.
        """

    def find(self, ids: Iterable[int]) -> dict[int, ImageEntry]:
        """The images with these ids, without those that are not there. Reads through the partitions that have no random access."""
        rows_of_partitions: dict[int, list[int]] = {}
        for number in sorted(set(ids)):
            rows_of_partitions.setdefault(number >> 32, []).append(number & 0xFFFFFFFF)
        found: dict[int, ImageEntry] = {}
        for partition, rows in rows_of_partitions.items():
            if 0 <= partition < self.num_partitions:
                found |= {row_id(partition, entry.row): entry for entry in self._rows(partition, rows)}
        return found

    def _rows(self, partition: int, rows: list[int]) -> Iterator[ImageEntry]:
        """Those rows, which ascend, of a partition."""
        if self.random_access:
            for row in rows:
                yield from islice(self.read(partition, row), 1)
            return
        wanted = set(rows)
        for entry in islice(self.read(partition, rows[0]), rows[-1] - rows[0] + 1):
            if entry.row in wanted:
                yield entry
