"""The pieces of an extraction on a Ray cluster: Ray Data gives them to a pool of actors, and those of an actor that dies to the next."""

import contextlib
import copy
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ..data.reader import Piece
from ..errors import VitrailError
from ..runtime.workers import InferenceWorkers
from ..version import __version__
from .job import CORES_PER_WORKER, MAX_WORKERS, TOO_MANY, Job

try:
    import ray
    import ray.data
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise VitrailError(f'a Ray cluster needs Ray Data, which is not installed ({error}): pip install "vitrail[ray]"') from error

ATTEMPTS = 4  # at a piece whose actors die, or at starting an actor; Ray Data's own attempts at a piece have no end
SECONDS_TO_ANSWER = 20
NO_LIMIT = -1
AGAIN = "What is finished stays: the same command goes on from there."


def run_on_ray(
    job: Job,
    pieces: Sequence[Piece],
    *,
    num_errors: int = 0,
    advance: Callable[[int], None] | None = None,
    concurrency: int | None = None,
) -> InferenceWorkers:
    """Runs pieces on a Ray cluster, as `Job.run` does in this process; the workers that it returns stand for those of all actors.

    The cluster is the one that this process is connected to, or that RAY_ADDRESS names, or that runs on this machine; else one of this
    machine alone is started, and stopped at the end. Its machines need this package, the output folder under the same path, and a way to
    the images. There is an actor for each GPU; where there is none, actors divide the CPU cores.

    Args:
        num_errors: unreadable images that were found before.
        advance: is told of the images of a piece when all of it is done.
        concurrency: actors at most; None for as many as the cluster has room for.

    Raises VitrailError: what `Job.run` raises, on any machine; a machine lacks the package, or does not see the folder; the cluster
    cannot be reached, or has neither GPUs nor CPU cores; actors die over the same piece again and again.
    """
    workers = InferenceWorkers(torch.device("cpu"))
    if not pieces:
        return workers
    model = job.model if job.model.device.type == "cpu" else copy.deepcopy(job.model).cpu()
    job = replace(job, model=model, output_dir=job.folder.path.absolute(), compiled=None)
    with _connected(), _mark(job.folder.progress) as mark:
        pool = choose_pool(
            [node["Resources"] for node in ray.nodes() if node["Alive"]], concurrency=concurrency, num_pieces=len(pieces)
        )
        started, available, busy = time.perf_counter(), 0.0, 0.0
        # In the object store: what is an argument of an actor itself is sent to each of them with its code
        shared = ray.put(Share(job, tuple(pieces), num_errors, mark, pool))
        with contextlib.closing(_results(shared, len(pieces), pool)) as results:
            for result in results:
                if result["error"]:
                    raise VitrailError(result["error"])
                if advance is not None:
                    advance(result["images"])
                num_errors += result["errors"]
                if job.max_errors is not None and num_errors > job.max_errors:  # each actor counts those of its piece
                    raise VitrailError(TOO_MANY.format(number=num_errors, maximum=job.max_errors))
                available, busy = available + result["available"], busy + result["busy"]
        workers.seconds = time.perf_counter() - started
        workers.busy = workers.seconds * workers.number * busy / available if available else 0.0
    return workers


@dataclass(frozen=True)
class Pool:
    """How many actors there are, and what each of them reserves."""

    size: int
    num_cpus: int
    num_gpus: int


def choose_pool(nodes: Sequence[Mapping[str, float]], *, concurrency: int | None, num_pieces: int) -> Pool:
    """The actors that machines have room for, and no more than there are pieces; nodes: what Ray says that each machine has.

    Raises VitrailError where there is no room for any.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        room = sum(int(node["GPU"]) for node in with_gpus)
        num_cpus = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus)
        return Pool(min(concurrency or room, room, num_pieces), num_cpus, 1)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise VitrailError("the Ray cluster has neither GPUs nor CPU cores: add a machine that has, or choose the runner local")

    def room_for(num_cpus: int) -> int:
        return sum(number // num_cpus for number in cores)

    wanted = min(concurrency or room_for(min(CORES_PER_WORKER, *cores)), num_pieces)
    num_cpus = next((number for number in range(max(cores), 1, -1) if room_for(number) >= wanted), 1)
    return Pool(min(wanted, room_for(num_cpus)), num_cpus, 0)


# On the machines of the cluster


@dataclass(frozen=True)
class Share:
    """What all actors have in common."""

    job: Job
    pieces: tuple[Piece, ...]
    num_errors: int
    mark: Path
    pool: Pool


class PieceRunner:
    """An actor's copy of the job, which it gets once; rows of a data set then say which pieces of it to run."""

    def __init__(self, share: Share) -> None:
        self.share, self.job = share, share.job
        if share.pool.num_gpus:
            self.job.model.to("cuda")
            self.job.num_workers = min(share.pool.num_cpus, MAX_WORKERS) if self.job.num_workers is None else self.job.num_workers

    def run(self, index: int) -> dict[str, Any]:
        """Runs a piece. A VitrailError is a result: Ray wraps what is raised into exceptions of its own, and prints them as well."""
        torch.set_num_threads(max(self.share.pool.num_cpus, 1))  # of this thread: Ray may call from another than at first
        images, errors, workers, message = 0, self.share.num_errors, InferenceWorkers(torch.device("cpu")), ""

        def advance(number: int) -> None:
            nonlocal images
            images += number
            if not self.share.mark.exists():
                raise VitrailError("the run that this piece was for has ended")

        try:
            self._begin(index)
            workers, errors = self.job.run([self.share.pieces[index]], num_errors=errors, advance=advance)
        except VitrailError as error:
            message = str(error)
        errors -= self.share.num_errors
        return {
            "images": images,
            "errors": errors,
            "available": workers.seconds * workers.number,
            "busy": workers.busy,
            "error": message,
        }

    def _begin(self, index: int) -> None:
        """Notes an attempt. Raises VitrailError if too many have failed, or the folder is not the one that the driver sees."""
        try:
            with (self.share.mark / str(index)).open("ab") as attempts:
                attempts.write(b".")
                number = attempts.tell()
        except FileNotFoundError as error:
            raise VitrailError(
                f"the machine {socket.gethostname()} of the Ray cluster does not see what is in {self.job.folder.path}: choose an output "
                "folder on a file system that all its machines share, under the same path."
            ) from error
        if number > ATTEMPTS:
            piece = self.share.pieces[index]
            raise VitrailError(
                f"{ATTEMPTS} processes of the Ray cluster have died over the images from {piece.start} to {piece.stop or 'the end'} of "
                f"partition {piece.partition} of {self.job.collection.source}; Ray's logs have the cause. If memory ran out, choose "
                f"a smaller batch_size. {AGAIN}"
            )


def _actor_class() -> type:
    """The class of the actors. Since no module has it, it travels with its code, and can say that this package is not there."""

    class MapPieces:
        def __init__(self, module: str, version: str, shared: list[ray.ObjectRef]) -> None:
            try:
                self.runner = import_module(module).PieceRunner(ray.get(shared[0]))
                self.error = ""
            except ModuleNotFoundError as error:
                self.error = (
                    f"the machine {socket.gethostname()} of the Ray cluster has no package {error.name}: "
                    f'pip install "vitrail[ray]=={version}" on all of them.'
                )

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            if self.error:
                return {"images": 0, "errors": 0, "available": 0.0, "busy": 0.0, "error": self.error}
            return self.runner.run(row["index"])

    return MapPieces


# On the driver


def _results(shared: ray.ObjectRef, num_pieces: int, pool: Pool) -> Generator[dict[str, Any]]:
    """What `PieceRunner.run` returns of each piece, as they come."""
    # A block for each piece. Actors of Ray Data have no limit of restarts, and the tasks on them none of retries, by default
    dataset = ray.data.from_items([{"index": index} for index in range(num_pieces)], override_num_blocks=num_pieces).map(
        _actor_class(),
        fn_constructor_args=(__name__, __version__, [shared]),
        compute=ray.data.ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=1),  # no piece waits behind another
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = NO_LIMIT  # or half an hour, which a large archive may take
    dataset.context.max_consecutive_actor_init_deaths = ATTEMPTS - 1
    try:
        yield from dataset.iter_rows()
    except RayTaskError:  # a mistake in our own code, with its traceback
        raise
    except RayError as error:
        raise VitrailError(f"the Ray cluster cannot go on: {error} {AGAIN}") from error


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Joins a cluster, or starts one of this machine; what the caller has joined or started before is left as it is."""
    joined = ray.is_initialized()
    if not joined:
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            _reach(address)
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            raise VitrailError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start it, or unset RAY_ADDRESS to use this machine alone."
            ) from error
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it tells how far it is, where our own bar is, and warns of pieces that take long
    try:
        yield
    finally:
        logger.setLevel(level)
        if not joined:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nothing answers at a host and port; Ray itself would go on asking for many minutes."""
    url = urlsplit(address if "//" in address else f"//{address}")
    if url.port is not None:  # not "auto" or "local"
        socket.create_connection((url.hostname, url.port), timeout=SECONDS_TO_ANSWER).close()


@contextlib.contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """A folder that only machines see that share `folder`, and only while the driver runs; in it are the attempts at each piece."""
    mark = folder / f"ray-{uuid.uuid4()}"
    mark.mkdir()
    try:
        yield mark
    finally:
        shutil.rmtree(mark, ignore_errors=True)  # an actor may be writing into it still
