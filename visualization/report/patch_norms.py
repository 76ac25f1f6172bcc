"""Outliers among patch tokens: those that are much longer than the others.

Some models use patches that show little, as plain background, to keep what they know of the whole image. The tokens of these patches
have about ten times the norm of the others, and make maps of patch tokens look speckled. Source: Darcet et al., "Vision Transformers Need
Registers", 2024, arXiv 2309.16588.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ...modeling.modeling_vit import ViTPreTrainedModel

OUTLIER = 3  # times the median norm: halfway, as factors go, from an ordinary token to one of ten times its norm


@dataclass(frozen=True)
class PatchNorms:
    """Norms of the patch tokens of some images.

    maps: of each image, (h, w).
    all: of all tokens, (N,).
    """

    maps: Sequence[np.ndarray]

    @cached_property
    def all(self) -> np.ndarray:
        return np.concatenate([norms.reshape(-1) for norms in self.maps])

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.all.size

    @property
    def median(self) -> float:
        """Of all tokens."""
        return float(np.median(self.all))

    @property
    def threshold(self) -> float:
        """A token with a larger norm is an outlier."""
        return OUTLIER * self.median

    @property
    def num_outliers(self) -> int:
        """Of all tokens."""
        return int((self.all > self.threshold).sum())

    @property
    def share(self) -> float:
        """Of the tokens that are outliers, 0 to 1."""
        return self.num_outliers / self.num_tokens


@torch.inference_mode()
def patch_norms(model: ViTPreTrainedModel, images: Sequence[torch.Tensor]) -> PatchNorms:
    """The norms of patch tokens as they leave the last block, before the final norm, which would make them alike.

    images: the `pixel_values` (1, C, H, W) of each.
    """
    vit = model.base_model.eval()
    last = vit.config.num_hidden_layers
    maps = []
    for pixel_values in images:
        outputs = vit(pixel_values.to(vit.device, vit.dtype), output_hidden_states=[last], return_dict=True)
        tokens = outputs.hidden_states[last][0, vit.config.num_prefix_tokens :].float()
        maps.append(tokens.norm(dim=-1).unflatten(0, outputs.patch_grid).cpu().numpy())
    return PatchNorms(maps)
