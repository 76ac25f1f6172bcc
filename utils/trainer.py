"""The base of our Trainers, and every hook of `transformers.Trainer` that is not public.

tests/test_transformers_hooks.py fails when a hook is gone from transformers.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import Dataset, Sampler
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..errors import VitrailError
from .checkpoint_files import check_whole, checkpoint_update, checkpoints, disk_is_full, last_checkpoint
from .worker_errors import clear_worker_errors

TRAINER_HOOKS = ("_get_train_sampler", "_clip_grad_norm", "_get_grad_norm", "_prepare_inputs")
TRAINER_ATTRIBUTES = ("_created_lr_scheduler", "_train_batch_size")
ARGUMENTS_ATTRIBUTES = ("_n_gpu",)


class BaseTrainer(Trainer):
    """A Trainer that resumes by itself, and whose subclasses override public methods only."""

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(self, *, args: TrainingArguments, **kwargs: Any) -> None:
        args._n_gpu = min(args.n_gpu, 1)  # one process per device (accelerate launch), instead of nn.DataParallel
        super().__init__(args=args, **kwargs)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, num_updates: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the learning-rate scheduler of a run."""
        raise NotImplementedError

    def make_train_sampler(self, sampler: Sampler | None) -> Sampler | None:
        """Return the sampler of the training data, from the sampler that transformers would use."""
        return sampler

    def clip_gradients(self, model: nn.Module) -> torch.Tensor | None:
        """Clip the gradients. Return their norm before."""
        norm: torch.Tensor | None = super()._clip_grad_norm(model)
        return norm

    def gradient_norm(self, model: nn.Module, norm: torch.Tensor | None) -> torch.Tensor | float | None:
        """Return the norm for the log; `norm` is what `clip_gradients` returned, None where nothing is clipped."""
        return super()._get_grad_norm(model, grad_norm=norm)

    def prepare_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of the model for a batch, on the device of the model."""
        prepared: dict[str, Any] = super()._prepare_inputs(batch)
        return prepared

    @property
    def update_size(self) -> int:
        """Rows of an update, over all accumulation steps and processes."""
        return self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def train_or_resume(self) -> int | None:
        """Train from the last checkpoint in the output folder, or from the beginning. Return the number of updates before it.

        Raises:
            VitrailError: the checkpoint is damaged, or the disk is full.
        """
        output_dir = Path(self.args.output_dir)
        checkpoint = last_checkpoint(output_dir)
        if checkpoint is not None:
            check_whole(checkpoint)
        try:
            with clear_worker_errors():
                self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except (OSError, RuntimeError, SafetensorError) as error:
            if not disk_is_full(error, output_dir):
                raise
            raise VitrailError(
                f"The disk of {output_dir} is full: free space, and repeat the command, which resumes from the last checkpoint."
            ) from error
        return None if checkpoint is None else checkpoint_update(checkpoint)

    def show_progress(self, description: str | None) -> None:
        """Show a bar of updates, or with None nothing, instead of printing logs."""
        self.remove_callback(PrinterCallback)
        if description is not None:
            self.add_callback(ProgressBar(description))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the scheduler by `make_scheduler`; the Trainer calls it."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = self.make_scheduler(optimizer, num_training_steps)
            self._created_lr_scheduler = True  # otherwise a second `train` would continue the schedule of the first
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self.make_train_sampler(super()._get_train_sampler(train_dataset))

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | None:
        return self.clip_gradients(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | float | None:
        return self.gradient_norm(model, grad_norm)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.prepare_batch(inputs)


class KeepLastCheckpoint(TrainerCallback):
    """Removes a checkpoint when the next one is complete. The Trainer's own `save_total_limit` warns about file systems."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remove the checkpoints before the one that has been written."""
        if state.is_world_process_zero:
            for checkpoint in checkpoints(Path(args.output_dir)):
                if checkpoint_update(checkpoint) < state.global_step:
                    shutil.rmtree(checkpoint)


class ProgressBar(TrainerCallback):
    """A bar of updates on stderr, if stderr is a terminal."""

    def __init__(self, description: str) -> None:
        self.description = description

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin where the run was interrupted."""
        disable = None if state.is_world_process_zero else True  # None disables the bar where there is no terminal
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.description, disable=disable)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance by one update."""
        self.bar.update()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.close()
