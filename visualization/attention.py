"""Pictures of attention: the heads of any blocks, their mean, or attention rollout."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTAttention, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .pictures import contact_sheet, heat_map, image_name, overlay, preprocess

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
    """Return the attention from [CLS] to the patches of images, and a picture of it.

    Without [CLS], the attention that each patch receives takes its place (see `ViTModel.attention_maps`).

    Args:
        model: any vitrail model, with any attention implementation and dtype.
        image_processor: the image processor of the model; `at_size` and `keep_aspect` derive processors for other sizes and aspects.
        images: paths, PIL images or arrays, of any sizes.
        layers: indices of blocks: 0 is the first, -1 the last, which is the default.
        show: "heads": every head of these blocks; "mean": the mean over the heads of each block; "rollout": attention through all
            blocks (see `attention_rollout`).
        style: "overlay" blends the attention with the image, "grid" draws the attention alone, patch by patch.

    Returns:
        The attention in each image, float32: (layers, A, h, w) for heads, (layers, h, w) for means, (h, w) for rollout; and a picture with
        each image as the model receives it, followed by its maps. Every map is scaled to its own range.

    Raises:
        VitrailError: there is no image, `show` or `style` is unknown, or `layers` is given for a rollout.
        ValueError: a block does not exist, an image cannot be read, or the patch size does not divide its size.
    """
    if not len(images):
        raise VitrailError("found no image; pass at least one")
    if show not in SHOWN:
        raise VitrailError(f"found show={show!r}; expected one of {', '.join(SHOWN)}")
    if style not in STYLES:
        raise VitrailError(f"found style={style!r}; expected one of {', '.join(STYLES)}")
    if show == "rollout" and layers is not None:
        raise VitrailError("found show='rollout' with layers, but rollout uses all blocks: omit layers, or show heads or mean.")
    layers = (-1,) if layers is None else layers
    maps, strips = [], []
    for number, image in enumerate(images):
        pixel_values, photo = preprocess(model, image_processor, image)
        if show == "rollout":
            attention = attention_rollout(model, pixel_values)
        else:
            attention = model.base_model.attention_maps(pixel_values, layers=layers).float()
            attention = attention if show == "heads" else attention.mean(dim=2)
        maps.append(attention[0].cpu().numpy())
        blocks = [index % model.config.num_hidden_layers for index in layers]
        first: tuple[str, Image.Image | None] = (image_name(image, number), photo)
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
    """Return the attention rollout: the contribution of each patch to [CLS] through all blocks.

    Rollout is the product of (A + I) / 2 over all blocks, where A is the mean attention of the heads and I the residual connection. The
    result is the row of [CLS]; without [CLS], the mean of the rows of all patches. Source: Abnar and Zuidema, arXiv 2005.00928, section 3.

    Args:
        pixel_values: (B, C, H, W).

    Returns:
        (B, h, w), float32. [CLS] and registers account for the rest to a sum of 1.
    """
    model = model.base_model
    # Heads are averaged block by block: those of all blocks together may not fit into memory
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
    for weights in reversed(outputs.attentions):  # from the last block back, each step multiplies one row by one (L, L) matrix
        rows = (rows @ weights.to(rows.device) + rows) / 2
    return rows[:, 0, prefix:].unflatten(-1, outputs.patch_grid)


def _average_heads(
    module: nn.Module, arguments: tuple, output: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = output[1].mean(dim=1, dtype=torch.float32)  # (B, L, L)
    return output[0], weights / weights.sum(dim=-1, keepdim=True)  # in 16 bits the rows do not sum to 1 exactly
