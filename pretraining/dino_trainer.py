"""DINO's training in transformers' Trainer.

Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino, main_dino.py, train_dino and train_one_epoch.
"""

from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..modeling.modeling_vit import ViTPreTrainedModel
from .arguments import DINOTrainingArguments
from .methods.dino import DINOHead, DINOLoss, DINOModel
from .schedules import LinearWarmup
from .trainer import SelfDistillationTrainer


class DINOTrainer(SelfDistillationTrainer):
    """Trains a student and its teacher from a backbone.

    Logs, checkpoints, resuming, mixed precision, gradient accumulation and several processes work as in any Trainer. `trainer.teacher`
    is the result.

    Args:
        model: the initial backbone of student and teacher, which stays unchanged; or a DINOModel.
        args: how to train.
        train_dataset: of {"pixel_values": (2, C, S, S), "local_pixel_values": (n, C, s, s)}, the crops of an image, as
            `vitrail.MultiCropImages` makes them. If it has a method `set_epoch`, the Trainer calls it with the number of each epoch.
    """

    args: DINOTrainingArguments
    model: DINOModel

    def __init__(self, model: ViTPreTrainedModel | DINOModel, args: DINOTrainingArguments, **kwargs: Any) -> None:
        if not isinstance(model, DINOModel):
            set_seed(args.seed)  # the Trainer sets it too late for a new head
            model = make_dino_model(model, args)
        super().__init__(model=model, args=args, **kwargs)

    def clip_gradients(self, model: nn.Module) -> torch.Tensor:
        """Clip the gradient of each parameter separately."""
        self.accelerator.unscale_gradients()
        return clip_each_gradient(model, self.args.max_grad_norm)

    def begin_update(self, update: int) -> None:
        """Set the temperature of the epoch."""
        args = self.args
        warmup = LinearWarmup(args.warmup_teacher_temperature, args.teacher_temperature, args.warmup_teacher_temperature_epochs)
        self.model.teacher_temperature = warmup(self.epoch_of(update))

    def before_optimizer_step(self, update: int) -> None:
        """Freeze the last layer in the first epochs."""
        if self.epoch_of(update) < self.args.freeze_last_layer_epochs:
            for parameter in self.model.student.head.last_layer.parameters():
                parameter.grad = None


def make_dino_model(model: ViTPreTrainedModel, args: DINOTrainingArguments) -> DINOModel:
    """Return student, teacher and loss of a run that starts from a model's encoder and a new head."""
    backbone = model.base_model
    return DINOModel(
        backbone,
        make_head(backbone.config.pooled_size, args),
        DINOLoss(args.num_prototypes, student_temperature=args.student_temperature, center_momentum=args.center_momentum),
        teacher_temperature=args.teacher_temperature,
        drop_path_rate=args.drop_path_rate,
    )


def make_head(in_features: int, args: DINOTrainingArguments) -> DINOHead:
    """Return a new head for features of a width."""
    return DINOHead(
        in_features,
        args.num_prototypes,
        hidden_size=args.head_hidden_size,
        bottleneck_size=args.head_bottleneck_size,
        normalize_last_layer=args.normalize_last_layer,
    )


@torch.no_grad()
def clip_each_gradient(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradient of each parameter to a norm of at most `max_norm`. Return the norm of all gradients before."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(list(norms)).norm()
