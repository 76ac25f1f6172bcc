"""Features of a collection of images of any size, written as Parquet by one process or many; resumed after any interruption.

The collection is cut into pieces, which do not depend on each other; a piece makes one chunk of rows or more, each of which is a file that
is there whole or not at all. Whoever runs a piece, and however often, its files are the same.
"""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from ..convert.files import read_json
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..version import __version__
from .batches import BadEntry, Batch, Chunk, Piece, read_batches, sample_images
from .collections.entries import ImageCollection
from .embed import encoder
from .fingerprint import config_fields, weights_digest
from .kinds import FeatureOutputs, parse_features, vector_size
from .lanes import Lanes
from .processes import only_one, start_processes
from .progress import progress_bar
from .runtime import DEFAULT_RUNTIME, NUM_CALIBRATION, Fidelity, Programs, Runtime, precision_of
from .store import MANIFEST, ChunkWriter, Column, FeatureFolder, schema_of

Given = TypeVar("Given")

DTYPES = ("float32", "float16")
RUNNERS = ("local", "ray")
SHARD_SIZE = 2048  # images whose features make one file: at most so many, and what is on its way, are lost by an interruption
BATCH_SIZE = 64
BATCH_SIZE_ON_CPU = 4  # of each lane; more is no faster, since less of it stays in the caches
CORES_PER_WORKER = 8  # where the model runs on them: while these run a ViT-S, one decodes for them
MOST_WORKERS = 16
MOST_READ = 256  # things that are read before the first images, at most

TOO_MANY = (
    "found {number} bad images, more than max_errors={most}. What is finished stays: with another max_errors the same command goes on "
    "from there."
)


@dataclass(frozen=True)
class Extracted:
    """What an extraction has done.

    rows, errors: in all, with those of earlier runs of the same command.
    images: that this process has seen in this run.
    seconds: that it took them, without preparations.
    waiting: the share of that time, 0 to 1, in which the model waited for images.
    fidelity: how near each column came to the model in float32, on the first images that this process ran; empty where it ran none,
        or the model as it is.
    """

    rows: int
    errors: int
    images: int
    seconds: float
    waiting: float
    fidelity: dict[str, Fidelity]


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
    programs: Programs | None = field(default=None, init=False)  # made by the first `run`, in the process that runs it

    def __post_init__(self) -> None:
        self.vit = encoder(self.model).eval()
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
    ) -> tuple[Lanes, int]:
        """Runs pieces and writes their files.

        num_errors: bad images that were found before. advance: is told of images that are done.

        Returns the lanes, which know how busy they were, and the number of bad images, with those before.

        Raises VitrailError where there are more bad images than `max_errors`, or a file cannot be written; none is left half-written.
        """
        device = self.vit.device
        lanes = Lanes(device)
        batch_size = self.batch_size or (BATCH_SIZE_ON_CPU if device.type == "cpu" else BATCH_SIZE)
        if self.programs is None:
            self.programs = Programs(
                FeatureOutputs(self.vit, self.kinds),
                self.runtime,
                batch_size=batch_size,
                calibration=self.calibration,
                num_streams=lanes.number,
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
            for given, features in lanes.run(self._compute, self._ready(batches)):
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
                elif isinstance(given, BadEntry):
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
        return lanes, num_errors

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
        for given in () if self.programs.is_module else itertools.islice(batches, MOST_READ):
            read.append(given)
            if isinstance(given, Batch):
                self.programs(given.pixel_values)
                break
        return itertools.chain(read, batches)

    @property
    def fidelity(self) -> dict[str, Fidelity]:
        """How near each column comes to the model in float32, as far as this process has run it by another runtime."""
        return dict(zip(self.columns, self.programs.fidelity, strict=False)) if self.programs else {}

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


def extract(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    collection: ImageCollection,
    output_dir: str | os.PathLike[str],
    *,
    features: Sequence[str] = ("pooled",),
    dtype: str = "float32",
    batch_size: int | None = None,
    num_workers: int | None = None,
    shard_size: int = SHARD_SIZE,
    max_errors: int | None = None,
    runner: str = "local",
    concurrency: int | None = None,
    model_name: str = "",
    runtime: Runtime = DEFAULT_RUNTIME,
    progress: bool = True,
) -> Extracted:
    """Writes the features of a collection of images into a folder; see `vitrail.features.store` for what is in it.

    An interrupted extraction goes on when it is called again with the same arguments, and ends with the same rows as one that was not.
    Each of the processes that `accelerate launch` or `torchrun` has started takes its own pieces; the folder must be one that all see.

    Args:
        model: moves to the device of this process, and to evaluation mode.
        collection: from `vitrail.features.collections.read_collection`.
        features: as `vitrail.features.kinds.parse_features` takes them: pooled, cls, mean, cls+mean, patches, layers=I,J,….
        dtype: of the features in the files, "float32" or "float16".
        batch_size, num_workers, shard_size, max_errors: see `Job`.
        runner: "local" for this process and those beside it, "ray" for a Ray cluster.
        concurrency: actors on that cluster, at most; None for as many as it has room for.
        model_name: what the manifest calls the model, such that `vitrail.load` finds it again, for `vitrail report`; without it, where
            transformers says that it has loaded it from.
        runtime: the precision and the engine that run the model; int8 chooses its scales by some images of the collection.

    Raises VitrailError: another run is writing there; other features, or other things, are there; no image can be used; a file cannot be
    written; more bad images than `max_errors`.
    """
    if runner not in RUNNERS:
        raise VitrailError(f"found runner={runner!r}; write {' or '.join(RUNNERS)}")
    processes = start_processes()
    if runner == "ray" and processes.num_processes > 1:
        raise VitrailError(
            f"found {processes.num_processes} processes that each want a Ray cluster: start one, Ray starts the others."
        )
    job = Job(
        model if runner == "ray" else model.to(processes.device),
        image_processor,
        collection,
        Path(output_dir),
        features=tuple(features),
        dtype=dtype,
        shard_size=shard_size,
        batch_size=batch_size,
        num_workers=num_workers,
        max_errors=max_errors,
        model_name=model_name,
        runtime=runtime,
        calibration=sample_images(collection, image_processor, NUM_CALIBRATION) if runtime.precision == "int8" else None,
    )
    folder = job.folder
    main = processes.is_main_process
    with _alone(folder) if main else contextlib.nullcontext():
        plan: list[Any] = [None]  # of the main process alone: others may not see yet what it has written
        if main:
            with job.writing():
                folder.begin(job.settings())
                pieces = job.missing()
                whole = folder.is_finished() and not pieces
                num_errors = 0 if whole else folder.settle(finished=False)["errors"]
            plan = [(pieces, num_errors, whole, collection.fingerprint)]
        pieces, num_errors, whole, fingerprint = broadcast_object_list(plan)[0]
        if collection.fingerprint != fingerprint:
            raise VitrailError(f"processes see other images in {collection.source} than the first one: give all of them the same.")
        own = pieces[processes.process_index :: processes.num_processes]
        images = 0
        with progress_bar("features", _num_rows(collection, own), wanted=progress and main and not whole) as show:

            def advance(number: int) -> None:
                nonlocal images
                images += number
                show(number)

            if runner == "ray":
                from .ray_runner import run_on_ray

                lanes = run_on_ray(job, own, num_errors=num_errors, advance=advance, concurrency=concurrency)
            else:
                lanes, _ = job.run(own, num_errors=num_errors, advance=advance)
        processes.wait_for_everyone()
        if main and whole:
            shutil.rmtree(folder.progress)
        elif main:
            with job.writing():
                manifest = folder.settle(finished=False)
                _check(manifest, job)
                folder.settle(finished=True)
    processes.wait_for_everyone()
    manifest = read_json(folder.path / MANIFEST)
    return Extracted(manifest["rows"], manifest["errors"], images, lanes.seconds, lanes.waiting, job.fidelity)


def default_num_workers(device: torch.device) -> int:
    """Processes that decode images for a model on this device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.get_num_threads() // CORES_PER_WORKER if device.type == "cpu" else min(cores, MOST_WORKERS)


@contextlib.contextmanager
def _alone(folder: FeatureFolder) -> Iterator[None]:
    """Makes the folder and keeps other runs away from it; nothing of ours is left in it where nothing was begun."""
    new = not folder.path.exists()
    folder.path.mkdir(parents=True, exist_ok=True)
    with only_one(folder.lock, folder.path):
        try:
            yield
        finally:
            if not (folder.path / MANIFEST).exists():
                folder.lock.unlink(missing_ok=True)
                shutil.rmtree(folder.progress, ignore_errors=True)
                if new:
                    folder.path.rmdir()


def _num_rows(collection: ImageCollection, pieces: Sequence[Piece]) -> int | None:
    if collection.random_access:
        return sum(piece.stop - piece.start for piece in pieces if piece.stop is not None)
    return None


def _check(manifest: dict[str, Any], job: Job) -> None:
    """Raises VitrailError where what has been written is not all, or not enough to be of use, or has too many errors."""
    source, errors = job.collection.source, [error for shard in manifest["shards"] for error in shard["bad"]]
    if job.missing():
        raise VitrailError(
            f"{job.folder.path} lacks files that processes have finished: have all of them see the same folder, and the same images in "
            f"{source}. The same command goes on from there."
        )
    if not manifest["rows"]:
        raise VitrailError(
            f"none of the {len(errors)} images of {source} can be used; {errors[0]['path']}: {errors[0]['reason']}. To try them again, "
            "choose another output folder."
            if errors
            else f"found no image in {source}"
        )
    if job.max_errors is not None and len(errors) > job.max_errors:
        raise VitrailError(TOO_MANY.format(number=len(errors), most=job.max_errors))
