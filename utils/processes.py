"""The processes of a run: one, or those that `accelerate launch` has started."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import str_to_bool

TIMEOUT = timedelta(days=30)  # one process may end long before another; if one dies, torchrun ends the others


def start_processes() -> PartialState:
    """Join the other processes, if there are any. Without an accelerator, and with `--cpu`, they communicate over gloo."""
    cpu_requested = str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "no")) == 1
    return PartialState(cpu=cpu_requested or not torch.accelerator.is_available(), timeout=TIMEOUT)
