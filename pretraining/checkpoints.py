"""Checkpoints of a run in the layout of the method's own code, which `vitrail convert` reads.

DINO's holds the whole run, and its code resumes from it: facebookresearch/dino, main_dino.py, train_dino, `save_dict`. DINOv2's holds the
teacher: facebookresearch/dinov2, train/train.py, do_test, `teacher_checkpoint.pth`.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch

from ..configuration.sizes import size_name
from ..convert.export import to_format
from ..convert.families.plain_vit import VIT_RULES
from ..errors import VitrailError
from ..evaluation.recipes import REFERENCE_BATCH
from ..modeling.modeling_vit import ViTModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import check_new, replaced
from .dino_trainer import DINOTrainer
from .dinov2_trainer import DINOv2Trainer
from .methods.dino import DINONetwork
from .methods.student_teacher import copy_backbone
from .recipes import METHODS, PretrainingRecipe
from .trainer import PretrainingTrainer

OURS = ("decays", "learning_rate_factor", "first_update")  # of a group of the optimizer
DDP_PREFIX = "module."  # DistributedDataParallel wraps the student, not the teacher


def check_original_layout(model: ViTModel, image_processor: VitrailImageProcessor, recipe: PretrainingRecipe) -> None:
    """Raise VitrailError, before any training, if the code of a method has no layout, or its layout cannot represent the run."""
    method = recipe.method
    if METHODS[method].frozen_teacher:
        raise VitrailError(f"The method {method} has no checkpoint layout of an original: leave out original_checkpoint=.")
    if method == "dino" and (partial := [name for name in ("frozen_blocks", "lora_rank") if recipe.arguments.get(name)]):
        raise VitrailError(
            f"DINO's full checkpoint has the state of an optimizer of all weights: leave out original_checkpoint= or {partial[0]}."
        )
    to_format(copy_backbone(model, use_mask_token=True) if method == "dinov2" else model, image_processor, method)


def save_original_checkpoint(
    trainer: PretrainingTrainer, recipe: PretrainingRecipe, image_processor: VitrailImageProcessor, path: Path
) -> None:
    """Write a run that has ended in the layout of the method's own code.

    Raises:
        VitrailError: `path` exists.
    """
    if isinstance(trainer, DINOv2Trainer):
        checkpoint = _teacher_checkpoint(trainer, image_processor)
    else:
        assert isinstance(trainer, DINOTrainer)
        checkpoint = _full_checkpoint(trainer, recipe)
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        torch.save(checkpoint, temporary)


def _teacher_checkpoint(trainer: DINOv2Trainer, image_processor: VitrailImageProcessor) -> dict[str, Any]:
    teacher = trainer.model.teacher
    parts = {
        "backbone": to_format(trainer.teacher, image_processor, "dinov2").tensors,
        "dino_head": teacher.head.state_dict(),
        "ibot_head": {} if teacher.patch_head is None else teacher.patch_head.state_dict(),
    }
    return {"teacher": {f"{part}.{name}": tensor.cpu().clone() for part, state in parts.items() for name, tensor in state.items()}}


def _full_checkpoint(trainer: DINOTrainer, recipe: PretrainingRecipe) -> dict[str, Any]:
    """Return student, teacher, optimizer, epoch, args and loss."""
    student = original_state(trainer.model.student)
    return {
        "student": {DDP_PREFIX + name: tensor for name, tensor in student.items()},
        "optimizer": _optimizer_state(trainer),
        "epoch": round(trainer.state.epoch or 0),
        "args": _arguments(trainer, recipe),
        "dino_loss": {"center": trainer.model.loss.center.cpu().clone()},
        "teacher": original_state(trainer.model.teacher),
    }


def original_state(network: DINONetwork) -> dict[str, torch.Tensor]:
    """Return the state dict of a network with the original's names, in the original's order."""
    names = original_names(network)
    state = network.state_dict()
    return {original: state[ours].cpu().clone() for ours, original in names.items()}


def original_names(network: DINONetwork) -> dict[str, str]:
    """Map our name of each parameter to the original's, in the original's order."""
    names: dict[str, str] = {}
    for in_block, group in itertools.groupby(VIT_RULES, key=lambda rule: "{layer}" in rule.sources[0]):
        rules = list(group)
        for layer in range(network.backbone.config.num_hidden_layers if in_block else 1):
            names |= {rule.targets[0].format(layer=layer): rule.sources[0].format(layer=layer) for rule in rules}
    present = dict(network.backbone.named_parameters())
    backbone = {f"backbone.{ours}": f"backbone.{original}" for ours, original in names.items() if ours in present}
    return backbone | {f"head.{name}": f"head.{name}" for name, _ in network.head.named_parameters()}


def _optimizer_state(trainer: DINOTrainer) -> dict[str, Any]:
    """Return the state of AdamW. The original numbers parameters by group: first with weight decay, then without."""
    optimizer, parameters = trainer.optimizer, dict(trainer.model.student.named_parameters())
    assert optimizer is not None
    ordered = [parameters[name] for name in original_names(trainer.model.student)]
    state: dict[int, dict[str, torch.Tensor]] = {}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        members = {id(parameter) for parameter in group["params"]}
        first = len(groups[0]["params"]) if groups else 0
        numbered = dict(enumerate((parameter for parameter in ordered if id(parameter) in members), first))
        for number, parameter in numbered.items():
            if parameter in optimizer.state:
                state[number] = {name: value.cpu() for name, value in optimizer.state[parameter].items()}
        settings = {name: value for name, value in group.items() if name not in ("params", "initial_lr", *OURS)}
        groups.append(settings | {"params": list(numbered)})
    return {"state": state, "param_groups": groups}


def _arguments(trainer: DINOTrainer, recipe: PretrainingRecipe) -> argparse.Namespace:
    """Return the arguments of main_dino.py for the same run."""
    args, config = trainer.args, trainer.teacher.config
    first, _ = recipe.augmentation.global_crops
    return argparse.Namespace(
        arch=f"vit_{size_name(config) or 'custom'}",
        patch_size=config.patch_size,
        out_dim=args.num_prototypes,
        norm_last_layer=args.normalize_last_layer,
        momentum_teacher=args.teacher_momentum,
        use_bn_in_head=False,
        warmup_teacher_temp=args.warmup_teacher_temperature,
        teacher_temp=args.teacher_temperature,
        warmup_teacher_temp_epochs=args.warmup_teacher_temperature_epochs,
        use_fp16=trainer.accelerator.mixed_precision == "fp16",
        weight_decay=args.weight_decay,
        weight_decay_end=args.final_weight_decay,
        clip_grad=args.max_grad_norm,
        batch_size_per_gpu=recipe.batch_size // args.world_size,
        epochs=recipe.epochs,
        freeze_last_layer=args.freeze_last_layer_epochs,
        lr=args.learning_rate * REFERENCE_BATCH / recipe.batch_size,
        warmup_epochs=args.warmup_epochs,
        min_lr=args.min_learning_rate,
        optimizer="adamw",
        drop_path_rate=args.drop_path_rate,
        global_crops_scale=first.scale,
        local_crops_number=recipe.augmentation.num_local_crops,
        local_crops_scale=recipe.augmentation.local_crop.scale,
        seed=args.seed,
        num_workers=args.dataloader_num_workers,
    )
