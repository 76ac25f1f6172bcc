"""`tiny_config`, the small default of all tests, and named variants: one for each feature in which families differ."""

import pytest
import torch

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.features.feature_types import classifier_features, feature_outputs, join_tokens
from vitrail.modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vitrail.modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
VARIANT = {"num_hidden_layers": 3, "intermediate_size": 48, "image_size": (16, 24), "patch_size": 4, "num_labels": 5}
ANTIALIAS = {"position_interpolation_antialias": True}
GOOGLE_POSITIONS = {"position_interpolation_mode": "bilinear", "position_interpolation_align_corners": True}
FC_NORM = {"pooling": "avg", "norm_before_pooling": False}
CONFIGS = {
    "absolute": {},
    "offset": {"image_size": 16, "position_interpolation_offset": 0.1, "layer_scale_init_value": 1e-5},
    "registers": {"image_size": 16, "num_register_tokens": 3, "use_mask_token": True, "layer_scale_init_value": 1.0, **ANTIALIAS},
    "google": {"hidden_act": "gelu_pytorch_tanh", "representation_size": 20, "layer_norm_eps": 1e-12, **GOOGLE_POSITIONS},
    "no_cls": {"use_cls_token": False, "num_register_tokens": 2, **FC_NORM},
    "no_cls_position": {"use_cls_position": False, "num_register_tokens": 1, "pooling": "cls+avg", "representation_size": 9},
    "swiglu": {"mlp_type": "swiglu", "qkv_bias": False, "intermediate_size": 24, "use_mask_token": True, "pooling": "avg"},
    "several_cls": {"classifier_cls_layers": 3},
    "several_cls_mean_patch": {
        "classifier_cls_layers": 2,
        "classifier_mean_patch": True,
        "num_register_tokens": 2,
        "separate_cls_norm": True,
    },
    "cls_mean_patch": {"classifier_mean_patch": True, "pooling": "avg"},
    "rectangular_patches": {"image_size": (24, 16), "patch_size": (4, 8), "num_channels": 2},
    "residual_post": {"norm_position": "residual_post", "layer_scale_init_value": 0.1, "pooling": "cls+avg"},
    "relative_table": {"position_embedding_type": "relative_table", "use_mask_token": True, **FC_NORM},
    "relative_table_shared": {
        "position_embedding_type": "relative_table",
        "share_relative_position": True,
        "use_cls_token": False,
        "pooling": "avg",
    },
    "relative_mlp": {
        "position_embedding_type": "relative_mlp",
        "norm_position": "residual_post",
        "layer_scale_init_value": 1e-5,
        "use_cls_token": False,
        **FC_NORM,
    },
    "relative_mlp_shared": {
        "position_embedding_type": "relative_mlp",
        "share_relative_position": True,
        "relative_position_hidden_size": 16,
        "qkv_bias": False,
    },
    "rotary": {
        "position_embedding_type": "rotary",
        "num_register_tokens": 2,
        "separate_cls_norm": True,
        "mlp_type": "geglu",
        "use_mask_token": True,
        "layer_scale_init_value": 1e-5,
        "layer_norm_eps": 1e-5,
        "classifier_mean_patch": True,
    },
}
SEGMENTATION = ("classifier.weight", "classifier.bias", "batch_norm.weight", "batch_norm.bias")
SEGMENTATION += ("batch_norm.running_mean", "batch_norm.running_var")
HEADS = {
    ViTModel: set(),
    ViTForImageClassification: {"classifier.weight", "classifier.bias"},
    ViTForMaskedImageModeling: {"decoder.weight", "decoder.bias"},
    ViTForSemanticSegmentation: {f"segmentation_head.{name}" for name in SEGMENTATION},
    ViTForDepthEstimation: {"depth_head.projection.weight", "depth_head.projection.bias"},
    ViTBackbone: set(),
}

IMPORT_OF_THE_COMPILER = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
every_config = pytest.mark.parametrize("name", CONFIGS)
DENSE = (ViTForSemanticSegmentation, ViTForDepthEstimation)
every_class = pytest.mark.parametrize("model_class", HEADS)
every_plain_class = pytest.mark.parametrize("model_class", [kind for kind in HEADS if kind not in DENSE])


def tiny_config(**fields):
    """A small ViTConfig: `TINY`, with `fields` on top."""
    return ViTConfig(**(TINY | fields))


def tiny_model(model_class=ViTModel, seed=0, **fields):
    """A model of `tiny_config(**fields)` in evaluation mode, with the package's own initialization."""
    torch.manual_seed(seed)
    return model_class(tiny_config(**fields)).eval()


def make_config(name, **fields):
    """The variant of this name, with `fields` on top."""
    return tiny_config(**(VARIANT | CONFIGS[name] | fields))


def randomize(model, seed=0):
    """Fresh weights hide mistakes: norms are identities, LayerScale next to nothing. These weights make every parameter matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def with_random_weights(model):
    """Noise everywhere, but norms around 1: for classes of transformers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


def make_model(model_class, name, **fields):
    torch.manual_seed(0)
    return randomize(model_class(make_config(name, **fields))).eval()


def make_images(config, batch_size=2, grid=None, seed=0):
    """Images of the config's size, or of as many patches as `grid` specifies."""
    size = [length * patch for length, patch in zip(grid or config.patch_grid, config.patch_shape, strict=True)]
    return torch.randn(batch_size, config.num_channels, *size, generator=torch.Generator().manual_seed(seed))


def make_mask(config, batch_size=2):
    mask = torch.zeros(batch_size, config.patch_grid[0] * config.patch_grid[1], dtype=torch.bool)
    mask[:, ::3] = True
    mask[1:, :2] = True
    return mask


def main_output(output):
    """Return the main tensors of a model's output."""
    if "feature_maps" in output:
        return output["feature_maps"][-1]
    return next(output[key] for key in ("logits", "reconstruction", "predicted_depth", "last_hidden_state") if key in output)


@torch.no_grad()
def run(model, *inputs, **arguments):
    return main_output(model(*inputs, **arguments))


def parameters_without_gradient(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def classifier_tokens(vit, pixel_values, *, num_cls_layers):
    """The features that a linear classifier reads of images, (B, T, D), float32."""
    return join_tokens(feature_outputs(vit, classifier_features(vit.config, num_cls_layers))(pixel_values)).float()
