"""Collections of images: partitions, each with its images in a fixed order."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

LabelType = Literal["string", "int64"]


@dataclass(frozen=True)
class ImageEntry:
    """An image to read.

    row: in its partition, from 0.
    path: its name in results: relative to the folder; the line of the list; the URL; "00.tar/key.jpg"; "train/17" for a row of a
        dataset without paths. It can always be encoded as UTF-8.
    location: the file or URL to open; content: the bytes of the file. One of them is None.
    label: None where the image has none.
    problem: the reason why it is unreadable, if known already; then location and content are None.
    own_store: whether the location is in another store than the source. If that store is unreachable, only this image is unreadable.
    """

    row: int
    path: str
    location: str | None = None
    content: bytes | None = None
    label: str | int | None = None
    problem: str | None = None
    own_store: bool = False


def row_id(partition: int, row: int) -> int:
    """Return the id of an image in its collection, an int64, which does not depend on how the work is divided."""
    return partition << 32 | row


class ImageCollection(ABC):
    """Images in a fixed order, undecoded. A collection can be pickled, and reads the same images in another process.

    source: as the user gave it.
    fingerprint: a digest of what determines the rows: the paths of all files in order, and their sizes where these cost nothing.
        It is the same in every process, and on a machine with the same files in another place.
    random_access: whether there is one partition, in which reading can start at any row without reading others.
    num_partitions: pieces that can be read independently: one, or one for each archive or shard.
    num_rows: of all partitions; None if it cannot be known without reading all of them.
    label_type: None without labels.
    settings: the arguments of `read_images` that give the same collection, in types of JSON.
    warnings: about files that were left out.
    """

    source: str
    fingerprint: str
    random_access: bool
    num_partitions: int
    num_rows: int | None
    label_type: LabelType | None
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()

    @abstractmethod
    def read(self, partition: int = 0, start: int = 0) -> Iterator[ImageEntry]:
        """Yield the images of a partition in order, from the row `start`.

        An unreadable image, or an archive that ends early, raises nothing: the `problem` of its entry is the reason.
        Raises VitrailError if a store cannot be reached.
        """

    def find(self, ids: Iterable[int]) -> dict[int, ImageEntry]:
        """Return the images with these ids, as far as they exist. Partitions without random access are read from their beginning."""
        rows_of_partitions: dict[int, list[int]] = {}
        for number in sorted(set(ids)):
            rows_of_partitions.setdefault(number >> 32, []).append(number & 0xFFFFFFFF)
        found: dict[int, ImageEntry] = {}
        for partition, rows in rows_of_partitions.items():
            if 0 <= partition < self.num_partitions:
                found |= {row_id(partition, entry.row): entry for entry in self._rows(partition, rows)}
        return found

    def _rows(self, partition: int, rows: list[int]) -> Iterator[ImageEntry]:
        """Yield rows of a partition, which must ascend."""
        if self.random_access:
            for row in rows:
                yield from islice(self.read(partition, row), 1)
            return
        wanted = set(rows)
        for entry in islice(self.read(partition, rows[0]), rows[-1] - rows[0] + 1):
            if entry.row in wanted:
                yield entry
