"""Writes a model back into the format of one of the families: the tables of `convert_*.py`, reversed.

What a format cannot say is an error before anything is written. Whether it can is found by reading back: the exported names and config,
read by the family's own `configure`, must give the model's config again.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ..configuration.configuration_vit import ViTConfig
from ..errors import UnsupportedCheckpointError, VitrailError
from ..modeling.modeling_vit import ViTForImageClassification, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.graph_export import GRAPH_FORMATS, export_graph
from ..utils.atomic import check_new, temporary_folder
from ..utils.optional import check_packages
from .families.dino import DINO
from .families.dinov2 import DINOV2
from .families.family import Family, RawCheckpoint
from .families.google import GOOGLE
from .families.rules import Rule, convert_tensors, group_names, reverse
from .families.timm import TIMM, timm_config
from .families.transformers import BASE_PREFIXES, TRANSFORMERS, transformers_config, transformers_preprocessor_config
from .loading import load

# The rule by which positions change to another size belongs to the implementation that reads the format, not to the file
INTERPOLATION = "position_interpolation_"
# Fields that inference does not read, or, `use_mask_token`, not without a mask
NOT_COMPARED = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "initializer_range", "use_mask_token"),
    *("apply_layernorm", "reshape_hidden_states"),
)
# What an image processor does to an image; `crop_size` too, where it crops
PREPARATION = (
    *("do_resize", "size", "resample", "do_center_crop", "size_divisor", "do_rescale", "do_normalize", "image_mean", "image_std"),
    "jpeg_draft",
)


@dataclass
class Exported:
    """A model in another format, not yet written.

    tensors: the state dict by the format's names; `head`: that of a separate classifier file, for the formats that have one.
    config, preprocessor_config: the JSON files beside the weights, for the formats that are folders.
    base_prefix: what stands before every name but the classifier's, in the file.
    interpolation: the fields in which the format's rule for positions at other sizes is another than the model's.
    warnings: what a person should know.
    """

    family: Family
    tensors: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor] | None = None
    config: dict[str, Any] | None = None
    preprocessor_config: dict[str, Any] | None = None
    base_prefix: str = ""
    interpolation: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def raw(self) -> RawCheckpoint:
        """As it would be read again."""
        return RawCheckpoint(self.tensors, self.family.containers[0], config=self.config)


def to_format(model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, to: str) -> Exported:
    """A model in the names, shapes and configs of a format.

    Raises:
        UnsupportedCheckpointError: the format has no place for something that the model has, and which.
    """
    family = FORMATS[to].family
    config: ViTConfig = model.config
    tensors = {name.removeprefix("vit."): tensor.detach() for name, tensor in model.state_dict().items()}
    warnings: list[str] = []
    classifier = {name: tensors.pop(name) for name in ("classifier.weight", "classifier.bias") if name in tensors}
    config = FORMATS[to].prepare(config, tensors, warnings)
    head = None
    if classifier and family.head_rules is not None:
        head, _ = convert_tensors(classifier, reverse(_head_rules(family, config)))
    elif classifier:
        tensors |= classifier
    exported, coverage = convert_tensors(tensors, reverse(family.export_rules(config)))
    if coverage.unexpected:
        raise UnsupportedCheckpointError(
            f"The format {to} has no place for {', '.join(group_names(coverage.unexpected))} of this model."
        )
    result = Exported(family, exported, head, warnings=warnings)
    describe = FORMATS[to].describe
    if describe is not None:
        describe(result, model, config, image_processor)
    _check_read_back(result, config, to)
    _compare_preparation(result, config, image_processor, to)
    return result


def _head_rules(family: Family, config: ViTConfig) -> list[Rule]:
    """The table of a head file whose classifier reads what the config's does; its width tells."""
    assert family.head_rules is not None
    parts = config.classifier_cls_layers + int(config.classifier_mean_patch)
    width = torch.zeros(1, parts * config.hidden_size)
    probe = RawCheckpoint({"linear.weight": width, "weight": width}, "torch")
    rules, fields = family.head_rules(probe, config.hidden_size)
    said = ViTConfig(**fields, num_hidden_layers=config.num_hidden_layers)
    if (said.classifier_cls_layers, said.classifier_mean_patch) != (config.classifier_cls_layers, config.classifier_mean_patch):
        raise UnsupportedCheckpointError(
            f"A head file of the format {family.name} {parts} vectors wide reads something else than this model's classifier: "
            f"{config.classifier_cls_layers} [CLS] tokens{' and the mean patch' if config.classifier_mean_patch else ''}."
        )
    return list(rules)


def _check_read_back(exported: Exported, config: ViTConfig, to: str) -> None:
    wanted = architecture(config, exported.family)
    read = architecture(ViTConfig(**exported.family.configure(exported.raw, config.num_attention_heads)), exported.family)
    different = {name: (value, read[name]) for name, value in wanted.items() if read[name] != value}
    exported.interpolation = {name: different.pop(name)[1] for name in list(different) if name.startswith(INTERPOLATION)}
    if different:
        said = "; ".join(f"{name} is {value}, and {to} would read {back}" for name, (value, back) in different.items())
        raise UnsupportedCheckpointError(f"The format {to} cannot say what this model is: {said}.")
    if exported.interpolation:
        said = ", ".join(
            f"{name.removeprefix(INTERPOLATION)} {back} instead of {wanted[name]}" for name, back in exported.interpolation.items()
        )
        exported.warnings.append(f"at other image sizes, {to} interpolates positions by its own rule: {said}")


def _compare_preparation(exported: Exported, config: ViTConfig, image_processor: VitrailImageProcessor, to: str) -> None:
    """Notes where the format's own image processor would prepare images otherwise than the model's does."""
    raw = RawCheckpoint({}, "", config=exported.config, preprocessor_config=exported.preprocessor_config)
    ours, theirs = image_processor.to_dict(), exported.family.image_processor(raw, config).to_dict()
    names = list(PREPARATION)
    if image_processor.do_center_crop or theirs.get("do_center_crop"):
        names.append("crop_size")
    different = [
        f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names if _plain(ours, name) != _plain(theirs, name)
    ]
    if different:
        exported.warnings.append(f"{to} prepares images otherwise: {', '.join(different)}")


def _plain(options: dict[str, Any], name: str) -> Any:
    value = options.get(name)
    return list(value) if isinstance(value, tuple) else value


def architecture(config: ViTConfig, family: Family) -> dict[str, Any]:
    """The fields of a config that decide what a model answers, as far as the weight file of a family can say them."""
    separate = ("classifier_cls_layers", "classifier_mean_patch") if family.head_rules else ()
    names = [name for name in ViTConfig.__annotations__ if not name.startswith("_") and name not in (*NOT_COMPARED, *separate)]
    fields = {name: getattr(config, name) for name in names}
    if config.position_embedding_type != "relative_mlp":
        del fields["relative_position_hidden_size"]
    del fields["layer_scale_init_value"]
    return fields | {"LayerScale": config.layer_scale_init_value is not None}


# ----------------------------------------------------------------------------------------------------- what formats cannot hold


def _without_mask_token(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    if tensors.pop("embeddings.mask_token", None) is not None:
        warnings.append("the mask token is left out: the format has none, and inference without a mask does not read it")
    return config


def _with_mask_token(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    if "embeddings.mask_token" not in tensors:
        tensors["embeddings.mask_token"] = tensors["embeddings.patch_embeddings.projection.bias"].new_zeros(
            1, 1, config.hidden_size
        )
        warnings.append("the mask token is zero: the format has one, this model none")
    return config


def _for_timm(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    """Timm's models with registers have positions for patches only: that of [CLS] is added to [CLS] itself, as in timm's own files."""
    if config.representation_size is not None:
        raise UnsupportedCheckpointError(
            "timm has no layer between pooling and classifier, and this model has one (representation_size)."
        )
    config = _without_mask_token(config, tensors, warnings)
    if not (config.num_register_tokens and config.use_cls_position and config.use_cls_token):
        return config
    positions = tensors["embeddings.position_embeddings"]
    tensors["embeddings.cls_token"] = tensors["embeddings.cls_token"] + positions[:, :1]
    tensors["embeddings.position_embeddings"] = positions[:, 1:]
    warnings.append("the position of [CLS] is added to [CLS], as timm's models with registers have it")
    return ViTConfig(**config.to_dict() | {"use_cls_position": False})


def _for_transformers(config: ViTConfig, tensors: dict[str, torch.Tensor], warnings: list[str]) -> ViTConfig:
    if config.num_register_tokens:  # Dinov2WithRegistersModel always has a mask token, the others where their config says so
        return _with_mask_token(config, tensors, warnings)
    return config if config.layer_scale_init_value is not None else _without_mask_token(config, tensors, warnings)


def _describe_timm(
    exported: Exported, model: ViTPreTrainedModel, config: ViTConfig, image_processor: VitrailImageProcessor
) -> None:
    exported.config = timm_config(config, image_processor, model.num_labels if isinstance(model, ViTForImageClassification) else 0)


def _describe_transformers(
    exported: Exported, model: ViTPreTrainedModel, config: ViTConfig, image_processor: VitrailImageProcessor
) -> None:
    classifies = isinstance(model, ViTForImageClassification)
    exported.config = transformers_config(config, classifies=classifies, use_mask_token="embeddings.mask_token" in exported.tensors)
    exported.preprocessor_config = transformers_preprocessor_config(image_processor)
    exported.base_prefix = BASE_PREFIXES[exported.config["model_type"]] if classifies else ""
    if exported.config["model_type"] == "vit" and not classifies and config.representation_size is None:
        # transformers' ViTModel has a pooler and would fill it at random; ours is dropped again when it is read
        tokens = exported.tensors["embeddings.cls_token"]
        exported.tensors["pooler.dense.weight"] = tokens.new_zeros(config.hidden_size, config.hidden_size)
        exported.tensors["pooler.dense.bias"] = tokens.new_zeros(config.hidden_size)
        exported.warnings.append(
            "a pooler of zeros is written: transformers' ViTModel has one, this model none; use last_hidden_state[:, 0]"
        )


@dataclass(frozen=True)
class Format:
    """How a family is written: what is made to fit first, the JSON files, and whether weights are a file or a folder."""

    family: Family
    write: Callable[[Exported, Path], list[Path]]
    prepare: Callable[[ViTConfig, dict[str, torch.Tensor], list[str]], ViTConfig]
    describe: Callable[[Exported, ViTPreTrainedModel, ViTConfig, VitrailImageProcessor], None] | None = None


# ------------------------------------------------------------------------------------------------------------------- files


def _write_torch(exported: Exported, path: Path) -> list[Path]:
    torch.save({name: tensor.clone() for name, tensor in exported.tensors.items()}, path)
    if exported.head is None:
        return [path]
    head_path = path.with_name(f"{path.stem}_linear{path.suffix}")
    head = (
        {f"module.{name}": tensor.clone() for name, tensor in exported.head.items()} if exported.family is DINO else exported.head
    )
    torch.save({"state_dict": head} if exported.family is DINO else head, head_path)
    return [path, head_path]


def _write_npz(exported: Exported, path: Path) -> list[Path]:
    with open(path, "wb") as file:  # np.savez would add .npz to another name
        arrays: dict[str, Any] = {name: tensor.float().numpy() for name, tensor in exported.tensors.items()}
        np.savez(file, **arrays)
    return [path]


def _write_folder(exported: Exported, folder: Path) -> list[Path]:
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in exported.tensors.items()}
    named = {name if name.startswith("classifier.") else exported.base_prefix + name: tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", exported.config), ("preprocessor_config.json", exported.preprocessor_config)):
        if content is not None:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [folder]


FORMATS = {
    "transformers": Format(TRANSFORMERS, _write_folder, _for_transformers, _describe_transformers),
    "timm": Format(TIMM, _write_folder, _for_timm, _describe_timm),
    "dino": Format(DINO, _write_torch, _without_mask_token),
    "dinov2": Format(DINOV2, _write_torch, _with_mask_token),
    "google": Format(GOOGLE, _write_npz, _without_mask_token),
}


def write_exported(exported: Exported, output: str | os.PathLike) -> list[Path]:
    """Writes an exported model under a temporary name beside `output`, then renames it.

    Returns:
        What was written: the folder (transformers, timm), or the weight file and, beside it, the classifier's (dino, dinov2).

    Raises:
        VitrailError: `output` exists already.
    """
    output = Path(output)
    writer = next(known.write for known in FORMATS.values() if known.family is exported.family)
    check_new(output)
    with temporary_folder(output) as temporary:
        written = writer(exported, temporary / output.name)
        targets = [output.with_name(path.name) for path in written]
        check_new(*targets)
        return [path.rename(target) for path, target in zip(written, targets, strict=True)]


def export_model(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    to: str,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    dynamic_size: bool = False,
) -> list[str]:
    """Loads a model and writes it in the format of a family, or as a graph for other engines.

    Args:
        source: anything that `vitrail.load` takes.
        output: the folder (transformers, timm, onnx, openvino) or file (dino, dinov2: .pth; google: .npz) to write; it must not exist.
            A classifier that the format keeps apart is written beside it, as NAME_linear.pth.
        to: "transformers", "timm", "dino", "dinov2" or "google"; "onnx" or "openvino".
        image_size: height and width, in pixels, that positions are resized to, as by `vitrail.load`; without it, a graph is for the size
            that the image processor makes, or else for the model's.
        batch_size, dynamic_size: of a graph, see `vitrail.runtime.graph_export.export_graph`.

    Returns:
        What a person should know: what was left out, and how positions behave at other sizes; of a graph, how far its answers are off.

    Raises:
        UnsupportedCheckpointError: the format cannot say something that the model is; nothing is written.
        OutputMismatchError: a graph answers otherwise than the model; nothing is written.
        VitrailError: the output exists already, or packages are missing.
    """
    if to not in (*FORMATS, *GRAPH_FORMATS):
        raise UnsupportedCheckpointError(f'There is no format "{to}" to export to: choose {", ".join((*FORMATS, *GRAPH_FORMATS))}.')
    if to in FORMATS and (batch_size is not None or dynamic_size):
        raise VitrailError(
            f"batch_size and dynamic_size are of graphs ({', '.join(GRAPH_FORMATS)}): {to} holds weights, leave them out."
        )
    if to in GRAPH_FORMATS:
        check_packages(GRAPH_FORMATS[to].packages, extra=GRAPH_FORMATS[to].extra)
    model, image_processor, _ = load(source, image_size=image_size)
    if to in GRAPH_FORMATS:
        return export_graph(model, image_processor, output, to=to, batch_size=batch_size, dynamic_size=dynamic_size)
    exported = to_format(model, image_processor, to)
    write_exported(exported, output)
    return exported.warnings
