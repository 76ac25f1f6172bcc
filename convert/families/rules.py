"""Conversion as data: a family is a table of rules, and every rule can be reversed.

A rule renames one or several tensors of a checkpoint, and may reshape them on the way, into tensors of our model. Loading applies a
table, export applies the same table reversed; neither direction is written twice. `{name}` in a pattern stands for a number.

    Rule("blocks.{layer}.mlp.fc1.weight", "layers.{layer}.mlp.fc1.weight")
    Rule(("q/kernel", "k/kernel", "v/kernel"), "qkv.weight", Transpose(), Concatenate())
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch

from ...errors import ConversionError

Tensors = list[torch.Tensor]


# ------------------------------------------------------------------------------------------------------------ operations


class Operation(Protocol):
    """A step from the tensors of a checkpoint towards ours, which knows the way back."""

    def apply(self, tensors: Tensors) -> Tensors: ...

    @property
    def inverse(self) -> "Operation": ...


@dataclass(frozen=True)
class Concatenate:
    """Several equal tensors become one, one after the other along the first axis."""

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
    """Features a0 b0 a1 b1 … on the last axis become a0 a1 … b0 b1 …."""

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
    """Linear layers of flax keep (in, out), those of PyTorch (out, in)."""

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.t() for tensor in tensors]

    @property
    def inverse(self) -> "Transpose":
        return self


@dataclass(frozen=True)
class Permute:
    """The axes in another order."""

    axes: tuple[int, ...]

    def apply(self, tensors: Tensors) -> Tensors:
        return [tensor.permute(self.axes) for tensor in tensors]

    @property
    def inverse(self) -> "Permute":
        return Permute(tuple(self.axes.index(axis) for axis in range(len(self.axes))))


@dataclass(frozen=True)
class FlattenHeads:
    """The axes (heads, width of a head), of which the first is `axis`, become one."""

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
    """A first axis of length 1 is added."""

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
        """The same rule from our model to the checkpoint."""
        return Rule(self.targets, self.sources, *(operation.inverse for operation in reversed(self.operations)))

    def bindings(self, names: Collection[str]) -> Iterator[dict[str, str]]:
        """The numbers for which the first source is among `names`."""
        literals_and_fields = re.split(r"\{(\w+)\}", self.sources[0])
        if len(literals_and_fields) == 1:
            return iter([{}] if self.sources[0] in names else [])
        pattern = "".join(f"(?P<{part}>\\d+)" if index % 2 else re.escape(part) for index, part in enumerate(literals_and_fields))
        expression = re.compile(pattern)
        return (match.groupdict() for name in names if (match := expression.fullmatch(name)))


@dataclass
class Coverage:
    """What became of the names of a checkpoint and of the parameters of the model."""

    converted: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def raise_unless_complete(self, source: str) -> None:
        """Raises ConversionError, with the names grouped, unless every name found its place."""
        problems = [
            f"{len(names)} {what}: {', '.join(group_names(names))}"
            for what, names in (
                ("names of the file have no place in the model", self.unexpected),
                ("parameters of the model are not in the file", self.missing),
                ("tensors have another shape than the model's parameter", self.mismatched),
            )
            if names
        ]
        if problems:
            raise ConversionError(
                f"{source} cannot be converted: "
                + "; ".join(problems)
                + ". Nothing is filled in at random: use the file as it was "
                "published, or give the file that holds the rest."
            )

    def to_dict(self) -> dict:
        """What conversion.json keeps."""
        return {"converted": len(self.converted), "ignored": group_names(self.ignored)}


def convert_tensors(
    tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], ignored: Sequence[str] = ()
) -> tuple[dict[str, torch.Tensor], Coverage]:
    """Applies a table of rules; every name is consumed once, stands on the ignore list, or is reported as unexpected.

    Args:
        tensors: the state dict of one side.
        rules: the family's table, or its rules reversed.
        ignored: regular expressions of names that carry nothing for inference.

    Returns:
        The state dict of the other side, and the coverage (`missing` and `mismatched` are for who knows the model).
    """
    converted: dict[str, torch.Tensor] = {}
    coverage = Coverage()
    used: set[str] = set()
    for rule in rules:
        for numbers in rule.bindings([name for name in tensors if name not in used]):
            sources = [source.format(**numbers) for source in rule.sources]
            if absent := [name for name in sources if name not in tensors or name in used]:
                coverage.missing.extend(absent)
                continue
            results = [tensors[name] for name in sources]
            for operation in rule.operations:
                results = operation.apply(results)
            converted.update(zip((target.format(**numbers) for target in rule.targets), results, strict=True))
            used.update(sources)
    for name in tensors:
        if name in used:
            coverage.converted.append(name)
        elif any(re.fullmatch(pattern, name) for pattern in ignored):
            coverage.ignored.append(name)
        else:
            coverage.unexpected.append(name)
    return converted, coverage


def reverse(rules: Sequence[Rule]) -> list[Rule]:
    """The table that leads back."""
    return [rule.reversed for rule in rules]


# ----------------------------------------------------------------------------------------------------------------- names


def group_names(names: Sequence[str]) -> list[str]:
    """Names that differ in numbers only become one: `blocks.{0..11}.norm1.weight`."""
    groups: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for name in names:
        parts = re.split(r"(?<=[._/])(\d+)(?=[._/]|$)", name)
        groups[tuple(parts[::2])].append([int(number) for number in parts[1::2]])
    grouped = []
    for literals, numbers in groups.items():
        columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
        whole = len(numbers) == prod(map(len, columns))  # every combination is there, so that one pattern tells them all
        for row in [columns] if whole else [[[number] for number in one] for one in numbers]:
            grouped.append(
                literals[0] + "".join(_range(column) + literal for column, literal in zip(row, literals[1:], strict=True))
            )
    return grouped


def _range(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"
