"""The model against transformers' own ViT and DINOv2 classes, in the same process, on the same random weights."""

import pytest
import torch
import transformers

from small_models import with_random_weights
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "num_labels": 5}


def make_images(height, width, batch_size=2):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(1))


def fuse_qkv(weights):
    """query, key and value projections, stacked in this order, are one projection."""
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
        weights[name.replace("q_proj", "qkv")] = torch.cat(parts)


def rename(weights, names):
    renamed = {}
    for name, value in weights.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed


def weights_of_vit(theirs):
    weights = dict(theirs.state_dict())
    fuse_qkv(weights)
    names = {
        "attention.o_proj": "attention.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "pooler.dense": "representation",
        "decoder.0": "decoder",
    }
    return rename(weights, names)


def weights_of_dinov2(theirs, mask_token):
    weights = dict(theirs.state_dict())
    fuse_qkv(weights)
    for name in [name for name in weights if name.endswith("mask_token")]:
        if mask_token:
            weights[name] = weights[name].unsqueeze(0)
        else:
            del weights[name]
    for name in [name for name in weights if ".gate_proj." in name]:
        parts = [weights.pop(name.replace("gate_proj", part)) for part in ("gate_proj", "up_proj")]
        weights[name.replace("gate_proj", "gate_up_proj")] = torch.cat(parts)
    names = {
        "dinov2_with_registers.": "vit.",
        "dinov2.": "vit.",
        "encoder.layer.": "layers.",
        "attention.o_proj": "attention.proj",
        ".lambda1": "",
    }
    return rename(weights, names)


def compare(ours, theirs, *inputs, attributes, **arguments):
    """`arguments` are those of transformers' model alone."""
    with torch.no_grad():
        expected = theirs(*inputs, **arguments)
        output = ours(*inputs)
    for attribute in attributes:
        torch.testing.assert_close(getattr(output, attribute), getattr(expected, attribute), **CLOSE)
    return output, expected


# -------------------------------------------------------------------------------------------------------------------- ViT


def vit_configs(**fields):
    """transformers' config and ours for the same model."""
    size = {"image_size": 16, "patch_size": 4, "intermediate_size": 40, **SMALL, **fields}
    their_size = {"encoder_stride": 4, **size}
    ours = ViTConfig(**size, layer_norm_eps=1e-12, representation_size=24)
    return transformers.ViTConfig(**their_size), ours


VIT_FIELDS = [{}, {"qkv_bias": False}, {"hidden_act": "gelu_pytorch_tanh"}]


@pytest.mark.parametrize("fields", VIT_FIELDS)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (8, 24), (20, 12)])
def test_vit_model(fields, height, width):
    their_config, our_config = vit_configs(**fields)
    theirs = with_random_weights(transformers.ViTModel(their_config))
    ours = ViTModel(our_config).eval()
    ours.load_state_dict(weights_of_vit(theirs))
    attributes = ("last_hidden_state", "pooler_output")
    compare(ours, theirs, make_images(height, width), attributes=attributes, interpolate_pos_encoding=True)


def test_vit_hidden_states_and_attentions():
    their_config, our_config = vit_configs()
    theirs = with_random_weights(transformers.ViTModel(their_config, add_pooling_layer=True))
    theirs.set_attn_implementation("eager")
    ours = ViTModel(our_config).eval()
    ours.load_state_dict(weights_of_vit(theirs))
    with torch.no_grad():
        expected = theirs(make_images(16, 16), output_hidden_states=True, output_attentions=True)
        output = ours(make_images(16, 16), output_hidden_states=True, output_attentions=True)
        selected = ours(make_images(16, 16), output_hidden_states=[-2, 0]).hidden_states
    assert len(output.hidden_states) == len(expected.hidden_states)
    torch.testing.assert_close(output.hidden_states, tuple(expected.hidden_states), **CLOSE)
    torch.testing.assert_close(output.attentions, tuple(expected.attentions), **CLOSE)
    assert [tensor is None for tensor in selected] == [False, True, False, True]  # as transformers 5.23 and later


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, torch.tensor([4, 1])),
        ({"problem_type": "multi_label_classification"}, torch.tensor([[0.0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])),
        ({"num_labels": 1}, torch.tensor([[0.3], [-0.2]])),
    ],
)
def test_vit_for_image_classification(fields, labels):
    their_config, our_config = vit_configs(**fields)
    our_config.representation_size = None
    theirs = with_random_weights(transformers.ViTForImageClassification(their_config))
    ours = ViTForImageClassification(our_config).eval()
    ours.load_state_dict(weights_of_vit(theirs))
    images = make_images(16, 16)
    compare(ours, theirs, images, labels, attributes=("logits", "loss"))
    for model in (ours, theirs):
        model(images, labels).loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    torch.testing.assert_close(ours.classifier.weight.grad, gradients["classifier.weight"], **CLOSE)
    for part in ("cls_token", "position_embeddings", "patch_embeddings.projection.weight"):
        expected = gradients[f"vit.embeddings.{part}"]
        torch.testing.assert_close(ours.get_parameter(f"vit.embeddings.{part}").grad, expected, **CLOSE)


def test_vit_for_masked_image_modeling():
    their_config, our_config = vit_configs()
    our_config.representation_size = None
    theirs = with_random_weights(transformers.ViTForMaskedImageModeling(their_config))
    ours = ViTForMaskedImageModeling(our_config).eval()
    ours.load_state_dict(weights_of_vit(theirs))
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    compare(ours, theirs, make_images(16, 16), mask, attributes=("reconstruction", "loss"))
    compare(ours, theirs, make_images(24, 24), attributes=("reconstruction",), interpolate_pos_encoding=True)


# ----------------------------------------------------------------------------------------------------------------- DINOv2

PLAIN = (transformers.Dinov2Config, {})
REGISTERS = (transformers.Dinov2WithRegistersConfig, {"num_register_tokens": 3})
both_dinov2 = pytest.mark.parametrize("family", [PLAIN, REGISTERS], ids=["plain", "registers"])


def dinov2_configs(family, **fields):
    """transformers' config and ours: without registers it interpolates by size, where the original has an offset of 0.1."""
    config_class, extra = family
    theirs = config_class(**SMALL, **extra, image_size=28, patch_size=7, **fields)
    swiglu = fields.pop("use_swiglu_ffn", False)
    ours = ViTConfig(
        **SMALL,
        **extra,
        image_size=28,
        patch_size=7,
        mlp_type="swiglu" if swiglu else "mlp",
        intermediate_size=(4 * 24 * 2 // 3 + 7) // 8 * 8 if swiglu else 4 * 24,
        layer_scale_init_value=1.0,
        use_mask_token=True,
        position_interpolation_antialias=bool(extra),
        **fields,
    )
    return theirs, ours


@both_dinov2
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (42, 42), (14, 35), (63, 21)])
def test_dinov2_model(family, swiglu, height, width):
    their_config, our_config = dinov2_configs(family, use_swiglu_ffn=swiglu)
    model_class = transformers.Dinov2WithRegistersModel if family is REGISTERS else transformers.Dinov2Model
    theirs = with_random_weights(model_class(their_config))
    ours = ViTModel(our_config).eval()
    ours.load_state_dict(weights_of_dinov2(theirs, mask_token=True))
    images = make_images(height, width)
    attributes = ("last_hidden_state", "pooler_output")
    plain, _ = compare(ours, theirs, images, attributes=attributes)
    mask = torch.rand(2, (height // 7) * (width // 7), generator=torch.Generator().manual_seed(0)) < 0.4
    masked, _ = compare(ours, theirs, images, mask, attributes=attributes)
    assert not torch.allclose(masked.pooler_output, plain.pooler_output, atol=1e-2)


@both_dinov2
def test_dinov2_for_image_classification(family):
    their_config, our_config = dinov2_configs(family)
    our_config.classifier_mean_patch = True
    our_config.use_mask_token = False
    model_class = (
        transformers.Dinov2WithRegistersForImageClassification if family is REGISTERS else transformers.Dinov2ForImageClassification
    )
    theirs = with_random_weights(model_class(their_config))
    ours = ViTForImageClassification(our_config).eval()
    ours.load_state_dict(weights_of_dinov2(theirs, mask_token=False))
    for height, width in ((28, 28), (14, 35)):
        compare(ours, theirs, make_images(height, width), attributes=("logits",))
    labels = torch.tensor([3, 0])
    with torch.no_grad():
        expected = theirs(make_images(28, 28), labels=labels).loss
        torch.testing.assert_close(ours(make_images(28, 28), labels=labels).loss, expected, **CLOSE)


@both_dinov2
@pytest.mark.parametrize("apply_layernorm", [True, False])
@pytest.mark.parametrize("reshape", [True, False])
def test_dinov2_backbone(family, reshape, apply_layernorm):
    fields = {"apply_layernorm": apply_layernorm, "reshape_hidden_states": reshape, "out_features": ["stem", "stage2", "stage3"]}
    their_config, our_config = dinov2_configs(family, **fields)
    our_config.use_mask_token = False
    model_class = transformers.Dinov2WithRegistersBackbone if family is REGISTERS else transformers.Dinov2Backbone
    theirs = with_random_weights(model_class(their_config))
    ours = ViTBackbone(our_config).eval()
    weights = weights_of_dinov2(theirs, mask_token=False)
    ours.load_state_dict({f"vit.{name}": value for name, value in weights.items()})
    assert ours.channels == theirs.channels
    assert ours.out_indices == theirs.out_indices
    for height, width in ((28, 28), (14, 35)):
        output, expected = compare(ours, theirs, make_images(height, width), attributes=())
        assert len(output.feature_maps) == len(expected.feature_maps) == 3
        torch.testing.assert_close(output.feature_maps, tuple(expected.feature_maps), **CLOSE)
