"""Size of a model: parameters, multiply-accumulate operations and activations for one image."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

import torch
from torch import nn

from ..configuration.configuration_vit import ViTConfig
from .modeling_vit import ViTAttention, ViTPreTrainedModel

LAYER_NORM_OPERATIONS = 5  # per element, as in fvcore


@dataclass(frozen=True)
class Complexity:
    """Counts for one image.

    parameters: the number of learned values.
    macs: multiply-accumulate operations of linear and convolution layers and five operations for each element of a LayerNorm,
        without the two products of attention: what timm publishes.
    macs_with_attention: macs, plus query x key and weights x value.
    activations: the number of outputs of linear and convolution layers.
    """

    parameters: int
    macs: int
    macs_with_attention: int
    activations: int


def complexity(model: ViTPreTrainedModel, image_size: tuple[int, int] | None = None) -> Complexity:
    """Count by running the architecture on the meta device, for an image of `image_size` (height, width) pixels."""
    return total(module_counts(type(model), model.config, image_size).values())


def total(counts: Iterable[Complexity]) -> Complexity:
    """Return the sums of counts."""
    return Complexity(*map(sum, zip(*map(astuple, counts), strict=True)))


def module_counts(
    model_class: type[ViTPreTrainedModel], config: ViTConfig, image_size: tuple[int, int] | None = None
) -> dict[str, Complexity]:
    """Return the counts of each module of an architecture, by its name and without those of its submodules: see `complexity`."""
    with torch.device("meta"):
        model = model_class(config).eval()
        pixel_values = torch.empty(1, config.num_channels, *(image_size or config.image_shape))
    operations = dict.fromkeys(model.modules(), (0, 0, 0))  # macs, of attention's products, activations

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            macs, attention, activations = output.numel() * module.weight[0].numel(), 0, output.numel()  # type: ignore[union-attr]
        elif isinstance(module, nn.ConvTranspose2d):  # each input is multiplied with a kernel of every output channel
            macs, attention, activations = inputs[0].numel() * module.weight[0].numel(), 0, output.numel()  # type: ignore[union-attr]
        elif isinstance(module, nn.LayerNorm):
            macs, attention, activations = LAYER_NORM_OPERATIONS * output.numel(), 0, 0  # type: ignore[union-attr]
        else:
            _, num_tokens, hidden_size = inputs[0].shape
            macs, attention, activations = 0, 2 * num_tokens**2 * hidden_size, 0
        before = operations[module]  # of a module that runs more than once
        operations[module] = before[0] + macs, before[1] + attention, before[2] + activations

    for module in operations:
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm | ViTAttention):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(pixel_values)
    return {
        name: Complexity(
            parameters=sum(parameter.numel() for parameter in module.parameters(recurse=False)),
            macs=operations[module][0],
            macs_with_attention=operations[module][0] + operations[module][1],
            activations=operations[module][2],
        )
        for name, module in model.named_modules()
    }
