"""What every engine makes of a module."""

from collections.abc import Callable
from typing import TypeAlias

import torch

Program: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""`pixel_values` (B, C, H, W), of the one H and W it was built for and of any B, to what the module returns.

As many threads may call it at the same time as it was built for. Every result has memory of its own.
"""
