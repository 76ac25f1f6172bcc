"""`load`: any source becomes a model of ours with its image processor, and a report of what was done."""

import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from ..configuration.configuration_vit import ViTConfig
from ..errors import ConversionError, UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.presets import make_image_processor
from ..version import __version__
from .detect import StateDict, find_family, find_state_dict
from .family import Family
from .files import read_checkpoint
from .rules import Coverage, convert_tensors
from .sources import ResolvedSource, resolve, sha256


@dataclass
class SourceFile:
    """Where a tensor file came from."""

    name: str
    url: str | None
    bytes: int
    sha256: str


@dataclass
class ConversionReport:
    """What `load` did; `convert_checkpoint` keeps it as conversion.json.

    format: the family that was recognised.
    source, head: the files, with their SHA-256.
    root: the key of the file under which the weights stood ("teacher", …).
    coverage: how many tensors were converted, and which were ignored.
    notices: what a person should know.
    """

    format: str
    source: SourceFile | None = None
    head: SourceFile | None = None
    root: str | None = None
    coverage: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(
        default_factory=lambda: {
            "vitrail": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
    )

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)


def load(
    source: str | os.PathLike,
    *,
    format: str = "auto",
    branch: str = "teacher",
    head: str | os.PathLike | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport]:
    """Loads a checkpoint, whatever it is, so that the model behaves as the original did.

    Args:
        source: a file, a folder that vitrail wrote, a URL, or a name of the catalogue ("dino-vits16").
        format: the family, where names and shapes should not decide it.
        branch: the network of a full training checkpoint, "teacher" or "student".
        head: the file (path, URL) of a linear classifier that goes with the backbone.
        num_heads: number of attention heads, where the width does not tell it.
        dtype: of the model; without it, that of the file.
        device: where to put the model.

    Returns:
        The model, in evaluation mode (ViTForImageClassification when there is a classifier, else ViTModel), its image processor, and
        the report.

    Raises:
        VitrailError: one of `vitrail.errors`, which says what was found and what to do.
    """
    resolved = resolve(source)
    if resolved.path.is_dir():
        return _load_folder(resolved, head=head, dtype=dtype, device=device)
    state_dict = find_state_dict(read_checkpoint(resolved.path).content, branch=branch)
    family = find_family(state_dict, format)
    report = ConversionReport(format=family.name, source=_source_file(resolved), root=state_dict.root)
    if state_dict.left_out:
        report.notices.append(f"not weights of the model, left out: {', '.join(state_dict.left_out)}")

    shapes = {name: tensor.shape for name, tensor in state_dict.tensors.items()}
    fields = family.configure(shapes, num_heads)
    tensors, coverage = convert_tensors(state_dict.tensors, family.rules, family.ignored)
    if head is None:
        config = ViTConfig(**fields)
        model: ViTPreTrainedModel = _empty_model(ViTModel, config, tensors, dtype)
    else:
        resolved_head = resolve(head)
        head_tensors, head_fields = _read_head(resolved_head, family, fields["hidden_size"], coverage)
        report.head = _source_file(resolved_head)
        config = ViTConfig(**fields, **head_fields)
        tensors = {f"vit.{name}": tensor for name, tensor in tensors.items()} | head_tensors
        model = _empty_model(ViTForImageClassification, config, tensors, dtype)
    _fill(model, tensors, coverage, resolved.name)
    report.coverage = coverage.to_dict()
    image_processor = make_image_processor(
        family.image_processor, image_size=config.image_size, patch_size=config.patch_size, num_channels=config.num_channels
    )
    return model.to(device).eval(), image_processor, report


def _load_folder(
    resolved: ResolvedSource, *, head: object, dtype: torch.dtype | None, device: object
) -> tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport]:
    config_dict, _ = ViTConfig.get_config_dict(resolved.path)
    if config_dict.get("model_type") != ViTConfig.model_type:
        raise UnsupportedCheckpointError(
            f'{resolved.name} is a folder of model_type "{config_dict.get("model_type")}", but only "{ViTConfig.model_type}" can be loaded '
            "from a folder: give the checkpoint file itself."
        )
    if head is not None:
        raise UnsupportedCheckpointError(
            f"{resolved.name} is converted already: give head= when the original backbone file is converted."
        )
    classes: dict[str, type[ViTPreTrainedModel]] = {"ViTForImageClassification": ViTForImageClassification}
    model_class = classes.get((config_dict.get("architectures") or ["ViTModel"])[0], ViTModel)
    model, loading = model_class.from_pretrained(resolved.path, dtype=dtype or "auto", output_loading_info=True)
    coverage = Coverage(
        unexpected=sorted(loading["unexpected_keys"]),
        missing=sorted(loading["missing_keys"]),
        mismatched=[str(key) for key in loading["mismatched_keys"]],
    )
    coverage.raise_unless_complete(resolved.name)
    image_processor = VitrailImageProcessor.from_pretrained(resolved.path)
    return model.to(device).eval(), image_processor, ConversionReport(format=ViTConfig.model_type)


def _source_file(resolved: ResolvedSource) -> SourceFile:
    return SourceFile(Path(resolved.path).name, resolved.url, Path(resolved.path).stat().st_size, sha256(resolved.path))


def _read_head(
    resolved: ResolvedSource, family: Family, hidden_size: int, coverage: Coverage
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The classifier of a head file, and the config fields that say what it reads."""
    state_dict: StateDict = find_state_dict(read_checkpoint(resolved.path).content)
    rules, fields = family.head_rules({name: tensor.shape for name, tensor in state_dict.tensors.items()}, hidden_size)
    tensors, head_coverage = convert_tensors(state_dict.tensors, rules)
    coverage.converted += head_coverage.converted
    coverage.unexpected += head_coverage.unexpected
    return tensors, fields | {"num_labels": len(tensors["classifier.weight"])}


def _empty_model(
    model_class: type[ViTPreTrainedModel], config: ViTConfig, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None
) -> ViTPreTrainedModel:
    """A model without values (meta device), in the dtype that was asked for or that of the file."""
    if dtype is None:
        dtypes = {tensor.dtype for tensor in tensors.values()}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    if not dtype.is_floating_point:
        raise UnsupportedCheckpointError(
            f"The weights are {dtype}, but a model computes with floating point numbers: is it quantized?"
        )
    config.dtype = dtype
    with torch.device("meta"):
        return model_class(config).to(dtype)


def _fill(model: ViTPreTrainedModel, tensors: dict[str, torch.Tensor], coverage: Coverage, source: str) -> None:
    """Copies the tensors into the model's own memory, after every name and shape was found to match."""
    parameters = dict(model.named_parameters())
    coverage.missing += sorted(parameters.keys() - tensors.keys())
    coverage.unexpected += sorted(tensors.keys() - parameters.keys())
    coverage.mismatched += [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(parameters[name].shape)})"
        for name, tensor in tensors.items()
        if name in parameters and tensor.shape != parameters[name].shape
    ]
    coverage.raise_unless_complete(source)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not torch.isfinite(tensors[name]).all():
                raise ConversionError(f"{source} holds numbers that are not finite, in what becomes {name}: the file is damaged.")
            parameter.copy_(tensors[name])
