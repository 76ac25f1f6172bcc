"""Training data of a Trainer: rows of cached features or of images, in the order of a schedule.

An index is `epoch * number of rows + row`, so that a row can look different in each epoch.
"""

from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..data.decoding import open_image
from ..processing.augmentation import rng_of, training_view
from ..processing.image_processing_vit import VitrailImageProcessor
from .recipes import Schedule


class UpdateSampler(Sampler[list[int]]):
    """The batches of one process: each update is divided evenly among the processes and their accumulation steps.

    The slices of an update may differ by one row, and some are empty if it has fewer rows than there are slices. Sums over
    all slices do not depend on the division.
    """

    def __init__(self, schedule: Schedule, *, num_processes: int, process: int, accumulation_steps: int) -> None:
        self.schedule = schedule
        self.num_slices = num_processes * accumulation_steps
        self.own = range(process * accumulation_steps, (process + 1) * accumulation_steps)

    def __len__(self) -> int:
        return self.schedule.num_updates * len(self.own)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.schedule.updates():
            slices = np.array_split(rows, self.num_slices)
            for index in self.own:
                yield slices[index].tolist()


class FeatureRows(Dataset):
    """Rows of cached features. Epoch e reads view e, modulo the number of views.

    Args:
        tokens: (V, N, T, D), V views of N rows.
        labels: (N,).
    """

    def __init__(self, tokens: np.ndarray, labels: np.ndarray) -> None:
        self.tokens = tokens
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return `features` (B, T, D) and `labels` (B,)."""
        epochs, rows = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        features = self.tokens[epochs % len(self.tokens), rows]
        return {"features": torch.from_numpy(features), "labels": torch.from_numpy(self.labels[rows])}


class ImageRows(Dataset):
    """Rows of images; with a seed, each epoch draws another training view of an image.

    Args:
        dataset: with the column "image", as `load_labeled_images` makes it.
        rows: (N,), rows of the dataset, all readable.
        labels: (N,).
        seed: of the training views; None for the one view of the image processor.
        resample: Pillow's filter for training views.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_processor: VitrailImageProcessor,
        *,
        rows: np.ndarray,
        labels: np.ndarray,
        seed: int | None,
        resample: int,
    ) -> None:
        self.dataset = dataset
        self.image_processor = image_processor
        self.rows = rows
        self.labels = labels
        self.seed = seed
        self.resample = resample

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` (B, C, H, W) and `labels` (B,)."""
        pairs = [divmod(index, len(self)) for index in indices]
        labels = torch.from_numpy(self.labels[[row for _, row in pairs]])
        if not pairs:  # with the shape of any image
            return {"pixel_values": self._pixel_values(0, 0)[None][:0], "labels": labels}
        return {"pixel_values": torch.stack([self._pixel_values(*pair) for pair in pairs]), "labels": labels}

    def _pixel_values(self, epoch: int, row: int) -> torch.Tensor:
        row_of_dataset = int(self.rows[row])
        entry = self.dataset[row_of_dataset]["image"]
        if self.seed is None:
            image = open_image(entry, self.image_processor.decode, name=f"of row {row_of_dataset}")
            return self.image_processor(image, device="cpu", return_tensors="pt")["pixel_values"][0]
        image = open_image(entry, name=f"of row {row_of_dataset}")  # at full scale: a view may be a small part of it
        return training_view(image, self.image_processor, rng_of(self.seed, epoch, row_of_dataset), resample=self.resample)
