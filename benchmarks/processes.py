"""Measurements that need a new process each time, taken in turns, so that what else the machine does meets all of them alike."""

import statistics
from collections.abc import Callable, Iterable

Numbers = dict[str, float]


def medians(names: Iterable[str], measure: Callable[[str], Numbers], *, repeats: int) -> dict[str, Numbers]:
    """The median of each number that `measure` gives for each name, after one round that is not measured.

    repeats: rounds; every other one goes through the names backwards.
    """
    names = list(names)
    taken: dict[str, list[Numbers]] = {name: [] for name in names}
    for number in range(-1, repeats):
        for name in names if number % 2 else reversed(names):
            numbers = measure(name)
            if number >= 0:
                taken[name].append(numbers)
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in taken.items()}
