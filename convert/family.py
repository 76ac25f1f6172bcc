"""What a family of checkpoints has to say about itself, and what the plain PyTorch layouts have in common."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..errors import UnsupportedCheckpointError
from .rules import Rule

Shapes = Mapping[str, torch.Size]
PUBLISHED_HEAD_WIDTH = 64  # of every published ViT but ViT-H/14


@dataclass(frozen=True)
class Family:
    """One layout of checkpoint files, as data.

    name: what `format=` calls it.
    rules: from names of the state dict to names of `ViTModel`.
    ignored: regular expressions of names that carry nothing for inference.
    recognises: whether the names and shapes of a state dict are this family's.
    configure: the fields of `ViTConfig` that follow from the shapes; `num_heads` where the caller gave it.
    head_rules: from names of a separate head file to `classifier.*`, chosen by its shapes, with the config fields that go with it.
    image_processor: the row of `processing.presets` that the original evaluation used.
    """

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]
    recognises: Callable[[Shapes], bool]
    configure: Callable[[Shapes, int | None], dict]
    head_rules: Callable[[Shapes, int], tuple[tuple[Rule, ...], dict]]
    image_processor: str


def count_blocks(shapes: Shapes, pattern: str = "blocks.{}.norm1.weight") -> int:
    """How many blocks a state dict holds, numbered from 0 without a gap."""
    depth = 0
    while pattern.format(depth) in shapes:
        depth += 1
    return depth


def attention_heads(hidden_size: int, num_heads: int | None) -> int:
    """Number of heads: it is written in no checkpoint, but published ones are 64 wide, or 80 in ViT-H."""
    if num_heads is not None:
        return num_heads
    head_width = 80 if hidden_size == 1280 else PUBLISHED_HEAD_WIDTH
    if hidden_size % head_width:
        raise UnsupportedCheckpointError(
            f"The number of attention heads cannot be told from the shapes: the width {hidden_size} is not a multiple of "
            f"{head_width}. Give it with num_heads= (at the command line: --num-heads)."
        )
    return hidden_size // head_width


def square_grid(num_patches: int, name: str) -> int:
    """Side of the square grid of patches that a position embedding was made for."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise UnsupportedCheckpointError(
            f"{name} holds positions of {num_patches} patches, which are no square, so that their rows and columns cannot be told. "
            "The published checkpoints are all square: is this one of them?"
        )
    return side
