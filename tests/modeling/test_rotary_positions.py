"""Rotary positions: periods that no change of dtype touches, and the augmentations of training."""

import math

import pytest
import torch

from small_models import tiny_model
from vitrail.modeling.modeling_vit import ViTModel

FIELDS = {"position_embedding_type": "rotary", "num_register_tokens": 2, "num_attention_heads": 1}  # a head of 32: 8 periods
GRID = (3, 5)


def make_model(**fields):
    model = tiny_model(ViTModel, **FIELDS | fields)
    model.rotary_position.periods += 0.001  # no series gives these
    return model


def coordinates(model):
    """The coordinates of each patch, (15, 2), from the angles of the features with the first period, which are less than a turn."""
    cosines, sines = model.rotary_position(GRID)
    angles = torch.atan2(sines[:, 16:], cosines[:, 16:])[model.config.num_prefix_tokens :]
    return angles[:, [4, 12]] * model.rotary_position.periods[4] / (2 * math.pi)  # the periods of 10: a tenth of a turn at most


def test_a_new_model_has_the_series_of_the_config():
    periods = tiny_model(ViTModel, **FIELDS, rope_theta=50).rotary_position.periods
    torch.testing.assert_close(periods, torch.tensor([50 ** (i / 8) for i in range(8)]))


def test_prefix_tokens_are_not_turned():
    cosines, sines = make_model().rotary_position(GRID)
    assert len(cosines) == 3 + 15
    assert cosines[:3].eq(1).all()
    assert sines[:3].eq(0).all()


@torch.no_grad()
def test_periods_stay_in_float32(tmp_path):
    model = make_model()
    periods = model.rotary_position.periods.clone()
    model.save_pretrained(tmp_path)
    for changed in (
        make_model().bfloat16(),
        make_model().half().float(),
        make_model().to("cpu", torch.float16),
        ViTModel.from_pretrained(tmp_path, dtype=torch.bfloat16),
        ViTModel.from_pretrained(tmp_path, dtype=torch.float16),
    ):
        assert torch.equal(changed.rotary_position.periods, periods)
    images = torch.randn(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    exact = model(images).last_hidden_state
    assert (make_model().bfloat16()(images).last_hidden_state - exact).abs().max() < 0.05


def test_augmentations_act_in_training_only():
    model = make_model(rope_shift=0.25, rope_jitter=1.5, rope_rescale=2.0)
    plain = coordinates(model)
    expected = [(2 * row / 3 - 2 / 3, 2 * column / 5 - 4 / 5) for row in range(3) for column in range(5)]
    torch.testing.assert_close(plain, torch.tensor(expected), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    assert not torch.allclose(coordinates(model.train()), plain)
    assert torch.equal(coordinates(model.eval()), plain)


@pytest.mark.parametrize(("name", "bound"), [("shift", 0.25), ("jitter", 1.5), ("rescale", 2.0)])
def test_each_augmentation_draws_within_its_bound(name, bound):
    model = make_model(**{f"rope_{name}": bound})
    plain = coordinates(model)
    model.train()
    torch.manual_seed(0)
    drawn = []
    for _ in range(200):
        changed = coordinates(model)
        effect = changed - plain if name == "shift" else (changed / plain).log()
        effect = effect[plain.abs().min(dim=1).values > 0]  # a coordinate of 0 shows no factor
        torch.testing.assert_close(effect, effect[:1].expand_as(effect), atol=1e-4, rtol=0)  # one draw for all patches
        assert name != "rescale" or effect[0, 0].item() == pytest.approx(effect[0, 1].item(), abs=1e-4)
        drawn.append(effect[0])
    drawn, most = torch.stack(drawn), bound if name == "shift" else math.log(bound)
    assert 0.95 * most < drawn.abs().max() <= most + 1e-4
    assert name == "rescale" or not torch.allclose(drawn[:, 0], drawn[:, 1], atol=0.01)


def test_each_block_has_its_own_draw():
    """As in the original, which computes the angles anew before each block."""
    model = make_model(rope_shift=0.5).train()
    rotations = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, arguments: rotations.append(arguments[2][0]))
    images = torch.randn(1, 3, 24, 40)
    model(images)
    model.eval()(images)
    assert not torch.equal(rotations[0], rotations[1])
    assert torch.equal(rotations[2], rotations[3])
