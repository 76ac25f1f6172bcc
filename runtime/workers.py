"""Threads that run a model in parallel, and prepare its next inputs.

On a CPU, one single-threaded worker per core is faster than one forward pass on all cores: no core waits for another inside an operation
or between operations. On an accelerator there is one worker.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

import torch

Given = TypeVar("Given")
Result = TypeVar("Result")

AHEAD = 2  # items queued per worker


class InferenceWorkers:
    """The workers of a device, which measure their own load: `with InferenceWorkers(device) as workers: …`.

    While they are open on a CPU, torch uses one thread per operation, also in the caller.

    number: the number of workers.
    seconds: time from the first item of `run` to its last result.
    busy: total time that all workers have run in that time, in seconds.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        self.number = torch.get_num_threads() if self.on_cpu else 1
        self.seconds = 0.0
        self.busy = 0.0
        self._started: float | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start the workers."""
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.number, "worker", initializer=self._one_thread)
        self._one_thread()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the workers after what they are running; what has not begun is dropped."""
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads)

    @property
    def waiting(self) -> float:
        """The share of the time, 0 to 1, in which workers were idle."""
        return 1 - self.busy / (self.seconds * self.number) if self.seconds else 0.0

    def run(self, function: Callable[[Given], Result], items: Iterable[Given]) -> Iterator[Result]:
        """Yield the results of a function in the order of the items; items are read a few ahead of the results."""

        def started() -> Iterator[Given]:
            for item in items:
                self._started = self._started or time.perf_counter()
                yield item

        try:
            yield from self._in_order(function, started(), ahead=self.number * (1 + AHEAD), waits=False)
        finally:
            if self._started:
                self.seconds += time.perf_counter() - self._started
                self._started = None

    def prepare(self, function: Callable[[Given], Result], items: Iterable[Given]) -> Iterator[Result]:
        """Yield the results of a function in the order of the items, which are the items of a `run` of the same workers."""
        return self._in_order(function, items, ahead=self.number * AHEAD, waits=True)

    def _in_order(
        self, function: Callable[[Given], Result], items: Iterable[Given], *, ahead: int, waits: bool
    ) -> Iterator[Result]:
        """Yield the results in the order of the items, of which `ahead` are queued; waits: also where a result is there before."""
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(self._pool.submit(self._timed, function, item))
            while pending and (len(pending) > ahead or (not waits and pending[0].done())):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _one_thread(self) -> None:
        if self.on_cpu:
            torch.set_num_threads(1)

    def _timed(self, function: Callable[[Given], Result], item: Given) -> Result:
        begun = time.perf_counter()
        try:
            return function(item)
        finally:
            with self._lock:
                if self._started:  # what was prepared before does not count
                    self.busy += time.perf_counter() - max(begun, self._started)
