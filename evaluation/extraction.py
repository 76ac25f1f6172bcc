"""How an evaluation gets its features: the settings that do not change them."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
from huggingface_hub import constants
from PIL import Image

from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .cache import Features, cached_features

NUM_CLS_LAYERS = 4  # that are kept of every model, so that all evaluations share the cache


def default_cache_dir() -> Path:
    """Where features are kept if nothing else is said: in the Hub's own cache folder."""
    return Path(constants.HF_HOME) / "vitrail" / "features"


@dataclass(frozen=True)
class Extraction:
    """How images are read and run.

    cache_dir: where features are kept.
    batch_size: images that the model takes at a time, on each device.
    num_workers: processes that decode images; 0 to do it in this one.
    strict: refuse bad images, instead of leaving them out.
    progress: show bars.
    """

    cache_dir: Path = field(default_factory=default_cache_dir)
    batch_size: int = 32
    num_workers: int = 0
    strict: bool = False
    progress: bool = True

    def features(
        self,
        model: ViTPreTrainedModel,
        image_processor: VitrailImageProcessor,
        images: datasets.Dataset,
        *,
        num_cls_layers: int = NUM_CLS_LAYERS,
        views: int = 0,
        seed: int = 0,
        resample: int = Image.Resampling.BICUBIC,
    ) -> Features:
        """The features of one half of the data; see `vitrail.evaluation.cache.cached_features`."""
        return cached_features(
            model,
            image_processor,
            images,
            cache_dir=self.cache_dir,
            num_cls_layers=max(num_cls_layers, NUM_CLS_LAYERS),
            views=views,
            seed=seed,
            resample=resample,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            strict=self.strict,
            progress=self.progress,
        )
