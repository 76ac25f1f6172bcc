"""`transformers.Trainer` on a schedule: the same run with any number of processes, and when it is resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from .recipes import Schedule
from .training_data import UpdateSampler

EVALUATION_BATCH = 512  # rows


class ScheduledTrainer(Trainer):
    """A Trainer that reads the batches of a `Schedule`; one epoch of the Trainer is the whole run.

    The model's loss must be a sum over rows divided by `num_items_in_batch`, which counts those of the whole update, so that it does
    not matter how an update is divided.
    """

    description = "training"
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(self, *, schedule: Schedule, progress: bool, **kwargs: Any) -> None:
        callbacks = [KeepLastCheckpoint(), *([Progress(self.description)] if progress else [])]
        super().__init__(data_collator=_as_it_is, callbacks=callbacks, **kwargs)
        self.schedule = schedule
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process. accelerate does not prepare them, because it would divide them again."""
        sampler = UpdateSampler(
            self.schedule,
            num_processes=self.args.world_size,
            process=self.args.process_index,
            accumulation_steps=self.args.gradient_accumulation_steps,
        )
        num_workers = self.args.dataloader_num_workers
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=_as_it_is, num_workers=num_workers)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule's learning rates."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.learning_rate_factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> None:
        """No norm for the log: the Trainer's takes it by clipping to infinity, which makes all gradients NaN if one is infinite."""

    def train_or_resume(self) -> int | None:
        """Trains from the last checkpoint in the output folder, or from the beginning; returns the update resumed from."""
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return None if checkpoint is None else _update(checkpoint)


class KeepLastCheckpoint(TrainerCallback):
    """Removes a checkpoint when the next one is complete (the Trainer's own `save_total_limit` warns of file systems)."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after a checkpoint is written."""
        if state.is_world_process_zero:
            for checkpoint in Path(args.output_dir).glob("checkpoint-*"):
                if _update(checkpoint) < state.global_step:
                    shutil.rmtree(checkpoint)


class Progress(TrainerCallback):
    """A bar of updates on stderr, if that is a terminal."""

    def __init__(self, description: str) -> None:
        self.description = description

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begins where the run was interrupted."""
        hidden = None if state.is_world_process_zero else True  # None hides it where there is no terminal
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.description, disable=hidden)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One update more."""
        self.bar.update()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends it."""
        self.bar.close()


def training_arguments(
    output_dir: Path, schedule: Schedule, *, seed: int, device_batch_size: int | None, num_workers: int, evaluate_every: int
) -> TrainingArguments:
    """Arguments of a `ScheduledTrainer`, whose checkpoints go to `output_dir`.

    Args:
        device_batch_size: rows that a device takes at a time; gradients are accumulated up to the schedule's batch. None takes all
            at once.
        evaluate_every: updates between two evaluations, after each of which there is a checkpoint.
    """
    args = TrainingArguments(
        output_dir=str(output_dir),
        seed=seed,
        num_train_epochs=1,
        max_grad_norm=0,  # no clipping, which would couple the heads of a probe
        dataloader_num_workers=num_workers,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="steps",
        logging_steps=evaluate_every,
        eval_strategy="steps",
        eval_steps=evaluate_every,
        save_strategy="steps",
        save_steps=evaluate_every,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
    )
    share = -(-schedule.batch_size // args.world_size)
    args.per_device_train_batch_size = min(device_batch_size or share, share)
    args.gradient_accumulation_steps = -(-share // args.per_device_train_batch_size)
    args.per_device_eval_batch_size = min(device_batch_size or EVALUATION_BATCH, EVALUATION_BATCH)
    args._n_gpu = min(args.n_gpu, 1)  # one process for each device: no nn.DataParallel where it sees several
    return args


def last_checkpoint(output_dir: Path) -> Path | None:
    """The last complete checkpoint of a Trainer: one whose state, which is written last, can be read."""
    for checkpoint in sorted(output_dir.glob("checkpoint-*"), key=_update, reverse=True):
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        return checkpoint
    return None


def _update(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _as_it_is(batch: Any) -> Any:
    return batch
