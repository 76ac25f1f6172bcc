"""Weight files of every container and layout: truncated, damaged in their headers, and with flipped bits in their numbers."""

import json
import shutil

import numpy as np
import pytest

from damage import damage_json, flip_one, mutate, truncate
from vitrail.utils.weight_files import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# For each kind: the file to damage, relative to the source that is loaded; whether the container has checksums
FILES = {
    "torch-zip": ("", True),
    "torch-zip-deflated": ("", True),
    "torch-legacy": ("", False),
    "npz": ("", True),
    "npz-deflated": ("", True),
    "vitrail": ("model.safetensors", False),
    "transformers": ("model.safetensors", False),
    "timm": ("model.safetensors", False),
    "shards": ("model-00001-of-00002.safetensors", False),
}
# Each kind of damage, with the number of inputs
DAMAGE = {"truncated": 15, "header": 80, "numbers": 10}
DEFLATED = {kind for kind in FILES if kind.endswith("deflated")}


def places_of_numbers(content, tensors):
    """Return which bytes of a file hold numbers, (size,) bool."""
    numbers = np.zeros(len(content), dtype=bool)
    for tensor in tensors:
        raw = tensor.numpy().tobytes()
        start = content.find(raw)
        numbers[start : start + len(raw) * (start >= 0)] = True
    return numbers


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", FILES)
def test_damaged_weights(kind, damage, sources, everything_about, tmp_path, fuzz):
    name, has_checksums = FILES[kind]
    whole = sources / kind
    source = shutil.copytree(whole, tmp_path / kind) if whole.is_dir() else tmp_path / kind
    content = (whole / name).read_bytes()
    numbers = places_of_numbers(content, read_checkpoint(whole / name).content.values())
    places = np.flatnonzero(numbers if damage == "numbers" else ~numbers)
    if kind in DEFLATED:
        places = range(len(content))

    def attempt(rng):
        damaged = (
            truncate(content, rng)
            if damage == "truncated"
            else {"header": mutate, "numbers": flip_one}[damage](content, rng, places)
        )
        (source / name).write_bytes(damaged)
        return everything_about(source)

    may_change = not has_checksums and (damage == "numbers" or kind == "torch-legacy")
    fuzz(attempt, DAMAGE[damage], expected=everything_about(whole), may_change=may_change)


@pytest.mark.parametrize("kind", [kind for kind in FILES if FILES[kind][0]])
def test_odd_headers_of_safetensors(kind, sources, everything_about, tmp_path, fuzz):
    """The header is JSON of the right length, with an odd value in one place."""
    source = shutil.copytree(sources / kind, tmp_path / kind)
    file = source / FILES[kind][0]
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])

    def attempt(rng):
        text = damage_json(header, rng)
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        return everything_about(source)

    fuzz(attempt, 30, expected=everything_about(sources / kind))
