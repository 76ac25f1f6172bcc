"""Finds the state dict inside what a file holds, and the family that it is of: by names and shapes, never by the file's name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UnsupportedCheckpointError
from ..utils.atomic import read_json
from .families.dino import DINO
from .families.dinov2 import DINOV2, choose_head, flatten_chunks
from .families.family import Family, RawCheckpoint
from .families.google import GOOGLE
from .families.rules import group_names
from .families.timm import TIMM
from .families.transformers import BASE_PREFIXES, TRANSFORMERS
from .families.vitrail import VITRAIL
from .sources.files import WEIGHT_FILES, find_weights, read_checkpoint

# In the order in which they are tried: DINO's layout is also timm's, without what timm adds
FAMILIES: tuple[Family, ...] = (VITRAIL, TRANSFORMERS, GOOGLE, DINOV2, DINO, TIMM)

BRANCHES = ("teacher", "student")
ROOTS = ("state_dict", "model")
# Put before names by DistributedDataParallel, torch.compile, DINO's wrappers, and flax's optimizer and training state
PREFIXES = ("module.", "_orig_mod.", "backbone.", "opt/target/", "params/")

# What the model cannot represent, by the names it has in a checkpoint, and what to do instead
UNSUPPORTED = (
    (
        r"(.*\.)?(dist|distillation)_token",
        "a distillation token (DeiT)",
        "use the checkpoint that was trained without distillation",
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


def open_checkpoint(path: Path, *, branch: str = "teacher", head_name: str | None = None) -> RawCheckpoint:
    """Reads a weight file, or a folder as the Hub has them, and finds the state dict in it.

    Args:
        path: the file or folder.
        branch: which network of a full training checkpoint.
        head_name: which classifier of a file that holds many.

    Raises:
        VitrailError: it cannot be read, or holds no state dict, or not that branch.
    """
    folder = path if path.is_dir() else path.parent if path.name in WEIGHT_FILES else None
    checkpoint = read_checkpoint(find_weights(path) if path.is_dir() else path)
    tensors, root, left_out = find_state_dict(checkpoint.content, branch=branch)
    config = _read_json(folder, "config.json")
    preprocessor_config = _read_json(folder, "preprocessor_config.json")
    base_prefix = BASE_PREFIXES.get((config or {}).get("model_type", ""))
    tensors = _strip_prefixes(tensors, (*PREFIXES, base_prefix) if base_prefix else PREFIXES)
    if any(re.match(r"blocks\.\d+\.\d+\.", name) for name in tensors):
        tensors = flatten_chunks(tensors)
    return RawCheckpoint(
        choose_head(tensors, head_name), checkpoint.container, root, left_out, config, preprocessor_config, checkpoint.files
    )


def _read_json(folder: Path | None, name: str) -> dict[str, Any] | None:
    return read_json(folder / name) if folder is not None and (folder / name).is_file() else None


def find_state_dict(content: Any, *, branch: str = "teacher") -> tuple[dict[str, torch.Tensor], str | None, list[str]]:
    """The tensors in `{"teacher": …}`, `{"state_dict": …}` or a plain state dict, the key they stood under, and what else there is."""
    if branch not in BRANCHES:
        raise UnsupportedCheckpointError(f'There is no branch "{branch}": choose one of {", ".join(BRANCHES)}.')
    if not isinstance(content, Mapping):
        raise UnsupportedCheckpointError(
            f"The file holds a {type(content).__name__}, where a state dict (names to tensors) is expected."
        )
    if any(name in content for name in BRANCHES):
        root: str | None = branch
        if root not in content:
            there = next(name for name in BRANCHES if name in content)
            raise UnsupportedCheckpointError(
                f'This training checkpoint has no "{branch}", only "{there}": choose it with branch="{there}".'
            )
    else:
        root = next((name for name in ROOTS if isinstance(content.get(name), Mapping)), None)
    found = content[root] if root else content
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        under = f" under {root}" if root else ""
        raise UnsupportedCheckpointError(f"No tensors stand in the file{under}, only: {', '.join(map(str, content))}.")
    left_out = [str(name) for name in content if name != root] if root else [name for name in content if name not in tensors]
    return tensors, root, left_out


def _strip_prefixes(tensors: dict[str, torch.Tensor], prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Takes wrappers' prefixes off, in any order; one may stand before some names only (`backbone.`, beside `head.`)."""
    while prefix := next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), None):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        if len(stripped) < len(tensors):
            twice = next(name for name in tensors if name.startswith(prefix) and name.removeprefix(prefix) in tensors)
            raise UnsupportedCheckpointError(
                f"The file holds {twice} and {twice.removeprefix(prefix)}: two models, of which one is wanted."
            )
        tensors = stripped
    return tensors


def find_family(raw: RawCheckpoint, format: str = "auto") -> Family:
    """The family of a checkpoint.

    Raises:
        UnsupportedCheckpointError: it holds what the model cannot represent; or no family, or not the one that `format` names,
            recognizes it.
    """
    names = [family.name for family in FAMILIES]
    if format not in ("auto", *names):
        raise UnsupportedCheckpointError(f'There is no format "{format}": choose auto, {", ".join(names)}.')
    for pattern, feature, remedy in UNSUPPORTED:
        if found := [name for name in raw.tensors if re.fullmatch(pattern, name)]:
            raise UnsupportedCheckpointError(
                f"The checkpoint has {feature} ({group_names(found)[0]}), which the model cannot represent: {remedy}."
            )
    for family in FAMILIES:
        if format in (family.name, "auto") and (format != "auto" or raw.container in family.containers) and family.recognizes(raw):
            return family
    grouped = group_names(list(raw.tensors))
    shown = ", ".join(grouped[:8]) + (f" and {len(grouped) - 8} more kinds" if len(grouped) > 8 else "")
    tried = f"any of: {', '.join(names)}" if format == "auto" else format
    kind = (raw.config or {}).get("model_type") or (raw.config or {}).get("architecture")
    beside = f' Its config.json says "{kind}".' if kind else ""
    raise UnsupportedCheckpointError(
        f"The file is not recognised as {tried}. It holds {len(raw.tensors)} tensors: {shown}.{beside}"
    )
