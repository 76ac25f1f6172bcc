"""Outliers among patch tokens: tokens with a much larger norm than the others.

Some models store global information in patches of uniform background. The tokens of these patches have about ten times the norm of the
others and cause artifacts in maps of patch tokens. Source: Darcet et al., "Vision Transformers Need Registers", 2024, arXiv 2309.16588.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ...modeling.modeling_vit import ViTPreTrainedModel

OUTLIER = 3  # times the median norm: the geometric middle between an ordinary token and a token of ten times its norm


@dataclass(frozen=True)
class PatchNorms:
    """Norms of the patch tokens of some images.

    maps: norms of each image, (h, w).
    all: norms of all tokens, (N,).
    """

    maps: Sequence[np.ndarray]

    @cached_property
    def all(self) -> np.ndarray:
        return np.concatenate([norms.reshape(-1) for norms in self.maps])

    @property
    def num_tokens(self) -> int:
        """Number of tokens, N."""
        return self.all.size

    @property
    def median(self) -> float:
        """Median norm."""
        return float(np.median(self.all))

    @property
    def threshold(self) -> float:
        """Norm above which a token is an outlier."""
        return OUTLIER * self.median

    @property
    def num_outliers(self) -> int:
        """Number of outliers."""
        return int((self.all > self.threshold).sum())

    @property
    def share(self) -> float:
        """Share of outliers, from 0 to 1."""
        return self.num_outliers / self.num_tokens


@torch.inference_mode()
def compute_patch_norms(model: ViTPreTrainedModel, images: Sequence[torch.Tensor]) -> PatchNorms:
    """Return the norms of patch tokens after the last block, before the final LayerNorm, which would equalize them.

    Args:
        images: `pixel_values` (1, C, H, W) of each image.
    """
    vit = model.base_model.eval()
    last = vit.config.num_hidden_layers
    maps = []
    for pixel_values in images:
        outputs = vit(pixel_values.to(vit.device, vit.dtype), output_hidden_states=[last], return_dict=True)
        tokens = outputs.hidden_states[last][0, vit.config.num_prefix_tokens :].float()
        maps.append(tokens.norm(dim=-1).unflatten(0, outputs.patch_grid).cpu().numpy())
    return PatchNorms(maps)
