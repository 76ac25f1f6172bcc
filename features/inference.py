"""The one loop from images to features, which extraction, evaluation and the k-NN of a pretraining share.

Shape letters: B batch, V views.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from ..data.reader import Batch, Chunk, ChunkEnd, ImageReader, Piece, UnreadableEntry
from ..runtime.compiled import CompiledModel
from ..runtime.workers import InferenceWorkers

Item: TypeAlias = Chunk | Batch | UnreadableEntry | ChunkEnd
Features: TypeAlias = tuple[np.ndarray, ...]

MAX_READ = 256  # items that are read before the first batch, at most


def run_model(
    compiled: CompiledModel,
    reader: ImageReader,
    pieces: Iterable[Piece],
    *,
    chunk_size: int,
    workers: InferenceWorkers,
    postprocess: Callable[[Batch, Features], Features] = lambda batch, features: features,
) -> Generator[tuple[Item, Features]]:
    """Yield the items of the reader in order, each batch with its features.

    The features are one array for each output of the model, float32 (B, …), or (B, V, …) for training views; none for other items.

    Args:
        workers: threads that run the model, and decode the images where the model runs on the CPU and the reader has no processes.
        postprocess: called with each batch and its features in those threads.
    """

    def compute(item: Item) -> tuple[Item, Features]:
        if not isinstance(item, Batch):
            return item, ()
        return item, postprocess(item, compute_batch(compiled, item.pixel_values))

    with workers:
        options = {"prepare": workers.prepare} if workers.on_cpu else {"normalize_on": compiled.device}
        batches = reader.read(pieces, chunk_size=chunk_size, **options)
        with contextlib.closing(batches):
            yield from workers.run(compute, _compile_first(compiled, batches))


@torch.inference_mode()
def compute_batch(compiled: CompiledModel, pixel_values: torch.Tensor) -> Features:
    """Return the outputs of the model for (B, C, H, W) or (B, V, C, H, W), of which it takes at most `compiled.batch_size` at a time."""
    leading = pixel_values.shape[:-3]
    runs = [compiled(images) for images in pixel_values.flatten(0, -4).split(compiled.batch_size)]
    outputs = runs[0] if len(runs) == 1 else tuple(map(torch.cat, zip(*runs, strict=True)))
    return tuple(output.unflatten(0, leading).cpu().numpy() for output in outputs)


def _compile_first(compiled: CompiledModel, batches: Iterator[Item]) -> Iterator[Item]:
    """Return the same items after the engine has compiled the model for the first images, so that compiling counts as preparation."""
    read: list[Any] = []
    for item in () if compiled.is_module else itertools.islice(batches, MAX_READ):
        read.append(item)
        if isinstance(item, Batch):
            compute_batch(compiled, item.pixel_values)
            break
    return itertools.chain(read, batches)
