"""`load`: any source becomes a model of ours with its image processor, and a report of what was done."""

import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import transformers

from ..configuration.configuration_vit import ViTConfig
from ..errors import ConversionError, CorruptFileError, UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..version import __version__
from .adapt import adapt_image_processor, adapt_image_size, adapt_num_channels, fresh_classifier, with_labels
from .detect import find_family, open_checkpoint
from .download import sha256
from .family import Family, RawCheckpoint, make_config
from .files import read_json
from .rules import Coverage, convert_tensors
from .sources import ResolvedSource, resolve

REPORT_NAME = "conversion.json"  # beside the weights that it reports on

# Said when no config.json lies beside weights of a layout that more than one origin has
ASSUMED = {
    "dino": 'taken for a DINO file; timm\'s plain ViTs have the same layout: if it is one, give format="timm"',
    "timm": "no config.json beside the weights: pooling, activation and preprocessing (mean and std 0.5, crop 0.9) are timm's usual ones",
}


@dataclass
class SourceFile:
    """Where a tensor file came from; of a sharded one, size and SHA-256 are of its shards one after the other."""

    name: str
    url: str | None
    hub_id: str | None
    bytes: int
    sha256: str


@dataclass
class ConversionReport:
    """What `load` did; `convert_checkpoint` keeps it as conversion.json.

    format: the family that was recognised.
    source, head: the files, with their SHA-256.
    checkpoint: the name in the catalogue, if it has one.
    root: the key of the file under which the weights stood ("teacher", …).
    origin: for a folder of ours, the report that lies in it: what its weights were converted from.
    coverage: how many tensors were converted, and which were ignored.
    notices: what a person should know.
    """

    format: str
    source: SourceFile
    checkpoint: str | None = None
    head: SourceFile | None = None
    root: str | None = None
    origin: dict[str, Any] | None = None
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
    head_name: str | None = None,
    num_heads: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_channels: int | None = None,
    channel_rule: str | None = None,
    num_labels: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport]:
    """Loads a checkpoint, whatever it is, so that the model behaves as the original did.

    Args:
        source: a file, a folder as the Hub has them, a URL, a Hub id ("timm/vit_base_patch8_224.dino") or a name of the catalogue.
        format: the family, where names and shapes should not decide it.
        branch: the network of a full training checkpoint, "teacher" or "student".
        head: the file (path, URL) of a linear classifier that goes with the backbone; or the name of one that was published with the
            checkpoint of the catalogue that `source` names ("linear").
        head_name: which classifier of a head file that holds many.
        num_heads: number of attention heads, where the width does not tell it.
        image_size: height and width, in pixels, that positions are resized to. Without it they stay as they are, and are
            interpolated when the model runs.
        num_channels, channel_rule: another number of channels, and how the patch projection becomes one for it: "sum", "repeat" or
            "average" (`vitrail.convert.adapt.adapt_num_channels`).
        num_labels: puts a fresh, untrained classifier for so many classes in the place of the checkpoint's.
        revision, token: branch, tag or commit of a Hub repository, and the token to read it with, as transformers takes them.
        cache_dir: where downloads are kept, instead of the Hub's cache folder.
        dtype: of the model; without it, that of the file.
        device: where to put the model.

    Returns:
        The model, in evaluation mode (ViTForImageClassification when there is a classifier, else ViTModel), its image processor, and
        the report.

    Raises:
        VitrailError: one of `vitrail.errors`, which says what was found and what to do.
    """
    resolved = resolve(source, revision=revision, token=token, cache_dir=cache_dir)
    raw = open_checkpoint(resolved.path, branch=branch)
    family = find_family(raw, format)
    report = ConversionReport(family.name, _source_file(resolved, raw), root=raw.root)
    report.origin = _origin(raw, report.source)
    report.checkpoint = resolved.checkpoint.name if resolved.checkpoint else (report.origin or {}).get("checkpoint")
    if raw.left_out:
        report.notices.append(f"not weights of the model, left out: {', '.join(raw.left_out)}")

    if raw.config is None and family.name in ASSUMED:
        report.notices.append(ASSUMED[family.name])
    fields = family.configure(raw, num_heads)
    tensors, coverage = convert_family(raw, family, report.notices)
    if head is not None:
        resolved_head = resolve(_head_source(resolved, head), token=token, cache_dir=cache_dir)
        raw_head = open_checkpoint(resolved_head.path, head_name=head_name)
        head_tensors, head_fields = _read_head(raw_head, family, fields, coverage)
        tensors |= head_tensors
        fields |= head_fields
        report.head = _source_file(resolved_head, raw_head)
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if image_size is not None:
        report.notices += adapt_image_size(tensors, fields, image_size)
    if num_channels is not None:
        report.notices += adapt_num_channels(tensors, fields, num_channels, channel_rule)
    if num_labels is not None:
        report.notices += fresh_classifier(tensors, fields, num_labels)
    elif "classifier.weight" in tensors:
        report.notices += with_labels(fields, len(tensors["classifier.weight"]))

    config = make_config(fields)
    image_processor = adapt_image_processor(
        family.image_processor(raw, config), image_size=image_size, num_channels=config.num_channels
    )
    del raw  # or what the conversion copied (q, k and v become one tensor) would stay in memory twice
    model = build_model(config, tensors, coverage, resolved.name, dtype)
    report.coverage = coverage.to_dict()
    return model.to(device).eval(), image_processor, report


def convert_family(raw: RawCheckpoint, family: Family, notices: list[str]) -> tuple[dict[str, torch.Tensor], Coverage]:
    """Applies a family's table to a checkpoint, without what the family drops, which is noted."""
    drops = family.drops(raw)
    notices += dict.fromkeys(drops.values())
    kept = {name: tensor for name, tensor in raw.tensors.items() if name not in drops}
    tensors, coverage = convert_tensors(kept, family.rules(raw), family.ignored)
    coverage.ignored += drops
    return tensors, coverage


def build_model(
    config: ViTConfig, tensors: dict[str, torch.Tensor], coverage: Coverage, source: str, dtype: torch.dtype | None = None
) -> ViTPreTrainedModel:
    """A model of these tensors, copied into its own memory after every name and shape was found to match.

    Each tensor is taken out of `tensors` as it is copied, so that its memory can go.

    Raises:
        ConversionError: a name is too much or missing, a shape is another, or a number is not finite.
    """
    dtype = dtype or _common_dtype(tensors)
    config.dtype = dtype
    classifies = "classifier.weight" in tensors
    with torch.device("meta"):
        model: ViTPreTrainedModel = (ViTForImageClassification if classifies else ViTModel)(config).to(dtype)
    parameters = {name.removeprefix("vit."): parameter for name, parameter in model.named_parameters()}
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
            parameter.copy_(tensors.pop(name.removeprefix("vit.")))
            if not torch.isfinite(parameter).all():
                raise ConversionError(f"{source} holds numbers that are not finite, in what becomes {name}: the file is damaged.")
    return model


def _common_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    if not dtype.is_floating_point:
        raise UnsupportedCheckpointError(
            f"The weights are {dtype}, but a model computes with floating point numbers: is it quantized?"
        )
    return dtype


def _source_file(resolved: ResolvedSource, raw: RawCheckpoint) -> SourceFile:
    name = raw.files[0].name if len(raw.files) == 1 else f"{len(raw.files)} shards, {raw.files[0].name} the first"
    return SourceFile(name, resolved.url, resolved.hub_id, sum(file.stat().st_size for file in raw.files), sha256(*raw.files))


def _origin(raw: RawCheckpoint, source: SourceFile) -> dict[str, Any] | None:
    """The report beside weights of ours, if they are still those that it was written with; not what was verified of the folder."""
    try:
        origin = read_json(raw.files[0].with_name(REPORT_NAME))
    except (FileNotFoundError, CorruptFileError):
        return None
    if origin.get("weights_sha256") != source.sha256:  # another program's, or of other weights
        return None
    return {name: value for name, value in origin.items() if name != "verification"}


def _head_source(resolved: ResolvedSource, head: str | os.PathLike) -> str | os.PathLike:
    """A head that is published with the checkpoint may be called by its short name."""
    published = (resolved.checkpoint.head_urls or {}) if resolved.checkpoint else {}
    return published.get(os.fspath(head), head)


def _read_head(
    raw: RawCheckpoint, family: Family, fields: dict[str, Any], coverage: Coverage
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The classifier of a head file, and the config fields that say what it reads."""
    if family.head_rules is None:
        raise UnsupportedCheckpointError(
            f"Checkpoints of the family {family.name} hold their classifier themselves: leave head= out."
        )
    rules, head_fields = family.head_rules(raw, fields["hidden_size"])
    tensors, head_coverage = convert_tensors(raw.tensors, rules)
    coverage.converted += head_coverage.converted
    coverage.unexpected += head_coverage.unexpected
    return tensors, head_fields
