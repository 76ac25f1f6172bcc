"""A checkpoint as it was read, and a family of checkpoints: one object that holds every fact about their layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...processing.image_processing_vit import VitrailImageProcessor
from .formats import Export
from .rules import Rule

Tensors = Mapping[str, torch.Tensor]


@dataclass
class RawCheckpoint:
    """A checkpoint as it was read.

    tensors: the state dict, without the prefixes of wrappers.
    container: "torch", "npz" or "safetensors".
    root: the key of the file that held the state dict.
    left_out: the other keys of the file.
    config, preprocessor_config: config.json and preprocessor_config.json of the same folder.
    files: the files that hold the tensors; several for a sharded checkpoint.
    """

    tensors: Tensors
    container: str
    root: str | None = None
    left_out: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None
    preprocessor_config: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor; raise UnsupportedCheckpointError if the checkpoint lacks it."""
        if name not in self.tensors:
            raise UnsupportedCheckpointError(
                f"The checkpoint has no {name}, which determines the architecture. Check that the file is complete."
            )
        return self.tensors[name].shape

    def count_blocks(self, pattern: str) -> int:
        """Return the number of blocks, which are numbered from 0 without a gap."""
        depth = 0
        while pattern.format(depth) in self.tensors:
            depth += 1
        return depth


def only_head(tensors: Tensors, head_name: str | None) -> Tensors:
    """Return the classifier of a head file that holds one."""
    if head_name is not None:
        raise UnsupportedCheckpointError(
            f'head_name="{head_name}" selects one of several classifiers, but this head file holds one: leave head_name out.'
        )
    return tensors


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints. Whatever depends on the layout asks this object.

    Reading:
        name: the value of `format=`.
        containers: the kinds of file in which the family is looked for when `format` is "auto".
        prefixes: prefixes of wrappers that only this family has; `base_prefixes`: the prefix of the encoder's names by `model_type`.
        normalize: renames tensors of an unusual layout to the usual one; it must leave other families' names alone.
        recognizes: whether a checkpoint belongs to this family, from names, shapes and config.json.
        rules: the table from the checkpoint's names to the names of ViTModel and `classifier.*`.
        ignored: regular expressions of names that inference does not need.
        drops: names to leave out, each with the reason: a head of zeros, a pooler that was never trained.
        configure: the fields of ViTConfig; the second argument is the caller's `num_heads`.
        image_processor: the preprocessing of the original evaluation.
        assumption: the warning when no config.json confirms the family.
        head_rules: rules and config fields of a separate head file for a backbone of the given width, for families with such files.
        choose_head: selects the classifier called `head_name` from a head file.

    Writing:
        export_rules: the table to reverse when a model with this config is exported.
        export: how the files are written; None if the family is not an export format.

    The catalog:
        catalog_format: the `format` of its rows.
        official_fields: fields of ViTConfig that follow from the family and a row's `architecture`.
    """

    name: str
    containers: tuple[str, ...]
    recognizes: Callable[[RawCheckpoint], bool]
    rules: Callable[[RawCheckpoint], Sequence[Rule]]
    export_rules: Callable[[ViTConfig], Sequence[Rule]]
    ignored: tuple[str, ...]
    configure: Callable[[RawCheckpoint, int | None], dict[str, Any]]
    image_processor: Callable[[RawCheckpoint, ViTConfig], VitrailImageProcessor]
    prefixes: tuple[str, ...] = ()
    base_prefixes: Mapping[str, str] = field(default_factory=dict)
    normalize: Callable[[Tensors], Tensors] = lambda tensors: tensors
    drops: Callable[[RawCheckpoint], dict[str, str]] = lambda raw: {}
    assumption: str | None = None
    head_rules: Callable[[RawCheckpoint, int], tuple[Sequence[Rule], dict[str, Any]]] | None = None
    choose_head: Callable[[Tensors, str | None], Tensors] = only_head
    export: Export | None = None
    catalog_format: str | None = None
    official_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda architecture: {}


def make_config(fields: dict[str, Any]) -> ViTConfig:
    """Return a config; raise UnsupportedCheckpointError where the fields contradict each other."""
    try:
        return ViTConfig(**fields)
    except StrictDataclassError as error:
        raise UnsupportedCheckpointError(f"The checkpoint does not describe a valid model: {error.__cause__ or error}") from error
