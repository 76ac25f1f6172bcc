"""From a collection of images to batches of equal shape: read in order, decoded by workers ahead of the model, bad ones set apart.

Shape letters: B batch, C H W channels and pixels.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UnreadableImageError, VitrailError
from ..processing.image_processing_vit import VitrailImageProcessor
from .decoding import open_entry
from .entries import ImageCollection, ImageEntry

HELD = 8  # batches: after so many images one does not wait any longer for others of its shape


@dataclass(frozen=True)
class Piece:
    """Rows of a part of a collection that are read one after the other, and make one chunk or more.

    stop: None is the end of the part.
    finished: the numbers of chunks in between whose rows are not wanted any more.
    """

    part: int
    start: int
    stop: int | None
    finished: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chunk:
    """The rows that make one file: the `number`-th so many of a part. Its rows come next, where it stands among batches."""

    part: int
    number: int


@dataclass(frozen=True)
class ChunkEnd:
    """All rows of the chunk have been given. `part_rows`: how many its part has, where that has come to its end too."""

    part_rows: int | None


@dataclass(frozen=True)
class Batch:
    """Images of one shape, of one chunk: pixel_values (B, C, H, W)."""

    entries: list[ImageEntry]
    pixel_values: torch.Tensor


@dataclass(frozen=True)
class UnreadableEntry:
    """An image that cannot be used, and why."""

    entry: ImageEntry
    reason: str


@dataclass(frozen=True)
class _Reading:
    """Entries of a chunk, few enough to be decoded together; the chunk if it begins with them, and its end if it ends."""

    begin: Chunk | None
    entries: list[ImageEntry]
    end: ChunkEnd | None


@dataclass(frozen=True)
class _Decoded:
    begin: Chunk | None
    end: ChunkEnd | None
    groups: list[Batch]
    bad: list[UnreadableEntry]
    error: VitrailError | None = None  # not of one image: raised where the batches are read, and not in a worker


def read_batches(
    collection: ImageCollection,
    pieces: Iterable[Piece],
    image_processor: VitrailImageProcessor,
    *,
    chunk_size: int,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
) -> Generator[Chunk | Batch | UnreadableEntry | ChunkEnd, None, None]:
    """The images of pieces: each chunk, then its batches and bad images, then its end.

    A batch holds images of one chunk, and which ones depends on that chunk alone.

    Args:
        chunk_size: rows of a part that make a chunk.
        num_workers: processes that decode; 0 to do it in this one, when the next batch is asked for.
    """
    decoded = DataLoader(
        _Decoder(image_processor),
        batch_sampler=_readings(collection, pieces, chunk_size=chunk_size, batch_size=batch_size),
        num_workers=num_workers,
        collate_fn=_only,
        generator=torch.Generator(),  # or the loader would draw from torch's own, and change what others draw from it
    )
    waiting: dict[torch.Size, list[Batch]] = {}  # by shape, in the order of their first images
    for one in _guarded(decoded, num_workers):
        if one.error is not None:
            raise one.error
        if one.begin is not None:
            yield one.begin
        yield from one.bad
        for group in one.groups:
            waiting.setdefault(group.pixel_values.shape[1:], []).append(group)
        for batch in _take(waiting, batch_size, everything=one.end is not None):
            yield Batch(batch.entries, batch.pixel_values.pin_memory()) if pin_memory else batch
        if one.end is not None:
            yield one.end


def sample_images(collection: ImageCollection, image_processor: VitrailImageProcessor, number: int) -> torch.Tensor:
    """Some images of a collection, prepared, always the same ones: (N, C, H, W), of the shape that most of them have.

    number: how many are read, evenly spread where each row can be found at once, else the first ones; bad ones are left out.

    Raises VitrailError where none can be used.
    """
    if collection.random_access:
        total = collection.num_rows or 0
        number = min(number, total)
        entries = [next(collection.read(0, index * total // number)) for index in range(number)]
    else:
        parts = chain.from_iterable(collection.read(part, 0) for part in range(collection.num_parts))
        entries = list(islice(parts, number))
    decoded = _Decoder(image_processor).decode(_Reading(None, entries, None))
    if decoded.error is not None:
        raise decoded.error
    if not decoded.groups:
        raise VitrailError(f"none of {len(entries)} images of {collection.source} can be used, of which int8 needs some dozens")
    return max(decoded.groups, key=lambda group: len(group.entries)).pixel_values


def _guarded(decoded: Iterable[_Decoded], num_workers: int) -> Iterator[_Decoded]:
    """The same; a worker that the system has killed is one clear error."""
    try:
        yield from decoded
    except (RuntimeError, ConnectionError) as error:
        if num_workers == 0:
            raise
        raise VitrailError(
            f"a process that decodes images has died ({error}). If it was for want of memory, choose fewer than {num_workers} workers."
        ) from error


def _readings(
    collection: ImageCollection, pieces: Iterable[Piece], *, chunk_size: int, batch_size: int
) -> Iterator[list[_Reading]]:
    for piece in pieces:
        entries = collection.read(piece.part, piece.start)
        row, stop = piece.start, piece.stop
        while row != stop:
            chunk = Chunk(piece.part, row // chunk_size)
            end_of_chunk = (chunk.number + 1) * chunk_size
            wanted = min(batch_size, end_of_chunk - row) if stop is None else min(batch_size, end_of_chunk - row, stop - row)
            begins = row % chunk_size == 0
            read = list(islice(entries, wanted))
            row += len(read)
            if len(read) < wanted:
                stop = row
            end = ChunkEnd(row if piece.stop is None and row == stop else None) if row in (stop, end_of_chunk) else None
            if chunk.number not in piece.finished:
                yield [_Reading(chunk if begins else None, read, end)]
            elif row == stop:
                yield [_Reading(chunk, [], end)]


def _take(waiting: dict[torch.Size, list[Batch]], batch_size: int, *, everything: bool) -> Iterator[Batch]:
    """Takes full batches out; and those that are not full where everything is wanted, or an image has waited for long.

    Rows are written in order: while one waits for others of its shape, all that come after it are held.
    """
    number = {shape: sum(len(group.entries) for group in groups) for shape, groups in waiting.items()}
    newest = max((group.entries[-1].row for groups in waiting.values() for group in groups), default=0)
    overdue = [shape for shape, groups in waiting.items() if newest - groups[0].entries[0].row >= HELD * batch_size]
    for shape in [shape for shape in waiting if everything or number[shape] >= batch_size or shape in overdue]:
        groups = waiting.pop(shape)
        entries = [entry for group in groups for entry in group.entries]
        pixel_values = groups[0].pixel_values if len(groups) == 1 else torch.cat([group.pixel_values for group in groups])
        for start in range(0, len(entries), batch_size):
            batch = Batch(entries[start : start + batch_size], pixel_values[start : start + batch_size])
            if len(batch.entries) == batch_size or everything or shape in overdue:
                yield batch
            else:
                waiting[shape] = [batch]


def _only(decoded: list[_Decoded]) -> _Decoded:
    (one,) = decoded
    return one


class _Decoder(Dataset):
    """Decodes entries, in whichever process asks."""

    def __init__(self, image_processor: VitrailImageProcessor) -> None:
        self.image_processor = image_processor

    def __getitems__(self, readings: list[_Reading]) -> list[_Decoded]:
        return [self.decode(reading) for reading in readings]

    def decode(self, reading: _Reading) -> _Decoded:
        groups: dict[torch.Size, list[tuple[ImageEntry, torch.Tensor]]] = {}
        bad = []
        for entry in reading.entries:
            content, entry = entry, replace(entry, content=None)  # whoever writes the features has no use for the file
            try:
                image = open_entry(content, self.image_processor.decode)
                pixel_values = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
            except UnreadableImageError as error:
                bad.append(UnreadableEntry(entry, error.reason))
            except VitrailError as error:  # a store that does not answer: not the fault of this image
                return _Decoded(reading.begin, reading.end, [], [], error)
            except ValueError as error:  # decoded, but of channels or values that the model cannot take
                bad.append(UnreadableEntry(entry, str(error)))
            else:
                groups.setdefault(pixel_values.shape, []).append((entry, pixel_values))
        batches = [Batch([entry for entry, _ in group], torch.stack([pixels for _, pixels in group])) for group in groups.values()]
        return _Decoded(reading.begin, reading.end, batches, bad)
