"""Names of tensors in messages: grouped, shortened and printable."""

import re
from collections import defaultdict
from collections.abc import Sequence
from math import prod


def literals_of(name: str) -> tuple[str, ...]:
    """Return the text of a name between its numbers."""
    return tuple(re.split(r"\d+", name))


def list_names(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message: grouped, shortened and printable, at most `most` groups."""
    groups = group_names(names)
    shown = ", ".join(_printable(group) for group in groups[:most])
    return f"{shown} and {len(groups) - most} more groups" if len(groups) > most else shown


def _printable(name: str, most: int = 120) -> str:
    short = name if len(name) <= most else f"{name[:most]}…"
    return short if short.isprintable() else short.encode("unicode_escape").decode()


def group_names(names: Sequence[str]) -> list[str]:
    """Group names that differ only in numbers: `blocks.{0..11}.norm1.weight`."""
    groups: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for name in names:
        pieces = re.split(r"(?<=[._/])(\d{1,9})(?=[._/]|$)", name)
        groups[tuple(pieces[::2])].append([int(number) for number in pieces[1::2]])
    grouped = []
    for literals, numbers in groups.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        whole = len(numbers) == prod(map(len, columns))  # every combination exists, so one pattern stands for all
        for row in [columns] if whole else [[[number] for number in one] for one in numbers]:
            grouped.append(
                literals[0] + "".join(_range(column) + literal for column, literal in zip(row, literals[1:], strict=True))
            )
    return grouped


def _range(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
