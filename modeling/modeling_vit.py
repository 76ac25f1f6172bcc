"""One Vision Transformer for the DINO, DINOv2, DINOv3, Google and timm families, to be read from top to bottom.

    pixels -> patches -> [CLS], positions, registers -> blocks of attention and MLP -> final norm -> pooling -> classifier

Everything in which families differ is a field of `ViTConfig`. Shape letters: B batch, C channels, H W pixels, h w patches
(rows, columns), N = h * w patches, L tokens (prefix + N), D hidden size, A heads, d = D / A, K classes.
"""

import copy
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_vit import ViTConfig

RELATIVE_MLP_DROPOUT = 0.125  # timm 1.0, layers/pos_embed_rel.py, RelPosMlp
MAX_KEPT_BIAS = 2**24  # elements (64 MiB in float32, per block); a larger relative bias is computed in each call


# --------------------------------------------------------------------------------------------------------------- positions


def interpolate_positions(positions: torch.Tensor, grid: tuple[int, int], config: ViTConfig) -> torch.Tensor:
    """Resize patch positions from the grid they were trained on to another, by the rule of their family.

    Args:
        positions: (1, N, D), without the position of [CLS].
        grid: the target (h, w).

    Returns:
        (1, h * w, D), in the dtype of `positions`; it is computed in float32.
    """
    height, width = config.patch_grid
    image = positions.float().reshape(1, height, width, -1).permute(0, 3, 1, 2)  # (1, D, height, width)
    # DINO passes the scale, computed with an offset, instead of the size: the sampling points move slightly
    offset = config.position_interpolation_offset
    image = F.interpolate(
        image,
        size=None if offset else grid,
        scale_factor=((grid[0] + offset) / height, (grid[1] + offset) / width) if offset else None,
        mode=config.position_interpolation_mode,
        antialias=config.position_interpolation_antialias,
        align_corners=config.position_interpolation_align_corners,
    )
    assert tuple(image.shape[-2:]) == tuple(grid)
    return image.flatten(2).transpose(1, 2).to(positions.dtype)


def relative_position_index(grid: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return, for each pair of patches, the row of their offset in a table of (2h-1) * (2w-1) rows: (N * N,) integers."""
    height, width = grid
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    row_offset = rows[:, None] - rows[None, :] + height - 1  # (h, h)
    column_offset = columns[:, None] - columns[None, :] + width - 1  # (w, w)
    return (row_offset[:, None, :, None] * (2 * width - 1) + column_offset[None, :, None, :]).flatten()


def _has_global_hooks() -> bool:
    """Return whether a hook sees the outputs of all modules."""
    return bool(nn.modules.module._global_forward_pre_hooks or nn.modules.module._global_forward_hooks)


class ViTRelativePosition(nn.Module):
    """Base class of the relative biases: computes the bias of a patch grid, or reuses the last one.

    Reuse saves 7 to 11 % of a forward pass of one image on a CPU. The last bias is returned only while every parameter has the values
    that the bias was computed from; they are compared with copies, because no version counter sees a write to `.data` or a fused optimizer.
    """

    last: tuple[tuple[int, int], list[torch.Tensor], torch.Tensor, int] | None = None  # grid, copies, bias, and version of the bias

    def forward(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the bias of a patch grid, (1, A, L, L)."""
        parameters = list(self.parameters())
        if not self._may_reuse(parameters):
            self.last = None
            return self.compute(grid)
        last = self.last  # read once, because threads may share the model
        if last is not None and last[0] == grid and last[2]._version == last[3] and all(map(_same_values, last[1], parameters)):
            return last[2]
        with torch.inference_mode(False), torch.no_grad():
            copies = [parameter.clone() for parameter in parameters]
            bias = self.compute(grid)
        self.last = (grid, copies, bias, bias._version) if bias.numel() <= MAX_KEPT_BIAS else None
        return bias

    def compute(self, grid: tuple[int, int]) -> torch.Tensor:
        """Compute the bias of a patch grid, (1, A, L, L)."""
        raise NotImplementedError

    def _may_reuse(self, parameters: list[nn.Parameter]) -> bool:
        if self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        # Elsewhere comparing would wait for the device; subclasses (quantized weights) may have no comparison
        if not all(parameter.device.type == "cpu" and type(parameter) is nn.Parameter for parameter in parameters):
            return False
        # What a hook holds may change through a view that has no version, such as a NumPy array
        return not (self._forward_hooks or _has_global_hooks())

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles of a model start without a bias
        return {name: value for name, value in self.__dict__.items() if name != "last"}


def _same_values(copied: torch.Tensor, parameter: torch.Tensor) -> bool:
    return copied.dtype == parameter.dtype and torch.equal(copied, parameter)


class ViTRelativePositionTable(ViTRelativePosition):
    """A learned bias per offset between two patches and per head (Swin, arXiv 2103.14030; [CLS] as in BEiT).

    The table is `((2h-1) * (2w-1) [+ 3], A)`. With [CLS], the last three rows are [CLS]->patch, patch->[CLS], [CLS]->[CLS].
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid = config.patch_grid
        self.use_cls_token = config.use_cls_token
        num_offsets = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1)
        self.table = nn.Parameter(torch.zeros(num_offsets + 3 * self.use_cls_token, config.num_attention_heads))

    def compute(self, grid: tuple[int, int]) -> torch.Tensor:
        """Compute the bias of a patch grid, (1, A, L, L)."""
        num_offsets = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1)
        offsets, cls_rows = self.table[:num_offsets], self.table[num_offsets:]
        if grid != self.grid:
            offsets = resize_relative_table(offsets, self.grid, grid)
        num_patches = grid[0] * grid[1]
        index = relative_position_index(grid, self.table.device)
        bias = offsets.t().index_select(1, index).view(1, -1, num_patches, num_patches)  # (1, A, N, N)
        if not self.use_cls_token:
            return bias
        to_patch, to_cls, itself = cls_rows.view(3, 1, -1, 1, 1).unbind(0)  # each (1, A, 1, 1)
        first_row = torch.cat((itself, to_patch.expand(-1, -1, -1, num_patches)), dim=3)
        return torch.cat((first_row, torch.cat((to_cls.expand(-1, -1, num_patches, -1), bias), dim=3)), dim=2)


def resize_relative_table(offsets: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """Resize a table of biases, ((2h-1) * (2w-1), A), from one patch grid to another, which must differ in at least one side.

    Interpolation is linear between geometrically spaced offsets, which keeps small offsets sharp: BEiT's rule in timm's linear form. An
    axis of the same length is interpolated, too, between offsets that grow by 1%.
    """
    (height, width), (new_height, new_width) = grid, new_grid
    table = offsets.float().view(2 * height - 1, 2 * width - 1, -1)
    row_weights = _geometric_resize_weights(height, new_height).to(table)  # (2h'-1, 2h-1)
    column_weights = _geometric_resize_weights(width, new_width).to(table)
    table = torch.einsum("ri,ijA,cj->rcA", row_weights, table, column_weights)
    return table.flatten(0, 1).to(offsets.dtype)


def _geometric_resize_weights(length: int, new_length: int) -> torch.Tensor:
    """Interpolation matrix (2 * new_length - 1, 2 * length - 1): old offsets, geometrically spaced, span the new ones."""
    if length == 1:
        return torch.ones(2 * new_length - 1, 1)
    reach, new_reach = length - 1, new_length - 1
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # the ratio whose series of `reach` terms sums to `new_reach`
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio**reach) / (1 - ratio) > new_reach else (ratio, high)
    steps = [1.0]
    for power in range(1, reach):
        steps.append(steps[-1] + ratio**power)
    known = torch.tensor([-step for step in reversed(steps)] + [0.0] + steps, dtype=torch.float64)
    wanted = torch.arange(-new_reach, new_reach + 1, dtype=torch.float64).clamp(-steps[-1], steps[-1])
    right = torch.searchsorted(known, wanted, right=True).clamp(1, 2 * length - 2)
    share = (wanted - known[right - 1]) / (known[right] - known[right - 1])
    weights = torch.zeros(len(wanted), len(known), dtype=torch.float64)
    row = torch.arange(len(wanted))
    weights[row, right - 1] = 1 - share
    weights[row, right] = share
    return weights.float()


class ViTRelativePositionMLP(ViTRelativePosition):
    """A bias per offset and head, computed from log-spaced offsets by a small MLP (Swin v2, arXiv 2111.09883; timm's "cr" form).

    It works for any grid without resizing. Pairs with [CLS] have no bias.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.fc1 = nn.Linear(2, config.relative_position_hidden_size)
        self.dropout = nn.Dropout(RELATIVE_MLP_DROPOUT)
        self.fc2 = nn.Linear(config.relative_position_hidden_size, config.num_attention_heads)

    def compute(self, grid: tuple[int, int]) -> torch.Tensor:
        """Compute the bias of a patch grid, (1, A, L, L)."""
        height, width = grid
        device = self.fc1.weight.device
        rows = torch.arange(1 - height, height, device=device, dtype=torch.float32)
        columns = torch.arange(1 - width, width, device=device, dtype=torch.float32)
        offsets = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # ((2h-1)(2w-1), 2)
        offsets = (offsets.sign() * offsets.abs().log1p()).to(self.fc1.weight.dtype)
        table = self.fc2(self.dropout(F.relu(self.fc1(offsets))))  # ((2h-1)(2w-1), A)
        num_patches = height * width
        bias = table.t().index_select(1, relative_position_index(grid, device)).view(1, -1, num_patches, num_patches)
        return F.pad(bias, (self.num_prefix_tokens, 0, self.num_prefix_tokens, 0))


RELATIVE_POSITIONS = {"relative_table": ViTRelativePositionTable, "relative_mlp": ViTRelativePositionMLP}

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and signed sines, each (L, d)


def rotary_periods(config: ViTConfig) -> torch.Tensor:
    """Return the periods of a new model, (d / 4,): a geometric series from 1 to `rope_theta`, without its end."""
    head_dim = config.hidden_size // config.num_attention_heads
    return config.rope_theta ** (2 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2))


class ViTRotaryPosition(nn.Module):
    """Axial rotary positions (DINOv3, arXiv 2508.10104): angles of a patch grid, from the periods that the checkpoint holds.

    The first quarter of a head's angles grows with the row, the second with the column; the other half repeats them. [CLS] and registers
    are not turned. `periods`, (d / 4,), stay in float32 whatever the dtype of the model: rounding them changes the outputs by 1e-3.
    """

    periods: torch.Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("periods", rotary_periods(config))

    @property
    def varies(self) -> bool:
        """Whether each call returns other angles: in training, with an augmentation of the config."""
        config = self.config
        return self.training and any(x is not None for x in (config.rope_shift, config.rope_jitter, config.rope_rescale))

    def forward(self, grid: tuple[int, int]) -> Rotation:
        """Return the cosines and signed sines of all tokens of a patch grid, each (L, d), in float32."""
        rows, columns = (
            2 * torch.arange(0.5, length, dtype=torch.float32, device=self.periods.device) / length - 1 for length in grid
        )
        coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
        if self.varies:
            coordinates = self._augment(coordinates)
        angles = 2 * math.pi * coordinates[:, :, None] / self.periods  # (N, 2, d / 4)
        angles = F.pad(angles.flatten(1), (0, 0, self.config.num_prefix_tokens, 0))  # (L, d / 2): 0 for [CLS] and registers
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)

    def _augment(self, coordinates: torch.Tensor) -> torch.Tensor:
        def draw(number: int, bound: float) -> torch.Tensor:
            return coordinates.new_empty(number).uniform_(-bound, bound)

        if self.config.rope_shift is not None:
            coordinates = coordinates + draw(2, self.config.rope_shift)
        if self.config.rope_jitter is not None:
            coordinates = coordinates * draw(2, math.log(self.config.rope_jitter)).exp()
        if self.config.rope_rescale is not None:
            coordinates = coordinates * draw(1, math.log(self.config.rope_rescale)).exp()
        return coordinates

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "ViTRotaryPosition":
        periods = self.periods
        super()._apply(fn, recurse)
        if self.periods.dtype != torch.float32:  # a change of dtype, which may come with one of device
            self.periods = periods.to(self.periods.device)
        return self


def rotate(states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn queries or keys (B, L, ..., d): each pair of features i and i + d / 2, at least in the angles' float32."""
    exact = states.to(torch.promote_types(states.dtype, rotation[0].dtype))
    cosines, sines = (part.view(1, -1, *(1,) * (states.ndim - 3), part.shape[-1]).to(exact.dtype) for part in rotation)
    first, second = exact.chunk(2, dim=-1)
    return (exact * cosines).addcmul_(torch.cat((second, first), dim=-1), sines).to(states.dtype)


# -------------------------------------------------------------------------------------------------------------- embeddings


class ViTPatchEmbeddings(nn.Module):
    """Split images into patches and project each one: (B, C, H, W) -> (B, N, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_shape
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, self.patch_size, stride=self.patch_size)

    def grid_of(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches, (h, w), of a batch of images."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}, but this model expects (batch, {self.num_channels}, "
                "height, width): prepare the images with its image processor, or load the model with another num_channels."
            )
        (height, width), (patch_height, patch_width) = pixel_values.shape[-2:], self.patch_size
        if height % patch_height or width % patch_width or not height or not width:
            floor = f"{max(height // patch_height, 1) * patch_height}x{max(width // patch_width, 1) * patch_width}"
            ceil = f"{-(-height // patch_height) * patch_height}x{-(-width // patch_width) * patch_width}"
            raise ValueError(
                f"Images of {height}x{width} pixels cannot be cut into patches of {patch_height}x{patch_width}: resize or crop "
                f'them to {floor}, or pad them to {ceil} (the image processor can, see its preset "full-image").'
            )
        return height // patch_height, width // patch_width

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.projection(pixel_values.to(self.projection.weight.dtype))  # (B, D, h, w)
        return patches.flatten(2).transpose(1, 2)  # (B, N, D)


class ViTEmbeddings(nn.Module):
    """Patches, mask token, [CLS], positions and registers: the sequence that enters the first block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        hidden_size = config.hidden_size
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if config.use_cls_token else None
        self.mask_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if config.use_mask_token else None
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, config.num_register_tokens, hidden_size)) if config.num_register_tokens else None
        )
        self.cls_has_position = config.use_cls_token and config.use_cls_position
        num_positions = config.patch_grid[0] * config.patch_grid[1] + int(self.cls_has_position)
        self.position_embeddings = (
            nn.Parameter(torch.zeros(1, num_positions, hidden_size)) if config.position_embedding_type == "absolute" else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Return the absolute positions of a patch grid, (1, N, D); the position of [CLS], if it has one, comes first."""
        assert self.position_embeddings is not None
        if grid == self.config.patch_grid:
            return self.position_embeddings
        if not self.cls_has_position:
            return interpolate_positions(self.position_embeddings, grid, self.config)
        cls_position, patch_positions = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        return torch.cat((cls_position, interpolate_positions(patch_positions, grid, self.config)), dim=1)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        grid = self.patch_embeddings.grid_of(pixel_values)
        hidden_states = self.patch_embeddings(pixel_values)  # (B, N, D)
        batch_size = hidden_states.shape[0]
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError(
                    "bool_masked_pos requires a mask token, but this model has none: set use_mask_token=True in its config."
                )
            mask = bool_masked_pos.reshape(batch_size, -1, 1).to(torch.bool)
            hidden_states = torch.where(mask, self.mask_token.to(hidden_states.dtype), hidden_states)
        positions = None if self.position_embeddings is None else self.positions(grid)
        if positions is not None and not self.cls_has_position:
            hidden_states = hidden_states + positions
        if self.cls_token is not None:
            hidden_states = torch.cat((self.cls_token.expand(batch_size, -1, -1), hidden_states), dim=1)
        if positions is not None and self.cls_has_position:
            hidden_states = hidden_states + positions
        if self.register_tokens is not None:  # registers have no position
            registers = self.register_tokens.expand(batch_size, -1, -1)
            num_cls = int(self.cls_token is not None)
            hidden_states = torch.cat((hidden_states[:, :num_cls], registers, hidden_states[:, num_cls:]), dim=1)
        return self.dropout(hidden_states)  # (B, L, D)


# ------------------------------------------------------------------------------------------------------------------ blocks


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention in plain tensor operations and return its weights: (B, A, L, d) -> (B, L, A, d) and (B, A, L, L)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        scores = scores + position_bias
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = torch.matmul(F.dropout(weights, p=dropout, training=module.training), value)
    return output.transpose(1, 2).contiguous(), weights


class ViTAttention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        per_block = config.position_embedding_type in RELATIVE_POSITIONS and not config.share_relative_position
        self.relative_position = RELATIVE_POSITIONS[config.position_embedding_type](config) if per_block else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        rotation: Rotation | None,
        grid: tuple[int, int],
        output_attentions: bool,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from the first `num_queries` tokens (all by default) to all tokens."""
        batch_size, num_tokens, hidden_size = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch_size, num_tokens, 3, self.num_heads, self.head_dim)
        query, key, value = self._split(qkv, rotation)  # each (B, A, L, d)
        if self.relative_position is not None:
            position_bias = self.relative_position(grid)
        implementation = self.config._attn_implementation
        attend: Callable = eager_attention_forward
        if not output_attentions:  # only the eager form returns weights
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if position_bias is not None:
            if "flash" in str(implementation) and not output_attentions:
                raise ValueError(
                    "Flash attention does not support the bias of relative positions: load this model with "
                    'attn_implementation="sdpa" or "flex_attention".'
                )
            if "flex" in str(implementation):  # it indexes the batch dimension, too
                position_bias = position_bias.expand(batch_size, -1, -1, -1)
            kwargs["position_bias"] = position_bias.to(query.dtype)[..., :num_queries, :]
        output, weights = attend(
            self,
            query[:, :, :num_queries],
            key,
            value,
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = self.proj(output.reshape(batch_size, -1, hidden_size))
        return output, weights if output_attentions else None

    def _split(self, qkv: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, ...]:
        """Return query, key and value, each (B, A, L, d), of the projection (B, L, 3, A, d); query and key turned by the rotation."""
        if rotation is None:
            return qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotate(qkv[:, :, :2], rotation).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, qkv[:, :, 2].transpose(1, 2)


# The argument of torch's GELU, by the class of transformers' activation
GELU_APPROXIMATIONS = {type(ACT2FN["gelu"]): "none", type(ACT2FN["gelu_pytorch_tanh"]): "tanh"}


class ViTMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.fc1(hidden_states)
        if self._may_overwrite():
            hidden_states = torch.ops.aten.gelu_(hidden_states, approximate=GELU_APPROXIMATIONS[type(self.activation)])
        else:
            hidden_states = self.activation(hidden_states)
        return self.fc2(hidden_states)

    def _may_overwrite(self) -> bool:
        """Return whether GELU may overwrite the output of fc1, because no hook, wrapper or adapter can hold that output or replaces GELU.

        In place it saves 5 to 8 % of a forward pass of a ViT-S in batches of 8 on a CPU.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if type(self.fc1) is not nn.Linear or type(self.activation) not in GELU_APPROXIMATIONS:
            return False
        if "forward" in vars(self.fc1) or "forward" in vars(self.activation):  # wrapped, as adapters and offloading do
            return False
        hooks = (self.fc1._forward_hooks, self.activation._forward_pre_hooks, self.activation._forward_hooks)
        return not (any(hooks) or _has_global_hooks())


GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"swiglu": F.silu, "geglu": F.gelu}


class ViTGatedMLP(nn.Module):
    """An MLP whose hidden layer is act(gate) * up, gate and up in one projection: SwiGLU or GEGLU (arXiv 2002.05202)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gate_activation = GATES[config.mlp_type]
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.gate_activation(gate) * up)


def drop_path(hidden_states: torch.Tensor, rate: float) -> torch.Tensor:
    """Apply stochastic depth (arXiv 1603.09382): drop the branch for some images of the batch and scale up the others."""
    if rate == 0.0:
        return hidden_states
    keep = torch.empty(hidden_states.shape[0], 1, 1, dtype=hidden_states.dtype, device=hidden_states.device)
    return hidden_states * keep.bernoulli_(1 - rate).div_(1 - rate)


def drop_path_rates(config: ViTConfig) -> list[float]:
    """Return the rate of stochastic depth of each block."""
    last = config.num_hidden_layers - 1
    if config.drop_path_schedule == "constant":
        return [config.drop_path_rate] * (last + 1)
    return [config.drop_path_rate * index / max(last, 1) for index in range(last + 1)]


def draw_kept_images(batch_size: int, rate: float, device: torch.device) -> torch.Tensor:
    """Draw the images of a batch whose branch is computed: their indices, at least one."""
    return torch.randperm(batch_size, device=device)[: max(int(batch_size * (1 - rate)), 1)]


class ViTLayer(GradientCheckpointingLayer):
    """A block: attention and MLP, each a residual branch with its norm, LayerScale and stochastic depth."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.drop_path_rate = drop_path_rate
        self.drop_path_mode = config.drop_path_mode
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTGatedMLP(config) if config.mlp_type in GATES else ViTMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        scaled = config.layer_scale_init_value is not None
        self.layer_scale1 = nn.Parameter(torch.ones(config.hidden_size)) if scaled else None
        self.layer_scale2 = nn.Parameter(torch.ones(config.hidden_size)) if scaled else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        rotation: Rotation | None,
        grid: tuple[int, int],
        output_attentions: bool,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        kept = None if output_attentions else self._draw_kept_images(hidden_states)
        branch = self._enter_branch(hidden_states, self.norm1, kept)
        branch, attentions = self.attention(branch, position_bias, rotation, grid, output_attentions, num_queries, **kwargs)
        hidden_states = self._add(hidden_states[:, :num_queries], branch, self.norm1, self.layer_scale1, kept)
        kept = None if output_attentions else self._draw_kept_images(hidden_states)
        branch = self.mlp(self._enter_branch(hidden_states, self.norm2, kept))
        return self._add(hidden_states, branch, self.norm2, self.layer_scale2, kept), attentions

    def _draw_kept_images(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return the images whose next branch is computed; None computes it for all."""
        if not (self.training and self.drop_path_rate and self.drop_path_mode == "batch"):
            return None
        return draw_kept_images(len(hidden_states), self.drop_path_rate, hidden_states.device)

    def _enter_branch(self, hidden_states: torch.Tensor, norm: nn.LayerNorm, kept: torch.Tensor | None) -> torch.Tensor:
        entering = hidden_states if kept is None else hidden_states[kept]
        return norm(entering) if self.pre_norm else entering

    def _add(
        self,
        hidden_states: torch.Tensor,
        branch: torch.Tensor,
        norm: nn.LayerNorm,
        layer_scale: nn.Parameter | None,
        kept: torch.Tensor | None,
    ) -> torch.Tensor:
        if self.training:
            branch = self.dropout(branch)
        if not self.pre_norm:
            branch = norm(branch)
        if kept is not None:
            branch = branch if layer_scale is None else branch * layer_scale
            return hidden_states.index_add(0, kept, branch.to(hidden_states.dtype), alpha=len(hidden_states) / len(kept))
        if self.training:
            branch = drop_path(branch, self.drop_path_rate)
        if layer_scale is None:
            return hidden_states + branch
        return torch.addcmul(hidden_states, branch, layer_scale)  # one pass over memory instead of two


def _loses_gradients(layer: nn.Module, hidden_states: torch.Tensor) -> bool:
    """Return whether a checkpoint of a block would drop its gradients: with `use_reentrant`, where no input requires a gradient."""
    if not (layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()) or hidden_states.requires_grad:
        return False
    return any(parameter.requires_grad for parameter in layer.parameters())


# ------------------------------------------------------------------------------------------------------------------ models


@dataclass
class ViTModelOutput(BaseModelOutputWithPooling):
    """Outputs of `ViTModel`.

    last_hidden_state: (B, L, D), after the final norm where that norm acts on tokens (`norm_before_pooling`).
    pooler_output: the pooled vector of the family, (B, D), (B, 2 D) for "cls+avg", or (B, representation_size).
    hidden_states: with `output_hidden_states=True`, num_hidden_layers + 1 tensors (B, L, D): what enters the first block, then what
        leaves each block, before the final norm.
    attentions: with `output_attentions=True`, num_hidden_layers tensors (B, A, L, L).
    patch_grid: rows and columns of patches, (h, w): the last h * w tokens of a sequence, row by row. An attribute instead of an
        item, because code that splits an output by image, such as transformers' pipelines, expects one row per image in every item.
        None if an output is rebuilt from its items, as under mixed precision.
    """

    patch_grid: InitVar[tuple[int, int] | None] = None

    def __post_init__(self, patch_grid: tuple[int, int] | None) -> None:
        super().__post_init__()
        self.patch_grid = patch_grid


class ViTPreTrainedModel(PreTrainedModel):
    """Initialization, loading and saving of all models."""

    config: ViTConfig
    config_class = ViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]  # noqa: RUF012  # transformers' own form
    # Not quantized, because two input features do not fill a block of 4-bit weights; in float32 where the model is loaded in float16.
    # bitsandbytes compares names of modules, torchao names of parameters.
    _keep_in_fp32_modules = [  # noqa: RUF012
        "relative_position.fc1",
        "relative_position.fc2",
        "relative_position.fc1.weight",
        "relative_position.fc2.weight",
    ]
    _keep_in_fp32_modules_strict = ["rotary_position.periods"]  # noqa: RUF012
    _input_embed_layer = "patch_embeddings"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ViTEmbeddings):
            for parameter in (module.cls_token, module.register_tokens, module.position_embeddings):
                if parameter is not None:
                    init.trunc_normal_(parameter, std=std)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
        elif isinstance(module, ViTRelativePositionTable):
            init.trunc_normal_(module.table, std=std)
        elif isinstance(module, ViTRotaryPosition):
            init.copy_(module.periods, rotary_periods(self.config))
        elif isinstance(module, ViTLayer):
            for parameter in (module.layer_scale1, module.layer_scale2):
                if parameter is not None:
                    init.constant_(parameter, self.config.layer_scale_init_value)

    def _selected_hidden_states(self, output_hidden_states: bool | int | Sequence[int] | None) -> set[int]:
        """Return the indices of the hidden states, among num_hidden_layers + 1, that the caller or else the config asks for."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        number = self.config.num_hidden_layers + 1
        if isinstance(output_hidden_states, bool) or output_hidden_states is None:
            return set(range(number)) if output_hidden_states else set()
        indices = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
        return {index % number for index in indices if -number <= index < number}


class ViTModel(ViTPreTrainedModel):
    """The encoder, from pixels to tokens and the pooled vector. H and W can be any multiples of the patch size.

    Source: Dosovitskiy et al., arXiv 2010.11929; Caron et al., arXiv 2104.14294; Oquab et al., arXiv 2304.07193;
    Siméoni et al., arXiv 2508.10104; timm.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        shared = config.position_embedding_type in RELATIVE_POSITIONS and config.share_relative_position
        self.relative_position = RELATIVE_POSITIONS[config.position_embedding_type](config) if shared else None
        self.layers = nn.ModuleList(ViTLayer(config, drop_path_rate=rate) for rate in drop_path_rates(config))
        pooled_size = config.hidden_size * (2 if config.pooling == "cls+avg" else 1)
        self.rotary_position = ViTRotaryPosition(config) if config.position_embedding_type == "rotary" else None
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cls_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.separate_cls_norm else None
        self.representation = None if config.representation_size is None else nn.Linear(pooled_size, config.representation_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ViTModelOutput:
        """Run the encoder on images of any height and width that the patch size divides.

        Positions that were trained at another size are interpolated by the rule of the config.

        Args:
            pixel_values: (B, C, H, W), from the image processor.
            bool_masked_pos: (B, N), true where the mask token replaces a patch.
            output_hidden_states: also return all hidden states; or only those with the given indices, and None for the
                others.
            output_attentions: also return attention weights; works with every attention implementation.

        Raises:
            ValueError: wrong number of channels, or the patch size does not divide the image size.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        every_layer = range(len(self.layers))
        hidden_states, kept, attentions = self._run_blocks(
            pixel_values,
            bool_masked_pos,
            hidden_layers=self._selected_hidden_states(output_hidden_states),
            attention_layers=every_layer if output_attentions else (),
            **kwargs,
        )
        last_hidden_state = self.norm_tokens(hidden_states)
        return ViTModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self.pool(last_hidden_state),
            hidden_states=tuple(kept.get(index) for index in range(len(self.layers) + 1)) if kept else None,
            attentions=tuple(attentions.values()) if output_attentions else None,
            patch_grid=self.embeddings.patch_embeddings.grid_of(pixel_values),
        )

    def _run_blocks(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        *,
        depth: int | None = None,
        hidden_layers: Collection[int] = (),
        attention_layers: Collection[int] = (),
        num_last_tokens: int | None = None,
        keep_attention: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], dict[int, torch.Tensor]]:
        """Run the first `depth` blocks; keep the chosen hidden states (0 is the input of the first block) and attention weights.

        `keep_attention` reduces the weights of each block, because the weights of many blocks may not fit into memory.
        The last block of the model computes the first `num_last_tokens` tokens only (all by default).
        """
        grid = self.embeddings.patch_embeddings.grid_of(pixel_values)
        hidden_states = self.embeddings(pixel_values, bool_masked_pos)
        position_bias = None if self.relative_position is None else self.relative_position(grid)
        rotation = None if self.rotary_position is None else self.rotary_position(grid)
        kept = {0: hidden_states} if 0 in hidden_layers else {}
        attentions = {}
        for index, layer in enumerate(self.layers[:depth]):
            if _loses_gradients(layer, hidden_states):
                hidden_states = hidden_states.detach().requires_grad_()
            if index and self.rotary_position is not None and self.rotary_position.varies:
                rotation = self.rotary_position(grid)  # as in the original, each block has its own draw
            num_queries = num_last_tokens if index == len(self.layers) - 1 else None
            weighs = index in attention_layers
            hidden_states, weights = layer(hidden_states, position_bias, rotation, grid, weighs, num_queries, **kwargs)
            if index + 1 in hidden_layers:
                kept[index + 1] = hidden_states
            if weights is not None:
                attentions[index] = weights if keep_attention is None else keep_attention(weights)
        return hidden_states, kept, attentions

    def norm_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the sequence (B, L, D) that leaves a block, after the final norm where that norm acts on tokens."""
        if not self.config.norm_before_pooling:
            return hidden_states
        if self.cls_layernorm is None:
            return self.layernorm(hidden_states)
        prefix = self.config.num_prefix_tokens
        return torch.cat((self.cls_layernorm(hidden_states[:, :prefix]), self.layernorm(hidden_states[:, prefix:])), dim=1)

    def norm_cls(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return [CLS], (B, D), of the sequence (B, L, D) that leaves a block, after the final norm where that norm acts on tokens."""
        cls_token = hidden_states[:, 0]
        return (self.cls_layernorm or self.layernorm)(cls_token) if self.config.norm_before_pooling else cls_token

    def pool(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Return the pooled vector of a sequence (B, L, D), `pooler_output`."""
        cls_token = last_hidden_state[:, 0]
        if self.config.pooling == "cls":
            pooled = cls_token
        else:
            mean_patch = last_hidden_state[:, self.config.num_prefix_tokens :].mean(dim=1)
            pooled = mean_patch if self.config.pooling == "avg" else torch.cat((cls_token, mean_patch), dim=-1)
        if not self.config.norm_before_pooling:
            pooled = self.layernorm(pooled)
        return pooled if self.representation is None else torch.tanh(self.representation(pooled))

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return `last_hidden_state`, (B, L, D), like timm's method of this name."""
        return self(pixel_values, return_dict=True).last_hidden_state

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the pooled vector of the output of `forward_features`, like timm's method for a model without a classifier."""
        return self.pool(features)

    def cls_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the [CLS] token of `last_hidden_state`, (B, D); the last block computes this token only.

        Raises ValueError for a model without [CLS].
        """
        if not self.config.use_cls_token:
            raise ValueError("This model has no [CLS] token: use pooler_output.")
        hidden_states, _, _ = self._run_blocks(pixel_values, num_last_tokens=1)
        return self.norm_cls(hidden_states)

    def get_intermediate_layers(
        self,
        pixel_values: torch.Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[torch.Tensor, ...] | tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Return the patch tokens after the last `n` blocks, or after the blocks with the given indices, like DINOv2's method.

        Args:
            pixel_values: (B, C, H, W).
            n: number of last blocks, or indices of blocks (0 is the first, negative indices count from the last).
            reshape: return maps (B, D, h, w) instead of sequences (B, N, D).
            return_class_token: return pairs of patch tokens and [CLS] (B, D).
            norm: apply the final norm, if it acts on tokens.

        Raises:
            ValueError: a block does not exist, or there is no [CLS] to return.
        """
        num_layers = self.config.num_hidden_layers
        if return_class_token and not self.config.use_cls_token:
            raise ValueError("return_class_token=True, but this model has no [CLS] token.")
        if isinstance(n, int):
            n = range(num_layers - n, num_layers) if n <= num_layers else [-n]
        indices = self._layer_indices(n)
        _, kept, _ = self._run_blocks(pixel_values, depth=max(indices) + 1, hidden_layers=[index + 1 for index in indices])
        outputs = [kept[index + 1] for index in indices]
        if norm:
            outputs = [self.norm_tokens(output) for output in outputs]
        patches = [output[:, self.config.num_prefix_tokens :] for output in outputs]
        if reshape:
            height, width = self.embeddings.patch_embeddings.grid_of(pixel_values)
            patches = [patch.transpose(1, 2).unflatten(2, (height, width)).contiguous() for patch in patches]
        if not return_class_token:
            return tuple(patches)
        return tuple((patch, output[:, 0]) for patch, output in zip(patches, outputs, strict=True))

    def attention_maps(self, pixel_values: torch.Tensor, layers: Sequence[int] = (-1,)) -> torch.Tensor:
        """Return the attention of [CLS] to each patch, per head of the chosen blocks; other blocks stay on the fast path.

        Without [CLS], return the mean attention that each patch receives from all patches.

        Args:
            pixel_values: (B, C, H, W).
            layers: indices of blocks (0 is the first, negative indices count from the last).

        Returns:
            (B, len(layers), A, h, w); the rest to a sum of 1 is the attention to [CLS] and registers.
        """
        indices = self._layer_indices(layers)
        _, _, rows = self._run_blocks(
            pixel_values, depth=max(indices) + 1, attention_layers=indices, keep_attention=self._patch_attention
        )
        chosen = torch.stack([rows[index] for index in indices], dim=1)  # (B, layers, A, N)
        return chosen.unflatten(-1, self.embeddings.patch_embeddings.grid_of(pixel_values))

    def _patch_attention(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the attention of [CLS] to patches from weights (B, A, L, L); without [CLS], the mean over patches: (B, A, N)."""
        prefix = self.config.num_prefix_tokens
        return weights[..., 0, prefix:].clone() if self.config.use_cls_token else weights[..., prefix:, prefix:].mean(dim=-2)

    def _layer_indices(self, layers: Sequence[int]) -> list[int]:
        num_layers = self.config.num_hidden_layers
        missing = [index for index in layers if not -num_layers <= index < num_layers]
        if missing or not len(layers):
            raise ValueError(
                f"There is no block {missing or 'in an empty list'}: choose among 0 to {num_layers - 1}, or -{num_layers} to -1."
            )
        return [index % num_layers for index in layers]


def _only(selected: set[int], hidden_states: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...] | None:
    return tuple(tensor if index in selected else None for index, tensor in enumerate(hidden_states)) if selected else None


class ViTForImageClassification(ViTPreTrainedModel):
    """The encoder and a linear classifier on `pooler_output`, or on [CLS] of the last blocks and the mean patch token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = ViTModel(config)
        self.classifier = nn.Linear(config.classifier_input_size, config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Return logits (B, K) and, with `labels`, the loss of the config's `problem_type`.

        Args:
            pixel_values: (B, C, H, W).
            labels: (B,) class indices, (B, K) of 0 and 1 in any dtype for multi-label classification, or values for regression.
        """
        needed = self._selected_hidden_states(range(-self.config.classifier_cls_layers, -1))  # the last is in last_hidden_state
        selected = self._selected_hidden_states(output_hidden_states)
        outputs: ViTModelOutput = self.vit(
            pixel_values,
            output_hidden_states=sorted(needed | selected),
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.classifier_input(outputs))
        loss = None if labels is None else self.loss_function(self._targets(labels, logits), logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=_only(selected, outputs.hidden_states),
            attentions=outputs.attentions,
        )

    def _targets(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return labels in the dtype of their loss: integers are class indices only where there is one for each image."""
        if labels.is_floating_point() or labels.shape == logits.shape or self.config.problem_type == "regression":
            return labels.to(logits.dtype)
        return labels.long()

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the tokens before pooling, (B, L, D), like timm's method of this name."""
        return self.vit.forward_features(pixel_values)

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return logits (B, K), or the pooled vector (B, D) with `pre_logits`, from the output of `forward_features`: timm's method."""
        if pre_logits:
            return self.vit.pool(features)
        if self.config.classifier_cls_layers > 1:
            raise ValueError(
                "This classifier reads several blocks, but forward_head receives the last one only: call the model itself."
            )
        return self.classifier(self.classifier_input(ViTModelOutput(features, self.vit.pool(features))))

    def get_intermediate_layers(self, *args: Any, **kwargs: Any) -> tuple:
        """Call `ViTModel.get_intermediate_layers` of the encoder."""
        return self.vit.get_intermediate_layers(*args, **kwargs)

    def attention_maps(self, pixel_values: torch.Tensor, layers: Sequence[int] = (-1,)) -> torch.Tensor:
        """Call `ViTModel.attention_maps` of the encoder."""
        return self.vit.attention_maps(pixel_values, layers)

    def classifier_input(self, outputs: ViTModelOutput) -> torch.Tensor:
        """Return the input of the classifier, (B, classifier_input_size): [CLS] in order of depth, then the mean patch token."""
        if not self.config.classifier_reads_tokens:
            return outputs.pooler_output
        tokens = outputs.last_hidden_state
        features = [tokens[:, 0]]
        if self.config.classifier_cls_layers > 1:
            earlier = outputs.hidden_states[-self.config.classifier_cls_layers : -1]
            features = [self.vit.norm_cls(hidden_states) for hidden_states in earlier] + features
        if self.config.classifier_mean_patch:
            features.append(tokens[:, self.config.num_prefix_tokens :].mean(dim=1))
        return torch.cat(features, dim=-1)


class ViTForMaskedImageModeling(ViTPreTrainedModel):
    """The encoder and SimMIM's one-layer decoder (arXiv 2111.09886), which reconstructs each patch from its token."""

    def __init__(self, config: ViTConfig) -> None:
        if not config.use_mask_token:
            config = copy.copy(config)
            config.use_mask_token = True
        super().__init__(config)
        self.vit = ViTModel(config)
        patch_height, patch_width = self.vit.embeddings.patch_embeddings.patch_size
        self.decoder = nn.Conv2d(config.hidden_size, config.num_channels * patch_height * patch_width, kernel_size=1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedImageModelingOutput:
        """Return the reconstruction (B, C, H, W) and, with `bool_masked_pos` (B, N), the mean absolute error over the masked pixels."""
        outputs: ViTModelOutput = self.vit(pixel_values, bool_masked_pos, return_dict=True, **kwargs)
        height, width = self.vit.embeddings.patch_embeddings.grid_of(pixel_values)
        patch_height, patch_width = self.vit.embeddings.patch_embeddings.patch_size
        patches = outputs.last_hidden_state[:, self.config.num_prefix_tokens :]
        painted = self.decoder(patches.transpose(1, 2).unflatten(2, (height, width)))  # (B, C * ph * pw, h, w)
        painted = painted.unflatten(1, (self.config.num_channels, patch_height, patch_width))
        reconstruction = painted.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)  # (B, C, H, W)
        loss = None
        if bool_masked_pos is not None:
            mask = bool_masked_pos.reshape(-1, 1, height, width).to(reconstruction.dtype)
            mask = mask.repeat_interleave(patch_height, 2).repeat_interleave(patch_width, 3)  # (B, 1, H, W)
            error = (reconstruction - pixel_values.to(reconstruction.dtype)).abs()
            loss = (error * mask).sum() / (mask.sum() + 1e-5) / self.config.num_channels
        return MaskedImageModelingOutput(
            loss=loss, reconstruction=reconstruction, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ViTBackbone(BackboneMixin, ViTPreTrainedModel):
    """The encoder as a backbone for detection and segmentation: feature maps of the stages in `out_features`."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.vit = ViTModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """Return feature maps (B, D, h, w), or (B, L, D) with `reshape_hidden_states=False`; "stem" is the input of block 1."""
        selected = self._selected_hidden_states(output_hidden_states)
        outputs: ViTModelOutput = self.vit(
            pixel_values,
            output_hidden_states=sorted(selected | self._selected_hidden_states(self.out_indices)),
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        feature_maps = []
        for stage, hidden_states in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                hidden_states = self.vit.norm_tokens(hidden_states)
            if self.config.reshape_hidden_states:
                patches = hidden_states[:, self.config.num_prefix_tokens :].transpose(1, 2)
                hidden_states = patches.unflatten(2, outputs.patch_grid).contiguous()
            elif not self.config.return_register_tokens:
                cls_token, patches = (
                    hidden_states[:, : self.config.use_cls_token],
                    hidden_states[:, self.config.num_prefix_tokens :],
                )
                hidden_states = torch.cat((cls_token, patches), dim=1)
            feature_maps.append(hidden_states)
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=_only(selected, outputs.hidden_states),
            attentions=outputs.attentions,
        )


__all__ = [
    "ViTBackbone",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTModel",
    "ViTModelOutput",
    "ViTPreTrainedModel",
]
