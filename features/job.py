"""What one process does of an extraction: from pieces of a collection to finished files."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..data.entries import ImageCollection
from ..data.reader import Batch, Chunk, Piece, UnreadableEntry, read_batches
from ..errors import VitrailError
from ..modeling.fingerprint import config_fields, weights_digest
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, Agreement, CompiledModel, Runtime, precision_of
from ..runtime.workers import InferenceWorkers
from ..version import __version__
from .feature_types import FeatureOutputs, parse_features, vector_size
from .store import ChunkWriter, Column, FeatureFolder, schema_of

Given = TypeVar("Given")


DTYPES = ("float32", "float16")


SHARD_SIZE = 2048  # images whose features make one file: at most so many, and what is on its way, are lost by an interruption


BATCH_SIZE = 64


BATCH_SIZE_ON_CPU = 4  # of each worker; more is no faster, since less of it stays in the caches


CORES_PER_WORKER = 8  # where the model runs on them: while these run a ViT-S, one decodes for them


MAX_WORKERS = 16


MAX_READ = 256  # things that are read before the first images, at most


TOO_MANY = (
    "found {number} bad images, more than max_errors={most}. What is finished stays: with another max_errors the same command goes on "
    "from there."
)


@dataclass
class Job:
    """An extraction, as any process needs it to run pieces of it. It can be pickled.

    Args:
        features: as `parse_features` takes them.
        dtype: of the features in the files, "float32" or "float16".
        shard_size: rows that make a file.
        batch_size: images that the model takes at a time; on a CPU, that each of its threads takes.
        num_workers: processes that decode images; 0 to do it beside the model in this one; None for a number that suits the machine.
        max_errors: images that may be bad; None for any number. Where several processes run, each counts its own, and in the end all.
        model_name: what the manifest calls the model.
        runtime: the precision and the engine that run it.
        calibration: (N, C, H, W), prepared images by which int8 chooses its scales.
    """

    model: ViTPreTrainedModel
    image_processor: VitrailImageProcessor
    collection: ImageCollection
    output_dir: Path
    features: tuple[str, ...] = ("pooled",)
    dtype: str = "float32"
    shard_size: int = SHARD_SIZE
    batch_size: int | None = None
    num_workers: int | None = None
    max_errors: int | None = None
    model_name: str = ""
    runtime: Runtime = DEFAULT_RUNTIME
    calibration: torch.Tensor | None = None
    programs: CompiledModel | None = field(default=None, init=False)  # made by the first `run`, in the process that runs it

    def __post_init__(self) -> None:
        self.vit = self.model.base_model.eval()
        self.kinds = parse_features(self.features, self.vit.config)
        if self.dtype not in DTYPES:
            raise VitrailError(f"found dtype={self.dtype!r}; write {' or '.join(DTYPES)}")
        for name in ("shard_size", "batch_size"):
            if (getattr(self, name) or 1) < 1:
                raise VitrailError(f"found {name}={getattr(self, name)}; write a number above 0")
        self.folder = FeatureFolder(Path(self.output_dir))
        self.columns = [kind.column for kind in self.kinds]
        columns = [Column(kind.column, vector_size(kind, self.vit.config) if kind.is_vector else None) for kind in self.kinds]
        self.schema = schema_of(columns, dtype=self.dtype, label_type=self.collection.label_type)

    def settings(self) -> dict[str, Any]:
        """Everything that the rows follow from."""
        return {
            "vitrail": __version__,
            "model": self.model_name or self.model.name_or_path,
            "weights": weights_digest(self.vit),
            "config": config_fields(self.vit),
            "image_processor": json.loads(self.image_processor.to_json_string()),
            "collection": self.collection.settings,
            "images": self.collection.fingerprint,
            "features": list(self.features),
            "dtype": self.dtype,
            "precision": self.runtime.precision or precision_of(self.vit),
            "engine": self.runtime.engine,
            "shard_size": self.shard_size,
        }

    def missing(self) -> list[Piece]:
        """The pieces of which a file is missing, in order."""
        finished: dict[int, set[int]] = {}
        for chunk in self.folder.finished_chunks():
            finished.setdefault(chunk.part, set()).add(chunk.number)
        if self.collection.random_access:
            total = self.collection.num_rows or 0
            starts = range(0, total, self.shard_size)
            numbers = [number for number in range(len(starts)) if number not in finished.get(0, ())]
            return [Piece(0, starts[number], min(starts[number] + self.shard_size, total)) for number in numbers]
        pieces, ended = [], self.folder.parts()
        for part in range(self.collection.num_parts):
            done = finished.get(part, set())
            first = next(number for number in itertools.count() if number not in done)
            if part not in ended or first * self.shard_size < ended[part]:
                start = max(first - 1, 0)  # the chunk before tells where the part ends, if it ends there
                pieces.append(Piece(part, start * self.shard_size, None, frozenset(number for number in done if number >= start)))
        return pieces

    def run(
        self, pieces: Iterable[Piece], *, num_errors: int = 0, advance: Callable[[int], None] | None = None
    ) -> tuple[InferenceWorkers, int]:
        """Runs pieces and writes their files.

        num_errors: bad images that were found before. advance: is told of images that are done.

        Returns the workers, which know how busy they were, and the number of bad images, with those before.

        Raises VitrailError where there are more bad images than `max_errors`, or a file cannot be written; none is left half-written.
        """
        device = self.vit.device
        workers = InferenceWorkers(device)
        batch_size = self.batch_size or (BATCH_SIZE_ON_CPU if device.type == "cpu" else BATCH_SIZE)
        if self.programs is None:
            self.programs = CompiledModel(
                FeatureOutputs(self.vit, self.kinds),
                self.runtime,
                batch_size=batch_size,
                calibration=self.calibration,
                num_streams=workers.number,
            )
        batches = read_batches(
            self.collection,
            pieces,
            self.image_processor,
            chunk_size=self.shard_size,
            batch_size=batch_size,
            num_workers=default_num_workers(device) if self.num_workers is None else self.num_workers,
            pin_memory=device.type == "cuda",
        )
        writer = None
        with contextlib.closing(batches), contextlib.ExitStack() as unfinished:
            for given, features in workers.run(self._compute, self._ready(batches)):
                done = 0
                if isinstance(given, Chunk):
                    writer = ChunkWriter(self.folder, given, self.schema, first_row=given.number * self.shard_size)
                    unfinished.callback(writer.discard)
                    continue
                assert writer is not None  # a chunk comes before what is in it
                if isinstance(given, Batch):
                    with self.writing():
                        writer.add(given.entries, features)
                    done = len(given.entries)
                elif isinstance(given, UnreadableEntry):
                    writer.add_bad(given)
                    done, num_errors = 1, num_errors + 1
                    if self.max_errors is not None and num_errors > self.max_errors:
                        last = f"The last is {given.entry.path}: {given.reason}."
                        raise VitrailError(f"{TOO_MANY.format(number=num_errors, most=self.max_errors)} {last}")
                else:
                    with self.writing():
                        writer.finish()
                        if given.part_rows is not None:
                            self.folder.end_part(writer.chunk.part, given.part_rows)
                    unfinished.pop_all()
                if advance is not None and done:
                    advance(done)
        return workers, num_errors

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Makes a VitrailError of what keeps files from being written."""
        try:
            yield
        except OSError as error:
            raise VitrailError(
                f"cannot write into {self.folder.path}: {error.strerror or error}. What is finished stays: when this is mended the same "
                "command goes on from there."
            ) from error

    def _ready(self, batches: Iterator[Given]) -> Iterator[Given]:
        """The same, when the engine has made its program for the first images: that takes a while, which counts as preparation."""
        assert self.programs is not None
        read = []
        for given in () if self.programs.is_module else itertools.islice(batches, MAX_READ):
            read.append(given)
            if isinstance(given, Batch):
                self.programs(given.pixel_values)
                break
        return itertools.chain(read, batches)

    @property
    def agreement(self) -> dict[str, Agreement]:
        """How near each column comes to the model in float32, as far as this process has run it by another runtime."""
        return dict(zip(self.columns, self.programs.agreement, strict=False)) if self.programs else {}

    @torch.inference_mode()
    def _compute(self, given: Given) -> tuple[Given, dict[str, np.ndarray]]:
        if not isinstance(given, Batch):
            return given, {}
        assert self.programs is not None
        features = {}
        for name, tensor in zip(self.columns, self.programs(given.pixel_values), strict=True):
            values = tensor.cpu().numpy()
            with np.errstate(over="ignore"):
                values = values.astype(self.dtype, copy=False)
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                path = given.entries[int(finite.argmin())].path
                remedy = "write dtype float32" if self.dtype == "float16" else "check the weights of the model"
                raise VitrailError(f"the features {name} of {path} are not finite numbers of the type {self.dtype}: {remedy}.")
            features[name] = values
        return given, features


def default_num_workers(device: torch.device) -> int:
    """Processes that decode images for a model on this device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() // CORES_PER_WORKER if device.type == "cpu" else min(cores, MAX_WORKERS)
