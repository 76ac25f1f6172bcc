"""Pictures of what a model attends to: heads of any blocks, their mean, or attention rollout."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTAttention, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .pictures import contact_sheet, heat_map, look, name_of, overlay

SHOWN = ("heads", "mean", "rollout")
STYLES = {"overlay": overlay, "grid": heat_map}


@torch.inference_mode()
def plot_attention(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    images: Sequence,
    *,
    layers: Sequence[int] | None = None,
    show: str = "heads",
    style: str = "overlay",
) -> tuple[list[np.ndarray], Image.Image]:
    """How much [CLS] attends to each part of images; without [CLS], how much attention each part receives, as `attention_maps` says.

    Args:
        model: any of our models, with any attention implementation and dtype.
        image_processor: the model's own; for another size or aspect, what `at_size` and `keep_aspect` make of it.
        images: paths, PIL images or arrays, of any sizes.
        layers: indices of blocks, 0 for the first, negative ones from the last, which is the default.
        show: "heads", each head of these blocks; "mean", over the heads of each; "rollout", through all blocks (`attention_rollout`).
        style: "overlay" lays the attention over the image, "grid" draws it alone, patch by patch.

    Returns:
        The attention in each image, float32: (layers, A, h, w) of heads, (layers, h, w) of means, (h, w) of rollout; and a picture of
        it beside each image as the model sees it, every map scaled to its own range.

    Raises:
        VitrailError: no image, another word than these, or layers of a rollout.
        ValueError: there is no such block, an image cannot be read, or patches do not divide its size.
    """
    if not len(images):
        raise VitrailError("found no image; pass at least one")
    if show not in SHOWN or style not in STYLES:
        raise VitrailError(
            f"found show={show!r} and style={style!r}; write one of {', '.join(SHOWN)}, and one of {', '.join(STYLES)}"
        )
    if show == "rollout" and layers is not None:
        raise VitrailError("Rollout goes through all blocks: leave the layers out, or show heads or mean.")
    layers = (-1,) if layers is None else layers
    maps, strips = [], []
    for number, image in enumerate(images):
        pixel_values, photo = look(model, image_processor, image)
        if show == "rollout":
            attention = attention_rollout(model, pixel_values)
        else:
            attention = model.base_model.attention_maps(pixel_values, layers=layers).float()
            attention = attention if show == "heads" else attention.mean(dim=2)
        maps.append(attention[0].cpu().numpy())
        blocks = [index % model.config.num_hidden_layers for index in layers]
        first: tuple[str, Image.Image | None] = (name_of(image, number), photo)
        for strip in _captioned(maps[-1], show, blocks):
            strips.append([first, *((caption, STYLES[style](photo, one)) for caption, one in strip)])
            first = ("", None)
    return maps, contact_sheet(strips)


def _captioned(maps: np.ndarray, show: str, blocks: Sequence[int]) -> list[list[tuple[str, np.ndarray]]]:
    if show == "rollout":
        return [[(show, maps)]]
    if show == "mean":
        return [[(f"block {block}", one) for block, one in zip(blocks, maps, strict=True)]]
    return [
        [(f"block {block} · head {head}", one) for head, one in enumerate(heads)] for block, heads in zip(blocks, maps, strict=True)
    ]


@torch.inference_mode()
def attention_rollout(model: ViTPreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """How much of each patch arrives at [CLS] through all blocks, if attention and residual stream count half each.

    The product of (A + I) / 2 over all blocks, A the mean over the heads with rows that sum to 1: its row of [CLS], or without [CLS]
    the mean of the rows of all patches. Source: Abnar and Zuidema, arXiv 2005.00928, section 3.

    Args:
        pixel_values: (B, C, H, W).

    Returns:
        (B, h, w), float32; what it misses to a sum of 1 is of [CLS] and registers.
    """
    model = model.base_model
    # Averaged block by block: the heads of all blocks may be more than memory holds
    hooks = [module.register_forward_hook(_average_heads) for module in model.modules() if isinstance(module, ViTAttention)]
    try:
        outputs = model(pixel_values, output_attentions=True, return_dict=True)
    finally:
        for hook in hooks:
            hook.remove()
    prefix, num_tokens = model.config.num_prefix_tokens, outputs.last_hidden_state.shape[1]
    rows = torch.zeros(len(pixel_values), 1, num_tokens, device=pixel_values.device)
    if model.config.use_cls_token:
        rows[..., 0] = 1
    else:
        rows[..., prefix:] = 1 / (num_tokens - prefix)
    for weights in reversed(outputs.attentions):  # from the last block back, a row meets one (L, L) matrix at a time
        rows = (rows @ weights.to(rows.device) + rows) / 2
    return rows[:, 0, prefix:].unflatten(-1, outputs.patch_grid)


def _average_heads(
    module: nn.Module, arguments: tuple, output: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = output[1].mean(dim=1, dtype=torch.float32)  # (B, L, L)
    return output[0], weights / weights.sum(dim=-1, keepdim=True)  # rounded to 16 bits they sum to a little more or less than 1
