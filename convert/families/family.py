"""What a family of checkpoints has to say about itself, and what the plain PyTorch layouts have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...processing.image_processing_vit import VitrailImageProcessor
from .rules import Rule

PUBLISHED_HEAD_WIDTH = 64  # of nearly every published ViT
OTHER_HEAD_WIDTHS = {1152: 72, 1280: 80, 1408: 88, 1664: 104}  # SO400M, ViT-H, ViT-g and ViT-G: 16 heads each (arXiv 2106.04560)

# DINO's names, which DINOv2 and timm share
VIT_RULES = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
    Rule("patch_embed.proj.bias", "embeddings.patch_embeddings.projection.bias"),
    Rule("blocks.{layer}.norm1.weight", "layers.{layer}.norm1.weight"),
    Rule("blocks.{layer}.norm1.bias", "layers.{layer}.norm1.bias"),
    Rule("blocks.{layer}.attn.qkv.weight", "layers.{layer}.attention.qkv.weight"),
    Rule("blocks.{layer}.attn.qkv.bias", "layers.{layer}.attention.qkv.bias"),
    Rule("blocks.{layer}.attn.proj.weight", "layers.{layer}.attention.proj.weight"),
    Rule("blocks.{layer}.attn.proj.bias", "layers.{layer}.attention.proj.bias"),
    Rule("blocks.{layer}.norm2.weight", "layers.{layer}.norm2.weight"),
    Rule("blocks.{layer}.norm2.bias", "layers.{layer}.norm2.bias"),
    Rule("blocks.{layer}.mlp.fc1.weight", "layers.{layer}.mlp.fc1.weight"),
    Rule("blocks.{layer}.mlp.fc1.bias", "layers.{layer}.mlp.fc1.bias"),
    Rule("blocks.{layer}.mlp.fc2.weight", "layers.{layer}.mlp.fc2.weight"),
    Rule("blocks.{layer}.mlp.fc2.bias", "layers.{layer}.mlp.fc2.bias"),
    Rule("norm.weight", "layernorm.weight"),
    Rule("norm.bias", "layernorm.bias"),
)
LAYER_SCALE_RULES = (
    Rule("blocks.{layer}.ls1.gamma", "layers.{layer}.layer_scale1"),
    Rule("blocks.{layer}.ls2.gamma", "layers.{layer}.layer_scale2"),
)


@dataclass
class RawCheckpoint:
    """A checkpoint as it was found.

    tensors: the state dict, by names without the prefixes of wrappers.
    container: "torch", "npz" or "safetensors".
    root: the key of the file under which the state dict stood.
    left_out: what else the file holds, which is no weight of the model.
    config, preprocessor_config: config.json and preprocessor_config.json that lie beside the weights.
    files: the files that hold the tensors; several, where the checkpoint is sharded.
    """

    tensors: Mapping[str, torch.Tensor]
    container: str
    root: str | None = None
    left_out: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None
    preprocessor_config: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()

    def shape(self, name: str) -> torch.Size:
        """The shape of a tensor; a name that is absent is the user's to mend."""
        if name not in self.tensors:
            raise UnsupportedCheckpointError(
                f"The checkpoint has no {name}, without which its architecture cannot be told: is it whole?"
            )
        return self.tensors[name].shape

    def count_blocks(self, pattern: str) -> int:
        """How many blocks there are, numbered from 0 without a gap."""
        depth = 0
        while pattern.format(depth) in self.tensors:
            depth += 1
        return depth


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints, as data.

    name: what `format=` calls it.
    containers: in which kinds of file it is looked for when nobody names it.
    recognizes: whether a checkpoint is of this family, by its names and shapes and the config.json beside it.
    rules: the table from the checkpoint's names to those of ViTModel, and `classifier.*`.
    export_rules: the table to reverse when a model of this config is written in the family's layout.
    ignored: regular expressions of names that carry nothing for inference.
    configure: the fields of ViTConfig; `num_heads` where the caller gave it.
    image_processor: as the original evaluation prepared images.
    head_rules: table and config fields of a separate head file for a backbone of the given width, where the family has such files.
    drops: names to leave out, with the reason for people: a head of zeros, a pooler that was never trained.
    """

    name: str
    containers: tuple[str, ...]
    recognizes: Callable[[RawCheckpoint], bool]
    rules: Callable[[RawCheckpoint], Sequence[Rule]]
    export_rules: Callable[[ViTConfig], Sequence[Rule]]
    ignored: tuple[str, ...]
    configure: Callable[[RawCheckpoint, int | None], dict[str, Any]]
    image_processor: Callable[[RawCheckpoint, ViTConfig], VitrailImageProcessor]
    head_rules: Callable[[RawCheckpoint, int], tuple[Sequence[Rule], dict[str, Any]]] | None = None
    drops: Callable[[RawCheckpoint], dict[str, str]] = lambda raw: {}


def make_config(fields: dict[str, Any]) -> ViTConfig:
    """A config of the fields that a checkpoint, or the caller, gave.

    Raises:
        UnsupportedCheckpointError: they contradict each other.
    """
    try:
        return ViTConfig(**fields)
    except StrictDataclassError as error:
        raise UnsupportedCheckpointError(f"No model can be made of this: {error.__cause__ or error}") from error


def attention_heads(hidden_size: int, num_heads: int | None) -> int:
    """Number of heads: it is written in no plain state dict, but published ones are 64 wide, or another width that goes with the size."""
    if num_heads is not None:
        return num_heads
    head_width = OTHER_HEAD_WIDTHS.get(hidden_size, PUBLISHED_HEAD_WIDTH)
    if hidden_size % head_width:
        raise UnsupportedCheckpointError(
            f"The number of attention heads cannot be told from the shapes: the width {hidden_size} is not a multiple of "
            f"{head_width}. Give it with num_heads= (at the command line: --num-heads)."
        )
    return hidden_size // head_width


def square_grid(num_patches: int, name: str) -> int:
    """Side of the square grid of patches that a position embedding was made for."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise UnsupportedCheckpointError(
            f"{name} holds positions of {num_patches} patches, which are no square, so that their rows and columns cannot be told. "
            "The published checkpoints are all square: is this one of them?"
        )
    return side


def plain_vit_fields(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """The fields of ViTConfig that the shapes of DINO's, DINOv2's and timm's layout tell; the originals' epsilon is 1e-6."""
    hidden_size, num_channels, *patch_size = raw.shape("patch_embed.proj.weight")
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": raw.count_blocks("blocks.{}.norm1.weight"),
        "num_attention_heads": attention_heads(hidden_size, num_heads),
        "patch_size": tuple(patch_size),
        "num_channels": num_channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in raw.tensors,
        "layer_norm_eps": 1e-6,
    }


def linear_head(
    raw: RawCheckpoint,
    hidden_size: int,
    prefix: str,
    fields_by_width: Mapping[int, dict[str, Any]],
    rules: Callable[[int], Sequence[Rule]],
) -> tuple[Sequence[Rule], dict[str, Any]]:
    """Chooses what a linear classifier reads by its width in units of the backbone's."""
    weight = raw.tensors.get(f"{prefix}weight")
    if weight is None or weight.shape[-1] % hidden_size or weight.shape[-1] // hidden_size not in fields_by_width:
        found = f"{prefix}weight of shape {tuple(weight.shape)}" if weight is not None else ", ".join(list(raw.tensors)[:5])
        raise UnsupportedCheckpointError(
            f"The head file holds {found}, but a linear head for this backbone has {prefix}weight of shape (classes, n * {hidden_size}), n "
            f"one of {', '.join(map(str, fields_by_width))}: take the head that was published with the backbone."
        )
    parts = weight.shape[-1] // hidden_size
    return rules(parts), fields_by_width[parts]
