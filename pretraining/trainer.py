"""Self-supervised training in transformers' Trainer: what all methods share."""

import math
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModel
from ..utils.trainer import BaseTrainer
from .arguments import DINOTrainingArguments, PretrainingArguments
from .methods.student_teacher import SelfDistillation, StudentTeacher
from .schedules import CosineSchedule
from .stops import StopIfCollapsed, StopIfUpdatesAreSkipped
from .trained_parameters import merge_adapters, select_trained_parameters


class PretrainingTrainer(BaseTrainer):
    """Trains a student with a teacher, or the parts of it that the arguments select.

    Logs, checkpoints, resuming, mixed precision, gradient accumulation and several processes work as in any Trainer. The numbers that
    the model returns beside its loss are logged, as means since the last log.
    """

    args: PretrainingArguments
    model: StudentTeacher

    def __init__(self, *, model: StudentTeacher, args: PretrainingArguments, **kwargs: Any) -> None:
        select_trained_parameters(model, frozen_blocks=args.frozen_blocks, lora_rank=args.lora_rank, seed=args.seed)
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(_Steps(self))
        self.add_callback(StopIfUpdatesAreSkipped(self))
        if isinstance(args, DINOTrainingArguments):
            self.add_callback(StopIfCollapsed())
        self.diagnostics: dict[str, torch.Tensor] = {}  # summed since the last log
        self.num_diagnostics = 0

    @property
    def backbone(self) -> ViTModel:
        """The backbone that a run results in."""
        raise NotImplementedError

    def begin_update(self, update: int) -> None:
        """Do what comes before the forward passes of an update."""

    def before_optimizer_step(self, update: int) -> None:
        """Do what comes between the gradients and the optimizer."""

    def end_update(self, update: int) -> None:
        """Do what follows the optimizer."""

    def learning_rate_factor(self, name: str) -> float:
        """Return the factor of the learning rate of a parameter."""
        return 1.0

    def first_update(self, name: str) -> int:
        """Return the update from which on the learning rate of a parameter is above 0."""
        return 0

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
        self.num_updates = num_training_steps
        self.updates_per_epoch = num_training_steps / self.args.num_train_epochs
        return super().create_scheduler(num_training_steps, optimizer)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, num_updates: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Split the groups of the optimizer by the factors of their learning rates. Return the schedule of these and of weight decay."""
        args = self.args
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        optimizer.param_groups = [
            group | {"params": parameters, "decays": decays, "learning_rate_factor": factor, "first_update": first}
            for decays, group in zip((True, False), optimizer.param_groups, strict=True)
            for (factor, first), parameters in self._by_learning_rate(group["params"], names).items()
        ]
        warmup = self.updates_of(args.warmup_epochs)
        self.learning_rate = CosineSchedule(args.learning_rate, args.min_learning_rate, num_updates, warmup)
        return OptimizerSchedule(
            optimizer,
            learning_rate=self.learning_rate,
            weight_decay=CosineSchedule(args.weight_decay, args.final_weight_decay, num_updates),
        )

    def _by_learning_rate(
        self, parameters: list[nn.Parameter], names: dict[int, str]
    ) -> dict[tuple[float, int], list[nn.Parameter]]:
        groups: dict[tuple[float, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            name = names[id(parameter)]
            groups.setdefault((self.learning_rate_factor(name), self.first_update(name)), []).append(parameter)
        return groups

    def updates_of(self, epochs: float) -> int:
        """Return the number of updates of some epochs."""
        return round(epochs * self.updates_per_epoch)

    def epoch_of(self, update: int) -> int:
        """Return the epoch of an update."""
        return int(update / self.updates_per_epoch + 1e-9)

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
            for name, value in outputs.items():
                if name != "loss":
                    self.diagnostics[name] = self.diagnostics.get(name, 0) + value.detach()
            self.num_diagnostics += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of crops that are not trained on."""
        with torch.no_grad():
            return self.compute_loss(model, self.prepare_batch(inputs)), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the diagnostics since the last log."""
        if not math.isfinite(logs.get("loss", 0.0)):  # the mean over all processes: they stop together
            raise VitrailError(
                f"The loss is {logs['loss']} after {self.state.global_step} updates: the training has diverged. Lower learning_rate in "
                "the recipe, or raise warmup_epochs."
            )
        if "loss" in logs and self.num_diagnostics:
            means = {name: total / self.num_diagnostics for name, total in self.diagnostics.items()}
            logs = logs | {name: self.accelerator.reduce(mean, "mean").item() for name, mean in means.items()}
            update = self.state.global_step - 1
            logs |= {"learning_rate": self.learning_rate(update), **self.logged_schedules(update)}
            self.diagnostics = {}
            self.num_diagnostics = 0
        super().log(logs, start_time)

    def logged_schedules(self, update: int) -> dict[str, float]:
        """Return the values of schedules in an update, for the log."""
        return {}


class SelfDistillationTrainer(PretrainingTrainer):
    """Trains a student whose moving average is its teacher. `trainer.teacher` is the result."""

    args: DINOTrainingArguments
    model: SelfDistillation

    @property
    def teacher(self) -> ViTModel:
        """The teacher's backbone; if the run trains adapters, a copy that they are merged into."""
        return merge_adapters(self.model.teacher.backbone)

    @property
    def backbone(self) -> ViTModel:
        """The teacher's backbone."""
        return self.teacher

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create all schedules of a run. The schedule of the optimizer's learning rate and weight decay is returned."""
        self.teacher_momentum = CosineSchedule(self.args.teacher_momentum, 1.0, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def end_update(self, update: int) -> None:
        """Update the teacher and the centers."""
        self.model.update_teacher(self.teacher_momentum(update))
        self.model.update_centers()

    def logged_schedules(self, update: int) -> dict[str, float]:
        """Return the teacher's momentum."""
        return {"teacher_momentum": self.teacher_momentum(update)}


class OptimizerSchedule(torch.optim.lr_scheduler.LRScheduler):
    """Sets learning rate and weight decay of every group of an optimizer, from the numbers that `PretrainingTrainer` gave the group."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, learning_rate: CosineSchedule, weight_decay: CosineSchedule) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the schedule, without the schedules: these follow from the arguments."""
        return {name: value for name, value in super().state_dict().items() if not isinstance(value, CosineSchedule)}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of this update for each group."""
        return [
            self.learning_rate(self.last_epoch) * group["learning_rate_factor"] * (self.last_epoch >= group["first_update"])
            for group in self.optimizer.param_groups
        ]

    def step(self, epoch: int | None = None) -> None:
        """Advance to the next update."""
        with warnings.catch_warnings():
            # Of a first update that float16 skips, torch warns that the schedule comes before the optimizer
            warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
            super().step(epoch)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.weight_decay(self.last_epoch) if group["decays"] else 0.0


class _Steps(TrainerCallback):
    """Calls the hooks of a PretrainingTrainer around an update of the optimizer."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Set the epoch of the dataset, also when a run resumes: accelerate's loaders do not in every case."""
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the schedule after an update that float16 has skipped."""
        scheduler = self.trainer.lr_scheduler
        assert scheduler is not None
        if scheduler.last_epoch < state.global_step:
            scheduler.step()
        self.trainer.begin_update(state.global_step)

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call the hook between gradients and optimizer."""
        self.trainer.before_optimizer_step(state.global_step)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Call the hook after the optimizer."""
        self.trainer.end_update(state.global_step)
