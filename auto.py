"""Register the classes with transformers' Auto classes, and add their code to saved folders; other models are unaffected."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING

from .configuration.configuration_vit import ViTConfig
from .hub.remote_code import add_code
from .modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from .modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation
from .processing.image_processing_vit import VitrailImageProcessor, VitrailImageProcessorTorch


def register() -> None:
    """Register every class; calling it again changes nothing.

    transformers looks up some classes by the NAME of the config class, and its own ViT has a ViTConfig, too. Every mapping that contains
    that name therefore gets our class as well (or it would build transformers' model from our config), with `exist_ok=True`. The image
    processors are put into their mapping directly, because `AutoImageProcessor.register` first looks up, and changes, transformers' entry.
    """
    AutoConfig.register(ViTConfig.model_type, ViTConfig, exist_ok=True)
    AutoModel.register(ViTConfig, ViTModel, exist_ok=True)
    AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification, exist_ok=True)
    AutoModelForMaskedImageModeling.register(ViTConfig, ViTForMaskedImageModeling, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ViTConfig, ViTForSemanticSegmentation, exist_ok=True)
    AutoModelForDepthEstimation.register(ViTConfig, ViTForDepthEstimation, exist_ok=True)
    AutoBackbone.register(ViTConfig, ViTBackbone, exist_ok=True)
    MODEL_FOR_IMAGE_MAPPING.register(ViTConfig, ViTModel, exist_ok=True)  # encoders of images, for multimodal models
    image_processors = {
        "pil": VitrailImageProcessor,
        "torchvision": VitrailImageProcessor,  # what AutoImageProcessor asks for where torchvision is installed
        "torch": VitrailImageProcessorTorch,
    }
    IMAGE_PROCESSOR_MAPPING.register(ViTConfig, image_processors, exist_ok=True)
    # Saving a model saves its config, so `model.save_pretrained`, `push_to_hub` and the Trainer add the code as well
    ViTConfig.after_save = VitrailImageProcessor.after_save = add_code  # type: ignore[assignment]
