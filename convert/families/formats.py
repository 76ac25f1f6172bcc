"""Writing a model in the layout of a family: the exported data, the writers, and the installed library to compare with."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ...configuration.configuration_vit import ViTConfig
from ...errors import UnsupportedCheckpointError
from ...modeling.modeling_vit import rotary_periods
from ...processing.image_processing_vit import VitrailImageProcessor

MASK_TOKEN = "embeddings.mask_token"
PERIODS = "rotary_position.periods"
BFLOAT16_STEP = 2**-8  # largest relative error of rounding to bfloat16
SQUARE = "equal height and width"
Holds = dict[str, Collection[Any]]  # the values of some fields and properties of ViTConfig, or SQUARE
# What the layouts of the original code have in common
ORIGINAL_HOLDS: Holds = {
    "use_cls_token": (True,),
    "use_cls_position": (True,),
    "position_embedding_type": ("absolute",),
    "patch_grid": SQUARE,
    "separate_cls_norm": (False,),
}


@dataclass
class Exported:
    """A model in another format, not yet written.

    format: the name of the family.
    tensors: the state dict with the format's names; `head`: the state dict of a separate classifier file.
    config, preprocessor_config: the JSON files of a folder.
    base_prefix: prefix of every name but the classifier's in the file.
    conventions: fields that belong to the implementation that reads the format instead of the file, where it has other values than the
        model: its rule for positions at other sizes, and its pooling.
    computed: tensors that the format's library computes instead of reading them, by the names in our model, where they differ from it.
    """

    format: str
    tensors: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor] | None = None
    config: dict[str, Any] | None = None
    preprocessor_config: dict[str, Any] | None = None
    base_prefix: str = ""
    conventions: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, torch.Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def has_labels(config: ViTConfig) -> bool:
    """Return whether the classes have names, not numbers alone."""
    return any(label != f"LABEL_{index}" for index, label in config.id2label.items())


RunPeer = Callable[[torch.Tensor], dict[str, torch.Tensor]]  # (B, C, H, W) -> "features", "pooled", "logits"


@dataclass(frozen=True)
class Export:
    """How a model is written in the layout of a family.

    holds: the values that the format and the library can hold of a field, in a model with this config. Other fields are compared after
        the export was read back.
    prepare: changes config and tensors to what the format holds, appends warnings, and returns the config.
    write: writes the file or folder and returns what it wrote.
    describe: fills in the JSON files of a folder; the last argument is the number of classes, 0 without a classifier.
    suffixes: extensions of the file; none where the format is a folder.
    holds_labels: whether the JSON files hold the names of the classes.
    library: the package whose own classes load the folder; None where the format is a file.
    load_peer: the folder as a function of the library's own class; None where the library is not installed.
    peer_image_processor: the library's own image processor.
    native_size_only: whether the library runs a model of this config at its own image size only.
    fixed_size: whether the library runs a model of a config at other sizes only when `interpolate_pos_encoding=True`.
    pools: whether the library's `pooler_output` is a feature of the model.
    """

    holds: Callable[[ViTConfig], Holds]
    prepare: Callable[[ViTConfig, dict[str, torch.Tensor], list[str]], ViTConfig]
    write: Callable[[Exported, Path], list[Path]]
    describe: Callable[[Exported, ViTConfig, VitrailImageProcessor, int], None] = lambda exported, config, processor, classes: None
    suffixes: tuple[str, ...] = ()
    holds_labels: bool = False
    library: str | None = None
    load_peer: Callable[[Path, Exported], RunPeer | None] | None = None
    peer_image_processor: Callable[[Path], Callable[..., Any]] | None = None
    native_size_only: Callable[[ViTConfig], bool] = lambda config: False
    fixed_size: Callable[[ViTConfig], bool] = lambda config: False
    pools: Callable[[ViTConfig], bool] = lambda config: True


# ----------------------------------------------------------------------------------------------------------- the mask token


def without_mask_token(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Remove the mask token."""
    if tensors.pop(MASK_TOKEN, None) is not None:
        warnings.append("the mask token is left out: the format has none, and inference without a mask does not read it")
    return config


def with_mask_token(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Add a mask token of zeros where the model has none."""
    if MASK_TOKEN not in tensors:
        tensors[MASK_TOKEN] = tensors["embeddings.patch_embeddings.projection.bias"].new_zeros(1, 1, config.hidden_size)
        warnings.append("the mask token is zero: the format has one, but this model has none")
    return config


# ------------------------------------------------------------------------------------------------------------------ DINOv3


def has_key_bias(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the bias of a key in our model is not 0."""
    biases = (tensor for name, tensor in tensors.items() if name.endswith("attention.qkv.bias"))
    return any(bool(bias.chunk(3)[1].any()) for bias in biases)


def without_periods(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> None:
    """Remove the rotary periods, for formats whose library computes them in float32 from their base.

    Raises:
        UnsupportedCheckpointError: the model's periods are not those of the base, up to the rounding of published files.
    """
    periods = tensors.pop(PERIODS, None)
    if periods is None:
        return
    computed = rotary_periods(config)
    if not torch.allclose(periods, computed, rtol=BFLOAT16_STEP):
        raise UnsupportedCheckpointError(
            f"The format holds a base of rotary periods only, but this model's are not the series of rope_theta={config.rope_theta}: "
            f"{[round(period, 3) for period in periods.tolist()[:4]]}…. Use the format dinov3, which holds them."
        )
    if not torch.equal(periods, computed):
        warnings.append(
            "the format holds no rotary periods: its library computes them in float32, but this model's are rounded, as published; "
            "outputs differ by 1e-3 to 3e-3 of values up to 5"
        )


# ------------------------------------------------------------------------------------------------------------------- files


def write_torch(exported: Exported, path: Path, wrap_head: Callable[[dict[str, torch.Tensor]], Any] = dict) -> list[Path]:
    """Write the weights with torch.save, and a classifier next to them as NAME_linear."""
    torch.save({name: tensor.clone() for name, tensor in exported.tensors.items()}, path)
    if exported.head is None:
        return [path]
    head_path = path.with_name(f"{path.stem}_linear{path.suffix}")
    torch.save(wrap_head({name: tensor.clone() for name, tensor in exported.head.items()}), head_path)
    return [path, head_path]


def write_npz(exported: Exported, path: Path) -> list[Path]:
    """Write the weights as NumPy arrays in float32."""
    with open(path, "wb") as file:  # np.savez appends .npz to any other name
        arrays: dict[str, Any] = {name: tensor.float().numpy() for name, tensor in exported.tensors.items()}
        np.savez(file, **arrays)
    return [path]


def write_folder(exported: Exported, folder: Path) -> list[Path]:
    """Write a folder with safetensors and JSON files."""
    folder.mkdir()
    named = {
        name if name.startswith("classifier.") else exported.base_prefix + name: tensor.contiguous()
        for name, tensor in exported.tensors.items()
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", exported.config), ("preprocessor_config.json", exported.preprocessor_config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [folder]
