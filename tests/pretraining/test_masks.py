"""Masks in blocks: how many patches, of how many views, and in which shapes."""

import numpy as np
import pytest
import torch

from vitrail.pretraining.masks import BlockMasking, draw_mask

SHAPE = (2, 3, 224, 224)
GRID = 14


def masks_of(masking, number=300, shape=SHAPE):
    return torch.stack([masking.draw(shape, np.random.default_rng(seed)) for seed in range(number)])


def test_half_of_the_views_are_masked_by_default():
    masks = masks_of(BlockMasking(16))
    assert masks.dtype == torch.bool
    assert masks.shape == (300, 2, GRID * GRID)
    assert (masks.any(dim=2).sum(dim=1) == 1).all()  # one of the two views of an image
    shares = masks.float().mean(dim=2)
    assert shares.max() <= 0.5
    assert shares.sum(dim=1).mean().item() == pytest.approx(0.3, abs=0.03)  # of 0.1 to 0.5, in which blocks may leave a rest
    assert 0.35 < masks.any(dim=2)[:, 0].float().mean() < 0.65


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (0.25, 0.5), (1.0, 2)])
def test_the_share_of_the_views(probability, expected):
    masked = masks_of(BlockMasking(16, probability=probability)).any(dim=2).sum(dim=1).float()
    assert masked.mean().item() == pytest.approx(expected, abs=0.1)
    assert set(masked.tolist()) == {0: {0.0}, 0.5: {0.0, 1.0}, 2: {2.0}}[expected]


def test_masks_are_rectangles():
    """A mask is a union of blocks with sides between 0.3 and 1 / 0.3 of one another: nearly all of its patches have a masked neighbor."""
    alone = total = 0
    for seed in range(100):
        mask = draw_mask(GRID, GRID, 60, np.random.default_rng(seed))
        assert mask.sum() <= 60
        padded = np.pad(mask, 1)
        neighbors = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        alone += (mask & ~neighbors).sum()
        total += mask.sum()
    assert total > 0.85 * 60 * 100
    assert alone < 0.02 * total


def test_a_draw_repeats_itself_and_follows_the_size():
    masking = BlockMasking(4, probability=1.0, min_ratio=0.4, max_ratio=0.5)
    first, again = (masking.draw((2, 3, 32, 48), np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 8 * 12)
    assert not torch.equal(first[0], first[1])
    assert masking.draw((2, 3, 8, 8), np.random.default_rng(0)).shape == (2, 4)  # a grid with room for no block
