"""Damage for inputs, drawn at random: of bytes, of chosen places in them, and of the values in a JSON object."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

# Values that no field expects, or that only some do
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    1,
    -1,
    7,
    10**9,
    -(10**9),
    10**30,
    0.5,
    -0.0,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "7",
    "\x1b[31mred\n",
    "\ud800",
    "/etc/passwd",
    "../x",
    "name" * 100,
    [],
    [0],
    [1, 2],
    [None],
    ["x", 7],
    [[]],
    [16] * 10,
    {},
    {"x": 1},
    {"": None},
    {"0": "a", "1": "a"},
)


def flip(content: bytearray, at: int, room: int, rng: random.Random) -> None:
    """Flip one bit."""
    content[at] ^= 1 << rng.randrange(8)


def zero(content: bytearray, at: int, room: int, rng: random.Random) -> None:
    """Write zeros over at most `room` bytes."""
    content[at : at + room] = bytes(room)


def delete(content: bytearray, at: int, room: int, rng: random.Random) -> None:
    """Remove some bytes."""
    del content[at : at + room]


def insert(content: bytearray, at: int, room: int, rng: random.Random) -> None:
    """Insert some random bytes."""
    content[at:at] = rng.randbytes(room)


def copy_over(content: bytearray, at: int, room: int, rng: random.Random) -> None:
    """Write a piece from elsewhere over some bytes."""
    start = rng.randrange(len(content) - room + 1)
    content[at : at + room] = content[start : start + room]


MUTATIONS: tuple[Callable[[bytearray, int, int, random.Random], None], ...] = (flip, flip, zero, delete, insert, copy_over)


def mutate(whole: bytes, rng: random.Random, places: Sequence[int] | None = None) -> bytes:
    """Return bytes with one mutation, or a few in descending order of their offsets; places: the offsets that they may change."""
    places = range(len(whole)) if places is None else places
    content = bytearray(whole)
    for at in sorted((rng.randrange(len(places)) for _ in range(rng.choice((1, 1, 1, 2, 5)))), reverse=True):
        length = rng.randrange(1, 32)
        room = next(
            (step for step in range(1, length) if at + step == len(places) or places[at + step] != places[at] + step), length
        )
        rng.choice(MUTATIONS)(content, int(places[at]), room, rng)
    return bytes(content)


def flip_one(whole: bytes, rng: random.Random, places: Sequence[int]) -> bytes:
    """Return bytes with one bit flipped in one of the places."""
    content = bytearray(whole)
    flip(content, int(rng.choice(places)), 1, rng)
    return bytes(content)


def truncate(whole: bytes, rng: random.Random) -> bytes:
    """Return fewer bytes, from the beginning."""
    return whole[: rng.randrange(len(whole))]


def damage_json(content: dict[str, Any], rng: random.Random, extra: Sequence[str] = ()) -> bytes:
    """Return the text of a JSON object with an odd value in one place, without one, or with damaged bytes; extra: other keys to set."""
    choice = rng.randrange(10)
    if choice == 0:
        return mutate(json.dumps(content).encode(), rng)
    if choice == 1:
        return truncate(json.dumps(content).encode(), rng)
    inner: Any = copy.deepcopy(content)
    changed, key = inner, rng.choice([*content, *extra])
    while (
        (item := inner.get(key) if isinstance(inner, dict) else inner[key]) and isinstance(item, dict | list) and rng.random() < 0.7
    ):
        inner, key = item, rng.choice([*item] if isinstance(item, dict) else range(len(item)))
    if choice == 2 and isinstance(inner, dict):
        inner.pop(key, None)
    else:
        inner[key] = rng.choice(ODD_VALUES)
    return json.dumps(changed).encode()
