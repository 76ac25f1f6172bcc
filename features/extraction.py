"""Features of a collection of any size, written to Parquet by one process or many, and resumed after an interruption.

The collection is divided into independent pieces; a piece makes one chunk of rows or more, and each chunk is one file, which is complete or
absent. The files do not depend on which process runs a piece, nor on how often.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import broadcast_object_list

from ..data.entries import ImageCollection
from ..data.image_sources import read_images
from ..data.reader import Piece
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, Agreement, Runtime
from ..runtime.selection import begun_runtime
from ..utils.processes import start_processes
from ..utils.progress import progress_bar
from .job import SHARD_SIZE, TOO_MANY, Job
from .manifest import MAX_FILES, Manifest

RUNNERS = ("local", "ray")


@dataclass(frozen=True)
class Extracted:
    """The outcome of an extraction.

    rows, errors: totals, including earlier runs of the same command.
    unreachable: images among the errors whose stores did not respond; the same command tries them again.
    images: processed by this process in this run.
    seconds: the time of that, without preparations.
    waiting: the share of that time, 0 to 1, in which the workers that run the model waited for images.
    agreement: how closely each column matches the float32 model, on the first images of this process; empty if it ran none, or ran the
        model as it is.
    runtime: the precision and the engine.
    """

    rows: int
    errors: int
    unreachable: int
    images: int
    seconds: float
    waiting: float
    agreement: dict[str, Agreement]
    runtime: dict[str, str]


def extract(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    images: ImageCollection | str | os.PathLike[str],
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
    """Write the features of a collection of images into a folder, which `vitrail.StoredFeatures` reads.

    After an interruption, the same call resumes and ends with the same rows as an uninterrupted one. It compares finished files with their
    digests, and tries images of lists again whose hosts did not respond; other unreadable images are not tried again. Processes started by
    `accelerate launch` or `torchrun` share the pieces; all of them must see the output folder.

    Args:
        model: moves to the device of this process, and to evaluation mode.
        images: a collection from `vitrail.read_images`, or a source that it takes.
        features: pooled, cls, mean, cls+mean, patches, layers=I,J,…; see `vitrail.features.feature_types.parse_features`.
        dtype: of the features in the files, "float32" or "float16".
        batch_size: images that the model takes at a time; on a CPU, that each of its threads takes. None for a number that suits the
            device, which the engine "auto" measures on accelerators.
        num_workers: processes that decode images; None for a number that suits the machine. 0 to decode in this process: on a CPU,
            in the threads that run the model.
        shard_size: rows of a file.
        max_errors: unreadable images that are allowed; None for any number.
        runner: "local" for this process and those started with it, "ray" for a Ray cluster.
        concurrency: maximum number of actors on that cluster; None for as many as fit.
        model_name: name of the model in the manifest, by which `vitrail report` loads it again; by default the name that it was
            loaded from.
        runtime: precision and engine; int8 takes its scales from images of the collection. "auto" measures what is fastest on the first
            images; a run that resumes keeps what it was begun with, and on a Ray cluster nothing is measured.

    Raises VitrailError: another run writes into the folder; the folder holds other features or other things; no image can be used; a
    file cannot be written; there are more unreadable images than `max_errors`.
    """
    collection = images if isinstance(images, ImageCollection) else read_images(images)
    device = start_processes().device
    job = Job(
        model if runner == "ray" else model.to(device),
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
        retry_later=True,
        calibrates=True,
    )
    return run_job(job, runner=runner, concurrency=concurrency, progress=progress)


def run_job(job: Job, *, runner: str = "local", concurrency: int | None = None, progress: bool = True) -> Extracted:
    """Run a job in all processes; arguments and errors are those of `extract`."""
    if runner not in RUNNERS:
        raise VitrailError(f"found runner={runner!r}; expected {' or '.join(RUNNERS)}")
    processes = start_processes()
    if runner == "ray" and processes.num_processes > 1:
        raise VitrailError(
            f"found {processes.num_processes} processes with the runner ray: start one process, Ray starts the others."
        )
    folder, collection = job.folder, job.collection
    if (files := _least_files(job)) > MAX_FILES:
        raise VitrailError(
            f"the features of {collection.source} would be at least {files} files; expected at most {MAX_FILES}: choose a larger shard_size"
            + (", or give fewer and larger archives." if not collection.random_access else ".")
        )
    main = processes.is_main_process
    with folder.run.lock() if main else contextlib.nullcontext():
        plans = [_make_plan(job, runner=runner, num_processes=processes.num_processes, progress=progress) if main else None]
        plan: _Plan = broadcast_object_list(plans)[0]
        if collection.fingerprint != plan.fingerprint:
            raise VitrailError(
                f"the processes found different images in {collection.source}: give all of them access to the same images."
            )
        job.runtime, job.batch_size = plan.runtime, plan.batch_size
        own = plan.pieces[processes.process_index :: processes.num_processes]
        images = 0
        with progress_bar("features", _num_rows(collection, own), wanted=progress and main and not plan.is_whole) as show:

            def advance(number: int) -> None:
                nonlocal images
                images += number
                show(number)

            if runner == "ray":
                from .ray_runner import run_on_ray

                workers = run_on_ray(job, own, num_errors=plan.num_errors, advance=advance, concurrency=concurrency)
            else:
                workers, _ = job.run(own, num_errors=plan.num_errors, advance=advance)
        processes.wait_for_everyone()
        if main and plan.is_whole:
            shutil.rmtree(folder.progress)
        elif main:
            with job.writing():
                manifest = folder.settle(finished=False)
                _check(manifest, job)
                folder.settle(finished=True)
    processes.wait_for_everyone()
    manifest = folder.manifest()
    unreachable = sum(shard.unreachable for shard in manifest.shards)
    return Extracted(
        rows=manifest.rows,
        errors=manifest.errors,
        unreachable=unreachable,
        images=images,
        seconds=workers.seconds,
        waiting=workers.waiting,
        agreement=job.agreement,
        runtime={name: manifest.settings[name] for name in ("precision", "engine")},
    )


@dataclass(frozen=True)
class _Plan:
    """What the main process has decided, for all processes: others may not see yet what it has written.

    pieces: those of which a file is missing.
    num_errors: number of unreadable images in the other files.
    is_whole: whether the folder is finished.
    fingerprint: of the collection.
    """

    pieces: list[Piece]
    num_errors: int
    is_whole: bool
    fingerprint: str
    runtime: Runtime
    batch_size: int | None


def _make_plan(job: Job, *, runner: str, num_processes: int, progress: bool) -> _Plan:
    """Select the runtime, and begin or resume the extraction in its folder."""
    folder = job.folder
    if job.runtime.is_auto:
        begun = folder.begun()
        if begun or runner == "ray":  # whose machines may differ from this one
            job.runtime = begun_runtime(job.outputs, job.runtime, begun.settings if begun else {}) or job.candidates[0]
        else:
            job.select_runtime(num_processes=num_processes, progress=progress)
        if begun and begun.batch_size and job.max_batch_size:
            job.batch_size = min(max(begun.batch_size, 1), job.max_batch_size)
    with job.writing():
        folder.begin(job.settings, batch_size=job.batch_size)
        pieces = job.missing(resumed=True)
        is_whole = folder.manifest().finished and not pieces
        num_errors = 0 if is_whole else folder.settle(finished=False).errors
    return _Plan(pieces, num_errors, is_whole, job.collection.fingerprint, job.runtime, job.batch_size)


def _least_files(job: Job) -> int:
    if job.collection.random_access:
        return math.ceil((job.collection.num_rows or 0) / job.shard_size)
    return job.collection.num_partitions


def _num_rows(collection: ImageCollection, pieces: Sequence[Piece]) -> int | None:
    if collection.random_access:
        return sum(piece.stop - piece.start for piece in pieces if piece.stop is not None)
    return None


def _check(manifest: Manifest, job: Job) -> None:
    """Raise VitrailError if files are missing, no image could be used, or there are too many errors."""
    source = job.collection.source
    if job.missing():
        raise VitrailError(
            f"{job.folder.path} lacks files that processes have finished: give all processes access to the same folder and to the same "
            f"images in {source}. Then run the same command to resume."
        )
    if not manifest.rows:
        if not manifest.errors:
            raise VitrailError(f"found no image in {source}")
        first, again = job.folder.errors().slice(0, 1).to_pylist()[0], manifest.shards[0].unreachable
        raise VitrailError(
            f"none of the {manifest.errors} images of {source} can be used; {first['path']}: {first['reason']}. "
            + ("The same command tries it again." if again else "To try them again, choose another output folder.")
        )
    if job.max_errors is not None and manifest.errors > job.max_errors:
        raise VitrailError(TOO_MANY.format(number=manifest.errors, maximum=job.max_errors))
