"""Fine-tuning of a whole classifier from the head of a linear probe, with smaller learning rates for earlier blocks."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..modeling.modeling_vit import ViTForImageClassification
from .linear_probe import top_classes
from .metrics import TopKAccuracy, make_compute_metrics
from .recipes import REFERENCE_BATCH, WarmupSchedule
from .training import ScheduledTrainer, training_arguments
from .training_data import ImageRows


@dataclass(frozen=True)
class FineTuning:
    """Settings of fine-tuning: AdamW, a linear warm-up, a cosine to 0, random resized crops and horizontal flips.

    learning_rate: of the classifier, for 256 images.
    layer_decay: the learning rate of a block relative to the next block; the embeddings precede the first block.
    weight_decay: of matrices and kernels; biases, norms, tokens and positions have none.
    warmup: share of the updates.
    """

    source: str = "facebookresearch/mae, FINETUNE.md and main_finetune.py; without mixup, cutmix, erasing and stochastic depth"
    learning_rate: float = 5e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.05
    batch_size: int = 256


def layerwise_groups(model: ViTForImageClassification, settings: FineTuning) -> list[dict[str, Any]]:
    """Return parameter groups, one for each learning rate and weight decay; `lr` is for 256 images.

    The classifier and the norm before it have the full learning rate, the last block `layer_decay` times that, and so on down to
    the embeddings (BEiT, arXiv:2106.08254).
    """
    last = model.config.num_hidden_layers + 1
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        block = re.match(r"vit\.layers\.(\d+)\.", name)
        depth = int(block[1]) + 1 if block else 0 if name.startswith("vit.embeddings.") else last
        decays = name.endswith(".weight") and parameter.ndim > 1
        groups.setdefault((depth, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.learning_rate * settings.layer_decay ** (last - depth),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in groups.items()
    ]


class FineTuner(ScheduledTrainer):
    """Trains all parameters of a ViTForImageClassification."""

    description = "fine-tuning"

    def __init__(self, *, settings: FineTuning, **kwargs: Any) -> None:
        super().__init__(compute_metrics=make_compute_metrics(TopKAccuracy(1)), preprocess_logits_for_metrics=top_classes, **kwargs)
        self.settings = settings

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW with layer-wise learning rates."""
        if self.optimizer is None:
            groups = layerwise_groups(self.model, self.settings)
            for group in groups:
                group["lr"] *= self.schedule.batch_size / REFERENCE_BATCH
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer


def finetune(
    model: ViTForImageClassification,
    train: ImageRows,
    validation: ImageRows,
    *,
    epochs: int,
    output_dir: Path,
    settings: FineTuning | None = None,
    seed: int = 0,
    device_batch_size: int | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> FineTuner:
    """Fine-tune a model in place, in float32, and leave it in evaluation mode; resume from a checkpoint in `output_dir`.

    Returns:
        The Trainer, whose `predict` returns the most probable classes of images.
    """
    settings = settings or FineTuning()
    if model.vit.embeddings.mask_token is not None:
        model.vit.embeddings.mask_token.requires_grad_(False)  # no image is masked
    updates = -(-epochs * len(train) // settings.batch_size)
    schedule = WarmupSchedule(len(train), settings.batch_size, seed, iterations=updates, warmup=round(settings.warmup * updates))
    trainer = FineTuner(
        settings=settings,
        schedule=schedule,
        model=model.float(),
        args=training_arguments(
            output_dir,
            schedule,
            seed=seed,
            device_batch_size=device_batch_size,
            num_workers=num_workers,
            evaluate_every=schedule.updates_per_epoch,
        ),
        train_dataset=train,
        eval_dataset=validation,
        progress=progress,
    )
    trainer.train_or_resume()
    del model.config.use_cache  # set by the Trainer
    model.eval()
    return trainer
