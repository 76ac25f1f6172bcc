"""Finds the state dict inside what a file holds, and the family that it is of: by names and shapes, never by the file's name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UnsupportedCheckpointError
from .convert_dino import DINO
from .family import Family
from .rules import group_names

FAMILIES: tuple[Family, ...] = (DINO,)
BRANCHES = ("teacher", "student")
PREFIXES = ("module.", "backbone.", "_orig_mod.")  # put before names by DistributedDataParallel, DINO's wrapper, torch.compile


@dataclass
class StateDict:
    """A state dict as it was found: the tensors by clean names, and what was taken off."""

    tensors: dict[str, torch.Tensor]
    root: str | None = None
    left_out: list[str] = field(default_factory=list)


def find_state_dict(content: Any, *, branch: str = "teacher") -> StateDict:
    """Unwraps `{"teacher": …}`, `{"state_dict": …}` and the like, and takes prefixes off the names.

    Args:
        content: what `read_checkpoint` gave.
        branch: which network of a full training checkpoint.

    Raises:
        UnsupportedCheckpointError: there is no state dict in it, or not that branch.
    """
    if branch not in BRANCHES:
        raise UnsupportedCheckpointError(f'There is no branch "{branch}": choose one of {", ".join(BRANCHES)}.')
    if not isinstance(content, Mapping):
        raise UnsupportedCheckpointError(
            f"The file holds a {type(content).__name__}, where a state dict (names to tensors) is expected."
        )
    root = None
    if any(name in content for name in BRANCHES):
        root = branch
        if root not in content:
            there = next(name for name in BRANCHES if name in content)
            raise UnsupportedCheckpointError(
                f'This training checkpoint has no "{branch}", only "{there}": choose it with branch="{there}".'
            )
    else:
        root = next((name for name in ("state_dict", "model") if isinstance(content.get(name), Mapping)), None)
    found = content[root] if root else content
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UnsupportedCheckpointError(
            f"No tensors stand in the file{f' under {root}' if root else ''}, only: {', '.join(map(str, content))}."
        )
    left_out = [str(name) for name in content if name != root] if root else [name for name in content if name not in tensors]
    return StateDict(_strip_prefixes(tensors), root, left_out)


def _strip_prefixes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes wrappers' prefixes off; `backbone.` may stand before some names only (`head.` being the others)."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def find_family(state_dict: StateDict, format: str = "auto") -> Family:
    """The family of a state dict.

    Raises:
        UnsupportedCheckpointError: no family, or not the one that `format` names, recognises it.
    """
    shapes = {name: tensor.shape for name, tensor in state_dict.tensors.items()}
    names = [family.name for family in FAMILIES]
    if format not in ("auto", *names):
        raise UnsupportedCheckpointError(f'There is no format "{format}": choose auto, {", ".join(names)}.')
    for family in FAMILIES:
        if format in ("auto", family.name) and family.recognises(shapes):
            return family
    grouped = group_names(list(shapes))
    shown = ", ".join(grouped[:8]) + (f" and {len(grouped) - 8} more kinds" if len(grouped) > 8 else "")
    tried = f"any of: {', '.join(names)}" if format == "auto" else format
    raise UnsupportedCheckpointError(f"The file is not recognised as {tried}. It holds {len(shapes)} tensors: {shown}.")
