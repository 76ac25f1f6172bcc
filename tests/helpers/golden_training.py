"""The golden case of DINO's training: six iterations of the original loop on deterministic weights and crops."""

import json

import torch
from quiet_training import QUIET
from safetensors.torch import load_file
from torch.utils.data import Dataset

import deterministic
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.convert.families.plain_vit import VIT_RULES
from vitrail.convert.families.rules import convert_tensors
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.pretraining.arguments import DINOTrainingArguments
from vitrail.pretraining.dino_trainer import DINOTrainer, make_dino_model

CASE = json.loads((deterministic.GOLDEN / "training_dino.json").read_text(encoding="utf-8"))
SETTINGS = CASE["parameters"]
REFERENCE = load_file(deterministic.GOLDEN / "training_dino.safetensors")
BATCH, UPDATES = SETTINGS["batch"], SETTINGS["epochs"] * SETTINGS["iterations_per_epoch"]
HELD_OUT = {"seed": 4999, "shape": [2, 3, SETTINGS["image_size"], SETTINGS["image_size"]], "scale": 2.0}


class GoldenCrops(Dataset):
    """The images of an epoch; their crops are those of the iteration that they are read in."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return BATCH * SETTINGS["iterations_per_epoch"]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        iteration = self.epoch * SETTINGS["iterations_per_epoch"] + row // BATCH
        crops = [
            deterministic.pixel_values({"seed": 5000 + 100 * iteration + crop, "shape": [BATCH, 3, size, size], "scale": 2.0})
            for crop, size in enumerate([SETTINGS["image_size"]] * 2 + [SETTINGS["local_size"]] * SETTINGS["local_crops"])
        ]
        views = [crop[row % BATCH] for crop in crops]
        return {"pixel_values": torch.stack(views[:2]), "local_pixel_values": torch.stack(views[2:])}


def golden_arguments(output_dir, **changes) -> DINOTrainingArguments:
    settings = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": SETTINGS["epochs"],
        "learning_rate": SETTINGS["lr"],
        "min_learning_rate": SETTINGS["min_lr"],
        "warmup_epochs": SETTINGS["warmup_epochs"],
        "weight_decay": SETTINGS["weight_decay"],
        "final_weight_decay": SETTINGS["weight_decay_end"],
        "teacher_momentum": SETTINGS["momentum"],
        "warmup_teacher_temperature": SETTINGS["warmup_teacher_temp"],
        "teacher_temperature": SETTINGS["teacher_temp"],
        "warmup_teacher_temperature_epochs": SETTINGS["warmup_teacher_temp_epochs"],
        "student_temperature": SETTINGS["student_temp"],
        "center_momentum": SETTINGS["center_momentum"],
        "max_grad_norm": SETTINGS["clip_grad"],
        "freeze_last_layer_epochs": SETTINGS["freeze_last_layer"],
        "num_prototypes": SETTINGS["out_dim"],
        "head_hidden_size": SETTINGS["head_hidden"],
        "head_bottleneck_size": SETTINGS["bottleneck"],
        "drop_path_rate": 0.0,
    }
    return DINOTrainingArguments(str(output_dir), **(QUIET | settings | changes))


def golden_model(args: DINOTrainingArguments):
    """A DINOModel with the weights of the golden case."""
    config = ViTConfig(
        hidden_size=SETTINGS["embed_dim"],
        num_hidden_layers=SETTINGS["depth"],
        num_attention_heads=SETTINGS["num_heads"],
        intermediate_size=4 * SETTINGS["embed_dim"],
        image_size=SETTINGS["image_size"],
        patch_size=SETTINGS["patch_size"],
        layer_norm_eps=1e-6,
        position_interpolation_offset=0.1,
    )
    tensors = deterministic.weights(CASE["checkpoint"])
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items() if name.startswith("backbone.")}
    head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    vit = ViTModel(config)
    vit.load_state_dict(convert_tensors(backbone, VIT_RULES)[0])
    model = make_dino_model(vit, args)
    for network in (model.student, model.teacher):
        network.head.load_state_dict(head)
    return model


def golden_trainer(output_dir, **changes) -> DINOTrainer:
    args = golden_arguments(output_dir, **changes)
    return DINOTrainer(golden_model(args), args, train_dataset=GoldenCrops())
