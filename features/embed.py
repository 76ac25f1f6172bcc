"""Features of images: what the model pools."""

from collections.abc import Sequence

import torch

from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor


def encoder(model: ViTPreTrainedModel) -> ViTModel:
    """The encoder inside a model."""
    return model if isinstance(model, ViTModel) else model.vit


@torch.inference_mode()
def extract_features(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, images: Sequence, *, batch_size: int = 8
) -> torch.Tensor:
    """`pooler_output` of images (paths, PIL images, arrays), (number of images, D), float32 on the CPU, in their order."""
    batches = []
    for start in range(0, len(images), batch_size):
        pixel_values = image_processor(list(images[start : start + batch_size]), return_tensors="pt")["pixel_values"]
        batches.append(encoder(model)(pixel_values.to(model.device)).pooler_output.float().cpu())
    return torch.cat(batches)


@torch.inference_mode()
def classify_image(
    model: ViTForImageClassification, image_processor: VitrailImageProcessor, image: object, *, top: int = 5
) -> list[tuple[str, float]]:
    """The `top` most probable labels of an image, with their probabilities, the most probable first."""
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    probabilities = model(pixel_values.to(model.device)).logits[0].float().softmax(dim=-1)
    values, classes = probabilities.topk(min(top, len(probabilities)))
    return [(model.config.id2label[index], value) for index, value in zip(classes.tolist(), values.tolist(), strict=True)]
