"""How an evaluation gets its features: the settings that do not change them."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets
import torch
from huggingface_hub import constants
from PIL import Image

from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, Agreement, CompiledModel, Runtime
from .cache import Features, cached_features
from .token_features import parts_programs

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
    runtime: the precision and the engine that run the model.
    calibration: (N, C, H, W), prepared images by which int8 chooses its scales, such as `features.sample_images` takes.
    """

    cache_dir: Path = field(default_factory=default_cache_dir)
    batch_size: int = 32
    num_workers: int = 0
    strict: bool = False
    progress: bool = True
    runtime: Runtime = DEFAULT_RUNTIME
    calibration: torch.Tensor | None = None
    _programs: dict[tuple[ViTModel, int], CompiledModel] = field(default_factory=dict, init=False, repr=False, compare=False)

    def programs(self, vit: ViTModel, num_cls_layers: int) -> CompiledModel:
        """What runs `Parts` of a model, made once for all that ask."""
        key = (vit, num_cls_layers)
        if key not in self._programs:
            self._programs[key] = parts_programs(
                vit, num_cls_layers, runtime=self.runtime, batch_size=self.batch_size, calibration=self.calibration
            )
        return self._programs[key]

    @property
    def agreement(self) -> dict[str, Agreement]:
        """How near the features came to those of the model in float32; empty where none was taken, or by the model as it is."""
        found = [programs.agreement[0] for programs in self._programs.values() if programs.agreement]
        return {"features": found[0]} if found else {}

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
        """The features of one half of the data; see `vitrail.features.cache.cached_features`."""
        return cached_features(
            model,
            image_processor,
            images,
            cache_dir=self.cache_dir,
            num_cls_layers=max(num_cls_layers, NUM_CLS_LAYERS),
            programs_of=self.programs,
            views=views,
            seed=seed,
            resample=resample,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            strict=self.strict,
            progress=self.progress,
        )
