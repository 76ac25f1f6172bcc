"""Reasons to stop a run that learns nothing: collapsed targets, updates that float16 skips, features worse than at the start.

A run whose loss is not finite stops, too (`PretrainingTrainer.log`). Every stop is an error, and leaves the last checkpoint.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from ..errors import VitrailError
from ..utils.checkpoint_files import last_checkpoint
from .arguments import DINOTrainingArguments, PretrainingArguments

ANCHORS = ("frozen_blocks", "gram_loss_weight")  # arguments that keep a model close to its start, where a method has them


def stopped(args: PretrainingArguments, found: str, *, remedy: str, switch: str) -> VitrailError:
    """Return the error of a run that stops: what was measured, what to change, and where the last checkpoint is.

    Args:
        switch: the argument that is 0 to go on.
    """
    checkpoint = last_checkpoint(Path(args.output_dir))
    left = "There is no checkpoint yet" if checkpoint is None else f"The last checkpoint is {checkpoint}"
    return VitrailError(f"The run stops: {found}. {remedy}, or set {switch}=0 to go on. {left}.")


def _closer_to_the_start(args: PretrainingArguments) -> str:
    return f"Lower learning_rate or raise {' or '.join(name for name in ANCHORS if hasattr(args, name))}"


class StopIfCollapsed(TrainerCallback):
    """Stops a run whose targets distinguish no images, by the entropies in its log.

    The number of updates is counted between logs, so that a run that resumes continues the count.
    """

    def on_log(self, args: DINOTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look back through the log."""
        if not args.collapse_patience:
            return
        limit = math.log(args.num_prototypes)
        near = args.collapse_tolerance * limit
        warmup = args.warmup_epochs / args.num_train_epochs * state.max_steps
        history = [point for point in state.log_history if "target_entropy" in point]
        remedy = _closer_to_the_start(args)
        uniform = updates_of_tail(history, lambda point: point["target_entropy"] > limit - near, after=warmup)
        if uniform >= args.collapse_patience:
            raise stopped(
                args,
                f"the targets have collapsed to uniform: for {uniform:.0f} updates, their entropy is within "
                f"{args.collapse_tolerance:.0%} of ln {args.num_prototypes} = {limit:.2f}, where the loss is stuck, too",
                remedy=f"{remedy}, or lower teacher_temperature",
                switch="collapse_patience",
            )
        if args.per_device_train_batch_size == 1:  # the views of one image should have one target
            return
        single = updates_of_tail(history, lambda point: point["mean_target_entropy"] < near, after=warmup)
        if single >= args.collapse_patience:
            raise stopped(
                args,
                f"the targets have collapsed to one: for {single:.0f} updates, the entropy of the mean target of a batch is below "
                f"{near:.2g}, so that all images have the same target",
                remedy=f"{remedy}, or raise teacher_temperature",
                switch="collapse_patience",
            )


def updates_of_tail(history: Sequence[Mapping[str, Any]], condition: Callable[[Mapping[str, Any]], bool], *, after: float) -> float:
    """Return for how many updates a condition has held in all points of a log, up to its last point; updates up to `after` do not count."""
    if not history:
        return 0
    others = (point["step"] for point in reversed(history) if not condition(point))
    return max(0, history[-1]["step"] - max(next(others, 0), after))


class StopIfUpdatesAreSkipped(TrainerCallback):
    """Stops a run in float16 all of whose gradients overflow: the gradient scaler then skips every update."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.skipped = 0

    def on_step_end(self, args: PretrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the updates in a row that were skipped."""
        self.skipped = self.skipped + 1 if self.trainer.accelerator.optimizer_step_was_skipped else 0
        if args.max_skipped_updates and self.skipped >= args.max_skipped_updates:
            raise stopped(
                args,
                f"float16 has skipped the last {self.skipped} of {state.global_step} updates, because gradients are not finite",
                remedy="Train in bfloat16 (bf16) or float32, or lower learning_rate",
                switch="max_skipped_updates",
            )


def check_knn(args: PretrainingArguments, accuracies: Sequence[float], *, start: float, number: int) -> None:
    """Stop a run whose last k-NN accuracies are all well below the start model's.

    Args:
        accuracies: of the run so far, from 0 to 1.
        start: the accuracy of the start model.
        number: of images that are classified, for the standard error of an accuracy.
    """
    limit = start - args.knn_margin - 2 * math.sqrt(start * (1 - start) / max(number, 1))
    last = accuracies[-args.knn_patience :]
    if args.knn_patience and len(last) == args.knn_patience and all(accuracy < limit for accuracy in last):
        raise stopped(
            args,
            f"the k-NN accuracy of the last {len(last)} evaluations is at most {max(last):.1%}; the start model's is {start:.1%}, and "
            f"{limit:.1%} is the limit (knn_margin, and two standard errors of {number} images)",
            remedy=_closer_to_the_start(args),
            switch="knn_patience",
        )
