"""DINOv2's training in transformers' Trainer.

Oquab et al. 2023, arXiv:2304.07193; facebookresearch/dinov2, train/train.py and utils/param_groups.py.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..modeling.modeling_vit import ViTPreTrainedModel
from .arguments import DINOv2TrainingArguments
from .dino_trainer import make_head
from .methods.dino import DINOLoss
from .methods.dinov2 import DINOv2Model, IBOTLoss, LossWeights
from .schedules import LinearWarmup
from .trainer import SelfDistillationTrainer

BLOCK = re.compile(r"\.layers\.(\d+)\.")


class DINOv2Trainer(SelfDistillationTrainer):
    """Trains a student and its teacher from a backbone, with masked patches.

    Logs, checkpoints, resuming, mixed precision, gradient accumulation and several processes work as in any Trainer. `trainer.teacher`
    is the result. Sinkhorn-Knopp and KoLeo see the crops of one forward pass, those of the other processes included.

    Args:
        model: the initial backbone of student and teacher, which stays unchanged; or a DINOv2Model.
        args: how to train.
        train_dataset: of {"pixel_values": (2, C, S, S), "masks": (2, N), "local_pixel_values": (n, C, s, s)}, the crops of an image
            and the masks of the large ones, as `vitrail.MultiCropImages` with `masking` makes them.
    """

    args: DINOv2TrainingArguments
    model: DINOv2Model

    def __init__(self, model: ViTPreTrainedModel | DINOv2Model, args: DINOv2TrainingArguments, **kwargs: Any) -> None:
        if not isinstance(model, DINOv2Model):
            set_seed(args.seed)  # the Trainer sets it too late for new heads
            model = make_dinov2_model(model, args)
        super().__init__(model=model, args=args, **kwargs)

    def learning_rate_factor(self, name: str) -> float:
        """Return the factor of a parameter: it falls from the last block to the first, and with the patch projection."""
        prefix = "student.backbone."
        if not name.startswith(prefix):
            return 1.0
        num_layers = self.model.teacher.backbone.config.num_hidden_layers
        block = BLOCK.search(name)
        depth = int(block[1]) + 1 if block else 0 if ".embeddings." in name else num_layers + 1
        factor = self.args.layer_decay ** (num_layers + 1 - depth)
        return factor * (self.args.patch_embedding_lr_factor if ".patch_embeddings." in name else 1.0)

    def first_update(self, name: str) -> int:
        """Freeze the prototypes in the first epochs."""
        return self.updates_of(self.args.freeze_last_layer_epochs) if ".last_layer." in name else 0

    def clip_gradients(self, model: nn.Module) -> torch.Tensor:
        """Clip the gradients of backbone and heads, each as a whole."""
        self.accelerator.unscale_gradients()
        norms = [nn.utils.clip_grad_norm_(part.parameters(), self.args.max_grad_norm) for part in self.model.student.children()]
        return torch.stack(norms).norm()

    def begin_update(self, update: int) -> None:
        """Set the temperature of the update."""
        args = self.args
        updates = self.updates_of(args.warmup_teacher_temperature_epochs)
        self.model.teacher_temperature = LinearWarmup(args.warmup_teacher_temperature, args.teacher_temperature, updates)(update)


def make_dinov2_model(model: ViTPreTrainedModel, args: DINOv2TrainingArguments) -> DINOv2Model:
    """Return student, teacher and losses of a run that starts from a model's encoder and new heads."""
    backbone = model.base_model
    if backbone.config.pooled_size != backbone.config.hidden_size and not args.separate_head:
        raise ValueError(
            f"The pooled features of this model have {backbone.config.pooled_size} numbers and its patches {backbone.config.hidden_size}, "
            "so that one head cannot take both: set separate_head=True."
        )
    settings: dict[str, Any] = {
        "student_temperature": args.student_temperature,
        "center_momentum": args.center_momentum,
        "centering": args.centering,
    }
    return DINOv2Model(
        backbone,
        make_head(backbone.config.pooled_size, args),
        make_head(backbone.config.hidden_size, args) if args.separate_head and args.ibot_loss_weight else None,
        DINOLoss(args.num_prototypes, **settings),
        IBOTLoss(args.num_prototypes, **settings),
        weights=LossWeights(args.dino_loss_weight, args.ibot_loss_weight, args.koleo_loss_weight, args.gram_loss_weight),
        teacher_temperature=args.teacher_temperature,
        drop_path_rate=args.drop_path_rate,
    )
