"""Engines of torch: the module itself in any of torch's precisions, and torch.compile with frozen weights."""

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from .graph import fix_image_size
from .outputs import CompiledFunction


def build_eager(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> CompiledFunction:
    """Return the module itself, or a copy in another precision."""
    dtype = getattr(torch, precision)
    converted = in_precision(module, dtype)
    return lambda pixel_values: converted(pixel_values.to(dtype))


def build_compiled(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> CompiledFunction:
    """Compile the module with `torch.compile` for the batch size of the example; other batches are split and padded with zeros.

    The weights, the positions and the relative biases become constants (`freezing`), whose memory layout torch may change.
    """
    dtype, batch_size = getattr(torch, precision), len(example)
    threads = max(torch.get_num_threads() // num_streams, 1)
    converted = in_precision(module, dtype)
    if converted is module:  # a copy that shares the weights
        converted = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    with torch.inference_mode(False), torch.no_grad():
        fix_image_size(converted, example)
    compiled = torch.compile(converted, fullgraph=True, dynamic=False, options={"freezing": True})

    # The compiler's guards check the kind of tensor and the number of threads, so both are always the same here
    @torch.inference_mode(False)
    @torch.no_grad()
    def function(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chunks = []
        with num_threads(threads):
            for chunk in pixel_values.to(dtype).split(batch_size):
                number = len(chunk)
                outputs = compiled(F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, batch_size - number)).contiguous())
                chunks.append([output[:number] for output in outputs])
        return tuple(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True))

    with warnings.catch_warnings():  # on GPUs, torch advises TensorFloat32, which rounds float32
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        function(example)
    return function


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the module, or a copy with weights of another dtype."""
    if all(parameter.dtype == dtype for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).to(dtype)


@contextlib.contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Set the number of threads of torch's operations in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
