"""Pictures of segmentations: the class of each pixel as a color over the image, with a legend of the classes found."""

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from ..configuration.class_names import SEGMENTATIONS, dataset_labels, segmentation_colors
from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..modeling.modeling_vit_dense import ViTForSemanticSegmentation, class_probabilities, resize
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.optimization import OptimizedModel
from .legends import Color, enlarged, legend
from .pictures import contact_sheet, image_name
from .whole_images import WholeImage, check_head, read_whole

OPACITY = 0.65
HUE_STEP = (5**0.5 - 1) / 2  # of the circle of hues: golden-ratio steps keep classes of near indices apart
LIGHTNESS = (0.5, 0.7, 0.35)


@torch.inference_mode()
def plot_segmentation(
    model: ViTForSemanticSegmentation | OptimizedModel,
    image_processor: VitrailImageProcessor,
    images: Sequence,
    *,
    windows: bool = True,
) -> tuple[list[np.ndarray], Image.Image]:
    """Return the class of each pixel of images, and a picture of the classes as colors, with a legend.

    Images are not cropped. Images of more than a million pixels are shrunk first, and their classes enlarged.

    Args:
        model: a segmentation model, or a segmentation model from `vitrail.optimize`.
        image_processor: the image processor of the model.
        images: paths, PIL images or arrays, of any sizes.
        windows: slide windows over each image, at the scales of the config (see `ViTForSemanticSegmentation.segment`), if the config has a
            window. Otherwise one pass sees the whole image, as the image processor resizes it.

    Returns:
        The classes of each image (H, W), uint8, or uint16 for more than 256 classes; and a picture with each image, its classes, and a
        legend of the classes found, largest first, with their shares of the pixels. Colors are those of ADE20K and VOC 2012 if the labels
        are theirs.

    Raises:
        VitrailError: there is no image, or the model has no segmentation head.
        ValueError: an image cannot be read.
    """
    if not len(images):
        raise VitrailError("found no image; pass at least one")
    check_head(model, "segmentation")
    colors = class_colors(list(model.config.id2label.values()))
    maps, strips = [], []
    for number, image in enumerate(images):
        whole = read_whole(model, image_processor, image)
        scores = _scores(lambda part: model(part).logits, model.config, image_processor, whole, windows)
        classes = Image.fromarray(scores[0].argmax(dim=0).to(torch.int32).cpu().numpy())  # at the size of the photo, in mode I
        maps.append(np.asarray(classes.resize(whole.size[::-1], Image.Resampling.NEAREST)))
        maps[-1] = maps[-1].astype(np.uint8 if model.config.num_labels <= 256 else np.uint16)
        photo = enlarged(whole.photo)
        painted = Image.fromarray(colors[np.asarray(classes.resize(photo.size, Image.Resampling.NEAREST))])
        found = class_shares(maps[-1])
        entries = [(f"{model.config.id2label[index]}  {percent(share)}", tuple(colors[index].tolist())) for index, share in found]
        strips.append(
            [
                (image_name(image, number), photo),
                ("segmentation", Image.blend(photo, painted, OPACITY)),
                (f"{len(entries)} of {model.config.num_labels} classes", legend(entries, photo.size)),
            ]
        )
    return maps, contact_sheet(strips)


@torch.inference_mode()
def segmentation_inputs(
    model: ViTForSemanticSegmentation, image_processor: VitrailImageProcessor, image: object, *, windows: bool
) -> list[torch.Tensor]:
    """Return what the model receives for an image, (1, C, H, W) each: windows, or the whole image. See `plot_segmentation`."""
    inputs: list[torch.Tensor] = []

    def predict(pixel_values: torch.Tensor) -> torch.Tensor:
        inputs.append(pixel_values)
        return pixel_values.new_zeros(1, 1, 1, 1)

    _scores(predict, model.config, image_processor, read_whole(model, image_processor, image), windows)
    return inputs


def _scores(
    predict: Callable[[torch.Tensor], torch.Tensor],
    config: ViTConfig,
    image_processor: VitrailImageProcessor,
    whole: WholeImage,
    windows: bool,
) -> torch.Tensor:
    """Return the logits or probabilities of each class at the size of the photo, (1, K, H, W)."""
    if windows and config.segmentation_window is not None:
        size = image_processor.size.shortest_edge if image_processor.do_resize else None
        return class_probabilities(predict, config, whole.pixel_values, size=size)
    return resize(predict(whole.prepared).float(), whole.photo.size[::-1])


def class_shares(classes: np.ndarray) -> list[tuple[int, float]]:
    """Return (class, share of the pixels) of the classes in a map (H, W), largest first."""
    found, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(found[index]), float(counts[index] / classes.size)) for index in order]


def percent(share: float) -> str:
    """Return a share as text; what would round to zero is below 0.1%."""
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def class_colors(names: Sequence[str]) -> np.ndarray:
    """Return a color for each class, (K, 3) uint8: those of ADE20K and VOC 2012, or colors that differ in hue and lightness."""
    for dataset in SEGMENTATIONS:
        if tuple(names) == dataset_labels(dataset):
            return np.array(segmentation_colors(dataset), dtype=np.uint8)
    return np.array([_color(index) for index in range(len(names))], dtype=np.uint8)


def _color(index: int) -> Color:
    red, green, blue = colorsys.hls_to_rgb(index * HUE_STEP % 1, LIGHTNESS[index % len(LIGHTNESS)], 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)
