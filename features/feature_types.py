"""The types of features of an image: parsed from text, and computed.

Shape letters: B batch, D hidden size, h w patches in each direction, n chosen blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModel
from ..runtime.outputs import TupleOutputs

VECTORS = ("pooled", "cls", "mean", "cls+mean")  # one vector for each image
NAMES = (*VECTORS, "patches", "layers=I,J,…")


@dataclass(frozen=True)
class FeatureType:
    """A type of features; `str` gives the text that `parse_features` reads.

    name: one of `NAMES`, without "=" and what follows.
    layers: indices of the blocks that "layers" reads, 0 for the first.
    """

    name: str
    layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}={','.join(map(str, self.layers))}" if self.layers else self.name

    @property
    def column(self) -> str:
        """The column of these features; the shapes of tensors are in the column of that name with "_shape"."""
        return self.name.replace("+", "_")

    @property
    def is_vector(self) -> bool:
        """Whether there is one vector for each image, and not a tensor."""
        return self.name in VECTORS


def parse_features(names: Sequence[str], config: ViTConfig) -> tuple[FeatureType, ...]:
    """Return the feature types with these names, for a model with this config.

    - pooled: what the model pools, `pooler_output`, which `vitrail embed` writes.
    - cls: the [CLS] token after the final norm (where that norm comes before the pooling), as in `last_hidden_state`.
    - mean: the mean of the patch tokens, likewise.
    - cls+mean: both, one after the other.
    - patches: every patch token, (h, w, D).
    - layers=I,J,…: [CLS], or else the mean patch, as it leaves the blocks with these indices, (n, D), normed likewise. 0 is the first
      block, negative indices count from the last.

    Raises VitrailError for other names, for one that is given twice, and for what the model does not have.
    """
    feature_types = [_parse(name, config) for name in names]
    if not feature_types or len({kind.name for kind in feature_types}) < len(feature_types):
        raise VitrailError(f"found the features {', '.join(names) or '(none)'}; name each type once, among {', '.join(NAMES)}")
    return tuple(feature_types)


def _parse(text: str, config: ViTConfig) -> FeatureType:
    name, equals, blocks = text.partition("=")
    if name == "layers" and equals:
        return FeatureType(name, _layers(blocks, config.num_hidden_layers))
    if equals or name not in (*VECTORS, "patches"):
        raise VitrailError(f"found the features {text!r}; write one of {', '.join(NAMES)}")
    if "cls" in name and not config.use_cls_token:
        raise VitrailError(f"found the features {text!r}, but this model has no [CLS] token; write mean or pooled")
    return FeatureType(name)


def _layers(text: str, number: int) -> tuple[int, ...]:
    try:
        layers = [int(index) for index in text.split(",")]
    except ValueError as error:
        raise VitrailError(f"found layers={text}; write indices of blocks, as layers=-4,-3,-2,-1") from error
    if not all(-number <= index < number for index in layers):
        raise VitrailError(f"found layers={text}; this model has the blocks 0 to {number - 1}, or -{number} to -1")
    return tuple(index % number for index in layers)


def compute_features(vit: ViTModel, pixel_values: torch.Tensor, feature_types: Sequence[FeatureType]) -> dict[str, torch.Tensor]:
    """Return the features by column: vectors (B, D) or (B, 2 D), tensors (B, h, w, D) or (B, n, D), in the dtype of the model.

    pixel_values: (B, C, H, W), on any device.
    """
    config = vit.config
    pixel_values = pixel_values.to(vit.device, vit.dtype, non_blocking=True)
    if all(kind.name == "cls" or (kind.name == "pooled" and config.pooling == "cls") for kind in feature_types):
        cls_features = vit.cls_features(pixel_values)
        return {kind.column: cls_features if kind.name == "cls" else vit.pool(cls_features[:, None]) for kind in feature_types}
    layers = sorted({layer for kind in feature_types for layer in kind.layers})
    outputs = vit(
        pixel_values,
        output_hidden_states=[layer + 1 for layer in layers] or False,
        return_dict=True,
    )
    tokens = outputs.last_hidden_state

    def mean_patch(hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states[:, config.num_prefix_tokens :].mean(dim=1)

    def vector_of(layer: int) -> torch.Tensor:
        hidden_states = outputs.hidden_states[layer + 1]
        if config.use_cls_token:
            return vit.norm_cls(hidden_states)
        return mean_patch(vit.layernorm(hidden_states) if config.norm_before_pooling else hidden_states)

    compute = {
        "pooled": lambda kind: outputs.pooler_output,
        "cls": lambda kind: tokens[:, 0],
        "mean": lambda kind: mean_patch(tokens),
        "cls+mean": lambda kind: torch.cat((tokens[:, 0], mean_patch(tokens)), dim=-1),
        "patches": lambda kind: tokens[:, config.num_prefix_tokens :].unflatten(1, outputs.patch_grid),
        "layers": lambda kind: torch.stack([vector_of(layer) for layer in kind.layers], dim=1),
    }
    return {kind.column: compute[kind.name](kind) for kind in feature_types}


def feature_outputs(vit: ViTModel, feature_types: Sequence[FeatureType]) -> TupleOutputs:
    """Wrap an encoder so that it returns a tuple of features in the order of their types; any engine can run it."""

    def compute(vit: ViTModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(compute_features(vit, pixel_values, feature_types).values())

    return TupleOutputs(vit, compute, *(feature_type.column for feature_type in feature_types))


def vector_size(feature_type: FeatureType, config: ViTConfig) -> int:
    """Return the length of a vector of features."""
    if feature_type.name == "pooled":
        return config.pooled_size
    return config.hidden_size * (2 if feature_type.name == "cls+mean" else 1)


def reads_tokens(config: ViTConfig) -> bool:
    """Whether a classifier of the model can read [CLS] tokens and the mean patch, and not only `pooler_output`."""
    return config.use_cls_token and config.norm_before_pooling and config.representation_size is None


def classifier_features(config: ViTConfig, num_cls_layers: int) -> tuple[FeatureType, ...]:
    """Return the types of features that a linear classifier reads, whose values `join_tokens` joins.

    They are [CLS] of the last `num_cls_layers` blocks (of all blocks, if there are fewer), oldest first, and the mean patch of the last
    block; or `pooler_output`, if num_cls_layers is 0 or a classifier of the model can read nothing else.
    """
    number = config.num_hidden_layers
    num_cls_layers = min(num_cls_layers, number) if reads_tokens(config) else 0
    if num_cls_layers == 0:
        return (FeatureType("pooled"),)
    return FeatureType("layers", tuple(range(number - num_cls_layers, number))), FeatureType("mean")


def join_tokens(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the features of `classifier_features` as tokens (B, T, D), which `ViTForImageClassification.classifier_input` joins too."""
    return torch.cat([tensor if tensor.ndim == 3 else tensor[:, None] for tensor in features], dim=1)
