"""InferenceWorkers: threads that run a model side by side, while the caller prepares what they take next.

On a CPU a worker for each core, each on one thread, does more than one forward pass on all cores: no core waits for another inside an
operation, or while Python is between two of them. On an accelerator there is one worker.
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

AHEAD = 2  # items that wait for each worker


class InferenceWorkers:
    """The workers of a device, which measure themselves.

    number: of workers.
    seconds: since the first item was there until the last result was.
    busy: seconds that the workers have run, together.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cpu = device.type == "cpu"
        self.number = torch.get_num_threads() if self.on_cpu else 1
        self.seconds = 0.0
        self.busy = 0.0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> float:
        """The share of their time, 0 to 1, in which the workers had nothing to run."""
        return 1 - self.busy / (self.seconds * self.number) if self.seconds else 0.0

    def run(self, function: Callable[[Given], Result], items: Iterable[Given]) -> Iterator[Result]:
        """The function's results, in the order of the items, which are taken a few ahead of the results that are asked for.

        While this runs on a CPU, torch uses one thread for each operation, in the caller too.
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
