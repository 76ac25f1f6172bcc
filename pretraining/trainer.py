"""DINO's training in transformers' Trainer.

Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino, main_dino.py, train_dino and train_one_epoch.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, RandomSampler, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from .arguments import DINOTrainingArguments
from .methods.dino import DINOHead, DINOModel
from .methods.loss import CollapseDiagnostics, DINOLoss
from .schedules import CosineSchedule, LinearWarmup

SIGNS = tuple(CollapseDiagnostics.__annotations__)


class DINOTrainer(Trainer):
    """Trains a student and its teacher from a backbone; else a Trainer as any: its logs, checkpoints, resuming, mixed precision,
    gradient accumulation and processes.

    Args:
        model: the backbone where student and teacher begin, which itself stays as it is; or a DINOModel.
        args: how to train.
        train_dataset: of {"pixel_values": (2, C, S, S), "local_pixel_values": (n, C, s, s)}, the crops of an image;
            `vitrail.pretraining.crops.MultiCropImages` makes them of images. One with a method `set_epoch` is told the epoch.

    `trainer.teacher` is what the training is for.
    """

    args: DINOTrainingArguments
    model: DINOModel
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(self, model: ViTPreTrainedModel | DINOModel, args: DINOTrainingArguments, **kwargs: Any) -> None:
        if not isinstance(model, DINOModel):
            set_seed(args.seed)  # as Trainer does, too late for a new head
            model = make_dino_model(model, args)
        # One process for each device (accelerate launch): no nn.DataParallel where it sees several
        args._n_gpu = min(args.n_gpu, 1)
        super().__init__(model=model, args=args, **kwargs)
        self.add_callback(_DINOSteps(self))
        self.signs = dict.fromkeys(SIGNS, torch.zeros((), device=args.device))  # summed since the last log
        self.num_signs = 0

    @property
    def teacher(self) -> ViTModel:
        """The teacher's backbone."""
        return self.model.teacher.backbone

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """Whole updates in random order, where the last ones of an epoch are left out: also those of an update of several batches."""
        sampler = super()._get_train_sampler(train_dataset)
        if not (isinstance(sampler, RandomSampler) and self.args.dataloader_drop_last):
            return sampler
        batch_size = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        num_images = len(sampler.data_source)
        if num_images < batch_size:
            raise ValueError(
                f"The data have {num_images} images, fewer than an update, {batch_size}: write a smaller per_device_train_batch_size or "
                "gradient_accumulation_steps, or dataloader_drop_last=False."
            )
        return RandomSampler(sampler.data_source, num_samples=num_images - num_images % batch_size)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay is for matrices, kernels, tokens and positions: all but biases and vectors."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1 and not name.endswith(".bias")]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedules of a run of so many updates; that of the optimizer's learning rate and weight decay is returned."""
        args = self.args
        self.updates_per_epoch = num_training_steps / args.num_train_epochs
        self.teacher_momentum = CosineSchedule(args.teacher_momentum, 1.0, num_training_steps)
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            warmup = round(args.warmup_epochs * self.updates_per_epoch)
            self.lr_scheduler = OptimizerSchedule(
                optimizer,
                learning_rate=CosineSchedule(args.learning_rate, args.min_learning_rate, num_training_steps, warmup),
                weight_decay=CosineSchedule(args.weight_decay, args.final_weight_decay, num_training_steps),
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def epoch_of(self, update: int) -> int:
        """The epoch that an update is in."""
        return int(update / self.updates_per_epoch + 1e-9)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips the gradient of each parameter by itself."""
        self.accelerator.unscale_gradients()
        return clip_each_gradient(model, self.args.max_grad_norm)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss; the signs of collapse are kept for the log."""
        outputs = model(**inputs)
        if model.training:
            self.signs = {name: total + outputs[name].detach() for name, total in self.signs.items()}
            self.num_signs += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of crops that are not trained on."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of the signs of collapse since the last log, and where the schedules are."""
        if not math.isfinite(logs.get("loss", 0.0)):  # the mean over all processes, which stop together
            raise VitrailError(
                f"The loss is {logs['loss']} after {self.state.global_step} updates: the training has diverged. Write a smaller "
                "learning_rate into the recipe, or a longer warm-up."
            )
        if "loss" in logs and self.num_signs:
            update = self.state.global_step - 1
            means = {name: self.accelerator.reduce(total / self.num_signs, "mean").item() for name, total in self.signs.items()}
            logs = logs | means | {"teacher_momentum": self.teacher_momentum(update)}
            self.signs = {name: torch.zeros_like(total) for name, total in self.signs.items()}
            self.num_signs = 0
        super().log(logs, start_time)


class OptimizerSchedule(torch.optim.lr_scheduler.LRScheduler):
    """Sets the learning rate of every group of an optimizer, and the weight decay of the first."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, learning_rate: CosineSchedule, weight_decay: CosineSchedule) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Where it is; what the values are is said by whoever makes it."""
        return {name: value for name, value in super().state_dict().items() if not isinstance(value, CosineSchedule)}

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rates of this update."""
        return [self.learning_rate(self.last_epoch)] * len(self.optimizer.param_groups)

    def step(self, epoch: int | None = None) -> None:
        """On to the next update."""
        super().step(epoch)
        self.optimizer.param_groups[0]["weight_decay"] = self.weight_decay(self.last_epoch)


class _DINOSteps(TrainerCallback):
    """What DINO does around an update of the optimizer."""

    def __init__(self, trainer: DINOTrainer) -> None:
        self.trainer = trainer
        args = trainer.args
        self.teacher_temperature = LinearWarmup(
            args.warmup_teacher_temperature, args.teacher_temperature, args.warmup_teacher_temperature_epochs
        )

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells a dataset which epoch begins, or goes on: accelerate's loaders do not in every case."""
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The temperature of this epoch; and the learning rate goes on also after an update that float16 has skipped."""
        scheduler = self.trainer.lr_scheduler
        assert scheduler is not None
        if scheduler.last_epoch < state.global_step:
            scheduler.step()
        self.trainer.model.teacher_temperature = self.teacher_temperature(self.trainer.epoch_of(state.global_step))

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """In the first epochs the last layer stays."""
        if self.trainer.epoch_of(state.global_step) < self.trainer.args.freeze_last_layer_epochs:
            for parameter in self.trainer.model.student.head.last_layer.parameters():
                parameter.grad = None

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The teacher follows the student, and the centre the teacher."""
        self.trainer.model.update_teacher(self.trainer.teacher_momentum(state.global_step))
        self.trainer.model.loss.update_center()


def make_dino_model(model: ViTPreTrainedModel, args: DINOTrainingArguments) -> DINOModel:
    """Student, teacher and loss of a run that begins at a model's encoder, with a new head."""
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
    """Shortens the gradient of each parameter to at most `max_norm`; returns the norm of all together, before that."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.stack(list(norms)).norm()
