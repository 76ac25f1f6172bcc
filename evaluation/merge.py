"""Puts a trained head into its model: one ViTForImageClassification, with the names of its classes."""

from collections.abc import Sequence

import torch
from torch import nn

from ..configuration.configuration_vit import ViTConfig
from ..modeling.modeling_vit import ViTForImageClassification, ViTPreTrainedModel
from .recipes import Head


def merge_head(
    model: ViTPreTrainedModel, head: Head, weight: torch.Tensor, bias: torch.Tensor, label_names: Sequence[str]
) -> ViTForImageClassification:
    """A classifier that gives the logits of a head on the features of `model`, whose memory its encoder shares.

    Args:
        model: the backbone that the features are of; if it has a classifier, that is left out.
        head: what `weight` reads.
        weight, bias: (K, classifier_input_size) and (K,).
        label_names: by class number.
    """
    backbone = model.base_model
    fields = backbone.config.to_dict() | {
        "classifier_cls_layers": max(head.num_cls_layers, 1),
        "classifier_mean_patch": head.mean_patch,
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "problem_type": "single_label_classification",
    }
    if head.num_cls_layers == 1 and not head.mean_patch:
        fields["pooling"] = "cls"  # such a classifier reads `pooler_output`
    config = ViTConfig.from_dict(fields)
    config.dtype = backbone.dtype
    with torch.device("meta"):
        merged = ViTForImageClassification(config)
    merged.vit.load_state_dict(backbone.state_dict(), assign=True)
    num_labels, input_size = weight.shape
    merged.classifier = nn.Linear(input_size, num_labels, device=backbone.device, dtype=backbone.dtype)
    with torch.no_grad():
        merged.classifier.weight.copy_(weight)
        merged.classifier.bias.copy_(bias)
    return merged.eval()
