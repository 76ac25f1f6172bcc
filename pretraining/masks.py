"""Masks of patches in blocks, as in BEiT, iBOT and DINOv2.

Bao et al. 2021, arXiv:2106.08254, algorithm 1; facebookresearch/dinov2, data/masking.py and data/collate.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

MIN_BLOCK = 4  # patches of the area from which a block's is drawn
MAX_ASPECT_RATIO = 1 / 0.3
MAX_TRIES = 10  # to place a block, before a mask stays as it is


@dataclass(frozen=True)
class BlockMasking:
    """How the large views of an image are masked.

    Of the views of an image, the share `probability` is masked, each with another random share of its patches, between the ratios. The
    original draws the same shares for the views of a whole batch; here masks, like crops, depend on the image alone, so that they are the
    same however a batch is divided.

    patch_size: of the model, in pixels.
    probability: share of the views that are masked. Where that is not a whole number of views, the rest is the probability of one more.
    min_ratio, max_ratio: bounds of the share of patches that are masked.
    """

    patch_size: int
    probability: float = 0.5
    min_ratio: float = 0.1
    max_ratio: float = 0.5

    def draw(self, shape: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
        """Draw the masks of the views (V, C, H, W) of one image: (V, N), true where a patch is masked."""
        num_views, rows, columns = shape[0], shape[-2] // self.patch_size, shape[-1] // self.patch_size
        num_masked = int(num_views * self.probability + rng.random())
        masked = rng.permutation(num_views) < num_masked
        ratios = rng.uniform(self.min_ratio, self.max_ratio, size=num_views)
        masks = [
            draw_mask(rows, columns, int(rows * columns * ratio * view), rng) for view, ratio in zip(masked, ratios, strict=True)
        ]
        return torch.from_numpy(np.stack(masks)).flatten(1)


def draw_mask(rows: int, columns: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (rows, columns) of at most `number` patches: blocks are added while they fit."""
    mask = np.zeros((rows, columns), dtype=bool)
    largest = rows * columns // 2
    while mask.sum() < number and _add_block(mask, min(number - int(mask.sum()), largest), rng):
        pass
    return mask


def _add_block(mask: np.ndarray, most: int, rng: np.random.Generator) -> bool:
    """Mask a block of which at most `most` patches were not masked before. Return whether one could be placed."""
    rows, columns = mask.shape
    for _ in range(MAX_TRIES):
        area = MIN_BLOCK + (most - MIN_BLOCK) * rng.random()  # also where most < MIN_BLOCK
        aspect_ratio = MAX_ASPECT_RATIO ** rng.uniform(-1, 1)
        height, width = round(math.sqrt(area * aspect_ratio)), round(math.sqrt(area / aspect_ratio))
        if height >= rows or width >= columns:
            continue
        top, left = rng.integers(rows - height, endpoint=True), rng.integers(columns - width, endpoint=True)
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - block.sum() <= most:
            block[:] = True
            return True
    return False
