"""Models as functions from `pixel_values` to a tuple of tensors, the form that every engine compiles."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

CompiledFunction: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""From `pixel_values` (B, C, H, W), of the H and W it was built for and any B, to the outputs of a module.

As many threads may call it at the same time as it was built for. Every output has its own memory.
"""


class TupleOutputs(nn.Module):
    """A model whose forward pass returns a tuple of tensors.

    compute: a function of the model and `pixel_values` (B, C, H, W) that returns the tuple. It holds no weights.
    names: the names of the tensors, in order.
    """

    def __init__(self, model: nn.Module, compute: Callable[[Any, torch.Tensor], tuple[torch.Tensor, ...]], *names: str) -> None:
        super().__init__()
        self.model = model
        self.compute = compute
        self.names = names

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.compute(self.model, pixel_values)


def named_outputs(model: nn.Module, *names: str) -> TupleOutputs:
    """Wrap a model so that it returns the outputs of these names."""

    def compute(model: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = model(pixel_values, return_dict=True)
        return tuple(outputs[name] for name in names)

    return TupleOutputs(model, compute, *names)
