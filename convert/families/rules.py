"""Conversion as data: the layout of a family is a table of rules, and every rule has an inverse.

A rule maps one or more tensors of a checkpoint to tensors of our model: it renames them and may reshape them. Loading applies a table;
export applies the same table in reverse. `{name}` in a pattern stands for a number.

    Rule("blocks.{layer}.mlp.fc1.weight", "layers.{layer}.mlp.fc1.weight")
    Rule(("q/kernel", "k/kernel", "v/kernel"), "qkv.weight", Transpose(), Concatenate())
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ...errors import ConversionError, UnsupportedCheckpointError
from ...utils.tensor_names import group_names, list_names, literals_of

Tensors = list[torch.Tensor]
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# ------------------------------------------------------------------------------------------------------------ operations


class Operation(Protocol):
    """A step from the tensors of a checkpoint to ours, with an inverse."""

    def apply(self, tensors: Tensors) -> Tensors: ...

    @property
    def inverse(self) -> "Operation": ...


@dataclass(frozen=True)
class Concatenate:
    """Concatenate tensors of equal shape along the first axis."""

    parts: int

    def apply(self, tensors: Tensors) -> Tensors:
        return [torch.cat(tensors)]

    @property
    def inverse(self) -> "Split":
        return Split(self.parts)


@dataclass(frozen=True)
class Split:
    """The inverse of `Concatenate`."""

    parts: int

    def apply(self, tensors: Tensors) -> Tensors:
        return list(tensors[0].chunk(self.parts))

    @property
    def inverse(self) -> Concatenate:
        return Concatenate(self.parts)


@dataclass(frozen=True)
class Deinterleave:
    """Reorder features a0 b0 a1 b1 … on the last axis to a0 a1 … b0 b1 …."""

    parts: int = 2

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.unflatten(-1, (-1, self.parts)).transpose(-1, -2).flatten(-2) for tensor in tensors]

    @property
    def inverse(self) -> "Interleave":
        return Interleave(self.parts)


@dataclass(frozen=True)
class Interleave:
    """The inverse of `Deinterleave`."""

    parts: int = 2

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.unflatten(-1, (self.parts, -1)).transpose(-1, -2).flatten(-2) for tensor in tensors]

    @property
    def inverse(self) -> Deinterleave:
        return Deinterleave(self.parts)


@dataclass(frozen=True)
class Transpose:
    """Transpose a linear layer: (in, out) in flax, (out, in) in PyTorch."""

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.t() for tensor in tensors]

    @property
    def inverse(self) -> "Transpose":
        return self


@dataclass(frozen=True)
class Permute:
    """Permute the axes."""

    axes: tuple[int, ...]

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.permute(self.axes) for tensor in tensors]

    @property
    def inverse(self) -> "Permute":
        return Permute(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True)
class FlattenHeads:
    """Flatten the axes (heads, head width), which begin at `axis`, into one."""

    num_heads: int
    axis: int

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.flatten(self.axis, self.axis + 1) for tensor in tensors]

    @property
    def inverse(self) -> "UnflattenHeads":
        return UnflattenHeads(self.num_heads, self.axis)


@dataclass(frozen=True)
class UnflattenHeads:
    """The inverse of `FlattenHeads`."""

    num_heads: int
    axis: int

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.unflatten(self.axis, (self.num_heads, -1)) for tensor in tensors]

    @property
    def inverse(self) -> FlattenHeads:
        return FlattenHeads(self.num_heads, self.axis)


@dataclass(frozen=True)
class Unsqueeze:
    """Add a first axis of length 1."""

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.unsqueeze(0) for tensor in tensors]

    @property
    def inverse(self) -> "Squeeze":
        return Squeeze()


@dataclass(frozen=True)
class Squeeze:
    """The inverse of `Unsqueeze`."""

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.squeeze(0) for tensor in tensors]

    @property
    def inverse(self) -> Unsqueeze:
        return Unsqueeze()


@dataclass(frozen=True)
class Mask:
    """Multiply the bias of query, key and value by its mask, the second tensor (DINOv3's `mask_k_bias`).

    In reverse, the mask is that of the original's initialization: 1, and 0 for the key, unless the bias of the key is not 0.
    """

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensors[0] * tensors[1]]

    @property
    def inverse(self) -> "Unmask":
        return Unmask()


@dataclass(frozen=True)
class Unmask:
    """The inverse of `Mask`."""

    def apply(self, tensors: Tensors) -> Tensors:
        (bias,) = tensors
        mask = torch.ones_like(bias)
        mask.chunk(3)[1].fill_(float(bias.chunk(3)[1].any()))
        return [bias, mask]

    @property
    def inverse(self) -> Mask:
        return Mask()


@dataclass(frozen=True)
class InsertKey:
    """Insert the bias of the key, of zeros, between those of query and value."""

    def apply(self, tensors: Tensors) -> Tensors:
        query, value = tensors
        return [query, torch.zeros_like(query), value]

    @property
    def inverse(self) -> "RemoveKey":
        return RemoveKey()


@dataclass(frozen=True)
class RemoveKey:
    """The inverse of `InsertKey`, for a bias of the key that is 0."""

    def apply(self, tensors: Tensors) -> Tensors:
        query, key, value = tensors
        if key.any():
            raise ValueError("the bias of the key is not 0")
        return [query, value]

    @property
    def inverse(self) -> InsertKey:
        return InsertKey()


@dataclass(frozen=True)
class AddRegisterPositions:
    """Add the positions of registers, which follow `before` others, to the registers: (registers, positions). In reverse they are 0."""

    before: int

    def apply(self, tensors: Tensors) -> Tensors:
        registers, positions = tensors
        first, own, patches = positions.tensor_split((self.before, self.before + registers.shape[1]), dim=1)
        return [registers + own, torch.cat((first, patches), dim=1)]

    @property
    def inverse(self) -> "InsertRegisterPositions":
        return InsertRegisterPositions(self.before)


@dataclass(frozen=True)
class InsertRegisterPositions:
    """The inverse of `AddRegisterPositions`."""

    before: int

    def apply(self, tensors: Tensors) -> Tensors:
        registers, positions = tensors
        first, patches = positions.tensor_split((self.before,), dim=1)
        return [registers, torch.cat((first, torch.zeros_like(registers), patches), dim=1)]

    @property
    def inverse(self) -> AddRegisterPositions:
        return AddRegisterPositions(self.before)


# ----------------------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Rule:
    """`sources` of a checkpoint become `targets` of our model by `operations`, applied in order to the list of tensors."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    operations: tuple[Operation, ...]

    def __init__(self, sources: str | Sequence[str], targets: str | Sequence[str], *operations: Operation) -> None:
        object.__setattr__(self, "sources", (sources,) if isinstance(sources, str) else tuple(sources))
        object.__setattr__(self, "targets", (targets,) if isinstance(targets, str) else tuple(targets))
        object.__setattr__(self, "operations", operations)

    @property
    def reversed(self) -> "Rule":
        """The rule from our model to the checkpoint."""
        return Rule(self.targets, self.sources, *(operation.inverse for operation in reversed(self.operations)))

    def apply(self, tensors: Tensors) -> Tensors:
        """Apply the operations."""
        for operation in self.operations:
            tensors = operation.apply(tensors)
        return tensors

    @property
    def literals(self) -> tuple[str, ...]:
        """The first source as `literals_of` returns it for the names that the rule may apply to."""
        return literals_of(re.sub(r"\{\w+\}", "0", self.sources[0]))

    def bindings(self, names: Collection[str]) -> Iterator[dict[str, str]]:
        """Yield the numbers for which `names` contain the first source."""
        literals_and_fields = re.split(r"\{(\w+)\}", self.sources[0])
        if len(literals_and_fields) == 1:
            return iter([{}] if self.sources[0] in names else [])
        pattern = "".join(f"(?P<{item}>\\d+)" if index % 2 else re.escape(item) for index, item in enumerate(literals_and_fields))
        expression = re.compile(pattern)
        return (match.groupdict() for name in names if (match := expression.fullmatch(name)))


@dataclass
class Coverage:
    """The fate of the keys of a checkpoint and the parameters of the model."""

    converted: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def raise_unless_complete(self, source: str) -> None:
        """Raise ConversionError, with the names grouped, unless every key maps to a parameter and every parameter is filled."""
        problems = [
            f"{len(names)} {kind}: {list_names(names)}"
            for kind, names in (
                ("unexpected keys", self.unexpected),
                ("missing keys", self.missing),
                ("tensors with another shape than the parameter", self.mismatched),
            )
            if names
        ]
        if problems:
            raise ConversionError(
                f"{source} cannot be converted: {'; '.join(problems)}. Use the file as it was published; parameters are never "
                "initialized at random."
            )

    def to_dict(self) -> dict:
        """Return the coverage for conversion.json."""
        return {"converted": len(self.converted), "ignored": group_names(self.ignored)}


def convert_tensors(
    tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], ignored: Sequence[str] = ()
) -> tuple[dict[str, torch.Tensor], Coverage]:
    """Apply a table of rules; every key is used once, ignored, or reported as unexpected.

    Args:
        tensors: the state dict to convert.
        rules: the family's table, or the table in reverse.
        ignored: regular expressions of names that inference does not need.

    Returns:
        The converted state dict, and the coverage; the caller, which has the model, completes `missing` and `mismatched`.
    """
    converted: dict[str, torch.Tensor] = {}
    coverage = Coverage()
    used: set[str] = set()
    alike: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)  # so that a rule does not read every name
    for name in tensors:
        alike[literals_of(name)][name] = None
    for rule in rules:
        for numbers in rule.bindings(alike.get(rule.literals, {})):
            sources = [source.format(**numbers) for source in rule.sources]
            if sources[0] in used:
                continue
            if absent := [name for name in sources if name not in tensors or name in used]:
                coverage.missing.extend(absent)
                continue
            for name in sources:
                _check_floating(name, tensors[name])
            targets = [target.format(**numbers) for target in rule.targets]
            try:
                converted.update(zip(targets, rule.apply([tensors[name] for name in sources]), strict=True))
            except (IndexError, RuntimeError, ValueError) as error:  # what torch raises for tensors of another shape
                shapes = ", ".join(str(tuple(tensors[name].shape)) for name in sources)
                raise ConversionError(
                    f"{list_names(sources)} of shape {shapes} cannot become {list_names(targets)}: the shapes are not those of the "
                    "published layout. Use the file as it was published."
                ) from error
            used.update(sources)
    for name in tensors:
        if name in used:
            coverage.converted.append(name)
        elif any(re.fullmatch(pattern, name) for pattern in ignored):
            coverage.ignored.append(name)
        else:
            coverage.unexpected.append(name)
    return converted, coverage


def _check_floating(name: str, tensor: torch.Tensor) -> None:
    """Raise UnsupportedCheckpointError unless a weight is stored as numbers: integers and float8 need a scale, which is elsewhere."""
    if tensor.dtype not in FLOATS:
        raise UnsupportedCheckpointError(
            f"{name} is {tensor.dtype}; expected floating point of 16, 32 or 64 bits. If the checkpoint is quantized, use the original one."
        )


def reverse(rules: Sequence[Rule]) -> list[Rule]:
    """Return the table in reverse, from our model to the checkpoint."""
    return [rule.reversed for rule in rules]
