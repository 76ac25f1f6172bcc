"""The one way from a collection to the model's input: images read in order, decoded and preprocessed ahead of the model, grouped by shape.

An image that cannot be used is listed with the reason, and nothing is raised for it. Shape letters: B batch, V views, C H W channels and
pixels.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UnreadableImageError, VitrailError
from ..processing.augmentation import rng_of, training_view
from ..processing.image_processing_vit import (
    PREPROCESS_ERRORS,
    VitrailImageProcessor,
    decode,
    rescale_and_normalize,
    resize_and_crop,
)
from ..utils.worker_errors import clear_worker_errors
from .decoding import open_entry
from .entries import ImageCollection, ImageEntry

MAX_CONTENT = 2**28  # bytes of files from archives and datasets: when more are in memory, they are decoded before others are read
MAX_WAIT = 8  # batches: after this many more images, an image no longer waits for others of its shape


@dataclass(frozen=True)
class TrainingViews:
    """Random training views of each image, in place of the image processor's one view.

    number: views of an image; view v is drawn from `rng_of(seed, v, row)`.
    resample: Pillow's filter.
    """

    number: int
    seed: int
    resample: int


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a partition, which make one chunk or more.

    stop: None for the end of the partition.
    finished: numbers of chunks in between whose rows are not needed any more.
    """

    partition: int
    start: int
    stop: int | None
    finished: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Chunk:
    """The rows of one output file: rows number * chunk_size to (number + 1) * chunk_size of a partition. Marks where they begin."""

    partition: int
    number: int


@dataclass(frozen=True)
class ChunkEnd:
    """Marks the end of a chunk. `partition_rows`: the number of rows of its partition, if the partition ends here too."""

    partition_rows: int | None


@dataclass(frozen=True)
class Batch:
    """Images of one shape and one chunk: pixel_values (B, C, H, W), or (B, V, C, H, W) of training views."""

    entries: list[ImageEntry]
    pixel_values: torch.Tensor


@dataclass(frozen=True)
class UnreadableEntry:
    """An image that cannot be used, and why; `retry`: whether it may be readable later."""

    entry: ImageEntry
    reason: str
    retry: bool = False


@dataclass(frozen=True)
class _Reading:
    """Entries of a chunk that are decoded together, with the marks of the chunk that begins or ends with them."""

    begin: Chunk | None
    entries: list[ImageEntry]
    end: ChunkEnd | None


@dataclass(frozen=True)
class _Decoded:
    begin: Chunk | None
    end: ChunkEnd | None
    groups: list[Batch]
    unreadable: list[UnreadableEntry]
    error: VitrailError | None = None  # not of one image: raised where the batches are read, and not in a worker


Kind: TypeAlias = tuple[torch.Size, torch.dtype]  # of images that can be stacked
Prepare: TypeAlias = Callable[[Callable[[_Reading], _Decoded], Iterable[_Reading]], Iterable[_Decoded]]


@dataclass(frozen=True)
class ImageReader:
    """Reads the images of a collection in batches.

    batch_size: views in a batch, where an image has several; at least one image.
    num_workers: processes that decode; 0 to decode in this process.
    views: training views; None for the one view of the image processor.
    """

    collection: ImageCollection
    image_processor: VitrailImageProcessor
    batch_size: int
    num_workers: int = 0
    views: TrainingViews | None = None

    def read(
        self, pieces: Iterable[Piece], *, chunk_size: int, prepare: Prepare = map, normalize_on: torch.device | None = None
    ) -> Generator[Chunk | Batch | UnreadableEntry | ChunkEnd, None, None]:
        """Yield each chunk of the pieces: its mark, its batches and unreadable images, and the mark of its end.

        A batch holds images of one chunk, and depends on that chunk alone.

        Args:
            prepare: runs the decoding in this process, as `InferenceWorkers.prepare` does; `map` decodes when the next batch is requested.
            normalize_on: a device to move batches to before they are normalized, as uint8, a quarter of the bytes.
        """
        batch_size = max(1, self.batch_size // self.views.number) if self.views else self.batch_size
        decoder = _Decoder(self.image_processor, self.views, normalizes=normalize_on is None)
        readings = _readings(self.collection, pieces, chunk_size=chunk_size, batch_size=batch_size)
        decoded: Iterable[_Decoded]
        if self.num_workers:
            decoded = DataLoader(
                decoder,
                batch_sampler=([reading] for reading in readings),
                num_workers=self.num_workers,
                collate_fn=_only,
                generator=torch.Generator(),  # or the loader would draw from torch's own, and change what others draw from it
            )
        else:
            decoded = prepare(decoder.decode, readings)
        waiting: dict[Kind, list[Batch]] = {}  # in the order of their first images
        with clear_worker_errors():
            for one in decoded:
                if one.error is not None:
                    raise one.error
                if one.begin is not None:
                    yield one.begin
                yield from one.unreadable
                for group in one.groups:
                    waiting.setdefault((group.pixel_values.shape[1:], group.pixel_values.dtype), []).append(group)
                for batch in _take(waiting, batch_size, everything=one.end is not None):
                    yield batch if normalize_on is None else decoder.finish(batch, normalize_on)
                if one.end is not None:
                    yield one.end


def sample_images(collection: ImageCollection, image_processor: VitrailImageProcessor, number: int) -> torch.Tensor:
    """Return preprocessed images of a collection, always the same ones, of the most frequent shape: (N, C, H, W).

    number: images to read, evenly spread in a collection with random access, else the first ones. Unreadable images are left out.

    Raises VitrailError if none can be used.
    """
    if collection.random_access:
        total = collection.num_rows or 0
        number = min(number, total)
        entries = [next(collection.read(0, index * total // number)) for index in range(number)]
    else:
        partitions = chain.from_iterable(collection.read(partition, 0) for partition in range(collection.num_partitions))
        entries = list(islice(partitions, number))
    decoded = _Decoder(image_processor, None).decode(_Reading(None, entries, None))
    if decoded.error is not None:
        raise decoded.error
    if not decoded.groups:
        raise VitrailError(f"none of {len(entries)} images of {collection.source} can be used; int8 needs a few dozen")
    return max(decoded.groups, key=lambda group: len(group.entries)).pixel_values


def _readings(collection: ImageCollection, pieces: Iterable[Piece], *, chunk_size: int, batch_size: int) -> Iterator[_Reading]:
    for piece in pieces:
        entries = collection.read(piece.partition, piece.start)
        row, stop = piece.start, piece.stop
        while row != stop:
            chunk = Chunk(piece.partition, row // chunk_size)
            end_of_chunk = (chunk.number + 1) * chunk_size
            wanted = min(batch_size, end_of_chunk - row) if stop is None else min(batch_size, end_of_chunk - row, stop - row)
            begins = row % chunk_size == 0
            read, ended = _take_entries(entries, wanted)
            row += len(read)
            if ended:
                stop = row
            end = ChunkEnd(row if piece.stop is None and row == stop else None) if row in (stop, end_of_chunk) else None
            if chunk.number not in piece.finished:
                yield _Reading(chunk if begins else None, read, end)
            elif row == stop:
                yield _Reading(chunk, [], end)


def _take_entries(entries: Iterator[ImageEntry], wanted: int) -> tuple[list[ImageEntry], bool]:
    """Return the next entries, fewer if their contents are large, and whether there are no more."""
    read: list[ImageEntry] = []
    size = 0
    for entry in islice(entries, wanted):
        read.append(entry)
        size += len(entry.content or b"")
        if size >= MAX_CONTENT:
            return read, False
    return read, len(read) < wanted


def _take(waiting: dict[Kind, list[Batch]], batch_size: int, *, everything: bool) -> Iterator[Batch]:
    """Yield and remove full batches, and smaller ones if `everything` is requested or an image has waited too long.

    Rows are written in order: while one waits for others of its shape, all rows after it are held in memory.
    """
    number = {shape: sum(len(group.entries) for group in groups) for shape, groups in waiting.items()}
    newest = max((group.entries[-1].row for groups in waiting.values() for group in groups), default=0)
    overdue = [shape for shape, groups in waiting.items() if newest - groups[0].entries[0].row >= MAX_WAIT * batch_size]
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
    """Decodes and preprocesses entries, in the process that asks."""

    def __init__(self, image_processor: VitrailImageProcessor, views: TrainingViews | None, *, normalizes: bool = True) -> None:
        self.image_processor = image_processor
        self.settings = replace(image_processor.settings, device=None)  # worker processes cannot use a GPU
        self.views = views
        self.is_final = views is not None or self.settings.do_pad  # one by one, because padding follows the normalization
        self.normalizes = normalizes and not self.is_final

    def __getitems__(self, readings: list[_Reading]) -> list[_Decoded]:
        return [self.decode(reading) for reading in readings]

    def decode(self, reading: _Reading) -> _Decoded:
        groups: dict[Kind, list[tuple[ImageEntry, torch.Tensor]]] = {}
        unreadable = []
        for entry in reading.entries:
            # The writer of features does not need the content
            without_content = entry if entry.content is None else replace(entry, content=None)
            try:
                pixels = self._pixels(entry)
            except UnreadableImageError as error:
                unreadable.append(UnreadableEntry(without_content, error.reason, error.retry))
            except VitrailError as error:  # of the store or of the image processor's settings, not of this image
                return _Decoded(reading.begin, reading.end, [], [], error)
            except PREPROCESS_ERRORS as error:  # decoded, but with channels, values or a size that the model cannot take
                unreadable.append(UnreadableEntry(without_content, str(error) or type(error).__name__))
            else:
                groups.setdefault((pixels.shape, pixels.dtype), []).append((without_content, pixels))
        batches = [Batch([entry for entry, _ in group], self._batch([pixels for _, pixels in group])) for group in groups.values()]
        return _Decoded(reading.begin, reading.end, batches, unreadable)

    def finish(self, batch: Batch, device: torch.device) -> Batch:
        """Return a batch that was not normalized yet, or is final, on a device and normalized."""
        pixels = batch.pixel_values.pin_memory() if device.type == "cuda" else batch.pixel_values
        pixels = pixels.to(device, non_blocking=True)
        return Batch(batch.entries, pixels if self.is_final else rescale_and_normalize(pixels, self.settings))

    def _pixels(self, entry: ImageEntry) -> torch.Tensor:
        """Return (C, H, W), or (V, C, H, W) of training views."""
        if self.views is None:
            image = open_entry(entry, partial(decode, settings=self.settings))
            pixels = resize_and_crop(image, self.settings)
            return rescale_and_normalize([pixels], self.settings)[0] if self.settings.do_pad else pixels
        image = open_entry(entry)  # at full scale: a view may be a small part of it
        draws = (rng_of(self.views.seed, view, entry.row) for view in range(self.views.number))
        return torch.stack([training_view(image, self.image_processor, rng, resample=self.views.resample) for rng in draws])

    def _batch(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        return rescale_and_normalize(pixels, self.settings) if self.normalizes else torch.stack(pixels)
