"""Recipes against the original schedules, which torch computes here by itself."""

import itertools

import numpy as np
import pytest
import torch

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.errors import VitrailError
from vitrail.evaluation.recipes import RECIPES, Head, Recipe, Schedule, find_recipe, make_schedule, recipe_heads

VIT_S = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}


def original_learning_rates(base, *, steps, step_of_update):
    """Return the learning rate of CosineAnnealingLR for each update, stepped where `step_of_update` grows."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=base, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0)
    rates = []
    for update, following in itertools.pairwise(step_of_update):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        for _ in range(following - update):
            scheduler.step()
    return rates


@pytest.mark.parametrize(("num_rows", "batch_size"), [(2500, 1024), (2048, 1024), (700, 1024), (1000, 96)])
def test_dino_learning_rates_are_the_original_ones(num_rows, batch_size):
    recipe = RECIPES["dino"]
    schedule = Schedule(num_rows, batch_size, seed=0, epochs=recipe.epochs)
    updates_per_epoch = len(torch.utils.data.DataLoader(range(num_rows), batch_size=batch_size))
    assert schedule.num_updates == 100 * updates_per_epoch
    epochs = [update // updates_per_epoch for update in range(schedule.num_updates + 1)]
    expected = original_learning_rates(0.001 * batch_size / 256, steps=100, step_of_update=epochs)
    (rate,) = recipe.learning_rates
    rates = [rate * batch_size / 256 * schedule.learning_rate_factor(update) for update in range(schedule.num_updates)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9, atol=1e-15)
    assert len(set(rates)) == 100
    assert rates[0] == 0.001 * batch_size / 256


def test_dinov2_learning_rates_are_the_original_ones():
    schedule = make_schedule(RECIPES["dinov2"], 5000, seed=0)
    assert schedule.num_updates == 12_500
    expected = original_learning_rates(0.02 * 1024 / 256, steps=12_500, step_of_update=range(12_501))
    rates = [0.02 * 1024 / 256 * schedule.learning_rate_factor(update) for update in range(12_500)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)


def test_recipes_are_those_of_the_sources():
    dino, dinov2, quick = (RECIPES[name] for name in ("dino", "dinov2", "quick"))
    assert (dino.batch_size, dino.epochs, dino.learning_rates, dino.augmented) == (1024, 100, (0.001,), True)
    assert (dinov2.batch_size, dinov2.iterations, dinov2.augmented) == (1024, 12_500, True)
    assert len(dinov2.learning_rates) == 13
    assert (min(dinov2.learning_rates), max(dinov2.learning_rates)) == (1e-5, 0.1)
    assert (quick.learning_rates, quick.features, quick.augmented) == (dinov2.learning_rates, dinov2.features, False)
    for recipe in RECIPES.values():
        assert "facebookresearch/dino" in recipe.source
        assert find_recipe(recipe.name) is recipe


def test_heads_of_the_grid():
    heads = recipe_heads(RECIPES["dinov2"], ViTConfig(**VIT_S))
    assert len(set(heads)) == 52
    rates = RECIPES["dinov2"].learning_rates
    expected = {Head(rate, layers, mean_patch) for rate in rates for layers in (1, 4) for mean_patch in (False, True)}
    assert set(heads) == expected
    choices = [(head.num_cls_layers, head.mean_patch) for head in heads]
    assert len(list(itertools.groupby(choices))) == 4  # those that read the same stand together


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (VIT_S, [(4, False)]),
        ({}, [(1, True)]),  # ViT-B
        ({**VIT_S, "num_hidden_layers": 3}, [(3, False)]),
        ({**VIT_S, "pooling": "avg", "use_cls_token": False}, [(0, False)]),
        ({"pooling": "avg", "norm_before_pooling": False}, [(0, False)]),
        ({**VIT_S, "representation_size": 20}, [(0, False)]),
    ],
    ids=["narrow", "wide", "few blocks", "no [CLS]", "norm after pooling", "representation layer"],
)
def test_dino_reads_what_the_model_has(fields, expected):
    heads = recipe_heads(RECIPES["dino"], ViTConfig(**fields))
    assert [(head.num_cls_layers, head.mean_patch) for head in heads] == expected


def test_choices_that_fall_together_are_trained_once():
    heads = recipe_heads(RECIPES["quick"], ViTConfig(**VIT_S, num_hidden_layers=1))
    assert len(heads) == 26


def test_names():
    assert Head(0.02, 1, False).name == "[CLS], lr 0.02"
    assert Head(1e-5, 4, True).name == "[CLS] of 4 blocks + mean patch, lr 1e-05"
    assert Head(0.5, 0, False).name == "pooled, lr 0.5"


def test_an_epoch_reads_every_row_once_in_an_order_of_its_own():
    schedule = Schedule(10, 4, seed=3, epochs=3)
    updates = list(schedule.updates())
    assert [len(rows) for rows in updates] == [4, 4, 2] * 3
    read = np.concatenate(updates).reshape(3, 10)
    for epoch, rows in enumerate(read):
        np.testing.assert_array_equal(rows - 10 * epoch, np.random.default_rng([3, epoch]).permutation(10))
    other = np.concatenate(list(Schedule(10, 4, seed=4, epochs=3).updates())).reshape(3, 10)
    assert (read != other).any(axis=1).all()


@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_iterations_run_on_into_the_next_epoch(batch_size):
    schedule = Schedule(10, batch_size, seed=0, iterations=13)
    updates = list(schedule.updates())
    assert [len(rows) for rows in updates] == [batch_size] * 13
    read = np.concatenate(updates)
    for epoch in range(len(read) // 10):
        assert sorted(read[10 * epoch : 10 * (epoch + 1)]) == list(range(10 * epoch, 10 * (epoch + 1)))


def test_an_unknown_recipe_is_refused():
    with pytest.raises(VitrailError, match='no recipe "dinov3": choose dino, dinov2, quick'):
        find_recipe("dinov3")


def test_a_recipe_of_ones_own():
    recipe = Recipe("mine", "here", learning_rates=(0.1,), features=((2, True),), batch_size=8, epochs=2, augmented=False)
    assert recipe_heads(recipe, ViTConfig()) == (Head(0.1, 2, True),)
    assert make_schedule(recipe, 20, seed=1) == Schedule(20, 8, 1, epochs=2)
