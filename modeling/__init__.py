"""The model, in one file that is read from top to bottom, and segmentation and depth in another.

complexity counts its operations, fingerprint identifies its weights.
"""

from .modeling_vit import (
    ViTBackbone,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    ViTModelOutput,
    ViTPreTrainedModel,
)
from .modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation

__all__ = [
    "ViTBackbone",
    "ViTForDepthEstimation",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTForSemanticSegmentation",
    "ViTModel",
    "ViTModelOutput",
    "ViTPreTrainedModel",
]
