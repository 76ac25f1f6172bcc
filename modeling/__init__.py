"""The model, in one file."""

from .modeling_vit import (
    ViTBackbone,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
    ViTModelOutput,
    ViTPreTrainedModel,
)

__all__ = [
    "ViTBackbone",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTModel",
    "ViTModelOutput",
    "ViTPreTrainedModel",
]
