"""An extraction as one process runs it: from pieces of a collection to finished files."""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.entries import ImageCollection
from ..data.reader import Batch, Chunk, ImageReader, Piece, TrainingViews, UnreadableEntry, sample_images
from ..errors import StoreUnreachableError, UnreadableImageError, VitrailError, public_text
from ..modeling.fingerprint import config_fields, weights_digest
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_size
from ..runtime.compiled import AUTO, DEFAULT_RUNTIME, NUM_CALIBRATION, Agreement, CompiledModel, Runtime, precision_of
from ..runtime.outputs import TupleOutputs
from ..runtime.selection import find_candidates, select_runtime
from ..runtime.trials import Workload
from ..runtime.workers import InferenceWorkers
from ..utils.progress import show_line
from ..utils.run_folder import writing
from ..utils.worker_errors import clear_worker_errors
from ..version import __version__
from .feature_types import feature_outputs, parse_features, vector_size
from .inference import Features, run_model
from .store import ChunkWriter, Column, FeatureFolder, schema_of

DTYPES = ("float32", "float16")
SHARD_SIZE = 2048  # images whose features make one file: an interruption loses at most this many, and what is in flight
# The number of images that the model takes at a time, and the largest one that "auto" may choose. On a CPU they are those of each
# worker, and others are no faster. On accelerators, decoding workers keep two batches each in memory
CPU_BATCH_SIZES, ACCELERATOR_BATCH_SIZES = (4, 4), (64, 512)
CORES_PER_WORKER = 8  # where the model runs on them: while these run a ViT-S, one decodes for them
MAX_WORKERS = 16
IMAGES_PER_PARTITION = 1000  # assumed where a collection does not have their number, such as shards of WebDataset
TOO_MANY = (
    "found {number} unreadable images, more than max_errors={maximum}. Finished files are kept: to resume, run the same command with a "
    "larger number."
)


@dataclass
class Job:
    """An extraction, with all that a process needs to run pieces of it. It can be pickled before it has run.

    Args:
        features: see `parse_features`.
        dtype: of the features in the files, "float32" or "float16".
        shard_size: rows of a file.
        batch_size: images that the model takes at a time; on a CPU, that each of its threads takes.
        num_workers: processes that decode images; 0 to decode in this process; None for a number that suits the machine.
        max_errors: unreadable images that are allowed; None for any number. Each of several processes counts its own; all are
            counted in the end.
        model_name: of the model, in the manifest.
        runtime: precision and engine. If one of them is "auto", `select_runtime` comes before everything else.
        calibration: (N, C, H, W), preprocessed images that int8 takes its scales from.
        calibrates: take images of the collection for that, without `calibration`.
        views: training views, in place of the image processor's view.
        strict: raise UnreadableImageError at the first unreadable image.
        retry_later: list an image whose store does not respond, to be tried again when the run is repeated, instead of stopping.
        compiled: the compiled model, if another job has compiled it already; else the first `run` compiles it.
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
    calibrates: bool = False
    views: TrainingViews | None = None
    strict: bool = False
    retry_later: bool = False
    compiled: CompiledModel | None = None

    def __post_init__(self) -> None:
        self.vit = self.model.base_model.eval()
        self.feature_types = parse_features(self.features, self.vit.config)
        if self.dtype not in DTYPES:
            raise VitrailError(f"found dtype={self.dtype!r}; expected {' or '.join(DTYPES)}")
        for name, least in (("shard_size", 1), ("batch_size", 1), ("num_workers", 0), ("max_errors", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise VitrailError(f"found {name}={value}; expected {least} or more")
        self.folder = FeatureFolder(Path(self.output_dir))
        self.columns = [feature_type.column for feature_type in self.feature_types]
        columns = [
            Column(one.column, vector_size(one, self.vit.config) if one.is_vector and self.views is None else None)
            for one in self.feature_types
        ]
        self.schema = schema_of(columns, dtype=self.dtype, label_type=self.collection.label_type)

    @property
    def outputs(self) -> TupleOutputs:
        """The encoder as a module that returns the features."""
        return feature_outputs(self.vit, self.feature_types)

    @property
    def device_batch_size(self) -> int:
        """The number of images that the model takes at a time."""
        return self.batch_size or self._batch_sizes[0]

    @property
    def max_batch_size(self) -> int | None:
        """The largest batch size that "auto" may choose, a file at most; None if it chooses none."""
        usual, largest = self._batch_sizes
        return min(largest, self.shard_size) if self.batch_size is None and largest > usual else None

    @property
    def _batch_sizes(self) -> tuple[int, int]:
        return CPU_BATCH_SIZES if self.vit.device.type == "cpu" else ACCELERATOR_BATCH_SIZES

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the rows."""
        return self.settings_of(self.runtime)

    def settings_of(self, runtime: Runtime) -> dict[str, Any]:
        """Return the settings of the job if this runtime computes its features."""
        assert not runtime.is_auto, "select_runtime comes first"
        images = self.int8_images if runtime.precision == "int8" else None
        return self._settings_of_content | {
            "precision": runtime.precision or precision_of(self.vit),
            "engine": runtime.engine,
            "calibration": None if images is None else hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        }

    @cached_property
    def _settings_of_content(self) -> dict[str, Any]:
        return {
            "vitrail": __version__,
            "model": public_text(self.model_name or self.model.name_or_path),
            "weights": weights_digest(self.vit),
            "config": config_fields(self.vit),
            "image_processor": json.loads(self.image_processor.to_json_string()),
            "collection": {**self.collection.settings, "source": public_text(self.collection.settings["source"])},
            "images": {"number": self.collection.num_rows, "digest": self.collection.fingerprint},
            "views": None if self.views is None else asdict(self.views),
            "features": list(self.features),
            "dtype": self.dtype,
            "shard_size": self.shard_size,
        }

    @cached_property
    def int8_images(self) -> torch.Tensor | None:
        """The images that int8 takes its scales from."""
        if self.calibration is None and self.calibrates:
            return sample_images(self.collection, self.image_processor, NUM_CALIBRATION)
        return self.calibration

    @property
    def candidates(self) -> list[Runtime]:
        """The runtimes that `runtime` leaves open."""
        calibrates = self.calibrates or self.calibration is not None
        return find_candidates(
            self.outputs, self.runtime, one_size=output_size(self.image_processor) is not None, calibrates=calibrates
        )

    def select_runtime(self, *, num_processes: int, progress: bool) -> None:
        """Replace "auto" by the fastest engine and precision for this job, measured on its first images if it is long enough.

        The batch size is selected too, on accelerators, unless it is given.

        Args:
            num_processes: processes that share the images.
            progress: show the measurements.
        """
        num_images = self.collection.num_rows
        if num_images is None:
            num_images = self.collection.num_partitions * IMAGES_PER_PARTITION
        num_images *= self.views.number if self.views else 1
        selection = select_runtime(
            self.outputs,
            self.candidates,
            Workload(
                self.device_batch_size, InferenceWorkers(self.vit.device).number, num_images // num_processes, self.max_batch_size
            ),
            self._sample,
            calibration=lambda: self.int8_images,
            is_strict=self.runtime.precision == AUTO,
        )
        self.runtime, self.compiled = selection.runtime, selection.compiled
        self.batch_size = selection.batch_size or self.batch_size
        show_line(selection.report, wanted=progress and selection.report != "")

    def _sample(self, number: int) -> torch.Tensor | None:
        try:
            return sample_images(self.collection, self.image_processor, number)
        except VitrailError:  # the run itself reports it
            return None

    def missing(self, *, resumed: bool = False) -> list[Piece]:
        """Return the pieces of which a file is missing, in order; resumed: see `FeatureFolder.finished_chunks`."""
        finished: dict[int, set[int]] = {}
        for chunk in self.folder.finished_chunks(resumed=resumed):
            finished.setdefault(chunk.partition, set()).add(chunk.number)
        if self.collection.random_access:
            total = self.collection.num_rows or 0
            starts = range(0, total, self.shard_size)
            numbers = [number for number in range(len(starts)) if number not in finished.get(0, ())]
            return [Piece(0, starts[number], min(starts[number] + self.shard_size, total)) for number in numbers]
        pieces, ended = [], self.folder.partitions()
        for partition in range(self.collection.num_partitions):
            done = finished.get(partition, set())
            first = next(number for number in itertools.count() if number not in done)
            if partition not in ended or first * self.shard_size < ended[partition]:
                start = max(first - 1, 0)  # the chunk before may record the end of the partition
                pieces.append(
                    Piece(partition, start * self.shard_size, None, frozenset(number for number in done if number >= start))
                )
        return pieces

    def run(
        self, pieces: Iterable[Piece], *, num_errors: int = 0, advance: Callable[[int], None] | None = None
    ) -> tuple[InferenceWorkers, int]:
        """Run pieces and write their files.

        Args:
            num_errors: unreadable images that were found before.
            advance: called with the number of images that are done.

        Returns:
            The workers, with the times that they measured, and the number of unreadable images, including those found before.

        Raises VitrailError if there are more unreadable images than `max_errors`, or a file cannot be written; no file is left
        half-written.
        """
        device = self.vit.device
        workers = InferenceWorkers(device)
        if self.compiled is None:
            self.compiled = CompiledModel(
                self.outputs,
                self.runtime,
                batch_size=self.device_batch_size,
                calibration=self.int8_images if self.runtime.precision == "int8" else None,
                num_streams=workers.number,
            )
        num_workers = default_num_workers(device) if self.num_workers is None else self.num_workers
        reader = ImageReader(self.collection, self.image_processor, self.device_batch_size, num_workers, self.views)
        items = run_model(self.compiled, reader, pieces, chunk_size=self.shard_size, workers=workers, postprocess=self._as_stored)
        writer = None
        with clear_worker_errors(), contextlib.closing(items), contextlib.ExitStack() as unfinished:
            for item, features in items:
                done = 0
                if isinstance(item, Chunk):
                    writer = ChunkWriter(self.folder, item, self.schema, first_row=item.number * self.shard_size)
                    unfinished.callback(writer.discard)
                    continue
                assert writer is not None  # a chunk comes before its items
                if isinstance(item, Batch):
                    with self.writing():
                        writer.add(item.entries, dict(zip(self.columns, features, strict=True)))
                    done = len(item.entries)
                elif isinstance(item, UnreadableEntry):
                    writer.add_unreadable(item)
                    done, num_errors = 1, num_errors + 1
                    self._check_errors(item, num_errors)
                else:
                    with self.writing():
                        writer.finish()
                        if item.partition_rows is not None:
                            self.folder.end_partition(writer.chunk.partition, item.partition_rows)
                    unfinished.pop_all()
                if advance is not None and done:
                    advance(done)
        return workers, num_errors

    def _check_errors(self, last: UnreadableEntry, number: int) -> None:
        if self.strict:
            raise UnreadableImageError(last.entry.path, last.reason)
        if last.retry and not self.retry_later:
            raise StoreUnreachableError(last.reason)
        if self.max_errors is not None and number > self.max_errors:
            text = TOO_MANY.format(number=number, maximum=self.max_errors)
            raise VitrailError(f"{text} The last is {last.entry.path}: {last.reason}.")

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Raise a VitrailError for a file that cannot be written."""
        return writing(f"into {self.folder.path}")

    @property
    def agreement(self) -> dict[str, Agreement]:
        """How closely each column matches the float32 model, for the functions that this process has compiled and compared."""
        return dict(zip(self.columns, self.compiled.agreement, strict=False)) if self.compiled else {}

    def _as_stored(self, batch: Batch, features: Features) -> Features:
        """Return features in the dtype of the files. Raises VitrailError if they are not finite."""
        with np.errstate(over="ignore"):
            features = tuple(values.astype(self.dtype, copy=False) for values in features)
        for name, values in zip(self.columns, features, strict=True):
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                path = batch.entries[int(finite.argmin())].path
                remedy = "use dtype float32" if self.dtype == "float16" else "check the weights of the model"
                raise VitrailError(f"the {name} features of {path} contain NaN or inf in {self.dtype}: {remedy}.")
        return features


def default_num_workers(device: torch.device) -> int:
    """Return the number of processes that decode images for a model on this device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() // CORES_PER_WORKER if device.type == "cpu" else min(cores, MAX_WORKERS)
