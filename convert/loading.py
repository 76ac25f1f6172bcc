"""`load`: any source becomes a model of ours with its image processor, and a report of what was done."""

import os
from collections.abc import Collection
from typing import Any

import torch

from ..configuration.configuration_vit import ViTConfig
from ..errors import ConversionError, CorruptFileError, UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import read_json
from .adaptation import adapt_image_processor, adapt_image_size, adapt_num_channels, fresh_classifier, with_labels
from .detection import BRANCHES, find_family, open_checkpoint
from .families.family import Family, RawCheckpoint, make_config
from .families.rules import Coverage, convert_tensors
from .report import REPORT_NAME, ConversionReport, SourceFile, hash_later
from .sources.resolver import ResolvedSource, resolve

# Said when no config.json lies beside weights of a layout that more than one origin has
ASSUMED = {
    "dino": 'taken for a DINO file; timm\'s plain ViTs have the same layout: if it is one, give format="timm"',
    "timm": "no config.json beside the weights: pooling, activation and preprocessing (mean and std 0.5, crop 0.9) are timm's usual ones",
}


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

    Nothing is initialised at random first. What a safetensors file holds as the model takes it stays memory-mapped, as transformers
    leaves it: no memory is filled with a copy. What is done to the model never reaches the file, and the file may be removed, or replaced
    as safetensors, `vitrail.save` and the Hub's cache replace files: by renaming. But who overwrites or cuts it in place (`cp` does)
    changes, or ends, a process that has loaded it; `copy.deepcopy(model)` depends on no file. Of other files everything is copied.

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
            "average" (`vitrail.convert.adaptation.adapt_num_channels`).
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
    report.catalog_name = resolved.checkpoint.name if resolved.checkpoint else None
    report.beside = _report_beside(raw)
    if raw.left_out:
        report.warnings.append(f"not weights of the model, left out: {', '.join(raw.left_out)}")

    if raw.config is None and family.name in ASSUMED and raw.root not in BRANCHES:
        report.warnings.append(ASSUMED[family.name])
    fields = family.configure(raw, num_heads)
    tensors, coverage = convert_family(raw, family, report.warnings)
    foreign = _storages_to_leave(raw)
    if head is not None:
        resolved_head = resolve(_head_source(resolved, head), token=token, cache_dir=cache_dir)
        raw_head = open_checkpoint(resolved_head.path, head_name=head_name)
        head_tensors, head_fields = _read_head(raw_head, family, fields, coverage)
        tensors |= head_tensors
        foreign |= _storages_to_leave(raw_head)
        fields |= head_fields
        report.head = _source_file(resolved_head, raw_head)
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if image_size is not None:
        report.warnings += adapt_image_size(tensors, fields, image_size)
    if num_channels is not None:
        report.warnings += adapt_num_channels(tensors, fields, num_channels, channel_rule)
    if num_labels is not None:
        report.warnings += fresh_classifier(tensors, fields, num_labels)
    elif "classifier.weight" in tensors:
        report.warnings += with_labels(fields, len(tensors["classifier.weight"]))

    config = make_config(fields)
    image_processor = adapt_image_processor(
        family.image_processor(raw, config),
        image_size=image_size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
    )
    del raw  # or what the conversion copied (q, k and v become one tensor) would stay in memory twice
    model = build_model(config, tensors, coverage, resolved.name, dtype=dtype, foreign=foreign)
    report.coverage = coverage.to_dict()
    return model.to(device).eval(), image_processor, report


def convert_family(raw: RawCheckpoint, family: Family, warnings: list[str]) -> tuple[dict[str, torch.Tensor], Coverage]:
    """Applies a family's table to a checkpoint, without what the family drops, which is noted."""
    drops = family.drops(raw)
    warnings += dict.fromkeys(drops.values())
    kept = {name: tensor for name, tensor in raw.tensors.items() if name not in drops}
    tensors, coverage = convert_tensors(kept, family.rules(raw), family.ignored)
    coverage.ignored += drops
    return tensors, coverage


def build_model(
    config: ViTConfig,
    tensors: dict[str, torch.Tensor],
    coverage: Coverage,
    source: str,
    *,
    dtype: torch.dtype | None = None,
    foreign: Collection[int] = (),
) -> ViTPreTrainedModel:
    """A model whose parameters are these tensors, after every name and shape was found to match; nothing is initialised before.

    Args:
        config: gets the dtype.
        tensors: each is taken out as it is put into its place, so that the memory of what has to be copied can go.
        coverage: what was found so far, which is completed.
        source: what to call it in front of people.
        dtype: of the model; without it, that of the tensors.
        foreign: addresses of storages that a model must not keep.

    Raises:
        ConversionError: a name is too much or missing, a shape is another, or a number is not finite.
    """
    dtype = dtype or _common_dtype(tensors)
    config.dtype = dtype
    classifies = "classifier.weight" in tensors
    with torch.device("meta"):  # shapes alone
        model: ViTPreTrainedModel = (ViTForImageClassification if classifies else ViTModel)(config)
    parameters = {name.removeprefix("vit."): parameter for name, parameter in model.named_parameters()}
    coverage.missing += sorted(parameters.keys() - tensors.keys())
    coverage.unexpected += sorted(tensors.keys() - parameters.keys())
    coverage.mismatched += [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(parameters[name].shape)})"
        for name, tensor in tensors.items()
        if name in parameters and tensor.shape != parameters[name].shape
    ]
    coverage.raise_unless_complete(source)
    placed: dict[str, torch.Tensor] = {}
    taken = set(foreign)
    for name, _ in model.named_parameters():
        tensor = _in_memory_of_its_own(tensors.pop(name.removeprefix("vit.")), dtype, taken)
        if not all(bound.isfinite() for bound in torch.aminmax(tensor)):  # which NaN passes through; far faster than isfinite()
            raise ConversionError(f"{source} holds numbers that are not finite, in what becomes {name}: the file is damaged.")
        placed[name] = tensor
    model.load_state_dict(placed, assign=True)
    return model


def _in_memory_of_its_own(tensor: torch.Tensor, dtype: torch.dtype, taken: set[int]) -> torch.Tensor:
    """The tensor itself where it fills a storage that is not taken yet, or else a copy."""
    tensor = tensor.detach().to(dtype)
    storage = tensor.untyped_storage()
    if not tensor.is_contiguous() or storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
        return tensor.clone(memory_format=torch.contiguous_format)
    taken.add(storage.data_ptr())
    return tensor


def _storages_to_leave(raw: RawCheckpoint) -> set[int]:
    """Those of a torch file: torch.save overwrites one in place, as training runs do, and then what is mapped of it would change too.

    Who writes safetensors puts a new file in the place of the old one, of which what is mapped stays.
    """
    return {tensor.untyped_storage().data_ptr() for tensor in raw.tensors.values()} if raw.container == "torch" else set()


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
    size = sum(file.stat().st_size for file in raw.files)
    return SourceFile(name, resolved.url, resolved.hub_id, size, hash_later(raw.files))


def _report_beside(raw: RawCheckpoint) -> dict[str, Any] | None:
    try:
        return read_json(raw.files[0].with_name(REPORT_NAME))
    except (FileNotFoundError, CorruptFileError):
        return None


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
