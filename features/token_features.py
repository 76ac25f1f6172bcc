"""What a linear classifier reads of images: taken from a frozen model in one forward pass for each image and view.

Shape letters: B batch, N images, V views, P parts, C H W channels and pixels, D width of a part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data.decoding import open_image
from ..errors import UnreadableImageError, VitrailError
from ..modeling.modeling_vit import ViTModel
from ..processing.augmentation import rng_of, training_view
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, CompiledModel, Runtime
from .feature_types import FeatureType, compute_features


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be used: its row in the dataset, the path that the dataset gives for it, and why."""

    row: int
    path: str
    reason: str


def extract_parts(vit: ViTModel, pixel_values: torch.Tensor, *, num_cls_layers: int) -> torch.Tensor:
    """What `ViTForImageClassification.classifier_input` joins, part by part: (B, P, D), float32, on the model's device.

    num_cls_layers: [CLS] of so many last blocks, oldest first, then the mean patch of the last block; 0 gives the one part that
        is `pooler_output`.
    """
    if num_cls_layers == 0:
        return compute_features(vit, pixel_values, [FeatureType("pooled")])["pooled"].unsqueeze(1).float()
    number = vit.config.num_hidden_layers
    last_layers = FeatureType("layers", tuple(range(number - num_cls_layers, number)))
    features = compute_features(vit, pixel_values, [last_layers, FeatureType("mean")])
    return torch.cat((features["layers"], features["mean"].unsqueeze(1)), dim=1).float()


class Parts(nn.Module):
    """`extract_parts` as a module, from (B, C, H, W) to a tuple of one tensor, which any engine can run."""

    def __init__(self, vit: ViTModel, num_cls_layers: int) -> None:
        super().__init__()
        self.vit = vit
        self.num_cls_layers = num_cls_layers

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        return (extract_parts(self.vit, pixel_values, num_cls_layers=self.num_cls_layers),)


def parts_programs(
    vit: ViTModel,
    num_cls_layers: int,
    *,
    runtime: Runtime = DEFAULT_RUNTIME,
    batch_size: int = 32,
    calibration: torch.Tensor | None = None,
) -> CompiledModel:
    """What runs `extract_parts` of a model in evaluation mode; see `CompiledModel`."""
    return CompiledModel(Parts(vit, num_cls_layers).eval(), runtime, batch_size=batch_size, calibration=calibration)


class ImageViews(Dataset):
    """The views of each image of a dataset as pixel values: items are (row, (V, C, H, W)), or UnreadableImage.

    Args:
        dataset: with the column "image", as `load_labeled_images` makes it.
        views: how many training views are drawn, each from the seed, its own number and the row alone; 0 for the one view of the
            image processor.
        resample: Pillow's filter for training views.
    """

    def __init__(
        self, dataset: datasets.Dataset, image_processor: VitrailImageProcessor, *, views: int, seed: int, resample: int
    ) -> None:
        self.dataset = dataset
        self.image_processor = image_processor
        self.views = views
        self.seed = seed
        self.resample = resample

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor] | UnreadableImage:
        entry = self.dataset[row]["image"]
        try:
            return row, self._pixel_values(entry, row)
        except UnreadableImageError as error:
            return UnreadableImage(row, error.path, error.reason)
        except VitrailError:  # of the image processor's settings, not of this image
            raise
        except ValueError as error:  # decoded, but of channels or values that the model cannot take
            return UnreadableImage(row, entry["path"] or "without a path", str(error))

    def _pixel_values(self, entry: Mapping[str, Any], row: int) -> torch.Tensor:
        if self.views == 0:
            return self.image_processor(open_image(entry, self.image_processor.decode), return_tensors="pt")["pixel_values"]
        image = open_image(entry)  # a view may be a small part of it
        draws = (rng_of(self.seed, view, row) for view in range(self.views))
        return torch.stack([training_view(image, self.image_processor, rng, resample=self.resample) for rng in draws])


@dataclass(frozen=True)
class ExtractedChunk:
    """The features of a range of rows: rows (N,) int64, ascending, without bad ones; parts (V, N, P, D) float32; the bad images."""

    chunk: range
    rows: np.ndarray
    parts: np.ndarray
    bad: list[UnreadableImage]


def extract_chunks(
    programs: CompiledModel,
    images: ImageViews,
    chunks: Sequence[range],
    *,
    batch_size: int,
    num_workers: int,
    advance: Callable[[int], None],
) -> Iterator[ExtractedChunk]:
    """Runs programs of `Parts` on ranges of rows.

    Images are decoded by `num_workers` processes ahead of the model, which takes at most `batch_size` views at a time, all of one
    range and of one shape: so the numbers of a range do not depend on the others. `advance` is told of rows that are done.
    """
    num_views = max(images.views, 1)
    rows_per_batch = max(1, batch_size // num_views)
    batches = [[list(chunk[start : start + rows_per_batch]) for start in range(0, len(chunk), rows_per_batch)] for chunk in chunks]
    loader = iter(
        DataLoader(
            images,
            batch_sampler=list(chain.from_iterable(batches)),
            num_workers=num_workers,
            collate_fn=_by_shape,
            pin_memory=programs.device.type == "cuda",
            generator=torch.Generator(),  # or the loader would draw from torch's own, and change what others draw from it
        )
    )
    parts_of = programs.module
    assert isinstance(parts_of, Parts)
    no_parts = torch.zeros(0, num_views, *_parts_shape(parts_of))
    for chunk, chunk_batches in zip(chunks, batches, strict=True):
        rows, parts, bad = [], [no_parts], []
        for batch, (groups, bad_images) in zip(chunk_batches, islice(loader, len(chunk_batches)), strict=True):
            for group_rows, pixel_values in groups:
                with torch.inference_mode():
                    pieces = [programs(piece)[0] for piece in pixel_values.split(batch_size)]
                parts.append(torch.cat(pieces).cpu().unflatten(0, (len(group_rows), num_views)))  # (rows, V, P, D)
                rows += group_rows
            bad += bad_images
            advance(len(batch))
        order = np.argsort(np.array(rows, dtype=np.int64))  # rows of one shape came together
        yield ExtractedChunk(chunk, np.array(rows, dtype=np.int64)[order], torch.cat(parts).numpy()[order].swapaxes(0, 1), bad)


def _parts_shape(parts: Parts) -> tuple[int, int]:
    config = parts.vit.config
    return (parts.num_cls_layers + 1, config.hidden_size) if parts.num_cls_layers else (1, config.pooled_size)


def _by_shape(
    items: list[tuple[int, torch.Tensor] | UnreadableImage],
) -> tuple[list[tuple[list[int], torch.Tensor]], list[UnreadableImage]]:
    """Rows and pixel values (rows * V, C, H, W) of each shape of image; and the bad images."""
    bad = [item for item in items if isinstance(item, UnreadableImage)]
    groups: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}
    for item in items:
        if not isinstance(item, UnreadableImage):
            groups.setdefault(item[1].shape, []).append(item)
    return [([row for row, _ in group], torch.cat([pixels for _, pixels in group])) for group in groups.values()], bad


def sample_images(dataset: datasets.Dataset, image_processor: VitrailImageProcessor, number: int) -> torch.Tensor:
    """Some images of a dataset, evenly spread and prepared, always the same ones: (N, C, H, W), of the shape that most of them have.

    number: how many are read; bad ones are left out. Raises VitrailError where none can be used.
    """
    images = ImageViews(dataset, image_processor, views=0, seed=0, resample=Image.Resampling.BICUBIC)
    number = min(number, len(images))
    groups, bad = _by_shape([images[index * len(images) // number] for index in range(number)])
    if not groups:
        raise VitrailError(f"none of {number} images can be used; {bad[0].path}: {bad[0].reason}")
    return max((pixel_values for _, pixel_values in groups), key=len)
