"""Identity of an encoder: a digest of its weights, and the fields of its config that affect features."""

import hashlib
from typing import Any

import torch
from torch import nn

from ..configuration.configuration_vit import ViTConfig
from .modeling_vit import ViTModel

# Fields that only heads and backbones read
WITHOUT_EFFECT = {"classifier_cls_layers", "classifier_mean_patch"}
WITHOUT_EFFECT |= {"_out_features", "_out_indices", "apply_layernorm", "reshape_hidden_states", "return_register_tokens"}


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of the weights of an encoder or another module, with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def config_fields(vit: ViTModel) -> dict[str, Any]:
    """Return the fields of the config that the features of an encoder depend on."""
    fields = {name: getattr(vit.config, name) for name in sorted(ViTConfig.__annotations__.keys() - WITHOUT_EFFECT)}
    return fields | {"image_size": vit.config.image_shape, "patch_size": vit.config.patch_shape}
