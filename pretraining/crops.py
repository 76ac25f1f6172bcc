"""Images as DINO's training reads them: several random views of each, new ones in every epoch."""

import datasets
import torch
from torch.utils.data import Dataset, get_worker_info
from transformers.utils import logging

from ..errors import BadImageError, ReadingAheadError, VitrailError
from ..features.collections.images import open_image
from ..processing.augmentation import rng_of
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.multi_crop import MultiCropAugmentation, multi_crop

MOST_BAD = 100  # images in a row that cannot be read, before a run gives up

logger = logging.get_logger(__name__)


class MultiCropImages(Dataset):
    """The views of each image of a dataset: items are {"pixel_values": (2, C, S, S), "local_pixel_values": (n, C, s, s)}.

    What is drawn for an image depends on the seed, the epoch and its row alone: so it is the same in any process, and when a run is
    resumed. In the place of an image that cannot be read stands the next one that can, unless `strict`.

    Args:
        dataset: with the column "image", as `vitrail.evaluation.datasets.load_images` makes it.
        image_processor: of the model, for its channels and its normalisation.
        augmentation: the views.
        strict: refuse an image that cannot be read.
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
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that processes that read ahead see it change
        self.num_channels = image_processor.num_channels
        self.mean = image_processor.image_mean if image_processor.do_normalize else (0.0,) * self.num_channels
        self.std = image_processor.image_std if image_processor.do_normalize else (1.0,) * self.num_channels
        self.reported: set[str] = set()

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
            raise ReadingAheadError(str(error)) from None

    def _crops(self, row: int) -> dict[str, torch.Tensor]:
        tries = min(len(self), MOST_BAD)
        for candidate in range(row, row + tries):
            candidate %= len(self)
            try:
                image = open_image(self.dataset[candidate]["image"])
            except BadImageError as error:
                if self.strict:
                    raise
                self._report(error)
                continue
            global_crops, local_crops = multi_crop(
                image,
                self.augmentation,
                rng_of(self.seed, int(self.epoch), row),
                mean=self.mean,
                std=self.std,
                num_channels=self.num_channels,
            )
            return {"pixel_values": global_crops, "local_pixel_values": local_crops}
        raise VitrailError(f"{tries} images in a row, from row {row} on, cannot be read: is the store of images still there?")

    def _report(self, error: BadImageError) -> None:
        if error.path not in self.reported:
            self.reported.add(error.path)
            logger.warning(f"left out, the next image takes its place: {error}")
