"""Threads that run a model in parallel while the caller prepares the next inputs.

On a CPU, one single-threaded worker per core is faster than one forward pass on all cores: no core waits for another inside an operation
or between operations. On an accelerator there is one worker.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Given = TypeVar("Given")
Result = TypeVar("Result")

AHEAD = 2  # items queued per worker


class InferenceWorkers:
    """The workers of a device, which measure their own load.

    number: the number of workers.
    seconds: time from the first item to the last result.
    busy: total time that all workers have run, in seconds.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        self.number = torch.get_num_threads() if self.on_cpu else 1
        self.seconds = 0.0
        self.busy = 0.0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> float:
        """The share of the time, 0 to 1, in which workers were idle."""
        return 1 - self.busy / (self.seconds * self.number) if self.seconds else 0.0

    def run(self, function: Callable[[Given], Result], items: Iterable[Given]) -> Iterator[Result]:
        """Yield the results of a function in the order of the items; items are read a few ahead of the results.

        While this runs on a CPU, torch uses one thread per operation, also in the caller.
        """
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.number, "worker", initializer=self._one_thread)
        pending: deque[Future[Result]] = deque()
        started = None
        try:
            self._one_thread()
            for item in items:
                started = started or time.perf_counter()
                pending.append(pool.submit(self._timed, function, item))
                while pending and (len(pending) > self.number * (1 + AHEAD) or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
            if started:
                self.seconds += time.perf_counter() - started

    def _one_thread(self) -> None:
        if self.on_cpu:
            torch.set_num_threads(1)

    def _timed(self, function: Callable[[Given], Result], item: Given) -> Result:
        started = time.perf_counter()
        try:
            return function(item)
        finally:
            with self._lock:
                self.busy += time.perf_counter() - started
