"""Schedules of DINO's settings, by update or by epoch.

facebookresearch/dino, utils.py, cosine_scheduler; main_dino.py, train_dino and DINOLoss.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """A half cosine from `start` to `end` over all updates, after a linear warm-up from 0 to `start`.

    num_updates: of the whole run.
    warmup: number of updates of the warm-up. The last of them has the value `start`.
    """

    start: float
    end: float
    num_updates: int
    warmup: int = 0

    def __call__(self, update: int) -> float:
        """Return the value in an update, counted from 0. After the last update it is `end`."""
        if update < self.warmup:
            return self.start * update / max(self.warmup - 1, 1)
        if update >= self.num_updates:
            return self.end
        done = (update - self.warmup) / (self.num_updates - self.warmup)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class LinearWarmup:
    """Equal steps from `start` to `end` over `warmup` epochs, the last of which has the value `end`; then `end`."""

    start: float
    end: float
    warmup: int

    def __call__(self, epoch: int) -> float:
        """Return the value in an epoch, counted from 0."""
        if epoch >= self.warmup:
            return self.end
        return self.start + (self.end - self.start) * epoch / max(self.warmup - 1, 1)
