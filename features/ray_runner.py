"""Extraction on a Ray cluster: Ray Data gives pieces to a pool of actors, If an actor dies, another one repeats its piece."""

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
from ..utils.optional import install_command
from ..version import __version__
from .job import CORES_PER_WORKER, MAX_WORKERS, TOO_MANY, Job

try:
    import ray
    import ray.data
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise VitrailError(f"a Ray cluster needs Ray Data, which is not installed ({error}): {install_command('ray')}") from error

ATTEMPTS = 4  # at a piece whose actors die, or at starting an actor; Ray Data's own attempts at a piece have no end
CONNECT_TIMEOUT = 20
NO_LIMIT = -1
AGAIN = "Finished files are kept: run the same command to resume."


def run_on_ray(
    job: Job,
    pieces: Sequence[Piece],
    *,
    num_errors: int = 0,
    advance: Callable[[int], None] | None = None,
    concurrency: int | None = None,
) -> InferenceWorkers:
    """Run pieces on a Ray cluster, as `Job.run` does in this process. The returned workers have the times of all actors.

    The cluster is the one that this process is connected to, or that RAY_ADDRESS names, or that runs on this machine; otherwise a cluster
    of this machine is started, and stopped at the end. Its machines need this package, the output folder under the same path, and access
    to the images. There is an actor for each GPU; without GPUs, actors share the CPU cores.

    Args:
        num_errors: unreadable images that were found before.
        advance: called with the number of images of each finished piece.
        concurrency: maximum number of actors; None for as many as fit on the cluster.

    Raises VitrailError: the errors of `Job.run`, on any machine; a machine lacks the package, or access to the folder; the cluster cannot
    be reached, or has neither GPUs nor CPU cores; actors die repeatedly while they run the same piece.
    """
    workers = InferenceWorkers(torch.device("cpu"))
    if not pieces:
        return workers
    model = job.model if job.model.device.type == "cpu" else copy.deepcopy(job.model).cpu()
    calibration = job.int8_images if job.runtime.precision == "int8" else None
    job = replace(job, model=model, output_dir=job.folder.path.absolute(), compiled=None, calibration=calibration)
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
    """The number of actors, and the resources that each reserves."""

    size: int
    num_cpus: int
    num_gpus: int


def choose_pool(nodes: Sequence[Mapping[str, float]], *, concurrency: int | None, num_pieces: int) -> Pool:
    """Return the actors that fit on the machines, at most one for each piece; nodes: the resources of each machine, from Ray.

    Raises VitrailError if no actor fits.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        room = sum(int(node["GPU"]) for node in with_gpus)
        num_cpus = min(int(node.get("CPU", 0) // node["GPU"]) for node in with_gpus)
        return Pool(min(concurrency or room, room, num_pieces), num_cpus, 1)
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cores:
        raise VitrailError(
            "the Ray cluster has neither GPUs nor CPU cores: add a machine that has some, or choose the runner local"
        )

    def room_for(num_cpus: int) -> int:
        return sum(number // num_cpus for number in cores)

    wanted = min(concurrency or room_for(min(CORES_PER_WORKER, *cores)), num_pieces)
    num_cpus = next((number for number in range(max(cores), 1, -1) if room_for(number) >= wanted), 1)
    return Pool(min(wanted, room_for(num_cpus)), num_cpus, 0)


# On the machines of the cluster


@dataclass(frozen=True)
class Share:
    """The data that all actors share."""

    job: Job
    pieces: tuple[Piece, ...]
    num_errors: int
    mark: Path
    pool: Pool


class PieceRunner:
    """An actor's copy of the job, of which it runs pieces."""

    def __init__(self, share: Share) -> None:
        self.share, self.job = share, share.job
        if share.pool.num_gpus:
            self.job.model.to("cuda")
            self.job.num_workers = min(share.pool.num_cpus, MAX_WORKERS) if self.job.num_workers is None else self.job.num_workers

    def run(self, index: int) -> dict[str, Any]:
        """Run a piece. A VitrailError is returned as a result, because Ray would wrap a raised one in its own exceptions, and print it."""
        torch.set_num_threads(max(self.share.pool.num_cpus, 1))  # of this thread, which may change between calls
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
        """Record an attempt. Raises VitrailError after too many attempts, or if the folder is not that of the driver."""
        try:
            with (self.share.mark / str(index)).open("ab") as attempts:
                attempts.write(b".")
                number = attempts.tell()
        except FileNotFoundError as error:
            raise VitrailError(
                f"the machine {socket.gethostname()} of the Ray cluster cannot find the files in {self.job.folder.path}: choose an output "
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
    """Return the class of the actors. It is in no module, so it is sent with its code, and can report that this package is missing."""

    class MapPieces:
        def __init__(self, module: str, version: str, shared: list[ray.ObjectRef]) -> None:
            try:
                self.runner = import_module(module).PieceRunner(ray.get(shared[0]))
                self.error = ""
            except ModuleNotFoundError as error:
                self.error = (
                    f"the machine {socket.gethostname()} of the Ray cluster has no package {error.name}: "
                    f"install vitrail {version} with its extra ray on all of them."
                )

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            if self.error:
                return {"images": 0, "errors": 0, "available": 0.0, "busy": 0.0, "error": self.error}
            return self.runner.run(row["index"])

    return MapPieces


# On the driver


def _results(shared: ray.ObjectRef, num_pieces: int, pool: Pool) -> Generator[dict[str, Any]]:
    """Yield the results of `PieceRunner.run` in the order in which pieces finish."""
    # A block for each piece. By default, Ray Data restarts actors and retries their tasks without limit
    dataset = ray.data.from_items([{"index": index} for index in range(num_pieces)], override_num_blocks=num_pieces).map(
        _actor_class(),
        fn_constructor_args=(__name__, __version__, [shared]),
        compute=ray.data.ActorPoolStrategy(size=pool.size, max_tasks_in_flight_per_actor=1),  # no piece waits behind another
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = NO_LIMIT  # the default is half an hour, which a large archive may need
    dataset.context.max_consecutive_actor_init_deaths = ATTEMPTS - 1
    try:
        yield from dataset.iter_rows()
    except RayTaskError:  # a bug, with its traceback
        raise
    except RayError as error:
        raise VitrailError(f"the Ray cluster cannot go on: {error} {AGAIN}") from error


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Join a cluster, or start one on this machine, unless the caller has joined or started one already."""
    joined = ray.is_initialized()
    if not joined:
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            _reach(address)
            ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            raise VitrailError(
                f"no Ray cluster responds at RAY_ADDRESS={address} ({error}): start it, or unset RAY_ADDRESS to use this machine alone."
            ) from error
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it shows its own progress, and warns about slow pieces
    try:
        yield
    finally:
        logger.setLevel(level)
        if not joined:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nothing responds at a host and port; Ray itself would retry for many minutes."""
    url = urlsplit(address if "//" in address else f"//{address}")
    if url.port is not None:  # not "auto" or "local"
        socket.create_connection((url.hostname, url.port), timeout=CONNECT_TIMEOUT).close()


@contextlib.contextmanager
def _mark(folder: Path) -> Iterator[Path]:
    """Yield a folder of the attempts at each piece. It exists while the driver runs, on the machines that share `folder`."""
    mark = folder / f"ray-{uuid.uuid4()}"
    mark.mkdir()
    try:
        yield mark
    finally:
        shutil.rmtree(mark, ignore_errors=True)  # an actor may be writing into it still
