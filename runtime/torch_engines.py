"""CompiledModel that torch itself runs: the module as it is, in any of torch's precisions, and compiled with frozen weights."""

import contextlib
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from .graph import fix_image_size
from .programs import Program


def eager_program(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> Program:
    """The module itself, or a copy in another precision."""
    dtype = getattr(torch, precision)
    converted = in_precision(module, dtype)
    return lambda pixel_values: converted(pixel_values.to(dtype))


def compiled_program(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> Program:
    """The module through `torch.compile`, for batches of the example's size: others are cut, and filled up with zeros.

    The weights, and what follows from the image size alone, become constants of the program (`freezing`), which torch may lay out anew.
    """
    dtype, batch_size = getattr(torch, precision), len(example)
    threads = max(torch.get_num_threads() // num_streams, 1)
    converted = in_precision(module, dtype)
    if converted is module:  # a copy, of which the weights are the same tensors
        converted = copy.deepcopy(module, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})
    with torch.inference_mode(False), torch.no_grad():
        fix_image_size(converted, example)
    compiled = torch.compile(converted, fullgraph=True, dynamic=False, options={"freezing": True})

    # The compiler's guards look at the kind of tensor and the number of threads: these are always the same here
    @torch.inference_mode(False)
    @torch.no_grad()
    def program(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chunks = []
        with num_threads(threads):
            for chunk in pixel_values.to(dtype).split(batch_size):
                number = len(chunk)
                outputs = compiled(F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, batch_size - number)).contiguous())
                chunks.append([output[:number] for output in outputs])
        return tuple(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True))

    program(example)
    return program


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module, or a copy of it whose weights are of another type."""
    if all(parameter.dtype == dtype for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).to(dtype)


@contextlib.contextmanager
def num_threads(number: int) -> Iterator[None]:
    """So many threads for torch's operations, in this thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
