"""Find the state dict in a file and the family of a checkpoint: from names and shapes, never from the file's name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UnsupportedCheckpointError
from ..utils.atomic import read_json
from ..utils.weight_files import WEIGHT_FILES, find_weights, read_checkpoint
from .families.family import Family, RawCheckpoint
from .families.registry import FAMILIES
from .families.rules import group_names

BRANCHES = ("teacher", "student")
ROOTS = ("state_dict", "model")
# Prefixes of DistributedDataParallel, torch.compile and DINO's wrappers, in addition to the families' own
PREFIXES = ("module.", "_orig_mod.", "backbone.", *(prefix for family in FAMILIES for prefix in family.prefixes))

# Features that the model does not support, by their names in a checkpoint, each with the remedy
UNSUPPORTED = (
    (
        r"(.*\.)?(dist|distillation)_token",
        "a distillation token (DeiT)",
        "use the checkpoint trained without distillation",
    ),
    (
        r"(.*\.)?(norm_pre|pre_layrnorm|pre_layernorm|ln_pre)\..*",
        "a norm before the first block (CLIP)",
        "use transformers or timm",
    ),
    (r".*\.attn\.[qk]_norm\..*|.*\.attention\.[qk]_norm\..*", "norms of queries and keys", "use timm"),
    (r"(.*\.)?attn_pool\..*|.*MAPHead_0/.*", "attention pooling", "use a checkpoint that pools [CLS] or the mean"),
    (r"patch_embed\.backbone\..*|(conv_root|block\d+|root_block)/.*", "a hybrid stem (ResNet)", "use a checkpoint of a plain ViT"),
    (r"(.*\.)?rope(_embed)?\..*|.*\.periods", "rotary positions (DINOv3, EVA-02)", "use transformers or timm"),
    (
        r".*(_fsdp_wrapped_module|flat_param).*",
        "one shard of an FSDP run",
        "use the teacher_checkpoint.pth that the run writes when it evaluates",
    ),
    (r".*\.gamma_[12]|.*\.lambda_[qk]\d", "LayerScale or attention of another kind (CaiT, differential attention)", "use timm"),
    (r"(.*\.)?relative_attention_bias.*|.*\.[qv]_bias", "BEiT's attention", "use transformers or timm"),
)


def open_checkpoint(path: Path, *, branch: str = "teacher") -> RawCheckpoint:
    """Read a weight file, or a folder in the Hub's layout, and find the state dict in it.

    Args:
        path: the file or folder.
        branch: the network of a full training checkpoint, "teacher" or "student".

    Raises:
        VitrailError: the file cannot be read, holds no state dict, or lacks the branch.
    """
    folder = path if path.is_dir() else path.parent if path.name in WEIGHT_FILES else None
    checkpoint = read_checkpoint(find_weights(path) if path.is_dir() else path)
    tensors, root, left_out = find_state_dict(checkpoint.content, branch=branch)
    config = _read_json(folder, "config.json")
    preprocessor_config = _read_json(folder, "preprocessor_config.json")
    model_type = (config or {}).get("model_type", "")
    base_prefixes = [family.base_prefixes[model_type] for family in FAMILIES if model_type in family.base_prefixes]
    named: Mapping[str, torch.Tensor] = _strip_prefixes(tensors, (*PREFIXES, *base_prefixes))
    for family in FAMILIES:
        named = family.normalize(named)
    return RawCheckpoint(named, checkpoint.container, root, left_out, config, preprocessor_config, checkpoint.files)


def _read_json(folder: Path | None, name: str) -> dict[str, Any] | None:
    return read_json(folder / name) if folder is not None and (folder / name).is_file() else None


def find_state_dict(content: Any, *, branch: str = "teacher") -> tuple[dict[str, torch.Tensor], str | None, list[str]]:
    """Return the tensors of `{"teacher": …}`, `{"state_dict": …}` or a plain state dict, their key, and the other keys."""
    if branch not in BRANCHES:
        raise UnsupportedCheckpointError(f'Unknown branch "{branch}"; expected {" or ".join(BRANCHES)}.')
    if not isinstance(content, Mapping):
        raise UnsupportedCheckpointError(f"The file holds a {type(content).__name__}; expected a state dict (names to tensors).")
    if any(name in content for name in BRANCHES):
        root: str | None = branch
        if root not in content:
            there = next(name for name in BRANCHES if name in content)
            raise UnsupportedCheckpointError(f'This training checkpoint has no "{branch}", only "{there}": pass branch="{there}".')
    else:
        root = next((name for name in ROOTS if isinstance(content.get(name), Mapping)), None)
    found = content[root] if root else content
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        under = f" under {root}" if root else ""
        raise UnsupportedCheckpointError(f"The file holds no tensors{under}, only: {', '.join(map(str, content))}.")
    left_out = [str(name) for name in content if name != root] if root else [name for name in content if name not in tensors]
    return tensors, root, left_out


def _strip_prefixes(tensors: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Remove wrappers' prefixes, in any order; a prefix may apply to some names only (`backbone.`, but not `head.`)."""
    while prefix := next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), None):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if len(stripped) < len(tensors):
            twice = next(name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) in tensors)
            raise UnsupportedCheckpointError(
                f"The file holds {twice} and {twice.removeprefix(prefix)}, so it holds two models: save the one you need to a file."
            )
        tensors = stripped
    return tensors


def find_family(raw: RawCheckpoint, format: str = "auto") -> Family:
    """Return the family of a checkpoint.

    Raises:
        UnsupportedCheckpointError: the checkpoint has a feature that the model does not support, or no family, or not the family
            called `format`, recognizes it.
    """
    names = [family.name for family in FAMILIES]
    if format not in ("auto", *names):
        raise UnsupportedCheckpointError(f'Unknown format "{format}"; expected auto, {", ".join(names)}.')
    for pattern, feature, remedy in UNSUPPORTED:
        if found := [name for name in raw.tensors if re.fullmatch(pattern, name)]:
            raise UnsupportedCheckpointError(
                f"The checkpoint has {feature} ({group_names(found)[0]}), which is not supported: {remedy}."
            )
    for family in FAMILIES:
        if format in (family.name, "auto") and (format != "auto" or raw.container in family.containers) and family.recognizes(raw):
            return family
    grouped = group_names(list(raw.tensors))
    shown = ", ".join(grouped[:8]) + (f" and {len(grouped) - 8} more groups" if len(grouped) > 8 else "")
    tried = f"any of: {', '.join(names)}" if format == "auto" else format
    architecture = (raw.config or {}).get("model_type") or (raw.config or {}).get("architecture")
    named = f' Its config.json names "{architecture}".' if architecture else ""
    raise UnsupportedCheckpointError(f"The file is not recognized as {tried}. It holds {len(raw.tensors)} tensors: {shown}.{named}")
