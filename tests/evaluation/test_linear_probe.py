"""Heads that are trained together against heads that are trained alone, by a plain loop of torch."""

import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from vitrail.errors import CorruptFileError, VitrailError
from vitrail.evaluation.linear_probe import LinearHeads, ProbeTrainer, accuracies, top_classes
from vitrail.evaluation.recipes import Head, Schedule
from vitrail.evaluation.training import training_arguments
from vitrail.evaluation.training_data import FeatureRows, UpdateSampler
from vitrail.utils.checkpoint_files import check_whole, disk_is_full, last_checkpoint

NUM_LABELS, TOKEN_SIZE, NUM_CLS_LAYERS = 7, 12, 4
HEADS = tuple(
    Head(rate, layers, mean_patch)
    for layers, mean_patch in ((1, False), (1, True), (4, False), (4, True))
    for rate in (1e-3, 0.02, 0.2)
)
EPOCHS = Schedule(70, 32, seed=5, epochs=12)  # the last batch of an epoch has 6 rows
ITERATIONS = Schedule(70, 32, seed=5, iterations=36)


def make_rows(num_rows, num_views, seed):
    """Features of classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(NUM_LABELS, size=num_rows)
    centers = np.random.default_rng(0).normal(size=(NUM_LABELS, NUM_CLS_LAYERS + 1, TOKEN_SIZE))
    tokens = 0.5 * centers[labels] + rng.normal(size=(num_views, num_rows, NUM_CLS_LAYERS + 1, TOKEN_SIZE))
    return tokens.astype(np.float32), labels


TRAIN, VALIDATION = make_rows(70, 3, seed=1), make_rows(33, 1, seed=2)


def make_trainer(folder, *, heads=HEADS, schedule=EPOCHS, device_batch_size=None, evaluate_every=3, seed=5):
    return ProbeTrainer(
        heads=heads,
        schedule=schedule,
        model=LinearHeads(heads, token_size=TOKEN_SIZE, num_cls_layers=NUM_CLS_LAYERS, num_labels=NUM_LABELS, seed=seed),
        args=training_arguments(
            folder, schedule, seed=seed, device_batch_size=device_batch_size, num_workers=0, evaluate_every=evaluate_every
        ),
        train_dataset=FeatureRows(*TRAIN),
        eval_dataset=FeatureRows(*VALIDATION),
        progress=False,
    )


def weights_of(trainer):
    return [torch.cat((weight, bias[:, None]), dim=1).detach() for weight, bias in trainer.model.weights_of_heads()]


def read_by(head, tokens):
    """Return what a head reads from (…, P, D) features: the last [CLS] tokens, then the mean patch."""
    cls_tokens = tokens[..., NUM_CLS_LAYERS - head.num_cls_layers : NUM_CLS_LAYERS, :]
    chosen = np.concatenate((cls_tokens, tokens[..., -1:, :]), axis=-2) if head.mean_patch else cls_tokens
    return torch.from_numpy(chosen.reshape(*chosen.shape[:-2], -1))


def train_alone(head, schedule, *, seed=5):
    """The loop of the original code: one linear layer, SGD, a cosine that is stepped after each epoch or iteration."""
    views, labels = TRAIN
    inputs, labels = read_by(head, views), torch.from_numpy(labels)  # (V, N, d)
    linear = torch.nn.Linear(inputs.shape[-1], NUM_LABELS)
    rng = np.random.default_rng([seed, head.num_cls_layers, int(head.mean_patch)])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(rng.normal(0, 0.01, linear.weight.shape)))
        linear.bias.zero_()
    optimizer = torch.optim.SGD(linear.parameters(), lr=head.learning_rate * 32 / 256, momentum=0.9, weight_decay=0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.epochs or schedule.iterations, eta_min=0)

    def step(indices):
        epochs, rows = indices // 70, indices % 70
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(linear(inputs[epochs % len(views), rows]), labels[rows]).backward()
        optimizer.step()

    num_epochs = schedule.epochs or 20
    orders = [epoch * 70 + np.random.default_rng([seed, epoch]).permutation(70) for epoch in range(num_epochs)]
    if schedule.epochs is not None:
        for order in orders:
            for batch in torch.from_numpy(order).split(32):
                step(batch)
            cosine.step()
    else:
        for batch in torch.from_numpy(np.concatenate(orders)).split(32)[: schedule.iterations]:
            step(batch)
            cosine.step()
    return torch.cat((linear.weight, linear.bias[:, None]), dim=1).detach()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("together"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_a_head_is_what_it_is_alone(together, head):
    weights = weights_of(together)[HEADS.index(head)]
    alone = train_alone(head, EPOCHS)
    torch.testing.assert_close(weights, alone, rtol=0, atol=1e-5)
    assert (weights - train_alone(head, EPOCHS, seed=6)).abs().max() > 1e-3  # so the comparison can fail


def test_iterations_are_what_they_are_alone(tmp_path):
    trainer = make_trainer(tmp_path, schedule=ITERATIONS)
    trainer.train()
    for head, weights in zip(HEADS, weights_of(trainer), strict=True):
        torch.testing.assert_close(weights, train_alone(head, ITERATIONS), rtol=0, atol=1e-5)


def test_a_head_that_diverges_disturbs_no_other(tmp_path, together):
    heads = (*HEADS, Head(1e38, 4, True))
    trainer = make_trainer(tmp_path, heads=heads)
    trainer.train()
    weights = weights_of(trainer)
    for one, other in zip(weights[:-1], weights_of(together), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not weights[-1].isfinite().all()
    classes = trainer.predict(trainer.eval_dataset).predictions
    assert (classes[:, -1] == -1).all()
    assert accuracies(classes, VALIDATION[1])["accuracy"][-1] == 0


def test_the_order_of_heads_does_not_matter(tmp_path, together):
    mixed = HEADS[::5] + HEADS[1::5] + HEADS[2::5] + HEADS[3::5] + HEADS[4::5]
    trainer = make_trainer(tmp_path, heads=mixed)
    trainer.train()
    by_head = dict(zip(mixed, weights_of(trainer), strict=True))
    for head, weights in zip(HEADS, weights_of(together), strict=True):
        torch.testing.assert_close(by_head[head], weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device_batch_size", [13, 4])
def test_accumulated_gradients_are_those_of_the_batch(tmp_path, together, device_batch_size):
    """32 rows go in slices of 13 and of 4; the 6 rows that end an epoch leave two of eight slices empty."""
    trainer = make_trainer(tmp_path, device_batch_size=device_batch_size)
    assert trainer.args.gradient_accumulation_steps == {13: 3, 4: 8}[device_batch_size]
    trainer.train()
    for one, other in zip(weights_of(trainer), weights_of(together), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    for one, other in zip(trainer.training_log(), together.training_log(), strict=True):
        np.testing.assert_allclose(one["losses"], other["losses"], atol=1e-5)


def test_one_optimizer_of_few_parameters_trains_all_heads(together):
    """Heads that read the same features are one matrix and one bias."""
    (group,) = together.optimizer.param_groups
    assert (group["initial_lr"], group["momentum"], group["weight_decay"]) == (32 / 256, 0.9, 0)
    assert [tuple(parameter.shape) for parameter in group["params"]] == [
        *((3 * NUM_LABELS, tokens * TOKEN_SIZE) for tokens in (1, 2, 4, 5)),
        *[(3 * NUM_LABELS,)] * 4,
    ]
    assert together.args.max_grad_norm == 0


def test_the_log_has_the_mean_loss_of_each_head(tmp_path):
    schedule = Schedule(70, 32, seed=5, epochs=1)
    trainer = make_trainer(tmp_path, schedule=schedule, evaluate_every=1)
    first = weights_of(trainer)
    trainer.train()
    log = trainer.training_log()
    assert [entry["step"] for entry in log] == [1, 2, 3]
    rows = np.random.default_rng([5, 0]).permutation(70)[:32]
    for index, (head, weights) in enumerate(zip(HEADS, first, strict=True)):
        logits = read_by(head, TRAIN[0][0, rows]) @ weights[:, :-1].T + weights[:, -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(TRAIN[1][rows]))
        assert log[0]["losses"][index] == pytest.approx(expected.item(), abs=1e-5)


def test_accuracies_are_those_of_the_weights(together):
    predictions = together.predict(together.eval_dataset)
    tokens, labels = VALIDATION
    for index, (head, weights) in enumerate(zip(HEADS, weights_of(together), strict=True)):
        logits = read_by(head, tokens[0]) @ weights[:, :-1].T + weights[:, -1]
        order = logits.argsort(dim=1, descending=True).numpy()
        assert predictions.metrics["test_accuracy"][index] == pytest.approx((order[:, 0] == labels).mean())
        assert predictions.metrics["test_top_5_accuracy"][index] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert max(predictions.metrics["test_accuracy"]) > 0.7  # by chance: 0.14


def test_top_classes_of_few_classes():
    classes = top_classes(torch.tensor([[[0.1, 0.3, 0.2]], [[torch.nan, 0, 0]]]), torch.zeros(2))
    assert classes.tolist() == [[[1, 2, 0]], [[-1, -1, -1]]]


@pytest.mark.parametrize("num_slices", [1, 2, 5, 12])
def test_every_row_goes_to_one_process(num_slices):
    schedule = Schedule(10, 7, seed=0, epochs=2)
    for accumulation_steps in (1, 2):
        samplers = [
            UpdateSampler(schedule, num_processes=num_slices, process=process, accumulation_steps=accumulation_steps)
            for process in range(num_slices)
        ]
        assert {len(list(sampler)) for sampler in samplers} == {len(samplers[0])} == {4 * accumulation_steps}
        batches = [list(sampler) for sampler in samplers]
        for update, rows in enumerate(schedule.updates()):
            steps = slice(update * accumulation_steps, (update + 1) * accumulation_steps)
            assert [row for own in batches for batch in own[steps] for row in batch] == rows.tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole checkpoint, in a folder of its name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trainer = make_trainer(folder)
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train_or_resume()
    check_whole(folder / "checkpoint-18")
    return folder / "checkpoint-18"


class Interrupt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 20:
            raise KeyboardInterrupt


def test_interrupted_and_resumed_is_the_same_run(tmp_path, together):
    trainer = make_trainer(tmp_path)
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train_or_resume()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-18"]
    unfinished = tmp_path / "checkpoint-19"  # killed while it was written
    unfinished.mkdir()
    (unfinished / "trainer_state.json").write_text('{"epoch": 1')
    (tmp_path / "checkpoint-best").mkdir()  # of the user
    trainer = make_trainer(tmp_path)
    assert trainer.train_or_resume() == 18
    for one, other in zip(weights_of(trainer), weights_of(together), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(trainer.training_log(), together.training_log(), strict=True):
        assert (one["step"], one["losses"]) == (other["step"], other["losses"])
    accuracies_of = [
        [entry["eval_accuracy"] for entry in t.state.log_history if "eval_accuracy" in entry] for t in (trainer, together)
    ]
    assert accuracies_of[0] == accuracies_of[1]


def test_a_finished_run_is_only_read(tmp_path, together):
    trainer = make_trainer(tmp_path)
    trainer.train()
    again = make_trainer(tmp_path)
    assert again.train_or_resume() == EPOCHS.num_updates
    for one, other in zip(weights_of(again), weights_of(together), strict=True):
        assert torch.equal(one, other)
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{EPOCHS.num_updates}"
    assert last_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *(
            (name, "cut", "is truncated or damaged")
            for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
        ),
        *((name, "remove", "is missing") for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth")),
        ("optimizer.pt", "flip", "is truncated or damaged"),
        ("trainer_state.json", "other", "belongs to another checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_named(checkpoint, tmp_path, name, change, message):
    """A Trainer would go on with a new optimizer, or from the first update, and end with other numbers."""
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (file,) = (tmp_path / checkpoint.name).glob(name)
    content = file.read_bytes()
    middle = len(content) // 2
    changed = {"cut": content[:-9], "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], "other": b"{}"}
    if change == "remove":
        file.unlink()
    else:
        file.write_bytes(changed[change])
    with pytest.raises(CorruptFileError, match=f"{re.escape(str(tmp_path / checkpoint.name / name))} {message}: remove the folder"):
        make_trainer(tmp_path).train_or_resume()


class FullDisk(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.add_callback(FullDisk())
    with pytest.raises(VitrailError, match="is full: free space, and repeat the command"):
        trainer.train_or_resume()
    assert not disk_is_full(OSError(13, "Permission denied"), tmp_path)
    assert disk_is_full(SafetensorError("I/O error: No space left on device (os error 28)"), tmp_path)
    of_torch = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert not disk_is_full(of_torch, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    assert disk_is_full(of_torch, tmp_path)
