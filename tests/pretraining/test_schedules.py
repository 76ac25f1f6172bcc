"""Schedules against the numbers of the golden case, and the original functions written again in numpy."""

import numpy as np
import pytest
import torch

from golden_training import REFERENCE, SETTINGS, UPDATES
from vitrail.pretraining.schedules import CosineSchedule, LinearWarmup
from vitrail.pretraining.trainer import OptimizerSchedule


def cosine_scheduler(base, final, *, num_updates, warmup):
    """facebookresearch/dino, utils.py: np.linspace, then half a cosine over the rest."""
    rest = np.arange(num_updates - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / len(rest)))
    return np.concatenate((np.linspace(0, base, warmup), cosine))


def values(schedule, number):
    return [schedule(update) for update in range(number)]


@pytest.mark.parametrize(
    ("output", "schedule"),
    [
        (
            "lr",
            CosineSchedule(
                SETTINGS["lr"],
                SETTINGS["min_lr"],
                UPDATES,
                warmup=SETTINGS["warmup_epochs"] * SETTINGS["iterations_per_epoch"],
            ),
        ),
        ("weight_decay", CosineSchedule(SETTINGS["weight_decay"], SETTINGS["weight_decay_end"], UPDATES)),
        ("momentum", CosineSchedule(SETTINGS["momentum"], 1.0, UPDATES)),
    ],
)
def test_schedules_of_the_golden_case(output, schedule):
    np.testing.assert_allclose(values(schedule, UPDATES), REFERENCE[output].double(), rtol=1e-6)


@pytest.mark.parametrize(("num_updates", "warmup"), [(1000, 100), (17, 5), (17, 2), (17, 0), (1, 0)])
@pytest.mark.parametrize(("start", "end"), [(0.001, 1e-6), (0.04, 0.4), (0.996, 1.0)])
def test_a_cosine_is_the_original_one(start, end, num_updates, warmup):
    expected = cosine_scheduler(start, end, num_updates=num_updates, warmup=warmup)
    schedule = CosineSchedule(start, end, num_updates, warmup)
    np.testing.assert_allclose(values(schedule, num_updates), expected, rtol=1e-12, atol=1e-18)


def test_marks_of_a_warmup():
    schedule = CosineSchedule(0.5, 0.1, 100, warmup=11)
    assert (schedule(0), schedule(10), schedule(11)) == (0.0, 0.5, 0.5)
    assert schedule(5) == pytest.approx(0.25)
    assert CosineSchedule(0.5, 0.1, 100, warmup=1)(0) == 0.0  # np.linspace(0, 0.5, 1)


@pytest.mark.parametrize("warmup", [0, 4])
def test_after_the_run_a_cosine_stays(warmup):
    """A scheduler of torch reads one more value than there are updates."""
    schedule = CosineSchedule(0.5, 0.1, 10, warmup=warmup)
    assert schedule(9) > 0.1
    assert schedule(10) == pytest.approx(0.1)
    assert schedule(1000) == pytest.approx(0.1)


@pytest.mark.parametrize(("warmup", "epochs"), [(30, 100), (2, 3), (1, 3), (0, 3), (5, 5)])
def test_a_temperature_is_the_original_one(warmup, epochs):
    expected = np.concatenate((np.linspace(0.04, 0.07, warmup), np.ones(epochs - warmup) * 0.07))
    np.testing.assert_allclose(values(LinearWarmup(0.04, 0.07, warmup), epochs), expected, rtol=1e-12)


def test_a_first_update_that_float16_skips_is_no_reason_for_a_warning():
    """The optimizer does not step, and the schedule goes on."""
    group = {"params": [torch.nn.Parameter(torch.zeros(2))], "decays": True, "learning_rate_factor": 0.5, "first_update": 0}
    optimizer = torch.optim.AdamW([group])
    rate, decay = CosineSchedule(0.1, 0.0, 4), CosineSchedule(0.04, 0.4, 4)
    schedule = OptimizerSchedule(optimizer, learning_rate=rate, weight_decay=decay)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * rate(1))
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(decay(1))
