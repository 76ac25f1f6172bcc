"""Positions as graphs compute them, against those of the model."""

import itertools

import pytest
import torch

from small_models import tiny_config
from vitrail.modeling.modeling_vit import ViTEmbeddings
from vitrail.runtime.any_size import positions_of_any_size

SIDES = (1, 2, 3, 4, 7, 9, 16)


@torch.no_grad()
@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_every_rule_of_interpolation(mode, antialias, align_corners, offset):
    for trained, cls_has_position in (((4, 7), True), ((3, 3), False), ((1, 2), True)):
        config = tiny_config(
            hidden_size=8,
            num_attention_heads=1,
            image_size=(8 * trained[0], 8 * trained[1]),
            patch_size=8,
            use_cls_position=cls_has_position,
            position_interpolation_mode=mode,
            position_interpolation_antialias=antialias,
            position_interpolation_align_corners=align_corners,
            position_interpolation_offset=offset,
        )
        embeddings = ViTEmbeddings(config).eval()
        torch.nn.init.normal_(embeddings.position_embeddings, generator=torch.Generator().manual_seed(0))
        for grid in itertools.product(SIDES, repeat=2):
            found, expected = positions_of_any_size(embeddings, grid), embeddings.positions(grid)
            assert (found - expected).abs().max() < 1e-5, (trained, grid)
        assert torch.equal(positions_of_any_size(embeddings, trained), embeddings.position_embeddings)
