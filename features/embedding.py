"""Features of images in memory: pooled vectors, classes, and columns for datasets of the `datasets` library."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ..configuration.configuration_vit import ViTConfig
from ..data.decoding import Decode, open_entry
from ..data.entries import ImageEntry
from ..errors import UnreadableImageError, VitrailError
from ..modeling.fingerprint import config_fields
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import DECODE_ERRORS, PREPROCESS_ERRORS, VitrailImageProcessor
from ..runtime.optimization import OptimizedModel
from ..version import __version__
from .feature_types import compute_features, parse_features

FIRST_PROCESS = os.getpid()  # inherited by forked processes


@torch.inference_mode()
def extract_features(
    model: ViTPreTrainedModel | OptimizedModel, image_processor: VitrailImageProcessor, images: Sequence, *, batch_size: int = 8
) -> torch.Tensor:
    """Return `pooler_output` of images (paths, PIL images, arrays), (number of images, D), float32 on the CPU.

    model: an encoder, a classifier, or an encoder from `vitrail.optimize`.
    """
    if batch_size < 1 or not len(images):
        raise VitrailError(f"found {len(images)} images and batch_size={batch_size}; expected 1 or more of both")
    vit = model if isinstance(model, OptimizedModel) else model.base_model
    batches = []
    for start in range(0, len(images), batch_size):
        pixel_values = image_processor(list(images[start : start + batch_size]), return_tensors="pt")["pixel_values"]
        batches.append(vit(pixel_values.to(model.device)).pooler_output.float().cpu())
    return torch.cat(batches)


@torch.inference_mode()
def classify_image(
    model: ViTForImageClassification | OptimizedModel, image_processor: VitrailImageProcessor, image: object, *, top: int = 5
) -> list[tuple[str, float]]:
    """Return the `top` most probable labels of an image with their probabilities, the most probable first."""
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    probabilities = model(pixel_values.to(model.device)).logits[0].float().softmax(dim=-1)
    values, classes = probabilities.topk(min(top, len(probabilities)))
    return [(model.config.id2label[index], value) for index, value in zip(classes.tolist(), values.tolist(), strict=True)]


class ImageEmbedder:
    """Adds features to a dataset of the `datasets` library, a float32 column for each type.

        dataset = dataset.map(ImageEmbedder(model, image_processor), batched=True, batch_size=32)

    `batch_size` is that of the model. Vectors are lists of numbers; `patches` (h, w, D) and `layers` (n, D) are nested lists.
    The columns have the names that `vitrail extract` writes.

    The pickle holds only what determines the features: settings, and the encoder's config and weights. `datasets` hashes the pickle, so its
    cache is shared by equal models, in any process and however they were loaded.

    Args:
        model: stays where it is, and goes into evaluation mode.
        features: as `vitrail.features.feature_types.parse_features` takes them: pooled, cls, mean, cls+mean, patches, layers=I,J,….
        image_column: the column of images: of the type Image, paths, URLs, or the content of files.
    """

    def __init__(
        self,
        model: ViTPreTrainedModel,
        image_processor: VitrailImageProcessor,
        *,
        features: Sequence[str] = ("pooled",),
        image_column: str = "image",
    ) -> None:
        self.vit = model.base_model.eval()
        self.image_processor = image_processor
        self.features = tuple(features)
        self.feature_types = parse_features(self.features, self.vit.config)
        self.image_column = image_column

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
        """Return the columns of features of a batch of rows.

        Raises UnreadableImageError, with the path, for an image that cannot be used. `datasets` decodes the images of a stream, and then
        an unreadable one raises an error of Pillow; `dataset.decode(False)` avoids this.
        """
        images = self._images(batch)
        groups: dict[torch.Size, list[tuple[int, torch.Tensor]]] = {}  # by shape, with their rows
        for row, image in enumerate(images):
            pixel_values = self._prepare(image, row)
            groups.setdefault(pixel_values.shape, []).append((row, pixel_values))
        columns: dict[str, dict[int, np.ndarray]] = {kind.column: {} for kind in self.feature_types}
        for group in groups.values():
            computed = compute_features(self.vit, torch.stack([pixel_values for _, pixel_values in group]), self.feature_types)
            for name, tensor in computed.items():
                columns[name] |= zip([row for row, _ in group], tensor.float().cpu().numpy(), strict=True)
        return {name: [rows[row] for row in range(len(images))] for name, rows in columns.items()}

    def _images(self, batch: Mapping[str, Any]) -> list[Any]:
        if self.image_column not in batch:
            raise VitrailError(
                f"found no column {self.image_column!r} among {', '.join(batch)}; choose the column of images with image_column"
            )
        taken = [kind.column for kind in self.feature_types if kind.column in batch]
        if taken:
            raise VitrailError(f"the dataset already has a column {taken[0]!r}, which features would replace; rename or remove it")
        try:
            images = batch[self.image_column]  # here `datasets` decodes
        except DECODE_ERRORS:
            for row, image in enumerate(batch.pa_table[self.image_column].to_pylist()):  # type: ignore[attr-defined]
                _open(image, row, self.image_processor.decode)  # finds the unreadable image, which the error does not name
            raise
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim in (1, 4):  # of many sizes, or paths; of one size
            images = list(images)
        if not isinstance(images, list):
            raise VitrailError(
                f"found {type(images).__name__}, expected a list of images; call dataset.map with batched=True and a batch_size"
            )
        return images

    def _prepare(self, image: Any, row: int) -> torch.Tensor:
        """Return (C, H, W) of a decoded image, or of a file."""
        image, name = _open(image, row, self.image_processor.decode)
        try:
            return self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        except PREPROCESS_ERRORS as error:  # decoded, but of channels, values or a size that the model cannot take
            raise UnreadableImageError(name, str(error) or type(error).__name__) from error

    def __getstate__(self) -> dict[str, Any]:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.vit.state_dict().items()}
        return {
            "vitrail": __version__,
            "config": config_fields(self.vit),
            "attn_implementation": self.vit.config._attn_implementation,
            "weights": save_tensors(tensors),
            "device": str(self.vit.device),
            "image_processor": self.image_processor.to_json_string(),
            "features": self.features,
            "image_column": self.image_column,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != FIRST_PROCESS:
            # Forked by `num_proc`: the threads of torch are missing in this process, and waiting for them would never end
            torch.set_num_threads(1)
        with torch.device("meta"):
            vit = ViTModel(ViTConfig(**state["config"], attn_implementation=state["attn_implementation"]))
        vit.load_state_dict(load_tensors(state["weights"]), assign=True)
        image_processor = VitrailImageProcessor.from_dict(json.loads(state["image_processor"]))
        model = vit.to(state["device"])
        ImageEmbedder.__init__(self, model, image_processor, features=state["features"], image_column=state["image_column"])


def _open(image: Any, row: int, decode: Decode) -> tuple[Any, str]:
    """Return the decoded image in a row of a dataset, and its name.

    image: {"bytes", "path"}, a path, a URL, or bytes; anything else is decoded already.
    """
    if isinstance(image, str | bytes):
        image = {"path": image, "bytes": None} if isinstance(image, str) else {"path": None, "bytes": image}
    if image is not None and not isinstance(image, Mapping):
        return image, f"in row {row} of its batch"
    path, content = (image or {}).get("path"), (image or {}).get("bytes")
    name = path or f"in row {row} of its batch"
    problem = "the row holds no image" if path is None and content is None else None
    return open_entry(ImageEntry(row, name, path, content, problem=problem), decode), name
