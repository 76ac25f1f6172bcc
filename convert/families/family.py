"""A checkpoint as it was read, and a family of checkpoints: one object that holds every fact about their layout."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError, VitrailError
from ...processing.image_processing_vit import VitrailImageProcessor
from ...processing.presets import describe_preprocessing, image_processor_for
from ...utils.records import SCALARS
from ...utils.tensor_names import list_names
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
    official: whether the checkpoint is one of the catalog, so that nothing about it is assumed.
    warnings: what was left out or assumed; whatever reads the checkpoint adds to them.
    """

    tensors: Tensors
    container: str
    root: str | None = None
    left_out: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None
    preprocessor_config: dict[str, Any] | None = None
    files: tuple[Path, ...] = ()
    official: bool = False
    warnings: list[str] = field(default_factory=list)

    def shape(self, name: str, axes: int) -> torch.Size:
        """Return the shape of a tensor; raise UnsupportedCheckpointError if the checkpoint lacks it, or has other axes."""
        if name not in self.tensors:
            raise UnsupportedCheckpointError(
                f"The checkpoint has no {name}, which determines the architecture. Check that the file is complete."
            )
        shape = self.tensors[name].shape
        if len(shape) != axes or 0 in shape:
            raise UnsupportedCheckpointError(
                f"{name} has the shape {tuple(shape)}; expected {axes} axes, none of them empty. Check that the file is complete."
            )
        return shape

    def count_blocks(self, prefix: str) -> int:
        """Return the number of blocks, whose names begin with `prefix` and a number; raise UnsupportedCheckpointError for a gap."""
        number = re.compile(re.escape(prefix) + r"(\d{1,6})[./]")
        found = {int(match[1]) for name in self.tensors if (match := number.match(name))}
        count = max(found, default=-1) + 1
        if absent := [f"{prefix}{block}" for block in range(count) if block not in found]:
            raise UnsupportedCheckpointError(
                f"The checkpoint has blocks up to {prefix}{count - 1}, but no {list_names(absent)}. Use the file as it was published."
            )
        return count

    def assume_preprocessing(self, preset: str, config: ViTConfig) -> VitrailImageProcessor:
        """Return the image processor of a preset that no file of the checkpoint confirms; add a warning unless it is official."""
        image_processor = image_processor_for(config, preset)
        if not self.official:
            self.warnings.append(
                f'no file states the preprocessing: preset="{preset}" is assumed ({describe_preprocessing(image_processor)}); set preset= '
                "for another"
            )
        return image_processor


def only_head(tensors: Tensors, head_name: str | None) -> Tensors:
    """Return the classifier of a head file that holds one."""
    if head_name is not None:
        raise UnsupportedCheckpointError(
            f'head_name="{head_name}" selects one of several classifiers, but this head file holds one: leave head_name out.'
        )
    return tensors


@dataclass(frozen=True)
class DenseHead:
    """A layout of the files of a head for segmentation or depth.

    anchor: the name of a tensor by which the layout is recognized.
    rules: the table from its names to those of our model.
    configure: the fields of ViTConfig that follow from the shapes, for the fields of the encoder.
    """

    anchor: str
    rules: Sequence[Rule]
    configure: Callable[[RawCheckpoint, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One layout of checkpoints. Whatever depends on the layout asks this object.

    Reading:
        name: the value of `format=`.
        containers: the kinds of file in which the family is looked for when `format` is "auto".
        anchors: the names of the patch projection, by which a network and the prefix of its names are found in a file.
        prefixes: prefixes of wrappers that only this family has; `base_prefixes`: the prefix of the encoder's names by `model_type`.
        normalize: renames a tensor of an unusual layout as in the usual one; it must leave other families' names alone.
        recognizes: whether a checkpoint belongs to this family, from names, shapes and config.json.
        understands: whether it is a layout of this family with names that mean an unsupported feature in others.
        rules: the table from the checkpoint's names to the names of ViTModel and `classifier.*`.
        ignored: regular expressions of names that inference does not need.
        drops: names to leave out, each with the reason: a head of zeros, a pooler that was never trained.
        configure: the fields of ViTConfig; the second argument is the caller's `num_heads`.
        image_processor: the preprocessing of the original evaluation.
        assumption: the warning when no config.json confirms the family, and the file is not an official one.
        requires: what a file with the family's anchor lacks if the family does not recognize it, and the remedy.
        head_rules: rules and config fields of a separate head file for a backbone of the given width, for families with such files.
        choose_head: selects the classifier called `head_name` from a head file.
        dense_heads: layouts of separate heads for segmentation and depth.

    Writing:
        export_rules: the table to reverse when a model with this config and these tensors is exported.
        export: how the files are written; None if the family is not an export format.

    The catalog:
        catalog_format: the `format` of its rows.
        official_fields: fields of ViTConfig that follow from the family and a row's `architecture`.
    """

    name: str
    containers: tuple[str, ...]
    recognizes: Callable[[RawCheckpoint], bool]
    rules: Callable[[RawCheckpoint], Sequence[Rule]]
    ignored: tuple[str, ...]
    configure: Callable[[RawCheckpoint, int | None], dict[str, Any]]
    image_processor: Callable[[RawCheckpoint, ViTConfig], VitrailImageProcessor]
    anchors: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    base_prefixes: Mapping[str, str] = field(default_factory=dict)
    normalize: Callable[[str], str] = lambda name: name
    drops: Callable[[RawCheckpoint], dict[str, str]] = lambda raw: {}
    understands: Callable[[RawCheckpoint], bool] = lambda raw: False
    assumption: Callable[[RawCheckpoint], str | None] = lambda raw: None
    requires: str | None = None
    head_rules: Callable[[RawCheckpoint, int], tuple[Sequence[Rule], dict[str, Any]]] | None = None
    choose_head: Callable[[Tensors, str | None], Tensors] = only_head
    dense_heads: Sequence[DenseHead] = ()
    export_rules: Callable[[ViTConfig, Tensors], Sequence[Rule]] = lambda config, tensors: ()
    export: Export | None = None
    catalog_format: str | None = None
    official_fields: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda architecture: {}


# What code raises that computes with the values of a JSON file, where they have another type or size than expected
_ODD_VALUES = (ArithmeticError, AttributeError, LookupError, RecursionError, StrictDataclassError, TypeError, ValueError)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise UnsupportedCheckpointError where the values that a file contains make no valid object; `what` names the object."""
    try:
        yield
    except VitrailError:
        raise
    except _ODD_VALUES as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        raise UnsupportedCheckpointError(f"The checkpoint does not describe a valid {what}: {cause}") from error


def setting(content: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """Return a value of a JSON file, or the default for null; raise UnsupportedCheckpointError for a value of another type."""
    value = content.get(name)
    if value is None:
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_JSON_NAMES[one] for one in kinds)
        raise UnsupportedCheckpointError(f'config.json has "{name}": {str(value)[:80]}; expected {expected}. Correct the file.')
    return value


_JSON_NAMES = SCALARS | {dict: "an object", list: "a list"}


def make_config(fields: dict[str, Any]) -> ViTConfig:
    """Return a config; raise UnsupportedCheckpointError where the fields have wrong values or contradict each other."""
    with reading("model"):
        return ViTConfig(**fields)
