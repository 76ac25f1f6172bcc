"""Size of a model: parameters, multiply-accumulate operations and activations for one image."""

from dataclasses import dataclass

import torch
from torch import nn

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
    with torch.device("meta"):
        twin = type(model)(model.config).eval()
        pixel_values = torch.empty(1, model.config.num_channels, *(image_size or model.config.image_shape))
    counts = {"macs": 0, "attention": 0, "activations": 0}

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            counts["macs"] += output.numel() * module.weight[0].numel()  # type: ignore[union-attr]
            counts["activations"] += output.numel()  # type: ignore[union-attr]
        elif isinstance(module, nn.ConvTranspose2d):  # each input is multiplied with a kernel of every output channel
            counts["macs"] += inputs[0].numel() * module.weight[0].numel()
            counts["activations"] += output.numel()  # type: ignore[union-attr]
        elif isinstance(module, nn.LayerNorm):
            counts["macs"] += LAYER_NORM_OPERATIONS * output.numel()  # type: ignore[union-attr]
        else:
            _, num_tokens, hidden_size = inputs[0].shape
            counts["attention"] += 2 * num_tokens**2 * hidden_size

    for module in twin.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm | ViTAttention):
            module.register_forward_hook(count)
    with torch.no_grad():
        twin(pixel_values)
    return Complexity(
        parameters=sum(parameter.numel() for parameter in twin.parameters()),
        macs=counts["macs"],
        macs_with_attention=counts["macs"] + counts["attention"],
        activations=counts["activations"],
    )
