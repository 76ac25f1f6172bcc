"""Runs that stop with a reason: constructed logs, the log of a real run that ends well, and tiny runs."""

import json
import math

import pytest
from transformers import TrainerControl, TrainerState

import paths
from golden_training import UPDATES, golden_arguments, golden_trainer
from vitrail.errors import VitrailError
from vitrail.pretraining.stops import StopIfCollapsed, check_knn

LIMIT = math.log(24)
GOOD, UNIFORM, SINGLE = (0.5 * LIMIT, 0.9 * LIMIT), (0.995 * LIMIT, LIMIT), (0.0, 0.001 * LIMIT)


def replay(args, history, max_steps):
    """Log the points one by one."""
    state = TrainerState(max_steps=max_steps)
    for point in history:
        state.log_history.append(point)
        StopIfCollapsed().on_log(args, state, TrainerControl())


def points(*kinds, interval=10):
    return [
        {"step": interval * (index + 1), "loss": 1.0, "target_entropy": single, "mean_target_entropy": mean}
        for index, (single, mean) in enumerate(kinds)
    ]


@pytest.mark.parametrize("patience", [0, 200])
def test_a_real_run_that_ends_well_does_not_stop(patience, tmp_path):
    """That of the checkpoint on board, whose entropies come near log K in its first tenth."""
    run = json.loads((paths.EXAMPLES / "digits" / "pretraining.json").read_text())
    known = {name: run["arguments"][name] for name in ("num_prototypes", "warmup_epochs")}
    args = golden_arguments(tmp_path, num_train_epochs=run["epochs"], collapse_patience=patience, **known)
    assert max(point["target_entropy"] for point in run["curves"] if "loss" in point) > 0.95 * math.log(known["num_prototypes"])
    replay(args, run["curves"], run["updates"])


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([UNIFORM] * 8, None),  # of which 5 follow the warm-up of 30 updates
        ([UNIFORM] * 9, r"collapsed to uniform: for 60 updates.* within 1% of ln 24 = 3\.18.* or lower teacher_temperature"),
        ([GOOD] * 9 + [UNIFORM] * 5, None),
        ([GOOD] * 9 + [UNIFORM] * 6, "for 60 updates"),
        ([UNIFORM] * 5 + [GOOD] + [UNIFORM] * 5, None),
        ([GOOD] * 3 + [SINGLE] * 6, r"collapsed to one: for 60 updates.* below 0\.032, .* or raise teacher_temperature"),
        ([SINGLE, UNIFORM] * 10, None),
    ],
)
def test_targets_that_stay_collapsed_stop_a_run(history, message, tmp_path):
    args = golden_arguments(tmp_path, num_prototypes=24, num_train_epochs=10, warmup_epochs=3, collapse_patience=60)
    if message is None:
        replay(args, points(*history), 100)
        return
    with pytest.raises(VitrailError, match=message) as error:
        replay(args, points(*history), 100)
    assert "Lower learning_rate or raise frozen_blocks" in str(error.value)
    assert "or set collapse_patience=0 to go on. There is no checkpoint yet." in str(error.value)
    args.collapse_patience = 0
    replay(args, points(*history), 100)


def test_one_image_of_one_target_is_no_collapse(tmp_path):
    args = golden_arguments(tmp_path, collapse_patience=20, per_device_train_batch_size=1)
    replay(args, points(*[SINGLE] * 20), 200)


def test_a_run_collapses(tmp_path):
    """A teacher's temperature of 1,000 makes every target uniform."""
    changes = {"teacher_temperature": 1e3, "warmup_teacher_temperature_epochs": 0, "warmup_epochs": 0}
    trainer = golden_trainer(tmp_path, **changes, collapse_patience=3, save_strategy="steps", save_steps=2)
    with pytest.raises(VitrailError, match=r"The run stops: .*uniform: for 3 updates.* The last checkpoint is .*checkpoint-2\."):
        trainer.train()
    golden_trainer(tmp_path, **changes, collapse_patience=0).train()


@pytest.mark.parametrize(("limit", "stops"), [(UPDATES, True), (UPDATES + 1, False), (0, False)])
def test_float16_that_skips_every_update(limit, stops, tmp_path, monkeypatch):
    trainer = golden_trainer(tmp_path, max_skipped_updates=limit)
    monkeypatch.setattr(type(trainer.accelerator), "optimizer_step_was_skipped", property(lambda accelerator: True))
    if not stops:
        trainer.train()
        return
    with pytest.raises(VitrailError, match=rf"float16 has skipped the last {limit} of {limit} updates.* Train in bfloat16"):
        trainer.train()


@pytest.mark.parametrize(
    ("accuracies", "stops"),
    [
        ([0.60, 0.60, 0.60], True),  # limit: 0.8 - 0.1 - 2 * sqrt(0.8 * 0.2 / 100) = 0.62
        ([0.60, 0.60, 0.63], False),
        ([0.60, 0.60], False),
        ([0.90, 0.60, 0.61, 0.1], True),
        ([math.nan] * 3, False),
        ([], False),
    ],
)
def test_features_that_stay_worse_than_at_the_start_stop_a_run(accuracies, stops, tmp_path):
    args = golden_arguments(tmp_path, knn_margin=0.1, knn_patience=3)
    if not stops:
        check_knn(args, accuracies, start=0.8, number=100)
        return
    with pytest.raises(VitrailError, match=r"the last 3 evaluations is at most 6[01]\.0%; the start model's is 80\.0%, and 62\.0%"):
        check_knn(args, accuracies, start=0.8, number=100)
    args.knn_patience = 0
    check_knn(args, accuracies, start=0.8, number=100)


@pytest.mark.parametrize("name", ["frozen_blocks", "lora_rank", "max_skipped_updates", "knn_patience", "collapse_patience"])
def test_numbers_that_are_not_whole_are_refused(name, tmp_path):
    for value in (-1, 1.5):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected a whole number from 0"):
            golden_arguments(tmp_path, **{name: value})
