"""Patch features as colours: principal components over several images, of the foreground alone, as DINOv2 shows them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .pictures import contact_sheet, look, name_of

LIMITS = (0.01, 0.99)  # the quantiles of a component that become 0 and 1 of a colour, so that outliers do not take all the range
MIN_RANGE = 1e-5  # of a component, relative to the largest value of a token; what varies less is rounding


@torch.inference_mode()
def plot_pca(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, images: Sequence, *, foreground: bool = True
) -> tuple[list[np.ndarray], list[np.ndarray], Image.Image]:
    """The patches of several images in colours that say which are alike, over all of them: DINOv2's picture (arXiv 2304.07193, figure 1).

    The first principal component of all patches divides foreground from background (`find_foreground`); the first three of the
    foreground patches are red, green and blue.

    Args:
        model: any of our models.
        image_processor: the model's own; for another size or aspect, what `at_size` and `keep_aspect` make of it.
        images: paths, PIL images or arrays, of any sizes.
        foreground: without it, every patch counts as foreground.

    Returns:
        For each image its colours (h, w, 3), float32 from 0 to 1, and its foreground (h, w), bool; and a picture of the colours beside
        the images as the model sees them. The background is black.

    Raises:
        VitrailError: no image.
        ValueError: an image cannot be read, or patches do not divide its size.
    """
    if not len(images):
        raise VitrailError("found no image; pass at least one")
    tokens, photos = [], []
    for image in images:
        pixel_values, photo = look(model, image_processor, image)
        (patches,) = model.base_model.get_intermediate_layers(pixel_values, reshape=True)
        tokens.append(patches[0].permute(1, 2, 0).cpu())
        photos.append(photo)
    masks = find_foreground(tokens) if foreground else [np.ones(patches.shape[:2], dtype=bool) for patches in tokens]
    colours = component_colors(tokens, masks)
    strips = []
    for number, (image, photo, one) in enumerate(zip(images, photos, colours, strict=True)):
        levels = Image.fromarray((one * 255).round().astype(np.uint8))
        strips.append([(name_of(image, number), photo), ("PCA", levels.resize(photo.size, Image.Resampling.BICUBIC))])
    return colours, masks, contact_sheet(strips)


def find_foreground(tokens: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Which patches are foreground, (h, w) bool for each image.

    The first principal component over all patches is divided into two sides where the variance within them is least (Otsu 1979). The
    background is the side to which more of the patches on the borders of the images belong. Where all patches are equal, all of them
    are foreground.

    Args:
        tokens: (h, w, D) for each image.
    """
    flat = torch.cat([patches.flatten(0, 1) for patches in tokens])
    scores = principal_components(flat, 1)[:, 0]
    if scores.min() == scores.max():
        return [np.ones(patches.shape[:2], dtype=bool) for patches in tokens]
    sides = np.split(scores > _otsu_threshold(scores), np.cumsum([len(patches.flatten(0, 1)) for patches in tokens])[:-1])
    masks = [side.reshape(patches.shape[:2]) for side, patches in zip(sides, tokens, strict=True)]
    on_border = np.concatenate([_border(mask) for mask in masks])
    return [~mask for mask in masks] if on_border.mean() > 0.5 else masks


def component_colors(tokens: Sequence[torch.Tensor], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first three principal components of the patches that masks select, each scaled to 0 to 1; the other patches are black.

    A component that does not vary becomes 0.5.

    Args:
        tokens: (h, w, D) for each image.
        masks: (h, w) bool for each image.

    Returns:
        (h, w, 3) float32 for each image.
    """
    selected = torch.cat([patches[torch.from_numpy(mask)] for patches, mask in zip(tokens, masks, strict=True)])
    scores = principal_components(selected, 3)
    low, high = np.quantile(scores, LIMITS, axis=0)
    varies = high > low
    scaled = np.where(varies, ((scores - low) / np.where(varies, high - low, 1)).clip(0, 1), 0.5)
    colours = []
    for mask, one in zip(masks, np.split(scaled, np.cumsum([mask.sum() for mask in masks])[:-1]), strict=True):
        colours.append(np.zeros((*mask.shape, 3), dtype=np.float32))
        colours[-1][mask] = one
    return colours


def principal_components(tokens: torch.Tensor, number: int) -> np.ndarray:
    """The first principal components of tokens (M, D): (M, number) float64, by exact eigenvectors of the covariance.

    The largest weight of each component is positive, so that its sign is the same each time (scikit-learn's rule, too). Components that
    vary by no more than rounding are 0.
    """
    values = tokens.double()
    centred = values - values.mean(dim=0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    directions = directions[:, -number:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scores = centred @ (directions * largest.sign())
    span = scores.amax(dim=0) - scores.amin(dim=0)
    return torch.where(span > MIN_RANGE * values.abs().max(), scores, 0).numpy()


def _otsu_threshold(scores: np.ndarray) -> float:
    """Where to divide values that are not all equal so that the variance between both sides is largest."""
    ordered = np.sort(scores)
    below = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    mean_below, mean_above = sums[:-1] / below, (sums[-1] - sums[:-1]) / (len(ordered) - below)
    best = (below * (len(ordered) - below) * (mean_above - mean_below) ** 2).argmax()
    return (ordered[best] + ordered[best + 1]) / 2


def _border(mask: np.ndarray) -> np.ndarray:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = True
    return mask[~inner]
