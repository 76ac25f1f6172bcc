"""DINO's training in transformers' Trainer.

Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino, main_dino.py, train_dino and train_one_epoch.
"""

import math
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..utils.trainer import BaseTrainer
from .arguments import DINOTrainingArguments
from .methods.dino import CollapseDiagnostics, DINOHead, DINOLoss, DINOModel
from .schedules import CosineSchedule, LinearWarmup

DIAGNOSTICS = tuple(field.name for field in fields(CollapseDiagnostics))


class DINOTrainer(BaseTrainer):
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
        self.add_callback(_DINOSteps(self))
        self.diagnostics = dict.fromkeys(DIAGNOSTICS, torch.zeros((), device=args.device))  # summed since the last log
        self.num_diagnostics = 0

    @property
    def teacher(self) -> ViTModel:
        """The teacher's backbone."""
        return self.model.teacher.backbone

    def make_train_sampler(self, sampler: Sampler | None) -> Sampler | None:
        """Leave out the images of an epoch that do not fill an update, also where an update has several batches."""
        if not (isinstance(sampler, RandomSampler) and self.args.dataloader_drop_last):
            return sampler
        num_images = len(sampler.data_source)
        if num_images < self.update_size:
            raise ValueError(
                f"The dataset has {num_images} images, fewer than an update of {self.update_size}: lower per_device_train_batch_size or "
                "gradient_accumulation_steps, or set dataloader_drop_last=False."
            )
        return RandomSampler(sampler.data_source, num_samples=num_images - num_images % self.update_size)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with weight decay: all but biases and vectors."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1 and not name.endswith(".bias")]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create all schedules of a run. The schedule of the optimizer's learning rate and weight decay is returned."""
        self.updates_per_epoch = num_training_steps / self.args.num_train_epochs
        self.teacher_momentum = CosineSchedule(self.args.teacher_momentum, 1.0, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, num_updates: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule of the learning rate and of the weight decay."""
        args = self.args
        warmup = round(args.warmup_epochs * self.updates_per_epoch)
        return OptimizerSchedule(
            optimizer,
            learning_rate=CosineSchedule(args.learning_rate, args.min_learning_rate, num_updates, warmup),
            weight_decay=CosineSchedule(args.weight_decay, args.final_weight_decay, num_updates),
        )

    def epoch_of(self, update: int) -> int:
        """Return the epoch of an update."""
        return int(update / self.updates_per_epoch + 1e-9)

    def clip_gradients(self, model: nn.Module) -> torch.Tensor:
        """Clip the gradient of each parameter separately."""
        self.accelerator.unscale_gradients()
        return clip_each_gradient(model, self.args.max_grad_norm)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the model's loss. The diagnostics are kept for the log."""
        outputs = model(**inputs)
        if model.training:
            self.diagnostics = {name: total + outputs[name].detach() for name, total in self.diagnostics.items()}
            self.num_diagnostics += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of crops that are not trained on."""
        with torch.no_grad():
            return self.compute_loss(model, self.prepare_batch(inputs)), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the diagnostics since the last log, and the teacher's momentum."""
        if not math.isfinite(logs.get("loss", 0.0)):  # the mean over all processes: they stop together
            raise VitrailError(
                f"The loss is {logs['loss']} after {self.state.global_step} updates: the training has diverged. Lower learning_rate in "
                "the recipe, or raise warmup_epochs."
            )
        if "loss" in logs and self.num_diagnostics:
            means = {name: total / self.num_diagnostics for name, total in self.diagnostics.items()}
            logs = logs | {name: self.accelerator.reduce(mean, "mean").item() for name, mean in means.items()}
            logs["teacher_momentum"] = self.teacher_momentum(self.state.global_step - 1)
            self.diagnostics = {name: torch.zeros_like(total) for name, total in self.diagnostics.items()}
            self.num_diagnostics = 0
        super().log(logs, start_time)


class OptimizerSchedule(torch.optim.lr_scheduler.LRScheduler):
    """Sets the learning rate of every group of an optimizer, and the weight decay of the first."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, learning_rate: CosineSchedule, weight_decay: CosineSchedule) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule, without the schedules: these follow from the arguments."""
        return {name: value for name, value in super().state_dict().items() if not isinstance(value, CosineSchedule)}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of this update for each group."""
        return [self.learning_rate(self.last_epoch)] * len(self.optimizer.param_groups)

    def step(self, epoch: int | None = None) -> None:
        """Advance to the next update."""
        super().step(epoch)
        self.optimizer.param_groups[0]["weight_decay"] = self.weight_decay(self.last_epoch)


class _DINOSteps(TrainerCallback):
    """The steps of DINO around an update of the optimizer."""

    def __init__(self, trainer: DINOTrainer) -> None:
        self.trainer = trainer
        args = trainer.args
        self.teacher_temperature = LinearWarmup(
            args.warmup_teacher_temperature, args.teacher_temperature, args.warmup_teacher_temperature_epochs
        )

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch of the dataset, also when a run resumes: accelerate's loaders do not in every case."""
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the temperature of the epoch. Advance the schedule after an update that float16 has skipped."""
        scheduler = self.trainer.lr_scheduler
        assert scheduler is not None
        if scheduler.last_epoch < state.global_step:
            scheduler.step()
        self.trainer.model.teacher_temperature = self.teacher_temperature(self.trainer.epoch_of(state.global_step))

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Freeze the last layer in the first epochs."""
        if self.trainer.epoch_of(state.global_step) < self.trainer.args.freeze_last_layer_epochs:
            for parameter in self.trainer.model.student.head.last_layer.parameters():
                parameter.grad = None

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the teacher and the center."""
        self.trainer.model.update_teacher(self.trainer.teacher_momentum(state.global_step))
        self.trainer.model.loss.update_center()


def make_dino_model(model: ViTPreTrainedModel, args: DINOTrainingArguments) -> DINOModel:
    """Return student, teacher and loss of a run that starts from a model's encoder and a new head."""
    backbone = model.base_model
    head = DINOHead(
        backbone.config.pooled_size,
        args.num_prototypes,
        hidden_size=args.head_hidden_size,
        bottleneck_size=args.head_bottleneck_size,
        normalize_last_layer=args.normalize_last_layer,
    )
    loss = DINOLoss(args.num_prototypes, student_temperature=args.student_temperature, center_momentum=args.center_momentum)
    return DINOModel(backbone, head, loss, teacher_temperature=args.teacher_temperature, drop_path_rate=args.drop_path_rate)


@torch.no_grad()
def clip_each_gradient(model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradient of each parameter to a norm of at most `max_norm`. Return the norm of all gradients before."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(list(norms)).norm()
