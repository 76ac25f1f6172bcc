"""Patch features as colors: principal components over several images, of the foreground alone, as DINOv2 shows them."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .pictures import contact_sheet, image_name, preprocess

LIMITS = (0.01, 0.99)  # quantiles of a component that map to 0 and 1 of a color: outliers would take the whole range
MIN_RANGE = 1e-5  # of a component, relative to the largest value of a token; a smaller range is rounding error


@torch.inference_mode()
def plot_pca(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, images: Sequence, *, foreground: bool = True
) -> tuple[list[np.ndarray], list[np.ndarray], Image.Image]:
    """Return the patch features of images as colors, and a picture of them: similar patches have similar colors, over all images.

    The first principal component of all patches separates foreground from background (see `find_foreground`). The first three components
    of the foreground patches become red, green and blue. Source: DINOv2, arXiv 2304.07193, figure 1.

    Args:
        model: any vitrail model.
        image_processor: the image processor of the model; `at_size` and `keep_aspect` derive processors for other sizes and aspects.
        images: paths, PIL images or arrays, of any sizes.
        foreground: detect the foreground; otherwise every patch counts as foreground.

    Returns:
        The colors of each image (h, w, 3), float32 from 0 to 1; the foreground of each image (h, w), bool; and a picture with each image
        as the model receives it, next to its colors. The background is black.

    Raises:
        VitrailError: the list of images is empty.
        ValueError: an image cannot be read, or the patch size does not divide its size.
    """
    if not len(images):
        raise VitrailError("found no image; pass at least one")
    tokens, photos = [], []
    for image in images:
        pixel_values, photo = preprocess(model, image_processor, image)
        (patches,) = model.base_model.get_intermediate_layers(pixel_values, reshape=True)
        tokens.append(patches[0].permute(1, 2, 0).cpu())
        photos.append(photo)
    masks = find_foreground(tokens) if foreground else [np.ones(patches.shape[:2], dtype=bool) for patches in tokens]
    colors = component_colors(tokens, masks)
    strips = []
    for number, (image, photo, one) in enumerate(zip(images, photos, colors, strict=True)):
        levels = Image.fromarray((one * 255).round().astype(np.uint8))
        strips.append([(image_name(image, number), photo), ("PCA", levels.resize(photo.size, Image.Resampling.BICUBIC))])
    return colors, masks, contact_sheet(strips)


def find_foreground(tokens: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Return the foreground of each image, (h, w) bool.

    The first principal component over all patches is split at the threshold that minimizes the variance within both classes (Otsu 1979).
    The class with more of the patches on the image borders is the background. If all patches are equal, all of them are foreground.

    Args:
        tokens: (h, w, D) for each image.
    """
    flat = torch.cat([patches.flatten(0, 1) for patches in tokens])
    scores = principal_components(flat, 1)[:, 0]
    if scores.min() == scores.max():
        return [np.ones(patches.shape[:2], dtype=bool) for patches in tokens]
    classes = np.split(scores > _otsu_threshold(scores), np.cumsum([len(patches.flatten(0, 1)) for patches in tokens])[:-1])
    masks = [above.reshape(patches.shape[:2]) for above, patches in zip(classes, tokens, strict=True)]
    on_border = np.concatenate([_border(mask) for mask in masks])
    return [~mask for mask in masks] if on_border.mean() > 0.5 else masks


def component_colors(tokens: Sequence[torch.Tensor], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the first three principal components of the patches that masks select, each scaled to 0 to 1; other patches are black.

    A constant component becomes 0.5.

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
    colors = []
    for mask, one in zip(masks, np.split(scaled, np.cumsum([mask.sum() for mask in masks])[:-1]), strict=True):
        colors.append(np.zeros((*mask.shape, 3), dtype=np.float32))
        colors[-1][mask] = one
    return colors


def principal_components(tokens: torch.Tensor, number: int) -> np.ndarray:
    """Return the first principal components of tokens (M, D): (M, number) float64, from the eigenvectors of the covariance.

    The largest weight of each component is positive, so that signs are reproducible (scikit-learn has the same rule). A component that
    varies by rounding error alone is 0.
    """
    values = tokens.double()
    centered = values - values.mean(dim=0)
    _, directions = torch.linalg.eigh(centered.T @ centered)  # ascending
    directions = directions[:, -number:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scores = centered @ (directions * largest.sign())
    span = scores.amax(dim=0) - scores.amin(dim=0)
    return torch.where(span > MIN_RANGE * values.abs().max(), scores, 0).numpy()


def _otsu_threshold(scores: np.ndarray) -> float:
    """Return the threshold that maximizes the variance between the classes on both sides; the values are not all equal."""
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
