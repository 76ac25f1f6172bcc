"""A config and an image processor in words: the tables of a model card, and the differences between two models."""

import functools
import html
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from typing import Any

from PIL import Image

from ..configuration.configuration_vit import ViTConfig
from ..configuration.sizes import size_name
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation
from ..modeling.operation_counts import Complexity, module_counts, total
from ..processing.image_processing_vit import VitrailImageProcessor

LETTERS = {"tiny": "Ti", "small": "S", "medium": "M", "base": "B", "large": "L", "huge": "H", "giant": "g", "7b": "7B"}
LETTERS |= {f"{size}_plus": f"{LETTERS[size]}+" for size in ("small", "large", "huge")}
ACTIVATIONS = {"gelu": "GELU", "gelu_pytorch_tanh": "GELU (tanh approximation)"}
POOLED = {"cls": "[CLS]", "avg": "the mean of the patch tokens", "cls+avg": "[CLS] and the mean of the patch tokens, concatenated"}
DENSE: dict[str, type[ViTPreTrainedModel]] = {
    "ViTForSemanticSegmentation": ViTForSemanticSegmentation,
    "ViTForDepthEstimation": ViTForDepthEstimation,
}
MODELS = DENSE | {"ViTForImageClassification": ViTForImageClassification, "ViTModel": ViTModel}
NONE = "none"


class Markdown(str):
    """Text that is Markdown; the template escapes all other text."""

    __slots__ = ()


def trusted(content: Any) -> Any:
    """Mark every string in our own text, in dictionaries and lists, as Markdown."""
    if isinstance(content, Mapping):
        return {key: trusted(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [trusted(value) for value in content]
    return Markdown(content) if isinstance(content, str) else content


def escape(content: Any) -> Any:
    """Return text on one line, with HTML, backticks and backslashes escaped; Markdown and other values stay as they are."""
    if isinstance(content, Markdown) or not isinstance(content, str):
        return content
    return Markdown(re.sub(r"([\\`])", r"\\\1", html.escape(" ".join(content.split()), quote=False)))


def as_code(text: str) -> Markdown:
    """Return a name as inline code in Markdown."""
    return Markdown("`" + " ".join(text.replace("`", "'").split()) + "`")


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Markdown:
    """Return a table of Markdown; bars are escaped and line breaks become spaces, because they would end a cell."""
    lines = [" ".join(cell.replace("|", "\\|").split()) for cell in header]
    body = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return Markdown("\n".join(f"| {' | '.join(cells)} |" for cells in (lines, ["---"] * len(lines), *body)))


def format_size(size: tuple[int, int]) -> str:
    """Return a height and a width in words."""
    return f"{size[0]} x {size[1]}"


def architecture_name(config: ViTConfig) -> str:
    """Return a name like ViT-S/8; sizes without a name have no letter."""
    size, (height, width) = size_name(config), config.patch_shape
    return f"ViT{'-' + LETTERS[size] if size else ''}/{height if height == width else format_size(config.patch_shape)}"


def tokens(config: ViTConfig, size: tuple[int, int]) -> tuple[int, str]:
    """Return the number of tokens of an image of `size` (height, width) pixels, and their kinds."""
    grid = size[0] // config.patch_shape[0], size[1] // config.patch_shape[1]
    registers = f"{config.num_register_tokens} register{'s' if config.num_register_tokens > 1 else ''}"
    parts = ["[CLS]"] * config.use_cls_token + [registers] * (config.num_register_tokens > 0) + [f"{format_size(grid)} patches"]
    return config.num_prefix_tokens + grid[0] * grid[1], ", ".join(parts)


def architecture(config: ViTConfig, *, classifies: bool, named_classes: bool = True) -> dict[str, str]:
    """Return the properties that decide a model's outputs together with its weights."""
    head_width = config.hidden_size // config.num_attention_heads
    activation = ACTIVATIONS.get(config.hidden_act) or escape(config.hidden_act)
    epsilon = f"{config.layer_norm_eps:g}".replace("e-0", "e-")
    norm = "before" if config.norm_position == "pre" else "after"
    count, which = tokens(config, config.image_shape)
    separate = {"Final norm": "one for [CLS] and registers, another for patches"} if config.separate_cls_norm else {}
    channels = f"{config.num_channels} channel{'s' if config.num_channels > 1 else ''}"
    mask_token = {"Mask token": "yes, for training with masked patches"} if config.use_mask_token else {}
    return {
        "Blocks": f"{config.num_hidden_layers}, {config.hidden_size} wide, {config.num_attention_heads} heads of {head_width}",
        "MLP": f"SwiGLU, {config.intermediate_size} wide"
        if config.mlp_type == "swiglu"
        else f"{config.intermediate_size} wide, {activation}",
        "LayerNorm": f"{norm} attention and MLP",
        **separate,
        "Epsilon of LayerNorm": epsilon,
        "LayerScale": NONE if config.layer_scale_init_value is None else "yes",
        "Bias of query, key and value": "yes" if config.qkv_bias else NONE,
        "Image": f"{format_size(config.image_shape)} pixels, {channels}, patches of {format_size(config.patch_shape)}",
        "Tokens": f"{count:,}: {which}",
        **mask_token,
        **_positions(config),
        "`pooler_output`": pooled(config),
        "Classifier": _classifier(config, named_classes) if classifies else NONE,
        **({"Head": dense_head(config, named_classes)} if dense_class(config) else {}),
    }


def pooled(config: ViTConfig) -> str:
    """Return what `pooler_output` is."""
    norm = ", after the final norm" if config.norm_before_pooling else ", then the final norm"
    layer = config.representation_size
    return POOLED[config.pooling] + norm + (f", then a layer of {layer} with tanh (pre_logits)" if layer is not None else "")


def _positions(config: ViTConfig) -> dict[str, str]:
    scope = "shared by all blocks" if config.share_relative_position else "one per block"
    if config.position_embedding_type == "relative_mlp":
        width = config.relative_position_hidden_size
        return {
            "Positions": f"relative: an MLP of width {width} computes an attention bias for each offset; {scope}",
            "Positions at other sizes": "the same MLP",
        }
    if config.position_embedding_type == "relative_table":
        return {
            "Positions": f"relative: a table holds an attention bias for each offset; {scope}",
            "Positions at other sizes": "interpolated from the table",
        }
    if config.position_embedding_type == "rotary":
        return {
            "Positions": "rotary: each head turns the queries and keys of patches by angles that grow with row and column",
            "Positions at other sizes": "the same angles: rows and columns count from -1 to 1 across the image, at any size",
        }
    rule: list[str] = [config.position_interpolation_mode]
    if config.position_interpolation_offset:
        rule.append(f"{config.position_interpolation_offset:g} added to the target grid")
    if config.position_interpolation_antialias:
        rule.append("antialiased")
    if config.position_interpolation_align_corners:
        rule.append("with aligned corners")
    has_cls = config.use_cls_token and config.use_cls_position
    return {
        "Positions": f"learned, one for each patch{' and for [CLS]' if has_cls else ''}",
        "Positions at other sizes": f"interpolated: {', '.join(rule)}",
    }


def _classifier(config: ViTConfig, named_classes: bool) -> str:
    reads = "`pooler_output`"
    if config.classifier_reads_tokens:
        blocks = config.classifier_cls_layers
        reads = "[CLS]" if blocks == 1 else f"[CLS] of the last {blocks} blocks"
        reads += " and the mean of the patch tokens" * config.classifier_mean_patch
    return f"{config.num_labels:,} classes{'' if named_classes else ' without names'}, reads {reads}"


def dense_class(config: ViTConfig) -> type[ViTPreTrainedModel] | None:
    """Return the class of a model for segmentation or depth, by the `architectures` of its config; None for other models."""
    return next((DENSE[name] for name in config.architectures or () if name in DENSE), None)


def dense_task(config: ViTConfig) -> str | None:
    """Return what a model for segmentation or depth computes, as a sentence; None for other models."""
    if dense_class(config) is ViTForSemanticSegmentation:
        return f"It predicts one of {config.num_labels:,} classes for each pixel of an image."
    if dense_class(config) is ViTForDepthEstimation:
        low, high = config.depth_range
        return f"It estimates the depth of each pixel of an image, in meters from {low:g} to {high:g}."
    return None


def dense_head(config: ViTConfig, named_classes: bool) -> str:
    """Return a dense head in words."""
    blocks = ", ".join(str(index + 1) for index in config.dense_layer_indices)
    reads = f"reads the patch tokens of block {blocks}" + (" after the final norm" if config.dense_norm else "")
    if dense_class(config) is ViTForSemanticSegmentation:
        return f"batch norm and linear, {config.num_labels:,} classes{'' if named_classes else ' without names'}, {reads}"
    kind = "DPT" if config.depth_head == "dpt" else "linear"
    bins = "one value" if config.depth_num_bins == 1 else f"{config.depth_num_bins} bins"
    cls_token = "" if config.depth_readout == "ignore" else " and [CLS]"
    return f"{kind}, {bins}, {config.depth_range[0]:g} to {config.depth_range[1]:g} m, {reads}{cls_token}"


def has_named_classes(config: ViTConfig) -> bool:
    """Return True where a config names its classes; a new classifier only numbers them."""
    return any(label != f"LABEL_{index}" for index, label in (config.id2label or {}).items())


def preprocessing(image_processor: VitrailImageProcessor) -> dict[str, str]:
    """Return the steps of an image processor."""
    size, crop = dict(image_processor.size), dict(image_processor.crop_size or {})
    if not image_processor.do_resize:
        resize = NONE
    elif "height" in size:
        resize = f"to {format_size((size['height'], size['width']))} pixels, without keeping the aspect ratio"
    else:
        longest = f", longer side at most {size['longest_edge']}" if size.get("longest_edge") else ""
        resize = f"shorter side to {size['shortest_edge']} pixels{longest}, keeping the aspect ratio"
    rows = {"JPEG files": "decoded at 1/2, 1/4 or 1/8 of their size where that suffices"} if image_processor.jpeg_draft else {}
    rows |= {"Resize": resize, "Filter": Image.Resampling(int(image_processor.resample)).name.lower()}
    if image_processor.size_divisor is not None:
        divisor = image_processor.size_divisor
        sides = (divisor, divisor) if isinstance(divisor, int) else tuple(divisor)
        rows["Multiples"] = (
            f"{'padded' if image_processor.do_pad else 'resized'} to multiples of {format_size((sides[0], sides[1]))} pixels"
        )
    rows["Crop"] = f"the central {format_size((crop['height'], crop['width']))} pixels" if image_processor.do_center_crop else NONE
    if not image_processor.do_rescale:
        rows["Scale"] = NONE
    normalizes = image_processor.do_normalize
    rows["Mean"] = ", ".join(f"{value:g}" for value in image_processor.image_mean) if normalizes else NONE
    rows["Standard deviation"] = ", ".join(f"{value:g}" for value in image_processor.image_std) if normalizes else NONE
    return rows


def counts(config: ViTConfig, *, classifies: bool, size: tuple[int, int]) -> Complexity:
    """Return `complexity` for an image of `size` (height, width) pixels, extrapolated from a small depth: all blocks are equal."""
    dense = dense_class(config)
    depth = max(config.classifier_cls_layers, len(config.dense_layer_indices))
    uncounted = ("_", "position_interpolation_", "layer_norm_eps", "hidden_act")
    names = [name for name in ViTConfig.__annotations__ if not name.startswith(uncounted)]
    fields = {name: getattr(config, name) for name in names} | {"num_labels": config.num_labels, "num_hidden_layers": depth}
    fields["dense_layers"] = list(range(len(config.dense_layer_indices)))
    model = dense.__name__ if dense else "ViTForImageClassification" if classifies else "ViTModel"
    small, block = _counts(json.dumps(fields), model, size)
    more = config.num_hidden_layers - depth
    return Complexity(*(few + more * each for few, each in zip(astuple(small), astuple(block), strict=True)))


@functools.cache
def _counts(fields: str, model_class: str, size: tuple[int, int]) -> tuple[Complexity, Complexity]:
    """Return the counts of an architecture, which many checkpoints share, and those of its last block."""
    config = ViTConfig(**json.loads(fields))
    modules = module_counts(MODELS[model_class], config, size)
    last_block = re.compile(rf"(vit\.)?layers\.{config.num_hidden_layers - 1}\b")
    return total(modules.values()), total(count for name, count in modules.items() if last_block.match(name))


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return the rows in which two tables differ: name, value here, value there."""
    names = dict.fromkeys([*here, *there])
    pairs = [(name, here.get(name, NONE), there.get(name, NONE)) for name in names]
    return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]
