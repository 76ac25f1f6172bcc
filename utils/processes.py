"""The processes of a run: one, or those that `accelerate launch` has started."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool

PATIENCE = timedelta(days=30)  # one process may be done long before another; torchrun ends all of them when one has died


def start_processes() -> PartialState:
    """Joins the other processes, if there are any; on a machine without accelerators, and with `--cpu`, over gloo."""
    asked_for_cpu = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "no")) == 1
    return PartialState(cpu=asked_for_cpu or not torch.accelerator.is_available(), timeout=PATIENCE)
