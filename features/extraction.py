"""Features of a collection of images of any size, written as Parquet by one process or many; resumed after any interruption.

The collection is cut into pieces, which do not depend on each other; a piece makes one chunk of rows or more, each of which is a file that
is there whole or not at all. Whoever runs a piece, and however often, its files are the same.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..data.entries import ImageCollection
from ..data.reader import Piece, sample_images
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, NUM_CALIBRATION, Agreement, Runtime
from ..utils.atomic import read_json
from ..utils.processes import start_processes
from ..utils.progress import progress_bar
from .job import SHARD_SIZE, TOO_MANY, Job
from .store import MANIFEST

RUNNERS = ("local", "ray")


@dataclass(frozen=True)
class Extracted:
    """What an extraction has done.

    rows, errors: in all, with those of earlier runs of the same command.
    images: that this process has seen in this run.
    seconds: that it took them, without preparations.
    waiting: the share of that time, 0 to 1, in which the model waited for images.
    agreement: how near each column came to the model in float32, on the first images that this process ran; empty where it ran none,
        or the model as it is.
    """

    rows: int
    errors: int
    images: int
    seconds: float
    waiting: float
    agreement: dict[str, Agreement]


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
        collection: from `vitrail.data.read_images`.
        features: as `vitrail.features.feature_types.parse_features` takes them: pooled, cls, mean, cls+mean, patches, layers=I,J,….
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
    with folder.run.lock() if main else contextlib.nullcontext():
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

                workers = run_on_ray(job, own, num_errors=num_errors, advance=advance, concurrency=concurrency)
            else:
                workers, _ = job.run(own, num_errors=num_errors, advance=advance)
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
    return Extracted(manifest["rows"], manifest["errors"], images, workers.seconds, workers.waiting, job.agreement)


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
