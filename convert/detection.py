"""Open a weight file and find the family of its checkpoint: from names and shapes, never from the file's name."""

import json
import re
from pathlib import Path
from typing import Any

from ..errors import CorruptFileError, UnsupportedCheckpointError
from ..utils.atomic import read_json
from ..utils.state_dicts import find_state_dict, renamed
from ..utils.tensor_names import list_names
from ..utils.weight_files import WEIGHT_FILES, find_weights, read_checkpoint
from .families.dense_heads import UNSUPPORTED_HEADS
from .families.family import Family, RawCheckpoint, setting
from .families.registry import FAMILIES

ANCHORS = tuple(dict.fromkeys(anchor for family in FAMILIES for anchor in family.anchors))
PREFIXES = tuple(prefix for family in FAMILIES for prefix in family.prefixes)

# Features that the model does not support, by their names in a checkpoint, each with the remedy
UNSUPPORTED = (
    (
        r"(.*\.)?(dist|distillation)_token",
        "a distillation token (DeiT)",
        "use the checkpoint trained without distillation",
    ),
    (
        r"(.*\.)?(norm_pre|pre_layrnorm|pre_layernorm|ln_pre)\..*",
        "a norm before the first block (CLIP, PE)",
        "use transformers or timm",
    ),
    (r".*\.attn\.[qk]_norm\..*|.*\.attention\.[qk]_norm\..*", "norms of queries and keys", "use timm"),
    (r"(.*\.)?attn_pool\..*|.*MAPHead_0/.*", "attention pooling", "use a checkpoint that pools [CLS] or the mean"),
    (
        r"patch_embed\.backbone\..*|(conv_root|block\d+|root_block)/.*",
        "a convolutional stem (ResNet hybrids, ViTamin)",
        "use a checkpoint of a plain ViT",
    ),
    (r"(.*\.)?rope\..*", "rotary positions (EVA-02)", "use transformers or timm"),
    (
        r".*(_fsdp_wrapped_module|flat_param).*",
        "one shard of an FSDP run",
        "use the teacher_checkpoint.pth that the run writes when it evaluates",
    ),
    (r"blocks\.\d+\.(attns|ffns)\..*|blocks\.\d+\.(attn|mlp)_out_proj\..*", "parallel attention and MLP", "use timm"),
    (r".*\.mlp\.fc1_[gx]\..*", "a SwiGLU in two parts (AIMv2, EVA-02)", "use timm"),
    (
        r"(.*\.)?relative_(attention|position)_bias\..*|.*\.attn\.relative_position_.*",
        "BEiT's relative positions",
        "use transformers or timm",
    ),
    (r".*\.attn\.rel_pos_[hw]|neck\..*", "windowed attention and a neck (SAM)", "use transformers or timm"),
    (r".*\.[qv]_bias", "biases of queries and values apart (timm's EVA classes)", "use timm"),
    (r"blocks\.\d+\.(attn|mlp)\.norm\..*", "norms inside attention and MLP (BEiT-3)", "use timm"),
    (r"embeds\..*", "NaFlexViT's embeddings", "use timm"),
    (r"blocks_token_only\..*", "class attention (CaiT)", "use timm"),
    *UNSUPPORTED_HEADS,
    (r".*\.lambda_[qk]\d", "differential attention", "use timm"),
    (
        r".*\.gamma_[12]",
        "LayerScale as in timm's EVA classes, which hold models with other rotary positions than DINOv3's",
        "use timm",
    ),
)


def open_checkpoint(path: Path, *, branch: str = "teacher", prefix: str | None = None, official: bool = False) -> RawCheckpoint:
    """Read a weight file, or a folder in the Hub's layout, and find the state dict in it.

    Args:
        path: the file or folder.
        branch: the network of a training checkpoint: "teacher", the averaged weights, or "student".
        prefix: the keys and the prefix of the network, where the file holds several.
        official: whether the file is one of the catalog.

    Raises:
        VitrailError: the file cannot be read, holds no state dict, or lacks the branch.
    """
    folder = path if path.is_dir() else path.parent if path.name in WEIGHT_FILES else None
    checkpoint = read_checkpoint(find_weights(path) if path.is_dir() else path)
    config = _read_json(folder, "config.json")
    preprocessor_config = _read_json(folder, "preprocessor_config.json")
    model_type = setting(config or {}, "model_type", str)
    wrappers = (*PREFIXES, *(family.base_prefixes[model_type] for family in FAMILIES if model_type in family.base_prefixes))
    found = find_state_dict(checkpoint.content, ANCHORS, wrappers, branch=branch, prefix=prefix)
    named = found.tensors
    for family in FAMILIES:
        named = renamed(named, family.normalize)
    raw = RawCheckpoint(named, checkpoint.container, found.root, found.left_out, config, preprocessor_config, checkpoint.files)
    raw.official = official
    raw.warnings += found.warnings
    if found.left_out:
        raw.warnings.append(f"not weights of the model, left out: {list_names(found.left_out)}")
    return raw


def _read_json(folder: Path | None, name: str) -> dict[str, Any] | None:
    """Return the content of a JSON file in a folder; None where there is none."""
    if folder is None or not (folder / name).is_file():
        return None
    content = read_json(folder / name)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise CorruptFileError(f"{folder / name} contains NaN or infinity; expected finite numbers. Download it again.") from error
    return content


def find_family(raw: RawCheckpoint, format: str = "auto") -> Family:
    """Return the family of a checkpoint.

    Raises:
        UnsupportedCheckpointError: the checkpoint has a feature that the model does not support, or no family, or not the family
            called `format`, recognizes it.
    """
    names = [family.name for family in FAMILIES]
    if format not in ("auto", *names):
        raise UnsupportedCheckpointError(f'Unknown format "{format}"; expected auto, {", ".join(names)}.')
    if "quantization_config" in (raw.config or {}):
        raise UnsupportedCheckpointError(
            "The checkpoint is quantized (quantization_config in config.json): load it with transformers' from_pretrained, or use the "
            "original weights."
        )
    for pattern, feature, remedy in UNSUPPORTED if not any(family.understands(raw) for family in FAMILIES) else ():
        if found := [name for name in raw.tensors if re.fullmatch(pattern, name)]:
            raise UnsupportedCheckpointError(
                f"The checkpoint has {feature} ({list_names(found, 1)}), which is not supported: {remedy}.{_named(raw)}"
            )
    for family in FAMILIES:
        if format in (family.name, "auto") and (format != "auto" or raw.container in family.containers) and family.recognizes(raw):
            return family
    tried = f"any of: {', '.join(names)}" if format == "auto" else format
    lacking = [
        family.requires
        for family in FAMILIES
        if family.requires and raw.config is None and any(anchor in raw.tensors for anchor in family.anchors)
    ]
    raise UnsupportedCheckpointError(
        f"The file is not recognized as {tried}. It holds {len(raw.tensors)} tensors: {list_names(list(raw.tensors))}."
        f"{_named(raw)}{''.join(f' {text}' for text in lacking)}"
    )


def _named(raw: RawCheckpoint) -> str:
    config = raw.config or {}
    architecture = config.get("model_type") or config.get("architecture")
    return f' Its config.json names "{str(architecture)[:80]}".' if architecture else ""
