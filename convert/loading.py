"""Loading: any checkpoint as a model with its image processor, and a report of the conversion."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from ..configuration.class_names import read_labels
from ..configuration.configuration_vit import ViTConfig
from ..errors import ConversionError, CorruptFileError, UnsupportedCheckpointError, VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..modeling.modeling_vit_dense import ViTForSemanticSegmentation
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.presets import describe_preprocessing, find_preset, for_dense_head, image_processor_for
from ..processing.resizing import as_pair
from ..utils.downloads import discard
from .adaptation import (
    DENSE,
    adapt_grid,
    adapt_image_processor,
    adapt_num_channels,
    complete_periods,
    fresh_classifier,
    name_classes,
    set_labels,
    with_depth_range,
)
from .detection import find_family, open_checkpoint
from .families.family import Family, RawCheckpoint, make_config, reading
from .families.rules import Coverage, convert_tensors
from .heads import HEAD_PREFIXES, head_source, model_class, read_head
from .report import REPORT_NAME, ConversionRecord, ConversionReport, SourceFile, hash_later
from .sources.catalog import official_image_processor
from .sources.resolver import ResolvedSource, resolve

ALWAYS_FLOAT32 = ViTPreTrainedModel._keep_in_fp32_modules_strict  # names in ViTModel


def load(
    source: str | os.PathLike,
    *,
    format: str = "auto",
    branch: str = "teacher",
    prefix: str | None = None,
    head: str | os.PathLike | None = None,
    head_name: str | None = None,
    depth_range: tuple[float, float] | None = None,
    num_heads: int | None = None,
    published_periods: bool = False,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    num_channels: int | None = None,
    channel_rule: str | None = None,
    num_labels: int | None = None,
    labels: str | os.PathLike | Sequence[str] | None = None,
    preset: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    attn_implementation: str | None = None,
) -> tuple[ViTPreTrainedModel, VitrailImageProcessor, ConversionReport]:
    """Load a checkpoint of any supported format as a model that computes the same outputs as the original.

    Tensors of a safetensors file stay memory-mapped where their layout allows it, as in transformers; tensors of other files are copied.
    Changing the model never changes the file, and the file may be removed, or replaced by renaming, as safetensors, `vitrail.save` and
    the Hub's cache do. Overwriting or truncating the file in place (for example with `cp`) corrupts or crashes processes that have
    loaded it; `copy.deepcopy(model)` is independent of the file.

    Args:
        source: a file, a folder in the Hub's layout, a URL, a Hub id ("timm/vit_base_patch8_224.dino") or a catalog name.
        format: the family; "auto" detects it from names and shapes.
        branch: the network of a training checkpoint: "teacher", the averaged weights (also timm's model_ema), or "student", the trained
            ones.
        prefix: the keys and the prefix of the network's names ("state_dict.model."), where a file holds several networks.
        head: a separate head for the backbone (a linear classifier, or a head for segmentation or depth): a path, a URL, or the name of
            a head that was published with the catalog checkpoint `source` ("linear", "ade20k_linear", "nyu_dpt").
        head_name: the classifier to use from a head file with several.
        depth_range: the smallest and largest depth of a depth head, in meters. By default, it follows from the name of a published head
            (10 m for NYU, 80 m for KITTI); the file does not hold it.
        num_heads: number of attention heads, where it does not follow from the width.
        published_periods: use the rotary periods of DINOv3's published .pth files, rounded to bfloat16; files of timm and transformers
            have none, and these libraries compute them in float32.
        image_size: height and width in pixels to resize positions to. By default, positions keep their size and are interpolated
            when the model runs.
        patch_size: height and width of a patch in pixels to resize the patch projection to, by FlexiViT's pseudo-inverse
            (`vitrail.convert.adaptation.resize_patches`).
        num_channels, channel_rule: another number of input channels, and how the patch projection is adapted: "sum", "repeat" or
            "average" (`vitrail.convert.adaptation.adapt_num_channels`).
        num_labels: replace the classifier with an untrained one for this number of classes; 0 for the encoder alone.
        labels: names of the classes: "imagenet-1k", "imagenet-21k", the names, or a file with one name per line or in JSON. By default,
            those of the checkpoint, or ImageNet's for checkpoints of the catalog and, with a warning, for files without a config.json.
        preset: the preprocessing, one of `vitrail.processing.PRESETS` ("imagenet", "inception", "dinov3", "none", …), in place of the
            checkpoint's. Images have `image_size`, or the preset's size, or the model's.
        revision, token: branch, tag or commit of a Hub repository, and the token for it, as in transformers.
        cache_dir: folder for downloads; the Hub's cache by default.
        dtype: dtype of the model, such as torch.float32 or "float32"; by default, or with "auto", the file's dtype.
        device: device of the model.
        attn_implementation: "sdpa", "eager", "flex_attention" or a flash attention, as in transformers.

    Returns:
        The model in evaluation mode (ViTForImageClassification, ViTForSemanticSegmentation or ViTForDepthEstimation with the head, else
        ViTModel), its image processor, and the report.

    Raises:
        VitrailError: a subclass in `vitrail.errors`; the message names what was found and the remedy.
    """
    resolved = resolve(source, revision=revision, token=token, cache_dir=cache_dir)
    model_dtype = _as_dtype(dtype)
    for name, count, least in (("num_heads", num_heads, 1), ("num_channels", num_channels, 1), ("num_labels", num_labels, 0)):
        if count is not None and (type(count) is not int or count < least):
            raise UnsupportedCheckpointError(f"{name} is {count!r}; expected a whole number, at least {least}. Or leave it out.")
    size = None if image_size is None else as_pair("image_size", image_size)
    patch = None if patch_size is None else as_pair("patch_size", patch_size)
    class_names = None if labels is None else read_labels(labels)
    if preset is not None:
        find_preset(preset)
    raw = open_source(resolved, branch=branch, prefix=prefix)
    known = resolved.checkpoint  # the file of a row of the catalog has the family of the row
    family = find_family(raw, known.family if format == "auto" and known is not None and known.hub_id is None else format)
    report = ConversionReport(family.name, _source_file(resolved, raw), root=raw.root, warnings=raw.warnings)
    report.catalog_name = resolved.checkpoint.name if resolved.checkpoint else None
    report.stored = _stored_record(raw, report.warnings)
    if raw.config is None and not raw.official and (assumption := family.assumption(raw)):
        report.warnings.append(assumption)
    with reading("model"):
        fields = family.configure(raw, num_heads)
    tensors, coverage = convert_family(raw, family, report.warnings)
    foreign = _storages_to_leave(raw)
    if head is not None:
        resolved_head = resolve(head_source(resolved, head), token=token, cache_dir=cache_dir)
        raw_head = open_source(resolved_head)
        report.head = _source_file(resolved_head, raw_head)
        file = (resolved_head.url or resolved_head.path.name).rpartition("/")[2]
        head_tensors, head_fields, warnings = read_head(raw_head, family, head_name, file, fields, coverage)
        tensors |= head_tensors
        foreign |= _storages_to_leave(raw_head)
        fields |= head_fields
        report.warnings += warnings if depth_range is None else []
    report.warnings += complete_periods(tensors, fields, published=published_periods)
    if depth_range is not None:
        with_depth_range(fields, depth_range, model_class(tensors))
    if num_labels is None:
        published = raw.official and (head is None or head_source(resolved, head) != head)
        bare = raw.config is None or head is not None
        assumed = name_classes(fields, tensors, published=published, bare=bare)
        report.warnings += assumed if class_names is None else []
    if any(option is not None for option in (size, patch, num_channels, num_labels)):  # adapting presumes sound tensors
        kept = {name: tensor for name, tensor in tensors.items() if num_labels is None or not name.startswith(HEAD_PREFIXES)}
        check_tensors(make_config(fields), kept, coverage, resolved.name)
    if size is not None or patch is not None:
        report.warnings += adapt_grid(tensors, fields, image_size=size, patch_size=patch)
    if num_channels is not None:
        report.warnings += adapt_num_channels(tensors, fields, num_channels, channel_rule)
    if num_labels is not None:
        report.warnings += fresh_classifier(tensors, fields, num_labels)
    if class_names is not None:
        set_labels(fields, class_names, tensors)

    config = make_config(fields)
    with reading("image processor"):
        if preset is None:
            image_processor = _image_processor(raw, family, config, resolved)
        else:
            image_processor = image_processor_for(config, preset, image_size=size)
            described = describe_preprocessing(image_processor)
            report.warnings.append(f'preset="{preset}" takes the place of the checkpoint\'s preprocessing: {described}')
        image_processor = adapt_image_processor(
            image_processor, image_size=size, patch_size=config.patch_shape, num_channels=config.num_channels
        )
        if (
            head is not None and preset is None and issubclass(model_class(tensors), DENSE)
        ):  # a folder of a dense head holds its own
            image_processor = for_dense_head(image_processor, config, segments=model_class(tensors) is ViTForSemanticSegmentation)
    del raw  # or tensors that the conversion copied (q, k and v become one tensor) would stay in memory twice
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    model = build_model(config, tensors, coverage, resolved.name, dtype=model_dtype, foreign=foreign)
    if dtype is None and model.dtype != torch.float32:
        report.warnings.append(f'the weights are {_name(model.dtype)}, and so is the model: to train it, set dtype="float32"')
    report.coverage = coverage.to_dict()
    return model.to(_as_device(device)).eval(), image_processor, report


def _image_processor(raw: RawCheckpoint, family: Family, config: ViTConfig, resolved: ResolvedSource) -> VitrailImageProcessor:
    """Return the preprocessing that the files state; of an official file without JSON files, that of its row in the catalog."""
    if resolved.checkpoint is not None and raw.config is None and raw.preprocessor_config is None:
        return official_image_processor(resolved.checkpoint)
    return family.image_processor(raw, config)


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the dtype of the model; None for the file's."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None or dtype == "auto":
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UnsupportedCheckpointError(
            f'dtype={dtype!r} is not a dtype of a model; expected "float32", "bfloat16", "float16" or "auto".'
        )
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_device(device: str | torch.device | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UnsupportedCheckpointError(
            f'device={device!r} is not a device of torch; expected for example "cpu" or "cuda:0".'
        ) from error


def open_source(resolved: ResolvedSource, *, branch: str = "teacher", prefix: str | None = None) -> RawCheckpoint:
    """Open the checkpoint of a source; a damaged download leaves the cache, so that the next run downloads it again."""
    try:
        return open_checkpoint(resolved.path, branch=branch, prefix=prefix, official=resolved.checkpoint is not None)
    except CorruptFileError:
        if resolved.url is not None:
            discard(resolved.path)
        raise


def convert_family(raw: RawCheckpoint, family: Family, warnings: list[str]) -> tuple[dict[str, torch.Tensor], Coverage]:
    """Apply a family's rules to a checkpoint, without the names that the family drops; append the reasons to `warnings`."""
    drops = family.drops(raw)
    warnings += dict.fromkeys(drops.values())
    kept = {name: tensor for name, tensor in raw.tensors.items() if name not in drops}
    tensors, coverage = convert_tensors(kept, family.rules(raw), family.ignored)
    coverage.ignored += drops
    return tensors, coverage


def check_tensors(config: ViTConfig, tensors: Mapping[str, torch.Tensor], coverage: Coverage, source: str) -> ViTPreTrainedModel:
    """Return the model of a config on the device "meta"; raise ConversionError unless every name and shape matches its parameters.

    Args:
        config: the architecture.
        tensors: the parameters.
        coverage: the names that the conversion found missing or unexpected; it is not changed.
        source: the name for errors.
    """
    try:
        with torch.device("meta"):  # shapes alone
            model = model_class(tensors)(config)
    except (ImportError, ValueError) as error:  # the attention kernel is not installed, or unknown
        raise UnsupportedCheckpointError(f"The model cannot be made: {error}") from error
    parameters = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    found = replace(coverage, missing=[*coverage.missing], unexpected=[*coverage.unexpected])
    found.missing += sorted(parameters.keys() - tensors.keys())
    found.unexpected += sorted(tensors.keys() - parameters.keys())
    found.mismatched = [
        f"{name} (file {tuple(tensor.shape)}, model {tuple(parameters[name].shape)})"
        for name, tensor in tensors.items()
        if name in parameters and tensor.shape != parameters[name].shape
    ]
    found.raise_unless_complete(source)
    return model


def build_model(
    config: ViTConfig,
    tensors: dict[str, torch.Tensor],
    coverage: Coverage,
    source: str,
    *,
    dtype: torch.dtype | None = None,
    foreign: Collection[int] = (),
) -> ViTPreTrainedModel:
    """Return a model with these tensors as parameters, without initializing it first; every name and shape must match.

    Args:
        config: its dtype is set.
        tensors: emptied, so that the memory of copied tensors is freed.
        coverage, source: see `check_tensors`.
        dtype: dtype of the model; the tensors' dtype by default.
        foreign: addresses of storages that the model must not keep.

    Raises:
        ConversionError: keys are unexpected or missing, a shape differs, or a value is NaN or inf.
    """
    dtype = dtype or _common_dtype(tensors)
    config.dtype = dtype
    model = check_tensors(config, tensors, coverage, source)
    config.architectures = [type(model).__name__]
    placed: dict[str, torch.Tensor] = {}
    taken = set(foreign)
    for name in model.state_dict():
        exact = name.removeprefix("vit.") in ALWAYS_FLOAT32
        tensor = _with_own_storage(tensors.pop(name.removeprefix("vit.")), torch.float32 if exact else dtype, taken)
        if not all(bound.isfinite() for bound in torch.aminmax(tensor)):  # aminmax passes NaN on, and is far faster than isfinite()
            raise ConversionError(f"{source} contains NaN or inf in the tensor for {name}: the file is damaged. Download it again.")
        placed[name] = tensor
    model.load_state_dict(placed, assign=True)
    return model


def _with_own_storage(tensor: torch.Tensor, dtype: torch.dtype, taken: set[int]) -> torch.Tensor:
    """Return the tensor itself where it fills a storage that is not taken yet, or else a copy."""
    tensor = tensor.detach().to(dtype)
    storage = tensor.untyped_storage()
    if not tensor.is_contiguous() or storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
        return tensor.clone(memory_format=torch.contiguous_format)
    taken.add(storage.data_ptr())
    return tensor


def _storages_to_leave(raw: RawCheckpoint) -> set[int]:
    """Return the storages of a torch file, which must be copied: torch.save overwrites a file in place, which would change mapped tensors.

    Writers of safetensors replace the file by renaming, so that tensors mapped from the old file stay valid.
    """
    return {tensor.untyped_storage().data_ptr() for tensor in raw.tensors.values()} if raw.container == "torch" else set()


def _common_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    dtypes = {tensor.dtype for name, tensor in tensors.items() if name not in ALWAYS_FLOAT32}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _source_file(resolved: ResolvedSource, raw: RawCheckpoint) -> SourceFile:
    name = raw.files[0].name if len(raw.files) == 1 else f"{len(raw.files)} shards, {raw.files[0].name} the first"
    size = sum(file.stat().st_size for file in raw.files)
    return SourceFile(name, resolved.url, resolved.hub_id, size, hash_later(raw.files))


def _stored_record(raw: RawCheckpoint, warnings: list[str]) -> ConversionRecord | None:
    """Return the conversion.json in the folder of the weights; None where there is none. One that cannot be read is a warning."""
    try:
        return ConversionRecord.read(raw.files[0].with_name(REPORT_NAME))
    except FileNotFoundError:
        return None
    except VitrailError as error:  # the weights are sound, whatever is wrong with their history
        warnings.append(f"the origin of the weights is unknown: {error}")
        return None
