"""Export: a model in the format of a family, by the family's rules in reverse.

A property that the format cannot hold is an error before anything is written. The exported names and config are read back by the
family's own `configure`, which must return the model's config.
"""

import os
from pathlib import Path
from typing import Any

import torch

from ..configuration.configuration_vit import ViTConfig
from ..errors import UnsupportedCheckpointError, VitrailError
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel, rotary_periods
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.graph_export import GRAPH_FORMATS, export_graph
from ..utils.atomic import check_new
from ..utils.folders import share, temporary_folder
from ..utils.optional import check_packages
from ..utils.tensor_names import group_names
from .families.family import Family, RawCheckpoint, make_config
from .families.formats import PERIODS, SQUARE, Exported, Holds, has_labels
from .families.registry import EXPORT_FORMATS, family_called
from .families.rules import Rule, convert_tensors, reverse
from .heads import HEAD_PREFIXES
from .loading import load

FILE_SUFFIXES = (".pth", ".pt", ".npz", ".safetensors", ".bin", ".onnx", ".xml", ".json")
FORMATS = (*EXPORT_FORMATS, *GRAPH_FORMATS)
# The rule for positions at other sizes belongs to the implementation that reads the format, not to the file
INTERPOLATION = "position_interpolation_"
# Fields that inference does not read: it reads the periods instead of `rope_theta`, and `use_mask_token` only with a mask
NOT_COMPARED = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
    *("drop_path_schedule", "drop_path_mode", "initializer_range", "use_mask_token"),
    *("apply_layernorm", "reshape_hidden_states", "return_register_tokens"),
    *("rope_theta", "rope_shift", "rope_jitter", "rope_rescale"),
)
CLASSIFIER_FIELDS = {"classifier_cls_layers", "classifier_mean_patch"}
DENSE_FIELDS = ("dense_", "depth_", "segmentation_", "semantic_")
CLASSIFIER_REMEDY = " To leave the classifier out, export the model with classifier=False."
HEAD_REMEDY = CLASSIFIER_REMEDY.replace("classifier out", "head out")
SHOWN = {"patch_grid": "the patch grid, image_size / patch_size,"}
# Settings of an image processor that change its output; `crop_size` too, where it crops
PREPROCESSING = (
    *("do_resize", "size", "resample", "do_center_crop", "size_divisor", "do_rescale", "do_normalize", "image_mean", "image_std"),
    "jpeg_draft",
)


def to_format(model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, to: str) -> Exported:
    """Return a model with the names, shapes and configs of a format.

    Raises:
        UnsupportedCheckpointError: the format cannot hold a property of the model.
    """
    family, export = family_called(to), EXPORT_FORMATS[to]
    config: ViTConfig = model.config
    tensors = {name.removeprefix("vit."): tensor.detach() for name, tensor in model.state_dict().items()}
    warnings: list[str] = []
    classifier = {name: tensors.pop(name) for name in ("classifier.weight", "classifier.bias") if name in tensors}
    _check_holds(to, config, export.holds(config), classifies=bool(classifier))
    if classifier and not export.holds_labels and has_labels(config):
        warnings.append("the names of the classes are left out: the format has none")
    periods = tensors.get(PERIODS)
    config = export.prepare(config, tensors, warnings)
    head = None
    if classifier and family.head_rules is not None:
        head, _ = convert_tensors(classifier, reverse(_head_rules(family, config)))
    elif classifier:
        tensors |= classifier
    exported, coverage = convert_tensors(tensors, reverse(family.export_rules(config, tensors)))
    if coverage.unexpected:
        remedy = HEAD_REMEDY if all(name.startswith(HEAD_PREFIXES) for name in coverage.unexpected) else ""
        raise UnsupportedCheckpointError(
            f"The format {to} cannot hold {', '.join(group_names(coverage.unexpected))} of this model.{remedy}"
        )
    result = Exported(to, exported, head, warnings=warnings)
    if periods is not None and PERIODS not in tensors and not torch.equal(periods, rotary_periods(config)):
        name = next(name for name in model.state_dict() if name.endswith(PERIODS))
        result.computed = {name: rotary_periods(config)}
    export.describe(result, config, image_processor, len(classifier["classifier.weight"]) if classifier else 0)
    back = _read_back(result, family, config, classifies=bool(classifier))
    _compare_preprocessing(result, family, back, image_processor)
    return result


def _check_holds(to: str, config: ViTConfig, holds: Holds, *, classifies: bool) -> None:
    """Raise UnsupportedCheckpointError unless the format holds the value of every field that the model reads."""
    different = []
    for name, allowed in holds.items():
        value = getattr(config, name)
        if name == "pooling" and _pools_freely(config, classifies=classifies):
            continue
        if name in unread_fields(config, classifies=classifies) or (_is_square(value) if allowed is SQUARE else value in allowed):
            continue
        expected = allowed if allowed is SQUARE else " or ".join(map(str, allowed))
        different.append(f"{SHOWN.get(name, name)} is {value}; expected {expected}")
    if different:
        raise UnsupportedCheckpointError(f"The format {to} cannot hold this model: {'. '.join(different)}.")


def _pools_freely(config: ViTConfig, *, classifies: bool) -> bool:
    """Return whether the file does not decide how tokens are pooled: DINOv3's published encoders are pooled in two ways."""
    return config.position_embedding_type == "rotary" and not classifies


def _is_square(size: int | tuple[int, int]) -> bool:
    return isinstance(size, int) or size[0] == size[1]


def _head_rules(family: Family, config: ViTConfig) -> list[Rule]:
    """Return the rules of a head file for the input of the config's classifier, which follows from its width."""
    assert family.head_rules is not None
    num_vectors = config.classifier_cls_layers + int(config.classifier_mean_patch)
    weight = torch.zeros(1, num_vectors * config.hidden_size)
    sample = RawCheckpoint({"linear.weight": weight, "weight": weight}, "torch")
    try:
        rules, fields = family.head_rules(sample, config.hidden_size)
    except UnsupportedCheckpointError:  # head files of the family hold fewer vectors
        rules, fields = (), {}
    read = {"classifier_cls_layers": 1, "classifier_mean_patch": False} | fields
    if not rules or any(getattr(config, name) != value for name, value in read.items()):
        raise UnsupportedCheckpointError(
            f"This model's classifier reads {config.classifier_cls_layers} [CLS] tokens (classifier_cls_layers)"
            f"{' and the mean patch (classifier_mean_patch)' if config.classifier_mean_patch else ''}; a head file of the format "
            f"{family.name} with {num_vectors} vectors is for another input.{CLASSIFIER_REMEDY}"
        )
    return list(rules)


def _read_back(exported: Exported, family: Family, config: ViTConfig, *, classifies: bool) -> ViTConfig:
    """Return the config that the format's files describe; raise UnsupportedCheckpointError if it is of another model."""
    to, raw = family.name, RawCheckpoint(exported.tensors, family.containers[0], config=exported.config)
    wanted = architecture(config, family, classifies=classifies)
    back = make_config(family.configure(raw, config.num_attention_heads))
    read = architecture(back, family, classifies=classifies)
    different = {name: (value, read.get(name)) for name, value in wanted.items() if read.get(name) != value}
    exported.conventions = {name: different.pop(name)[1] for name in list(different) if name.startswith(INTERPOLATION)}
    if "pooling" in different and _pools_freely(config, classifies=classifies):
        exported.conventions["pooling"] = different.pop("pooling")[1]
        exported.warnings.append(
            f'the tokens are the same, but pooler_output is "{back.pooling}" in {to} and "{config.pooling}" here'
        )
    if different:
        listed = "; ".join(f"{name} is {value}, but {to} would read {back}" for name, (value, back) in different.items())
        remedy = CLASSIFIER_REMEDY if different.keys() <= CLASSIFIER_FIELDS else ""
        raise UnsupportedCheckpointError(f"The format {to} cannot hold this model: {listed}.{remedy}")
    rule = {name: value for name, value in exported.conventions.items() if name.startswith(INTERPOLATION)}
    if rule:
        listed = ", ".join(f"{name.removeprefix(INTERPOLATION)} {value} instead of {wanted[name]}" for name, value in rule.items())
        exported.warnings.append(f"at other image sizes, {to} interpolates positions by its own rule: {listed}")
    return back


def _compare_preprocessing(exported: Exported, family: Family, config: ViTConfig, image_processor: VitrailImageProcessor) -> None:
    """Append a warning where the format's own image processor differs from the model's."""
    raw = RawCheckpoint({}, "", config=exported.config, preprocessor_config=exported.preprocessor_config)
    ours, theirs = image_processor.to_dict(), family.image_processor(raw, config).to_dict()
    names = list(PREPROCESSING)
    if image_processor.do_center_crop or theirs.get("do_center_crop"):
        names.append("crop_size")
    different = [
        f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names if _as_list(ours, name) != _as_list(theirs, name)
    ]
    if different:
        exported.warnings.append(f"{family.name} preprocesses images differently: {', '.join(different)}")


def _as_list(options: dict[str, Any], name: str) -> Any:
    value = options.get(name)
    return list(value) if isinstance(value, tuple) else value


def architecture(config: ViTConfig, family: Family, *, classifies: bool) -> dict[str, Any]:
    """Return the fields of a config that decide the outputs of a model and that a family's weight file can hold."""
    without = {*NOT_COMPARED, "layer_scale_init_value", *unread_fields(config, classifies=classifies and family.head_rules is None)}
    names = [name for name in ViTConfig.__annotations__ if not name.startswith("_") and name not in without]
    scales = config.layer_scale_init_value is not None
    return {name: getattr(config, name) for name in names} | {"LayerScale (layer_scale_init_value)": scales}


def unread_fields(config: ViTConfig, *, classifies: bool) -> set[str]:
    """Return the fields that a model of this config does not read, because of the value of another field."""
    unread = {name for name in ViTConfig.__annotations__ if name.startswith(DENSE_FIELDS)}  # of heads that no format holds
    unread |= set() if classifies else CLASSIFIER_FIELDS
    if config.position_embedding_type == "rotary":  # any size is native
        unread.add("image_size")
    if config.position_embedding_type != "absolute":
        unread |= {name for name in ViTConfig.__annotations__ if name.startswith(INTERPOLATION)} | {"use_cls_position"}
    if not config.position_embedding_type.startswith("relative"):
        unread.add("share_relative_position")
    if config.position_embedding_type != "relative_mlp":
        unread.add("relative_position_hidden_size")
    if not config.use_cls_token:
        unread.add("use_cls_position")
    if config.mlp_type != "mlp":
        unread.add("hidden_act")  # the gate has its own activation
    return unread


def write_exported(exported: Exported, output: str | os.PathLike) -> list[Path]:
    """Write an exported model under a temporary name, then move it into place.

    Returns:
        The folder, or the weight file and the file of the classifier.

    Raises:
        VitrailError: `output` exists already.
    """
    output = Path(output)
    check_new(output)
    with temporary_folder(output) as temporary:
        written = EXPORT_FORMATS[exported.format].write(exported, temporary / output.name)
        share(temporary)
        targets = [output.with_name(path.name) for path in written]
        check_new(*targets)
        return [path.rename(target) for path, target in zip(written, targets, strict=True)]


def export_model(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    to: str,
    image_size: int | tuple[int, int] | None = None,
    classifier: bool = True,
    batch_size: int | None = None,
    dynamic_size: bool = False,
) -> list[str]:
    """Load a model and write it in the format of a family, or as a graph for other engines.

    Args:
        source: anything that `vitrail.load` takes.
        output: the folder (transformers, timm, onnx, openvino) or file (dino, dinov2, dinov3: .pth or .pt; google: .npz) to write; it
            must not exist.
            Formats with a separate classifier file write it next to the weights, as NAME_linear.pth.
        to: the name of a family, or "onnx" or "openvino".
        image_size: height and width in pixels to resize positions to, as in `vitrail.load`. By default, a graph has the size that the
            image processor produces, or else the model's.
        classifier: whether to export the classifier, or the head for segmentation or depth, or the encoder alone.
        batch_size, dynamic_size: options of a graph, see `vitrail.runtime.graph_export.export_graph`.

    Returns:
        Warnings: what was left out, how positions behave at other sizes, and the largest difference of a graph's outputs.

    Raises:
        UnsupportedCheckpointError: the format cannot hold a property of the model; nothing is written.
        OutputMismatchError: the outputs of a graph differ from the model's; nothing is written.
        VitrailError: the output exists or has the name of another kind of output, or packages are missing.
    """
    if to not in FORMATS:
        raise UnsupportedCheckpointError(f'Unsupported export format "{to}"; expected one of {", ".join(FORMATS)}.')
    if to in EXPORT_FORMATS and (batch_size is not None or dynamic_size):
        raise VitrailError(
            f"batch_size and dynamic_size are options of graphs ({', '.join(GRAPH_FORMATS)}), but {to} holds weights: leave them out."
        )
    if to in GRAPH_FORMATS:
        check_packages(GRAPH_FORMATS[to].packages, extra=GRAPH_FORMATS[to].extra)
    _check_output_name(Path(output), to)
    model, image_processor, _ = load(source, image_size=image_size)
    if not classifier and not isinstance(model, ViTModel):
        model = model.vit
    if to in GRAPH_FORMATS:
        return export_graph(model, image_processor, output, to=to, batch_size=batch_size, dynamic_size=dynamic_size)
    exported = to_format(model, image_processor, to)
    write_exported(exported, output)
    return exported.warnings


def _check_output_name(output: Path, to: str) -> None:
    """Raise VitrailError where the name of a folder looks like a file, or a file lacks the extension of its format."""
    suffixes = EXPORT_FORMATS[to].suffixes if to in EXPORT_FORMATS else ()
    if suffixes and output.suffix not in suffixes:
        raise VitrailError(f"{to} is written as one file, but {output} does not end in {' or '.join(suffixes)}: add the extension.")
    if not suffixes and output.suffix in FILE_SUFFIXES:
        raise VitrailError(f"{to} is written as a folder, but {output} has the name of a file: leave {output.suffix} out.")
