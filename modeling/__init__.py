"""The model, in one file that is read from top to bottom; complexity counts its operations, fingerprint identifies its weights."""

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
