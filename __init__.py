"""Vitrail: one model for every published Vision Transformer of the DINO, DINOv2, Google and timm families.

Importing it registers the classes with transformers' Auto classes: a folder that `vitrail convert` wrote then loads with
`AutoModel.from_pretrained` and `AutoImageProcessor.from_pretrained`.
"""

from .auto import register
from .configuration.configuration_vit import ViTConfig
from .configuration.sizes import SIZES
from .convert.export import export_model
from .convert.loading import load
from .convert.report import ConversionReport
from .convert.verification import verify
from .errors import VitrailError
from .hub.push import push
from .hub.save import convert_checkpoint, save
from .model_cards.card import folder_card, official_card
from .modeling.complexity import complexity
from .modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel, ViTPreTrainedModel
from .processing.image_processing_vit import VitrailImageProcessor
from .processing.presets import make_image_processor
from .runtime.optimization import OptimizationReport, OptimizedModel, optimize
from .version import __version__

register()

__all__ = [
    "__version__",
    # the model
    "ViTConfig",
    "SIZES",
    "ViTPreTrainedModel",
    "ViTModel",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTBackbone",
    "complexity",
    # images
    "VitrailImageProcessor",
    "make_image_processor",
    # checkpoints
    "load",
    "save",
    "convert_checkpoint",
    "export_model",
    "verify",
    # faster
    "optimize",
    "OptimizedModel",
    "OptimizationReport",
    # the Hub
    "push",
    "folder_card",
    "official_card",
    "ConversionReport",
    "VitrailError",
]
