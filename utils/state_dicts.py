"""Find the network in the content of a weight file: its state dict, and the prefix that wrappers put in front of its names.

The patch projection of each family, its anchor, marks a network: in `{"model": {"teacher.backbone.patch_embed.proj.weight": …}}`, the
keys "model" and the prefix "teacher.backbone." lead to one.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

import torch

from ..errors import UnsupportedCheckpointError
from .tensor_names import list_names

# The two networks of a training run, by the keys and parts of prefixes that name them: the averaged one, which authors evaluate (DINO's
# teacher, timm's model_ema, solo-learn's momentum_backbone, I-JEPA's target_encoder), and the trained one
BRANCHES = {"teacher": r"(teacher|momentum|ema|target)(_\w+)?|(?!gram_)\w+_(teacher|ema)", "student": r"student(_\w+)?|\w+_student"}
AVERAGE = "model_ema"  # next to a "teacher", which in DINOv3's distillation is another model: dinov3/train/ssl_meta_arch.py
ROOTS = ("state_dict", "model")  # of files without an encoder, such as the head of a linear evaluation
WRAPPERS = ("module.", "_orig_mod.", "backbone.")  # DistributedDataParallel, torch.compile, DINO's MultiCropWrapper
MAX_DEPTH, MAX_NETWORKS = 3, 64  # nested state dicts, and networks in them

Root = tuple[str, ...]
Tensors = dict[str, torch.Tensor]


@dataclass
class FoundStateDict:
    """The tensors of one network; `root`: the keys that lead to it; `left_out`: the other content; `warnings`: choices that were made."""

    tensors: Tensors
    root: str | None = None
    left_out: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Network:
    """A network in a file: the keys that lead to its state dict, and the prefix of its names."""

    root: Root
    prefix: str

    @property
    def path(self) -> str:
        """The keys and the prefix, joined by dots."""
        return ".".join([*self.root, self.prefix])

    @property
    def parts(self) -> list[str]:
        """The keys and the parts of the prefix."""
        return [*self.root, *(part[:-1] for part in _parts(self.prefix))]

    @property
    def branch(self) -> str | None:
        """The network of a training run that a key or a part of the prefix names, if any."""
        return next((branch for part in self.parts for branch, word in BRANCHES.items() if re.fullmatch(word, part)), None)


def find_state_dict(
    content: Any, anchors: Sequence[str], wrappers: Sequence[str] = (), *, branch: str = "teacher", prefix: str | None = None
) -> FoundStateDict:
    """Return the tensors of one network, without the prefix of their names.

    Args:
        content: the content of a weight file.
        anchors: names of which every network has one.
        wrappers: prefixes that are dropped without a warning, in addition to WRAPPERS.
        branch: the network of a training run, "teacher" (the averaged weights) or "student".
        prefix: the keys and the prefix of the network, where the file holds several.
    """
    if branch not in BRANCHES:
        raise UnsupportedCheckpointError(f'Unknown branch "{branch}"; expected {" or ".join(BRANCHES)}.')
    if not isinstance(content, Mapping):
        raise UnsupportedCheckpointError(f"The file holds a {type(content).__name__}; expected a state dict (names to tensors).")
    state_dicts = dict(_state_dicts(content, (), set()))
    networks = [
        Network(root, name.removesuffix(anchor))
        for root, tensors in state_dicts.items()
        for name in tensors
        for anchor in anchors
        if name == anchor or name.endswith((f".{anchor}", f"/{anchor}"))
    ]
    if not networks and prefix is None:
        return _without_network(content, state_dicts, (*WRAPPERS, *wrappers), branch)
    network = _choose(networks, branch, prefix)
    found = _under(network, networks, state_dicts[network.root], only=prefix is not None)
    found.left_out = _others(content, network.root) + found.left_out
    if prefix is None:
        found.warnings = [*_about_branch(network, networks, branch), *_about_prefix(network, (*WRAPPERS, *wrappers))]
    return found


def _state_dicts(content: Mapping[Any, Any], root: Root, seen: set[int]) -> Iterator[tuple[Root, Tensors]]:
    """Yield every mapping of names to tensors in nested mappings, and the keys that lead to it."""
    seen.add(id(content))
    if tensors := {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}:
        yield root, tensors
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Mapping) and len(root) < MAX_DEPTH and id(value) not in seen:
            yield from _state_dicts(value, (*root, name), seen)


def _choose(networks: Sequence[Network], branch: str, prefix: str | None) -> Network:
    """Return the network under the prefix, or of the branch; a network that no branch names is taken where no other is."""
    there = _paths(networks)
    if len(networks) > MAX_NETWORKS:
        raise UnsupportedCheckpointError(f"The file holds {len(networks)} networks ({there}): save the one you need to a file.")
    if prefix is not None:
        wanted = prefix.rstrip("./")
        chosen = [network for network in networks if wanted in (network.path.rstrip("./"), network.prefix.rstrip("./"))]
    else:
        chosen = [network for network in networks if network.branch == branch]
        chosen = [network for network in chosen if AVERAGE in network.parts] or chosen
        chosen = chosen or [network for network in networks if network.branch is None]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise UnsupportedCheckpointError(
            f'The file holds {len(chosen)} networks, under {_paths(chosen)}: name one with prefix="{chosen[0].path}".'
        )
    if prefix is not None:
        raise UnsupportedCheckpointError(f'The file has no network under prefix="{prefix}"; it has {there or "none"}.')
    other = next(name for name in BRANCHES if name != branch)
    raise UnsupportedCheckpointError(
        f'This training checkpoint has no "{branch}", only "{other}" ({there}): pass branch="{other}".'
    )


def _paths(networks: Sequence[Network]) -> str:
    return list_names([network.path or "(no prefix)" for network in networks])


def _under(network: Network, networks: Sequence[Network], tensors: Tensors, *, only: bool) -> FoundStateDict:
    """Return the tensors of a network without its prefix.

    Names outside the prefix, such as those of a classifier, belong to the network if it is the only one in its state dict.
    """
    inner = tuple(
        other.prefix
        for other in networks
        if other.root == network.root and other != network and other.prefix.startswith(network.prefix)
    )
    alone = not only and not any(other.root == network.root and other != network for other in networks)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if alone or (name.startswith(network.prefix) and not (inner and name.startswith(inner)))
    }
    bare = renamed(kept, lambda name: _without_shared(name, network.prefix))
    return FoundStateDict(bare, ".".join(network.root) or None, [name for name in tensors if name not in kept])


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    """Rename tensors; raise UnsupportedCheckpointError where two get one name."""
    names: dict[str, str] = {}
    for name in tensors:
        if (other := names.setdefault(rename(name), name)) != name:
            raise UnsupportedCheckpointError(
                f"The file holds {list_names([name])} and {list_names([other])}, so it holds two models: save the one you need to a file."
            )
    return {new: tensors[name] for new, name in names.items()}


def _without_shared(name: str, prefix: str) -> str:
    """Remove the parts that a name shares with a prefix: of "module.backbone.", a classifier has only "module."."""
    for part in _parts(prefix):
        if not name.startswith(part):
            break
        name = name.removeprefix(part)
    return name


def _others(content: Mapping[Any, Any], root: Root) -> list[str]:
    """Return the keys of a file that do not lead to the state dict under `root`, and in it the names without a tensor."""
    left_out = []
    for depth, key in enumerate(root):
        left_out += [".".join([*root[:depth], _key(other)]) for other in content if other != key]
        content = content[key]
    return left_out + [
        _key(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]


def _key(key: Any) -> str:
    return key if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _about_branch(network: Network, networks: Sequence[Network], branch: str) -> list[str]:
    """Return a warning where a network was chosen by a name that is not DINO's."""
    others = [other.path for other in networks if other != network]
    if not others or branch in network.parts:
        return []
    other = next(name for name in BRANCHES if name != branch)
    kind = "averaged" if branch == "teacher" else "trained"
    return [f'the {kind} weights are taken, {network.path}, not {list_names(others)}: for others, pass branch="{other}" or prefix=']


def _about_prefix(network: Network, wrappers: Sequence[str]) -> list[str]:
    """Return a warning where a part of the prefix is neither of a known wrapper nor of a branch."""
    known = {part for wrapper in wrappers for part in _parts(wrapper)}
    branches = [re.compile(word) for word in BRANCHES.values()]
    unknown = [
        part for part in _parts(network.prefix) if part not in known and not any(word.fullmatch(part[:-1]) for word in branches)
    ]
    return [f'the prefix "{network.prefix}" of the names is dropped'] if unknown else []


def _parts(prefix: str) -> list[str]:
    return re.findall(r"[^./]*[./]", prefix)


def _without_network(
    content: Mapping[Any, Any], state_dicts: Mapping[Root, Tensors], wrappers: Sequence[str], branch: str
) -> FoundStateDict:
    """Return the tensors of a file without an encoder: a head, or what no family recognizes."""
    roots = [(branch,), *((root,) for root in ROOTS), (), *state_dicts]
    root = next((root for root in roots if root in state_dicts), None)
    if root is None:
        raise UnsupportedCheckpointError(
            f"The file holds no tensors with names, only: {list_names([_key(key) for key in content])}."
        )
    tensors = state_dicts[root]
    while prefix := next((prefix for prefix in wrappers if any(name.startswith(prefix) for name in tensors)), None):
        tensors = renamed(tensors, methodcaller("removeprefix", prefix))
    return FoundStateDict(tensors, ".".join(root) or None, _others(content, root))
