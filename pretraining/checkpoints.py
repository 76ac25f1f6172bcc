"""Full checkpoints in the original's layout, which its code resumes from and `vitrail convert` reads.

facebookresearch/dino, main_dino.py, train_dino: `save_dict`.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch

from ..configuration.sizes import size_name
from ..convert.export import to_format
from ..convert.families.plain_vit import VIT_RULES
from ..evaluation.recipes import REFERENCE_BATCH
from ..modeling.modeling_vit import ViTModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import check_new, replaced
from .dino_trainer import DINOTrainer
from .methods.dino import DINONetwork
from .recipes import PretrainingRecipe

OURS = ("decays", "learning_rate_factor", "first_update")  # of a group of the optimizer
DDP_PREFIX = "module."  # DistributedDataParallel wraps the student, not the teacher


def check_original_layout(model: ViTModel, image_processor: VitrailImageProcessor) -> None:
    """Raise UnsupportedCheckpointError, before any training, if the original's layout cannot represent the model."""
    to_format(model, image_processor, "dino")


def save_original_checkpoint(trainer: DINOTrainer, recipe: PretrainingRecipe, path: Path) -> None:
    """Write student, teacher, optimizer, epoch, args and loss of a run that has ended.

    Raises:
        VitrailError: `path` exists.
    """
    student = original_state(trainer.model.student)
    checkpoint = {
        "student": {DDP_PREFIX + name: tensor for name, tensor in student.items()},
        "optimizer": _optimizer_state(trainer),
        "epoch": round(trainer.state.epoch or 0),
        "args": _arguments(trainer, recipe),
        "dino_loss": {"center": trainer.model.loss.center.cpu().clone()},
        "teacher": original_state(trainer.model.teacher),
    }
    check_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        torch.save(checkpoint, temporary)


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
