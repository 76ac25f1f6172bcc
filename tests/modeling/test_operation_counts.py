import pytest
import torch

from small_models import tiny_config
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.configuration.sizes import SIZES
from vitrail.modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTModel
from vitrail.modeling.operation_counts import complexity

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 20, "num_labels": 3}


def on_meta(model_class, **fields):
    with torch.device("meta"):
        return model_class(ViTConfig(**fields))


def test_vit_b8_is_what_timm_publishes():
    """timm's results tables, with 1000 classes: 86.58 M parameters, 66.87 GMACs, 65.71 M activations; without: 85,807,872."""
    count = complexity(on_meta(ViTForImageClassification, patch_size=8, num_labels=1000))
    assert count.parameters / 1e6 == pytest.approx(86.58, abs=0.005)
    assert count.macs / 1e9 == pytest.approx(66.87, abs=0.005)
    assert count.activations / 1e6 == pytest.approx(65.71, abs=0.005)
    count = complexity(on_meta(ViTModel, patch_size=8))
    assert count.parameters == 85_807_872
    assert count.macs_with_attention / 1e9 == pytest.approx(78.2, abs=0.05)


DINOV2 = {"patch_size": 14, "image_size": 518, "layer_scale_init_value": 1e-5}
RELPOS = {"position_embedding_type": "relative_mlp", "use_cls_token": False, "pooling": "avg", "qkv_bias": False}


@pytest.mark.parametrize(
    ("size", "fields", "parameters"),  # timm 1.0.31, num_classes=0
    [
        ("small", {}, 21_665_664),  # vit_small_patch16_224
        ("base", {}, 85_798_656),  # vit_base_patch16_224
        ("large", {}, 303_301_632),  # vit_large_patch16_224
        ("huge", {"patch_size": 14}, 630_764_800),  # vit_huge_patch14_224
        ("giant", DINOV2, 1_136_479_232),  # vit_giant_patch14_dinov2
        ("small", {"num_register_tokens": 4, "use_cls_position": False, **DINOV2}, 22_057_344),  # vit_small_patch14_reg4_dinov2
        ("small", {"layer_scale_init_value": 1e-5, **RELPOS}, 21_598_920),  # vit_relpos_small_patch16_224
    ],
)
def test_parameters_are_those_of_timm(size, fields, parameters):
    assert on_meta(ViTModel, **SIZES[size], **fields).num_parameters() == parameters


def by_hand(num_patches, prefix, patch_pixels, mlp_macs, mlp_activations):
    """Counts of two blocks of width 8 and the last norm, for one image."""
    tokens = prefix + num_patches
    macs = num_patches * patch_pixels * 8  # the projection of patches
    activations = num_patches * 8
    for _ in range(2):
        macs += tokens * 8 * 24 + tokens * 8 * 8 + tokens * mlp_macs  # qkv, proj and MLP
        macs += 2 * 5 * tokens * 8  # two norms, five operations for each element
        activations += tokens * (24 + 8 + mlp_activations)
    macs += 5 * tokens * 8
    attention = 2 * 2 * tokens * tokens * 8  # two blocks; query x key, weights x value
    return macs, macs + attention, activations


@pytest.mark.parametrize(("image_size", "num_patches"), [(None, 12), ((24, 40), 60), ((4, 4), 1)])
def test_a_small_model_by_hand(image_size, num_patches):
    model = ViTModel(tiny_config(**SMALL, image_size=(12, 16), patch_size=4, num_register_tokens=2))
    macs, with_attention, activations = by_hand(num_patches, 3, 3 * 4 * 4, 2 * 8 * 20, 20 + 8)
    count = complexity(model, image_size)
    assert (count.macs, count.macs_with_attention, count.activations) == (macs, with_attention, activations)
    block = 4 * 8 + (8 * 24 + 24) + (8 * 8 + 8) + (8 * 20 + 20) + (20 * 8 + 8)
    assert count.parameters == (48 * 8 + 8) + 8 + (12 + 1) * 8 + 2 * 8 + 2 * block + 16


def test_swiglu_rectangular_patches_and_a_classifier_by_hand():
    fields = {"image_size": (12, 16), "patch_size": (4, 2), "num_channels": 1, "mlp_type": "swiglu", "qkv_bias": False}
    model = ViTForImageClassification(tiny_config(**SMALL, **fields))
    macs, with_attention, activations = by_hand(3 * 8, 1, 4 * 2, 3 * 8 * 20, 40 + 8)
    count = complexity(model)
    assert count.macs == macs + 8 * 3
    assert count.macs_with_attention == with_attention + 8 * 3
    assert count.activations == activations + 3
    block = 4 * 8 + 8 * 24 + (8 * 8 + 8) + (8 * 40 + 40) + (20 * 8 + 8)
    assert count.parameters == (8 * 8 + 8) + 8 + (24 + 1) * 8 + 2 * block + 16 + (8 * 3 + 3)


def test_the_model_itself_is_left_alone():
    model = ViTModel(tiny_config(**SMALL, image_size=16, patch_size=4)).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    counts = {complexity(model), complexity(model.half()), complexity(model.eval().float())}
    assert len(counts) == 1
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert not any(module._forward_hooks for module in model.modules())
    for name, value in weights.items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_a_backbone_counts_as_its_encoder():
    fields = {**SMALL, "image_size": 16, "patch_size": 4, "position_embedding_type": "relative_table"}
    backbone, encoder = complexity(ViTBackbone(tiny_config(**fields))), complexity(ViTModel(tiny_config(**fields)))
    assert (backbone.parameters, backbone.activations) == (encoder.parameters, encoder.activations)
    assert backbone.macs_with_attention - backbone.macs == encoder.macs_with_attention - encoder.macs
