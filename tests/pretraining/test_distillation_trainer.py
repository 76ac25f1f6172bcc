"""Distillation against a loop in double precision, written here: plain, accumulated, checkpointed, in two processes, and resumed."""

import math

import pytest
import torch
from quiet_training import QUIET
from safetensors.torch import load_file
from torch.utils.data import Dataset

import forked
from small_models import randomize
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.pretraining.arguments import DistillationTrainingArguments
from vitrail.pretraining.distillation_trainer import DistillationTrainer, make_distillation_model
from vitrail.pretraining.frozen_teacher import FrozenTeacher
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.utils.compat import CHECKPOINTING

BATCH, UPDATES, BLOCKS, PREFIX = 4, 3, 3, 2
SETTINGS = {
    "learning_rate": 0.004,
    "min_learning_rate": 1e-5,
    "warmup_epochs": 0,
    "weight_decay": 0.04,
    "final_weight_decay": 0.4,
    "max_grad_norm": 0.7,
    "image_loss_weight": 0.7,
    "patch_loss_weight": 1.3,
}
MEANS, STDS = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]  # of the student's images
TEACHER_MEANS, TEACHER_STDS = [0.5, 0.45, 0.4], [0.5, 0.4, 0.3]


class Crops(Dataset):
    """Crops that depend on the row alone; an epoch has UPDATES batches."""

    def __len__(self):
        return BATCH * UPDATES

    def __getitem__(self, row):
        random = torch.Generator().manual_seed(row)
        return {
            "pixel_values": torch.randn(2, 3, 16, 16, generator=random),
            "local_pixel_values": torch.randn(1, 3, 8, 8, generator=random),
        }


def make_student():
    torch.manual_seed(7)
    config = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 4, "image_size": 16}
    return ViTModel(
        ViTConfig(
            **config,
            num_hidden_layers=BLOCKS,
            num_register_tokens=PREFIX - 1,
            use_mask_token=True,
            qkv_bias=False,  # the gradient of the key's is 0, and AdamW would amplify its rounding errors
            initializer_range=0.4,
        )
    )


def make_teacher(**changes):
    torch.manual_seed(8)
    config = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8, "image_size": 16}
    model = randomize(ViTModel(ViTConfig(**(config | {"num_hidden_layers": 4} | changes)))).eval()
    processor = VitrailImageProcessor(image_mean=TEACHER_MEANS, image_std=TEACHER_STDS)
    return FrozenTeacher(model, processor)


def make_trainer(folder, *, batch=BATCH, accumulated=1, teacher=None, **changes):
    args = DistillationTrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=1,
        **(QUIET | SETTINGS | changes),
    )
    processor = VitrailImageProcessor(image_mean=MEANS, image_std=STDS)
    return DistillationTrainer(
        make_student(), args, teacher=make_teacher(**(teacher or {})), image_processor=processor, train_dataset=Crops()
    )


def half_cosine(start, end, update):
    return end + (start - end) * (1 + math.cos(math.pi * update / UPDATES)) / 2


def resizing(old, new):
    """The matrix that resizes a line of values with a triangle filter, which is as wide as a value of the coarser line."""
    width = max(old / new, 1)
    centers = (torch.arange(new).double() + 0.5) * old / new
    weights = (1 - (torch.arange(old).double() + 0.5 - centers[:, None]).abs() / width).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def distance(features, targets, kind):
    if kind == "mse":
        return (features - targets).square().sum() / features.numel()
    cosines = (features * targets).sum(-1) / (features.square().sum(-1) * targets.square().sum(-1)).sqrt()
    return (1 - cosines).sum() / cosines.numel()


class Loop:
    """Distillation by the crops of an update, those of one size together."""

    def __init__(self, args, teacher, depths, kind="mse"):
        processor = VitrailImageProcessor(image_mean=MEANS, image_std=STDS)
        student = make_student()
        torch.manual_seed(args.seed)  # of the projections
        model = make_distillation_model(student, teacher, processor, args).double()
        self.student, self.teacher = model.student, model.teacher
        self.depths, self.kind = depths, kind
        parameters = [(name, parameter) for name, parameter in self.student.named_parameters() if "mask_token" not in name]
        self.optimizer = torch.optim.AdamW([{"params": [parameter], "name": name} for name, parameter in parameters])
        self.losses, self.norms = [], []

    def tokens(self, backbone, states):
        mean, variance = states.mean(-1, keepdim=True), states.var(-1, keepdim=True, unbiased=False)
        normalized = (states - mean) / (variance + backbone.config.layer_norm_eps).sqrt()
        return normalized * backbone.layernorm.weight + backbone.layernorm.bias

    def pooled(self, backbone, tokens):
        return tokens[:, 0] if backbone.config.pooling == "cls" else tokens[:, backbone.config.num_prefix_tokens :].mean(1)

    def loss(self, crops):
        mean, std, their_mean, their_std = (
            torch.tensor(numbers).double()[:, None, None] for numbers in (MEANS, STDS, TEACHER_MEANS, TEACHER_STDS)
        )
        side, theirs = (crops.shape[-1] // backbone.config.patch_size for backbone in (self.student.backbone, self.teacher))
        line, first = resizing(theirs, side), self.teacher.config.num_prefix_tokens
        with torch.no_grad():
            their_states = self.teacher((crops * std + mean - their_mean) / their_std, output_hidden_states=True).hidden_states
        states = self.student.backbone(crops, output_hidden_states=True).hidden_states
        losses = []
        for number, (depth, their_depth) in enumerate(self.depths):
            target = self.tokens(self.teacher, their_states[their_depth])
            maps = target[:, first:].reshape(len(crops), theirs, theirs, -1)
            patches = torch.einsum("ij,kl,bjld->bikd", line, line, maps).flatten(1, 2)
            tokens = self.tokens(self.student.backbone, states[depth])
            image, patch = self.student.image_projections[number], self.student.patch_projections[number]
            image_loss = distance(tokens[:, 0] @ image.weight.T + image.bias, self.pooled(self.teacher, target), self.kind)
            patch_loss = distance(tokens[:, PREFIX:] @ patch.weight.T + patch.bias, patches, self.kind)
            losses.append(0.7 * image_loss + 1.3 * patch_loss)
        return sum(losses) / len(losses)

    def run(self):
        crops = Crops()
        for update in range(UPDATES):
            items = [crops[row] for row in range(update * BATCH, (update + 1) * BATCH)]
            large, small = (torch.cat([item[name] for item in items]).double() for name in ("pixel_values", "local_pixel_values"))
            loss = (2 * self.loss(large) + self.loss(small)) / 3
            self.optimizer.zero_grad()
            loss.backward()
            parameters = [group["params"][0] for group in self.optimizer.param_groups]
            norm = sum(parameter.grad.square().sum() for parameter in parameters).sqrt()
            for parameter in parameters:
                parameter.grad *= min(1, 0.7 / norm)
            for group in self.optimizer.param_groups:
                plain = group["name"].endswith(".bias") or "norm" in group["name"]
                group["weight_decay"] = 0.0 if plain else half_cosine(0.04, 0.4, update)
                group["lr"] = half_cosine(0.004, 1e-5, update)
            self.optimizer.step()
            self.losses.append(loss.item())
            self.norms.append(norm.item())
        return self


def check(trained, logs, loop):
    assert [entry["loss"] for entry in logs] == pytest.approx(loop.losses, abs=2e-5)
    assert [entry["grad_norm"] for entry in logs] == pytest.approx(loop.norms, rel=1e-4)
    for name, expected in loop.student.named_parameters():
        torch.testing.assert_close(
            trained[name], expected.detach().float(), rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def logged(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


LAST = ((BLOCKS, 4),)
WITHOUT_CLS = {"use_cls_token": False, "pooling": "avg", "num_register_tokens": 2, "patch_size": 2}


@pytest.mark.parametrize(
    ("changes", "depths"),
    [
        ({}, LAST),
        ({"distance": "cosine", "num_layers": 2}, ((2, 2), (3, 4))),
        ({"teacher": WITHOUT_CLS, "num_layers": 3, "distance": "mse"}, ((1, 2), (2, 3), (3, 4))),
        ({"batch": 2, "accumulated": 2}, LAST),
        ({CHECKPOINTING: True, "num_layers": 2}, ((2, 2), (3, 4))),
    ],
    ids=["plain", "cosine, two layers", "a teacher without CLS and with smaller patches", "accumulated", "checkpointed"],
)
def test_a_plain_loop(changes, depths, tmp_path):
    trainer = make_trainer(tmp_path, **changes)
    trainer.train()
    teacher = make_teacher(**changes.get("teacher", {}))
    check(
        dict(trainer.model.student.named_parameters()),
        logged(trainer),
        Loop(trainer.args, teacher, depths, changes.get("distance", "mse")).run(),
    )
    last = logged(trainer)[-1]
    assert last["loss"] == pytest.approx(0.7 * last["image_loss"] + 1.3 * last["patch_loss"], rel=1e-5)


def train_in_each_process(folder):
    torch.set_num_threads(1)
    trainer = make_trainer(folder, batch=BATCH // 2)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"logs": logged(trainer), "student": trainer.model.student.state_dict()}, folder / "trained.pth")


def test_two_processes_are_one_with_the_joined_batch(tmp_path):
    forked.run_two(__file__, "train_in_each_process", tmp_path)
    trained = torch.load(tmp_path / "trained.pth", weights_only=True)
    check(trained["student"], trained["logs"], Loop(make_trainer(tmp_path).args, make_teacher(), LAST).run())


def test_resumed_it_goes_on_as_if_nothing_had_been(tmp_path):
    """A checkpoint holds the student alone, and the teacher is as it was."""
    changes = {"save_strategy": "steps", "save_steps": 2, "drop_path_rate": 0.3}
    first = make_trainer(tmp_path, **changes)
    first.train()
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert {name.partition(".")[0] for name in kept} == {"student"}
    resumed = make_trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    losses = [[entry["loss"] for entry in logged(trainer)] for trainer in (resumed, first)]
    assert losses[0] == losses[1]
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    for name, tensor in make_teacher().model.state_dict().items():
        assert torch.equal(resumed.model.teacher.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in resumed.model.teacher.parameters())
    assert not resumed.model.train().teacher.training
    assert resumed.backbone.config.drop_path_rate == 0  # of the result
    assert [layer.drop_path_rate for layer in resumed.backbone.layers] == pytest.approx([0, 0.15, 0.3])


def test_adapters_are_merged_into_the_result(tmp_path):
    trainer = make_trainer(tmp_path, lora_rank=2, max_steps=1)
    trainer.train()
    crops = Crops()[0]["pixel_values"]
    student = trainer.model.student.backbone.eval()
    assert any("lora" in name for name in student.state_dict())
    assert trainer.backbone.state_dict().keys() == make_student().state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(trainer.backbone(crops).pooler_output, student(crops).pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 4}, "num_layers is 4, but the student has 3 blocks"),
        ({"num_layers": 1.5}, "num_layers is 1.5; expected a whole number"),
        ({"distance": "l1"}, "distance is 'l1'; expected mse or cosine"),
        ({"patch_loss_weight": 0}, "patch_loss_weight is 0; expected a number above 0"),
    ],
)
def test_mistakes(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **changes)


def test_a_trainer_without_a_teacher(tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="needs teacher=, as"):
        DistillationTrainer(make_student(), args, train_dataset=Crops())


def test_adapters_of_the_student_are_merged(tmp_path):
    trainer = make_trainer(tmp_path, lora_rank=2, frozen_blocks=1, max_steps=2)
    trainer.train()
    begun, result = make_student().state_dict(), trainer.backbone.state_dict()
    assert result.keys() == begun.keys()
    moved = {name for name, tensor in result.items() if not torch.equal(tensor, begun[name])}
    layers = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    assert moved == {f"layers.{block}.{layer}.weight" for block in (1, 2) for layer in layers}
