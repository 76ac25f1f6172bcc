"""DINOv2's Trainer against a loop in double precision over the original's formulas, written here, in one process and in two."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quiet_training import QUIET
from torch.utils.data import Dataset
from transformers import TrainerCallback

import forked
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.pretraining.arguments import DINOv2TrainingArguments
from vitrail.pretraining.dinov2_trainer import DINOv2Trainer, make_dinov2_model
from vitrail.pretraining.masks import BlockMasking
from vitrail.utils.compat import CHECKPOINTING

BATCH, UPDATES, BLOCKS, PROTOTYPES = 4, 3, 2, 24
SETTINGS = {
    "learning_rate": 0.004,
    "min_learning_rate": 1e-5,
    "warmup_epochs": 1 / 3,
    "weight_decay": 0.04,
    "final_weight_decay": 0.4,
    "max_grad_norm": 0.5,
    "num_prototypes": PROTOTYPES,
    "head_hidden_size": 16,
    "head_bottleneck_size": 8,
    "drop_path_rate": 0.0,
    "teacher_momentum": 0.9,
    "warmup_teacher_temperature": 0.04,
    "teacher_temperature": 0.07,
    "warmup_teacher_temperature_epochs": 1,
    "freeze_last_layer_epochs": 0,
    "koleo_loss_weight": 0.1,
    "gram_loss_weight": 0.3,
    "layer_decay": 0.8,
    "patch_embedding_lr_factor": 0.2,
}


class Crops(Dataset):
    """Crops with masks that depend on the row alone; an epoch has UPDATES batches."""

    def __len__(self):
        return BATCH * UPDATES

    def __getitem__(self, row):
        random = torch.Generator().manual_seed(row)
        pixel_values = torch.randn(2, 3, 32, 32, generator=random)
        masks = BlockMasking(4, probability=0.75).draw(pixel_values.shape, np.random.default_rng(row))
        return {
            "pixel_values": pixel_values,
            "masks": masks,
            "local_pixel_values": torch.randn(3, 3, 16, 16, generator=random),
        }


def make_backbone():
    torch.manual_seed(7)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=BLOCKS,
        num_attention_heads=2,
        intermediate_size=32,
        patch_size=4,
        image_size=32,
        num_register_tokens=1,
        qkv_bias=False,  # the gradient of the key's is 0, and AdamW would amplify its rounding errors
        initializer_range=0.4,  # so that crops differ: KoLeo is ill-conditioned where they do not
        layer_scale_init_value=1.0,
    )
    return ViTModel(config)


def make_trainer(folder, *, batch=BATCH, accumulated=1, **changes):
    args = DINOv2TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        **(QUIET | {"num_train_epochs": 1} | SETTINGS | changes),
    )
    return DINOv2Trainer(make_backbone(), args, train_dataset=Crops())


def half_cosine(start, end, update, begin=0):
    return end + (start - end) * (1 + math.cos(math.pi * (update - begin) / (UPDATES - begin))) / 2


def head_outputs(head, features):
    hidden = F.gelu(head["mlp.0.weight"] @ features.T + head["mlp.0.bias"][:, None])
    hidden = F.gelu(head["mlp.2.weight"] @ hidden + head["mlp.2.bias"][:, None])
    bottleneck = (head["mlp.4.weight"] @ hidden + head["mlp.4.bias"][:, None]).T
    bottleneck = bottleneck / bottleneck.norm(dim=1, keepdim=True)
    directions = head["last_layer.weight_v"] / head["last_layer.weight_v"].norm(dim=1, keepdim=True)
    return bottleneck @ (head["last_layer.weight_g"] * directions).T


def sinkhorn(outputs, temperature):
    q = (outputs / temperature).exp().T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def koleo(features):
    features = features / features.norm(dim=1, keepdim=True)
    distances = torch.stack(
        [
            min((row - other + 1e-8).norm() for place, other in enumerate(features) if place != index)
            for index, row in enumerate(features)
        ]
    )
    return -(distances + 1e-8).log().mean()


def gram(features, anchors):
    features, anchors = (x / x.norm(dim=-1, keepdim=True) for x in (features, anchors))
    return ((features @ features.mT).clamp(min=0) - (anchors @ anchors.mT).clamp(min=0)).square().mean()


class Loop:
    """The original's iteration over the crops of an update, in pieces of a batch as an accumulation makes them."""

    def __init__(self, args, centering="softmax", separate_head=False):
        backbone = make_backbone()
        torch.manual_seed(args.seed)  # of the heads
        model = make_dinov2_model(backbone, args).double()
        self.student, self.teacher, self.anchor = model.student, model.teacher, model.anchor
        self.centering, self.separate_head = centering, separate_head
        self.centers = {"dino": torch.zeros(1, PROTOTYPES).double(), "ibot": torch.zeros(1, PROTOTYPES).double()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [parameter], "name": name}
                for name, parameter in self.student.named_parameters()
                if parameter.requires_grad
            ]
        )
        self.losses = []

    def factor(self, name):
        """utils/param_groups.py: get_vit_lr_decay_rate and the factor of patch_embed."""
        if not name.startswith("backbone."):
            return 1.0
        depth = 0 if "embeddings" in name else BLOCKS + 1
        if ".layers." in name:
            depth = 1 + int(name.split(".")[2])
        return SETTINGS["layer_decay"] ** (BLOCKS + 1 - depth) * (0.2 if "patch_embeddings" in name else 1)

    def targets(self, outputs, kind, temperature):
        if self.centering == "sinkhorn_knopp":
            return sinkhorn(outputs, temperature)
        return ((outputs - self.centers[kind]) / temperature).softmax(dim=1)

    def network(self, network, crops, masks=None):
        outputs = network.backbone(crops, bool_masked_pos=masks)
        return outputs.last_hidden_state[:, 0], outputs.last_hidden_state[:, 2:]

    def heads(self, network):
        state = dict(network.named_parameters())
        first = {name.removeprefix("head."): value for name, value in state.items() if name.startswith("head.")}
        if not self.separate_head:
            return first, first
        return first, {name.removeprefix("patch_head."): value for name, value in state.items() if name.startswith("patch_head.")}

    def piece(self, items, temperature):
        images = torch.stack([item["pixel_values"] for item in items]).double()
        local = torch.stack([item["local_pixel_values"] for item in items]).double()
        crops, masks = (
            torch.cat((images[:, 0], images[:, 1])),
            torch.cat([torch.stack([item["masks"][view] for item in items]) for view in range(2)]),
        )
        with torch.no_grad():
            cls, patches = self.network(self.teacher, crops)
            crop_head, patch_head = self.heads(self.teacher)
            first, second = head_outputs(crop_head, cls).chunk(2)
            swapped = torch.cat((second, first))  # A is matched to B
            teacher_patches = head_outputs(patch_head, patches[masks])
            targets = self.targets(swapped, "dino", temperature)
            patch_targets = self.targets(teacher_patches, "ibot", temperature)
            anchors = self.anchor(crops).last_hidden_state[:, 2:]
        cls, patches = self.network(self.student, crops, masks)
        crop_head, patch_head = self.heads(self.student)
        log_p = (head_outputs(crop_head, cls) / 0.1).log_softmax(dim=1)
        terms = 2 + 2 * local.shape[1]
        loss = -(targets * log_p).sum(dim=1).mean() * 2 / terms
        for view in range(local.shape[1]):
            local_cls, _ = self.network(self.student, local[:, view])
            log_p = (head_outputs(crop_head, local_cls) / 0.1).log_softmax(dim=1)
            for target in targets.chunk(2):
                loss = loss - (target * log_p).sum(dim=1).mean() / terms
        log_p = (head_outputs(patch_head, patches[masks]) / 0.1).log_softmax(dim=1)
        weights = (1 / masks.sum(dim=1).clamp(min=1))[:, None].expand_as(masks)[masks]
        loss = loss - ((patch_targets * log_p).sum(dim=1) * weights).sum() / len(masks)
        loss = loss + 0.1 * sum(koleo(chunk) for chunk in cls.chunk(2)) + 0.3 * gram(patches, anchors)
        return loss, swapped, teacher_patches

    def step(self, update, items, pieces):
        warmup = 1  # updates
        rate = 0.0 if update < warmup else half_cosine(0.004, 1e-5, update, warmup)
        rate = 0.004 * update if update < warmup else rate
        decay = half_cosine(0.04, 0.4, update)
        temperature = 0.04 + (0.07 - 0.04) * update / (UPDATES - 1)
        gathered = {"dino": [], "ibot": []}
        self.optimizer.zero_grad()
        total = 0.0
        for piece in range(pieces):
            size = len(items) // pieces
            loss, outputs, patches = self.piece(items[piece * size : (piece + 1) * size], temperature)
            (loss / pieces).backward()
            total += loss.item() / pieces
            gathered["dino"].append(outputs)
            gathered["ibot"].append(patches)
        self.losses.append(total)
        for part in self.student.children():
            torch.nn.utils.clip_grad_norm_(part.parameters(), SETTINGS["max_grad_norm"])
        for group in self.optimizer.param_groups:
            plain = group["name"].endswith(".bias") or "norm" in group["name"] or "layer_scale" in group["name"]
            group["lr"], group["weight_decay"] = rate * self.factor(group["name"]), 0.0 if plain else decay
        self.optimizer.step()
        momentum = half_cosine(0.9, 1.0, update)
        with torch.no_grad():
            for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                ours.mul_(momentum).add_((1 - momentum) * theirs)
            if self.centering == "softmax":
                for kind, outputs in gathered.items():
                    self.centers[kind] = 0.9 * self.centers[kind] + 0.1 * torch.cat(outputs).mean(dim=0, keepdim=True)

    def run(self, pieces=1):
        crops = Crops()
        for update in range(UPDATES):
            self.step(update, [crops[row] for row in range(update * BATCH, (update + 1) * BATCH)], pieces)
        return self


def check(model, losses, loop):
    assert losses == pytest.approx(loop.losses, abs=2e-5)
    for name in ("student", "teacher"):
        expected = dict(getattr(loop, name).named_parameters())
        for key, value in getattr(model, name).named_parameters():
            torch.testing.assert_close(value, expected[key].float(), rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    for name, center in loop.centers.items():
        loss = model.loss if name == "dino" else model.patch_loss
        torch.testing.assert_close(loss.center, center.float(), rtol=0, atol=1e-5)


def logged(trainer, name="loss"):
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({}, 1),
        ({"centering": "sinkhorn_knopp"}, 1),
        ({"separate_head": True}, 1),
        ({"batch": 2, "accumulated": 2}, 2),
        ({CHECKPOINTING: True}, 1),
    ],
    ids=["plain", "Sinkhorn-Knopp", "two heads", "accumulated", "checkpointed"],
)
def test_the_original_loop(changes, pieces, tmp_path):
    trainer = make_trainer(tmp_path, **changes)
    trainer.train()
    loop = Loop(trainer.args, changes.get("centering", "softmax"), changes.get("separate_head", False)).run(pieces)
    check(trainer.model, logged(trainer), loop)


def test_prototypes_are_frozen_by_a_learning_rate_of_0(tmp_path):
    trainer = make_trainer(tmp_path, num_train_epochs=3, freeze_last_layer_epochs=1, separate_head=True)
    rates = []

    class Rates(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            rates.append({group["first_update"]: group["lr"] for group in trainer.optimizer.param_groups})

    trainer.add_callback(Rates())
    trainer.train()
    frozen = sum(len(group["params"]) for group in trainer.optimizer.param_groups if group["first_update"] == UPDATES)
    assert frozen == 2 * 2  # lengths and directions of the prototypes of both heads
    assert [update[UPDATES] > 0 for update in rates] == [False] * UPDATES + [True] * 2 * UPDATES
    assert all(update[0] > 0 for update in rates[1:])


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
def test_in_bfloat16(drop_path_rate, tmp_path):
    trainer = make_trainer(tmp_path, bf16=True, drop_path_rate=drop_path_rate, centering="sinkhorn_knopp")
    trainer.train()
    first = make_trainer(tmp_path, centering="sinkhorn_knopp")
    first.train()
    assert all(math.isfinite(loss) for loss in logged(trainer))
    if not drop_path_rate:
        assert logged(trainer) == pytest.approx(logged(first), rel=0.05)
        assert logged(trainer) != logged(first)


def train_in_each_process(folder, centering):
    torch.set_num_threads(1)
    trainer = make_trainer(folder, batch=BATCH // 2, centering=centering)
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save({"losses": logged(trainer), "model": trainer.model.state_dict()}, folder / "trained.pth")


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
def test_two_processes_are_one_with_the_joined_batch(centering, tmp_path):
    forked.run_two(__file__, "train_in_each_process", tmp_path, centering)
    trained = torch.load(tmp_path / "trained.pth", weights_only=True)
    trainer = make_trainer(tmp_path, centering=centering)
    trainer.model.load_state_dict(trained["model"])
    check(trainer.model, trained["losses"], Loop(trainer.args, centering).run())


def test_resumed_it_goes_on_as_if_nothing_had_been(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "drop_path_rate": 0.3}
    first = make_trainer(tmp_path, **changes)
    first.train()
    resumed = make_trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert logged(resumed) == logged(first)
    assert len(logged(first, "ibot_loss")) == UPDATES
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "weights", [{"ibot_loss_weight": 0.0}, {"koleo_loss_weight": 0.0, "gram_loss_weight": 0.0}], ids=["iBOT", "KoLeo"]
)
def test_a_loss_of_weight_0_is_left_out(weights, tmp_path):
    """Every parameter still takes part, as DistributedDataParallel demands."""
    trainer = make_trainer(tmp_path, separate_head=True, **weights)
    item = Crops()[0]
    outputs = trainer.model.train()(**{name: value[None] for name, value in item.items()})
    outputs["loss"].backward()
    assert all(parameter.grad is not None for parameter in trainer.model.student.parameters())
    left_out = {name.removesuffix("_weight") for name in weights}
    assert {"dino_loss", "ibot_loss", "koleo_loss", "gram_loss"} - set(outputs) == left_out
    total = sum(getattr(trainer.args, f"{name}_weight") * value for name, value in outputs.items() if name.endswith("_loss"))
    torch.testing.assert_close(outputs["loss"], total)
    trainer.model.update_centers()


def test_one_head_cannot_read_features_of_two_widths(tmp_path):
    backbone = make_backbone()
    backbone.config.pooling = "cls+avg"
    args = make_trainer(tmp_path).args
    with pytest.raises(
        ValueError, match=r"32 numbers and its patches 16, so that one head cannot take both: set separate_head=True"
    ):
        make_dinov2_model(backbone, args)
