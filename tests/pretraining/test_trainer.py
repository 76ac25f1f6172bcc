"""The Trainer against the original loop: the golden case, in one process and in two, in pieces and resumed."""

import math

import pytest
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

import deterministic
import forked
from golden_training import (
    BATCH,
    HELD_OUT,
    REFERENCE,
    SETTINGS,
    UPDATES,
    GoldenCrops,
    golden_arguments,
    golden_model,
    golden_trainer,
)
from vitrail.errors import VitrailError
from vitrail.pretraining.dino_trainer import DINOTrainer, clip_each_gradient, make_dino_model
from vitrail.utils.compat import CHECKPOINTING

TOLERANCE = 1e-4


class Centers(TrainerCallback):
    """The center after each update."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.centers = []

    def on_step_end(self, args, state, control, **kwargs):
        self.centers.append(self.trainer.model.loss.center.clone())


def logged(log_history, name):
    return torch.tensor([entry[name] for entry in log_history if "loss" in entry])


def check_networks(model):
    pixel_values = deterministic.pixel_values(HELD_OUT)
    for name in ("student", "teacher"):
        network = getattr(model, name).eval()
        with torch.no_grad():
            features, outputs = network.features(pixel_values), network(pixel_values)
        torch.testing.assert_close(features, REFERENCE[f"{name}_cls"], rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(outputs, REFERENCE[f"{name}_head"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {CHECKPOINTING: True},
        {"optim": "adamw_torch"},
        {"dataloader_num_workers": 1},
    ],
    ids=["plain", "accumulated", "checkpointed", "not fused", "worker"],
)
def test_the_original_loop(changes, tmp_path):
    trainer = golden_trainer(tmp_path, **changes)
    centers = Centers(trainer)
    trainer.add_callback(centers)
    trainer.train()
    log = trainer.state.log_history
    assert trainer.state.global_step == UPDATES
    torch.testing.assert_close(logged(log, "loss"), REFERENCE["losses"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(torch.cat(centers.centers), REFERENCE["centers"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logged(log, "learning_rate"), REFERENCE["lr"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(logged(log, "teacher_momentum"), REFERENCE["momentum"], rtol=1e-6, atol=0)
    check_networks(trainer.model)


def train_in_each_process(folder):
    torch.set_num_threads(1)
    trainer = golden_trainer(folder, per_device_train_batch_size=2)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"log": trainer.state.log_history, "model": trainer.model.state_dict()}, folder / "trained.pth")


def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    forked.run_two(__file__, "train_in_each_process", tmp_path)
    trained = torch.load(tmp_path / "trained.pth", weights_only=True)
    torch.testing.assert_close(logged(trained["log"], "loss"), REFERENCE["losses"], rtol=0, atol=TOLERANCE)
    model = golden_model(golden_arguments(tmp_path))
    model.load_state_dict(trained["model"])
    torch.testing.assert_close(model.loss.center, REFERENCE["centers"][-1:], rtol=0, atol=TOLERANCE)
    check_networks(model)


@pytest.mark.parametrize("update", [2, 3], ids=["between epochs", "within an epoch"])
def test_resumed_it_goes_on_as_if_nothing_had_been(update, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": update}
    first = golden_trainer(tmp_path, **changes)
    first.train()
    resumed = golden_trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{update}"))
    losses = logged(resumed.state.log_history, "loss")
    assert len(losses) == UPDATES
    assert losses.tolist() == logged(first.state.log_history, "loss").tolist()
    for name, tensor in first.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    check_networks(resumed.model)


def test_weight_decay_grows_and_is_for_matrices_alone(tmp_path):
    trainer = golden_trainer(tmp_path)
    decays = []

    class Decays(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            decays.append([group["weight_decay"] for group in trainer.optimizer.param_groups])

    trainer.add_callback(Decays())
    trainer.train()
    decaying, others = zip(*decays, strict=True)
    torch.testing.assert_close(torch.tensor(decaying), REFERENCE["weight_decay"], rtol=1e-6, atol=0)
    assert set(others) == {0.0}
    assert {parameter.ndim for parameter in trainer.optimizer.param_groups[1]["params"]} == {1}
    assert len(trainer.optimizer.param_groups[1]["params"]) == 1 + 2 * 8 + 2 + 3  # patches, blocks, norm, head: biases and vectors


def test_the_last_layer_stays_in_the_first_epoch(tmp_path):
    trainer = golden_trainer(tmp_path)
    begin = trainer.model.student.head.last_layer.weight_v.detach().clone()
    moved = []

    class Moved(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            moved.append(not torch.equal(begin, trainer.model.student.head.last_layer.weight_v))

    trainer.add_callback(Moved())
    trainer.train()
    assert moved == [False, False, True, True, True, True]  # the learning rate of the first update is 0 as well
    assert torch.equal(trainer.model.teacher.head.last_layer.weight_g, torch.ones(SETTINGS["out_dim"], 1))


def test_signs_of_collapse_are_means_since_the_last_log(tmp_path):
    each = golden_trainer(tmp_path)
    each.train()
    pairs = golden_trainer(tmp_path, logging_steps=2)
    pairs.train()
    for name in ("target_entropy", "mean_target_entropy", "center_norm"):
        expected = logged(each.state.log_history, name).unflatten(0, (-1, 2)).mean(dim=1)
        torch.testing.assert_close(logged(pairs.state.log_history, name), expected, rtol=1e-5, atol=1e-6)
    assert (logged(each.state.log_history, "target_entropy") < math.log(SETTINGS["out_dim"])).all()


def test_bfloat16_is_near(tmp_path):
    trainer = golden_trainer(tmp_path, bf16=True)
    trainer.train()
    losses = logged(trainer.state.log_history, "loss")
    torch.testing.assert_close(losses, REFERENCE["losses"], rtol=0, atol=0.1)
    assert (losses - REFERENCE["losses"]).abs().max() > 1e-4
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_a_backbone_is_where_both_begin(tmp_path):
    args = golden_arguments(tmp_path, drop_path_rate=0.5)
    vit = golden_model(args).student.backbone
    trainer = DINOTrainer(vit, args, train_dataset=GoldenCrops())
    before = {name: parameter.clone() for name, parameter in vit.named_parameters()}
    for network in (trainer.model.student, trainer.model.teacher):
        assert all(torch.equal(before[name], parameter) for name, parameter in network.backbone.named_parameters())
    assert [layer.drop_path_rate for layer in trainer.model.student.backbone.layers] == [0.0, 0.5]
    assert [layer.drop_path_rate for layer in trainer.model.teacher.backbone.layers] == [0.0, 0.0]
    trainer.train()
    assert all(torch.equal(before[name], parameter) for name, parameter in vit.named_parameters())
    assert not all(torch.equal(before[name], parameter) for name, parameter in trainer.teacher.named_parameters())
    again = DINOTrainer(vit, args, train_dataset=GoldenCrops())
    assert torch.equal(make_dino_model(vit, args).student.head.mlp[0].bias, again.model.student.head.mlp[0].bias)


def test_the_seed_decides_the_head_and_the_order(tmp_path):
    args = golden_arguments(tmp_path, train_sampling_strategy="random")
    vit = golden_model(args).student.backbone
    losses = []
    for seed in (0, 0, 1):
        args = golden_arguments(tmp_path, train_sampling_strategy="random", seed=seed)
        trainer = DINOTrainer(vit, args, train_dataset=GoldenCrops())
        trainer.train()
        losses.append(logged(trainer.state.log_history, "loss").tolist())
    assert losses[0] == losses[1] != losses[2]


class Rows(Dataset):
    """Remembers which rows were read."""

    def __init__(self, number):
        self.number, self.read = number, []
        self.crops = GoldenCrops()

    def __len__(self):
        return self.number

    def __getitem__(self, row):
        self.read.append(row)
        return self.crops[row % len(self.crops)]


def test_an_epoch_has_whole_updates_in_a_new_order(tmp_path):
    rows = Rows(11)
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "train_sampling_strategy": "random"}
    args = golden_arguments(tmp_path, num_train_epochs=2, **changes)
    trainer = DINOTrainer(golden_model(args), args, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 4
    first, second = rows.read[:8], rows.read[8:]
    assert len(second) == 8
    assert len(set(first)) == len(set(second)) == 8
    assert first != second


def test_fewer_images_than_an_update(tmp_path):
    args = golden_arguments(tmp_path, train_sampling_strategy="random", gradient_accumulation_steps=3)
    trainer = DINOTrainer(golden_model(args), args, train_dataset=GoldenCrops())
    with pytest.raises(ValueError, match=f"The dataset has {2 * BATCH} images, fewer than an update of {3 * BATCH}"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0"),
        ({"teacher_momentum": 1.5}, "teacher_momentum is 1.5; expected a number from 0 to 1"),
        ({"warmup_epochs": 4}, "warmup_epochs is 4, longer than the run of 3 epochs"),
    ],
)
def test_settings_that_make_no_sense(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        golden_arguments(tmp_path, **changes)


def test_each_gradient_is_clipped_by_itself():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])
    scales = [0.1, 10.0, 1000.0]
    for linear, scale in zip(model, scales, strict=True):
        linear.weight.grad = torch.full((4, 4), scale)  # norm 4 * scale
    model[0].bias.grad = None
    norm = clip_each_gradient(model, 3.0)
    assert norm.item() == pytest.approx(4 * math.sqrt(sum(scale**2 for scale in scales)))
    norms = [linear.weight.grad.norm().item() for linear in model]
    assert norms == pytest.approx([0.4, 3.0, 3.0], rel=1e-5)


def test_the_loss_of_crops_that_are_not_trained_on(tmp_path):
    first_temperature = {"teacher_temperature": SETTINGS["warmup_teacher_temp"], "warmup_teacher_temperature_epochs": 0}
    trainer = golden_trainer(tmp_path, per_device_eval_batch_size=BATCH, **first_temperature)
    first = torch.utils.data.Subset(GoldenCrops(), range(BATCH))
    begin = trainer.evaluate(first)["eval_loss"]
    assert begin == pytest.approx(REFERENCE["losses"][0].item(), abs=TOLERANCE)
    assert trainer.model.loss.gathered is None
    trainer.model.train()
    trainer.train()
    assert abs(trainer.evaluate(first)["eval_loss"] - begin) > 0.01


def test_without_local_crops(tmp_path):
    args = golden_arguments(tmp_path)
    model = golden_model(args)
    crops = GoldenCrops()[0]["pixel_values"][None]
    alone = model(crops)["loss"]
    assert torch.equal(alone, model(crops, torch.zeros(1, 0, 3, 16, 16))["loss"])


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_a_loss_that_is_not_a_number_ends_the_run(logging_steps, tmp_path):
    trainer = golden_trainer(tmp_path, logging_steps=logging_steps)
    with torch.no_grad():
        trainer.model.student.head.mlp[0].bias[0] = math.nan
    with pytest.raises(VitrailError, match=f"The loss is nan after {logging_steps} updates: the training has diverged"):
        trainer.train()


def test_weight_decay_may_begin_at_nothing(tmp_path):
    trainer = golden_trainer(tmp_path, weight_decay=0.0)
    trainer.train()
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [pytest.approx(SETTINGS["weight_decay_end"]), 0]


def test_schedules_go_on_after_an_update_that_was_skipped(tmp_path):
    """float16 skips updates whose gradients are not finite, and the Trainer then does not step the scheduler."""
    trainer = golden_trainer(tmp_path)
    skip = 2

    class Skip(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            trainer.accelerator.__class__.optimizer_step_was_skipped = property(lambda accelerator: state.global_step == skip)

    kept = trainer.accelerator.__class__.optimizer_step_was_skipped
    trainer.add_callback(Skip())
    try:
        trainer.train()
    finally:
        trainer.accelerator.__class__.optimizer_step_was_skipped = kept
    expected = REFERENCE["lr"].tolist()
    assert logged(trainer.state.log_history, "learning_rate").tolist() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_temperature_is_that_of_the_arguments_from_the_beginning(tmp_path):
    assert golden_trainer(tmp_path).model.teacher_temperature == SETTINGS["teacher_temp"]


@pytest.mark.parametrize(("precision", "tolerance"), [({}, 1e-3), ({"bf16": True}, 0.03)])
def test_the_original_loop_on_cuda(precision, tolerance, cuda, tmp_path):
    trainer = golden_trainer(tmp_path, use_cpu=False, dataloader_pin_memory=True, **precision)
    trainer.train()
    assert {(tensor.device.type, tensor.dtype) for tensor in trainer.model.parameters()} == {("cuda", torch.float32)}
    losses = logged(trainer.state.log_history, "loss")
    torch.testing.assert_close(losses, REFERENCE["losses"], rtol=tolerance, atol=tolerance)
