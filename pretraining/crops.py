"""The multi-crop dataset: several random views of each image, and masks of the large ones, drawn again in every epoch."""

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info
from transformers.utils import logging

from ..data.decoding import open_image
from ..errors import UnreadableImageError, VitrailError, WorkerError
from ..processing.augmentation import rng_of
from ..processing.image_processing_vit import PREPROCESS_ERRORS, VitrailImageProcessor
from ..processing.multi_crop import MultiCropAugmentation, check_channels, make_crops
from .masks import BlockMasking

MAX_UNREADABLE = 100  # unreadable images in a row, before a run fails

logger = logging.get_logger(__name__)


def normalization(image_processor: VitrailImageProcessor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel by which an image processor normalizes values from 0 to 1."""
    number = image_processor.num_channels
    largest = 255 * image_processor.rescale_factor if image_processor.do_rescale else 255.0
    normalizes = image_processor.do_normalize
    means, stds = (image_processor.image_mean, image_processor.image_std) if normalizes else ([0.0] * number, [1.0] * number)
    return [mean / largest for mean in means], [std / largest for std in stds]


class MultiCropImages(Dataset):
    """The views of each image of a dataset: items are {"pixel_values": (2, C, S, S), "local_pixel_values": (n, C, s, s)}.

    With `masking`, items have "masks", too, (2, N): true where a patch of a large view is masked.

    The draw for an image depends only on the seed, the epoch and the row. It is the same in any process, and when a run resumes. The next
    readable image replaces an unreadable one, unless `strict`.

    Args:
        dataset: with the column "image", as `vitrail.load_labeled_images` makes it.
        image_processor: of the model, for its channels and its normalization.
        augmentation: the views.
        masking: the masks; None for none.
        high_resolution: an augmentation, and the epoch from which on it replaces `augmentation`.
        strict: raise if an image cannot be read.

    Raises:
        VitrailError: the number of channels is neither 1 nor 3.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_processor: VitrailImageProcessor,
        augmentation: MultiCropAugmentation,
        *,
        masking: BlockMasking | None = None,
        high_resolution: tuple[MultiCropAugmentation, int] | None = None,
        seed: int = 0,
        strict: bool = False,
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.masking = masking
        self.high_resolution = high_resolution
        self.seed = seed
        self.strict = strict
        check_channels(image_processor.num_channels)
        # Shared with the worker processes
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self.reported = torch.zeros(len(dataset), dtype=torch.bool).share_memory_()
        self.num_channels = image_processor.num_channels
        self.mean, self.std = normalization(image_processor)

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose views are drawn."""
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
            rng = rng_of(self.seed, int(self.epoch), row)
            try:
                global_crops, local_crops = self._crops_of(candidate, rng)
            except UnreadableImageError as error:
                if self.strict:
                    raise
                self._report(candidate, error)
                continue
            crops = {"pixel_values": global_crops, "local_pixel_values": local_crops}
            return crops if self.masking is None else crops | {"masks": self.masking.draw(global_crops.shape, rng)}
        raise VitrailError(f"{tries} images in a row, from row {row} on, cannot be read: check that their store can be reached.")

    def _crops_of(self, row: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        entry = self.dataset[row]["image"]
        image = open_image(entry, name=f"of row {row}")
        augmentation = self.augmentation
        if self.high_resolution is not None and self.epoch >= self.high_resolution[1]:
            augmentation = self.high_resolution[0]
        try:
            return make_crops(image, augmentation, rng, mean=self.mean, std=self.std, num_channels=self.num_channels)
        except VitrailError:  # a fault of the settings, not of this image
            raise
        except PREPROCESS_ERRORS as error:  # decoded, but with channels, values or a size that do not suit the model
            raise UnreadableImageError(entry["path"] or f"of row {row}", str(error) or type(error).__name__) from error

    def _report(self, row: int, error: UnreadableImageError) -> None:
        if not self.reported[row]:
            self.reported[row] = True
            logger.warning(f"unreadable image, replaced by the next one: {error}")
