"""`transformers.Trainer` on a schedule: the same run with any number of processes, and when it is resumed."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from ..utils.processes import start_processes
from ..utils.trainer import BaseTrainer, KeepLastCheckpoint
from .recipes import Schedule
from .training_data import UpdateSampler

EVALUATION_BATCH = 512  # rows


class ScheduledTrainer(BaseTrainer):
    """A Trainer that reads the batches of a `Schedule`. One epoch of the Trainer is the whole run.

    The model's loss must be a sum over rows divided by `num_items_in_batch`, the number of rows of the whole update: then the result
    does not depend on how an update is divided among processes and accumulation steps.
    """

    description = "training"

    def __init__(self, *, schedule: Schedule, progress: bool, **kwargs: Any) -> None:
        super().__init__(data_collator=_identity, callbacks=[KeepLastCheckpoint()], **kwargs)
        self.schedule = schedule
        self.show_progress(self.description if progress else None)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches of this process. accelerate does not prepare them: it would divide them again."""
        sampler = UpdateSampler(
            self.schedule,
            num_processes=self.args.world_size,
            process=self.args.process_index,
            accumulation_steps=self.args.gradient_accumulation_steps,
        )
        num_workers = self.args.dataloader_num_workers
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=_identity, num_workers=num_workers)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, num_updates: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Return a scheduler with the learning rates of the schedule."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule.learning_rate_factor)

    def points_by_update(self, *names: str) -> list[dict[str, Any]]:
        """Return what the log has of these names, in order of the updates; the names lose "eval_"."""
        points: dict[int, dict[str, Any]] = {}
        for entry in self.state.log_history:
            if found := {name.removeprefix("eval_"): entry[name] for name in names if name in entry}:
                points.setdefault(entry["step"], {"update": entry["step"]}).update(found)
        return list(points.values())

    def gradient_norm(self, model: nn.Module, norm: torch.Tensor | None) -> None:
        """Compute no norm: the Trainer does it by clipping to infinity, which makes all gradients NaN if one is infinite."""


def training_arguments(
    output_dir: Path, schedule: Schedule, *, seed: int, device_batch_size: int | None, num_workers: int, evaluate_every: int
) -> TrainingArguments:
    """Return the arguments of a `ScheduledTrainer`, which writes checkpoints into `output_dir`.

    Args:
        device_batch_size: rows per device and forward pass; gradients are accumulated up to the schedule's batch. None runs the whole
            batch in one pass.
        evaluate_every: updates between two evaluations. A checkpoint follows each evaluation.
    """
    args = TrainingArguments(
        output_dir=str(output_dir),
        seed=seed,
        num_train_epochs=1,
        max_grad_norm=0,  # clipping would couple the heads of a probe
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
        use_cpu=start_processes().device.type == "cpu",
    )
    share = -(-schedule.batch_size // args.world_size)
    args.per_device_train_batch_size = min(device_batch_size or share, share)
    args.gradient_accumulation_steps = -(-share // args.per_device_train_batch_size)
    args.per_device_eval_batch_size = min(device_batch_size or EVALUATION_BATCH, EVALUATION_BATCH)
    return args


def _identity(batch: Any) -> Any:
    return batch
