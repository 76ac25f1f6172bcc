"""Images as DINO's training reads them: several random views of each, new ones in every epoch."""

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from transformers.utils import logging

from ..data.decoding import open_image
from ..errors import UnreadableImageError, VitrailError, WorkerError
from ..processing.augmentation import rng_of
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.multi_crop import MultiCropAugmentation, check_channels, multi_crop

MAX_UNREADABLE = 100  # images in a row that cannot be read, before a run gives up

logger = logging.get_logger(__name__)


class MultiCropImages(Dataset):
    """The views of each image of a dataset: items are {"pixel_values": (2, C, S, S), "local_pixel_values": (n, C, s, s)}.

    What is drawn for an image depends on the seed, the epoch and its row alone: so it is the same in any process, and when a run is
    resumed. In the place of an image that cannot be read stands the next one that can, unless `strict`.

    Args:
        dataset: with the column "image", as `vitrail.data.labeled.load_labeled_images` makes it.
        image_processor: of the model, for its channels and its normalisation.
        augmentation: the views.
        strict: refuse an image that cannot be read.

    Raises VitrailError for a number of channels other than 1 and 3.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_processor: VitrailImageProcessor,
        augmentation: MultiCropAugmentation,
        *,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.strict = strict
        check_channels(image_processor.num_channels)
        # Both are shared with the processes that read ahead
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reported = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()
        self.num_channels = image_processor.num_channels
        self.mean = image_processor.image_mean if image_processor.do_normalize else (0.0,) * self.num_channels
        self.std = image_processor.image_std if image_processor.do_normalize else (1.0,) * self.num_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Of which the views are drawn from now on."""
        self.epoch.fill_(epoch)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        try:
            return self._crops(row)
        except VitrailError as error:
            if get_worker_info() is None:
                raise
            raise WorkerError(str(error)) from None

    def _crops(self, row: int) -> dict[str, torch.Tensor]:
        tries = min(len(self), MAX_UNREADABLE)
        for candidate in range(row, row + tries):
            candidate %= len(self)
            try:
                global_crops, local_crops = self._crops_of(candidate, rng_of(self.seed, int(self.epoch), row))
            except UnreadableImageError as error:
                if self.strict:
                    raise
                self._report(candidate, error)
                continue
            return {"pixel_values": global_crops, "local_pixel_values": local_crops}
        raise VitrailError(f"{tries} images in a row, from row {row} on, cannot be read: is the store of images still there?")

    def _crops_of(self, row: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        entry = self.dataset[row]["image"]
        image = open_image(entry)
        try:
            return multi_crop(image, self.augmentation, rng, mean=self.mean, std=self.std, num_channels=self.num_channels)
        except VitrailError:  # of the settings, not of this image
            raise
        except ValueError as error:  # decoded, but of channels or values that the model cannot take
            raise UnreadableImageError(entry["path"] or "without a path", str(error)) from error

    def _report(self, row: int, error: UnreadableImageError) -> None:
        if not self.reported[row]:
            self.reported[row] = True
            logger.warning(f"left out, the next image takes its place: {error}")
