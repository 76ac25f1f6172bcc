"""`interpolate_positions` as two matrix products, which a graph can compute for any image size.

A graph has no operation with PyTorch's interpolation rules, and no branch for the size that the positions were trained at. But resizing is
linear and separable: for each direction it is a product with a matrix of weights that depends on the new length.

Source of the rules: PyTorch, aten/src/ATen/native/UpSample.h and cpu/UpSampleKernel.cpp.
"""

from types import MethodType

import torch

from ..configuration.configuration_vit import ViTConfig
from ..modeling.modeling_vit import ViTEmbeddings

CUBIC, CUBIC_ANTIALIAS = -0.75, -0.5  # PyTorch's two values of the cubic kernel's free parameter


def take_any_size(embeddings: ViTEmbeddings) -> None:
    """Let embeddings compute absolute positions without branches on the size, so that it can be dynamic in a graph."""
    embeddings.positions = MethodType(positions_of_any_size, embeddings)  # type: ignore[method-assign]


def positions_of_any_size(embeddings: ViTEmbeddings, grid: tuple[int, int]) -> torch.Tensor:
    """Return what `ViTEmbeddings.positions` returns, (1, N, D), for a grid whose lengths may be symbols of torch.export."""
    assert embeddings.position_embeddings is not None
    config, positions = embeddings.config, embeddings.position_embeddings
    first = int(embeddings.cls_has_position)
    image = positions[0, first:].unflatten(0, config.patch_grid)  # (height, width, D)
    same = [is_length(new, old) for old, new in zip(config.patch_grid, grid, strict=True)]
    if config.position_interpolation_mode == "bicubic" and not config.position_interpolation_antialias:
        same = [same[0] & same[1]] * 2  # the other kernels also copy along one direction alone
    rows, columns = (
        torch.where(copied, same_weights(old, new), resize_weights(old, new, config))
        for copied, old, new in zip(same, config.patch_grid, grid, strict=True)
    )
    taller = (rows @ image.flatten(1)).unflatten(1, image.shape[1:])  # (new height, width, D)
    resized = (columns @ taller).flatten(0, 1).unsqueeze(0)
    return torch.cat((positions[:, :first], resized), dim=1)


def is_length(length: int, expected: int) -> torch.Tensor:
    """Whether a length, which may be a symbol, equals another: a tensor, so that the graph compares when it runs."""
    return torch.ones(length).sum() == expected


def same_weights(length: int, new_length: int) -> torch.Tensor:
    """Return the identity, (new, old), for new == old."""
    return (torch.arange(new_length)[:, None] == torch.arange(length)).float()


def resize_weights(length: int, new_length: int, config: ViTConfig) -> torch.Tensor:
    """Return the weights (new, old) of the old positions in each new one, along one direction."""
    index = torch.arange(new_length, dtype=torch.float32)
    old = torch.arange(length, dtype=torch.float32)
    bicubic, antialias = config.position_interpolation_mode == "bicubic", config.position_interpolation_antialias
    if config.position_interpolation_align_corners:
        scale = (length - 1) / (torch.ones(new_length).sum() - 1).clamp(min=1)  # a single new position is the first old one
        scale = torch.where(is_length(new_length, 1), 0.0, scale)
    else:
        scale = length / (torch.ones(new_length).sum() + config.position_interpolation_offset)
    if antialias:
        stretch = scale.clamp(min=1)
        distance = (old + 0.5 - (scale * (index + 0.5))[:, None]) / stretch
        weights = cubic(distance, CUBIC_ANTIALIAS) if bicubic else triangle(distance)
        return weights / weights.sum(dim=1, keepdim=True)
    center = scale * index if config.position_interpolation_align_corners else scale * (index + 0.5) - 0.5
    taps = center.floor()[:, None] + torch.arange(-1, 3)  # (new, 4)
    weights = cubic(taps - center[:, None], CUBIC) if bicubic else triangle(taps - center[:, None])
    at_tap = taps.clamp(0, length - 1)[:, :, None] == old  # beyond the edge, the value at the edge is repeated
    return (weights[:, :, None] * at_tap).sum(dim=1)


def triangle(distance: torch.Tensor) -> torch.Tensor:
    """The kernel of linear interpolation."""
    return (1 - distance.abs()).clamp(min=0)


def cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Keys' kernel of cubic interpolation."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
