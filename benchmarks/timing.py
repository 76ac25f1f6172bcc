"""Times of things that are compared, taken in turns, so that what else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(runs: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float | None = None) -> dict[str, float]:
    """The median seconds of each run, after one of each that is not measured; every other round goes through them backwards.

    repeats: rounds.
    seconds: stop after the round in which so much time has passed, even if there were fewer.
    """
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for number in range(repeats):
        for name in list(runs) if number % 2 == 0 else reversed(runs):
            start = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - start)
        if seconds is not None and time.perf_counter() - begin > seconds:
            break
    return {name: statistics.median(times) for name, times in taken.items()}
