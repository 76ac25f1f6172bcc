"""get_intermediate_layers, attention_maps, timm's methods, the backbone, and errors."""

import itertools

import pytest
import torch

from small_models import every_class, every_config, every_plain_class, make_config, make_images, make_mask, make_model, run
from vitrail.modeling import modeling_vit
from vitrail.modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTModel

# --------------------------------------------------------------------------------------------------------------- helpers


@pytest.mark.parametrize(("reshape", "return_class_token", "norm"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(
    ("n", "blocks"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2]), ([0, 2], [0, 2]), ((1,), [1]), ([-1], [2]), (range(2), [0, 1])]
)
@pytest.mark.parametrize("name", ["registers", "relative_table"])
@torch.no_grad()
def test_get_intermediate_layers(name, n, blocks, reshape, return_class_token, norm):
    model = make_model(ViTModel, name)
    images = make_images(model.config, grid=(3, 5))
    hidden_states = model(images, output_hidden_states=True).hidden_states
    expected = []
    for block in blocks:
        tokens = hidden_states[block + 1]
        if norm and model.config.norm_before_pooling:
            tokens = model.layernorm(tokens)
        patches = tokens[:, -15:]
        if reshape:
            patches = patches.reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
        expected.append((patches, tokens[:, 0]) if return_class_token else patches)
    outputs = model.get_intermediate_layers(images, n, reshape=reshape, return_class_token=return_class_token, norm=norm)
    assert isinstance(outputs, tuple)
    assert all(isinstance(output, tuple) == return_class_token for output in outputs)
    torch.testing.assert_close(outputs, tuple(expected), rtol=0, atol=0)
    if reshape and not return_class_token:
        assert all(output.is_contiguous() for output in outputs)


def test_get_intermediate_layers_without_arguments_gives_the_last_tokens():
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    (patches,) = model.get_intermediate_layers(images)
    assert torch.equal(patches, run(model, images)[:, 1:])


@torch.no_grad()
def test_blocks_after_the_last_one_asked_for_do_not_run():
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    runs = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: runs.append(index))
    model.get_intermediate_layers(images, [0, 1])
    assert runs == [0, 1]
    runs.clear()
    model.attention_maps(images, [0])
    assert runs == [0]


@pytest.mark.parametrize("n", [0, 4, 5, [3], [-4], [0, 3], []])
def test_get_intermediate_layers_names_a_block_that_is_not_there(n):
    model = make_model(ViTModel, "absolute")
    with pytest.raises(ValueError, match=r"There is no block .*choose among 0 to 2, or -3 to -1"):
        model.get_intermediate_layers(make_images(model.config), n)


def test_get_intermediate_layers_has_no_class_token_to_return():
    model = make_model(ViTModel, "no_cls")
    with pytest.raises(ValueError, match=r"this model has no \[CLS\] token"):
        model.get_intermediate_layers(make_images(model.config), return_class_token=True)


@pytest.mark.parametrize(("layers", "blocks"), [((-1,), [2]), ([0, 2], [0, 2]), ([2, 0], [2, 0]), (range(3), [0, 1, 2])])
@every_config
@torch.no_grad()
def test_attention_maps(name, layers, blocks):
    model = make_model(ViTModel, name)
    images, prefix = make_images(model.config, grid=(3, 5)), model.config.num_prefix_tokens
    attentions = model(images, output_attentions=True).attentions
    maps = model.attention_maps(images, layers)
    assert maps.shape == (2, len(blocks), 4, 3, 5)
    for index, block in enumerate(blocks):
        weights = attentions[block]
        received = weights[:, :, 0, prefix:] if model.config.use_cls_token else weights[:, :, prefix:, prefix:].mean(2)
        torch.testing.assert_close(maps[:, index], received.reshape(2, 4, 3, 5), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_maps_are_of_the_last_block_and_compute_no_other_weights(monkeypatch):
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    expected = model.attention_maps(images, [2])
    calls = []
    eager = modeling_vit.eager_attention_forward
    monkeypatch.setattr(modeling_vit, "eager_attention_forward", lambda *args, **kwargs: calls.append(1) or eager(*args, **kwargs))
    assert torch.equal(model.attention_maps(images), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("layers", [[3], [-4], [0, 3], ()])
def test_attention_maps_name_a_block_that_is_not_there(layers):
    model = make_model(ViTModel, "absolute")
    with pytest.raises(ValueError, match=r"There is no block .*choose among 0 to 2, or -3 to -1"):
        model.attention_maps(make_images(model.config), layers)


@every_config
@torch.no_grad()
def test_timms_two_methods_are_the_two_halves_of_the_model(name):
    model = make_model(ViTForImageClassification, name)
    images = make_images(model.config, grid=(3, 5))
    features = model.forward_features(images)
    outputs = model.vit(images)
    assert torch.equal(features, outputs.last_hidden_state)
    assert torch.equal(model.vit.forward_features(images), features)
    for pooled in (model.forward_head(features, pre_logits=True), model.vit.forward_head(features)):
        assert torch.equal(pooled, outputs.pooler_output)
    if model.config.classifier_cls_layers == 1:
        assert torch.equal(model.forward_head(features), model(images).logits)
    else:
        with pytest.raises(ValueError, match="This classifier reads several blocks"):
            model.forward_head(features)


# -------------------------------------------------------------------------------------------------------------- backbone


@pytest.mark.parametrize("apply_layernorm", [True, False])
@pytest.mark.parametrize("reshape", [True, False])
@every_config
@torch.no_grad()
def test_backbone_feature_maps(name, reshape, apply_layernorm):
    fields = {"reshape_hidden_states": reshape, "apply_layernorm": apply_layernorm}
    model = make_model(ViTBackbone, name, out_indices=[0, 2, 3], **fields)
    config = model.config
    images = make_images(config, grid=(3, 5))
    output = model(images)
    assert model.channels == [32, 32, 32]
    hidden_states = model.vit(images, output_hidden_states=True).hidden_states
    expected = []
    for tokens in (hidden_states[0], hidden_states[2], hidden_states[3]):
        if apply_layernorm and config.norm_before_pooling:
            prefix = config.num_prefix_tokens if config.separate_cls_norm else 0
            normed = [model.vit.cls_layernorm(tokens[:, :prefix])] if prefix else []
            tokens = torch.cat([*normed, model.vit.layernorm(tokens[:, prefix:])], dim=1)
        if reshape:
            tokens = tokens[:, config.num_prefix_tokens :].reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
        expected.append(tokens)
    torch.testing.assert_close(output.feature_maps, tuple(expected), rtol=0, atol=0)


@torch.no_grad()
def test_backbone_stages_can_be_chosen_in_every_way():
    images = make_images(make_config("absolute"))
    everything = make_model(ViTBackbone, "absolute", out_indices=[0, 1, 2, 3])(images).feature_maps
    assert len(everything) == 4
    model = make_model(ViTBackbone, "absolute")
    assert torch.equal(model(images).feature_maps[0], everything[3])
    assert len(model(images).feature_maps) == 1
    for fields in ({"out_features": ["stage1", "stage3"]}, {"out_indices": [1, 3]}, {"out_indices": [1, -1]}):
        model = make_model(ViTBackbone, "absolute", **fields)
        assert model.out_features == ["stage1", "stage3"]
        torch.testing.assert_close(model(images).feature_maps, (everything[1], everything[3]), rtol=0, atol=0)
    model.out_indices = [0]
    torch.testing.assert_close(model(images).feature_maps, everything[:1], rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------- errors


@every_class
@pytest.mark.parametrize("shape", [(2, 1, 16, 24), (3, 16, 24), (2, 16, 24, 3)])
def test_pixel_values_of_another_shape(model_class, shape):
    with pytest.raises(ValueError, match=r"expects \(batch, 3, height, width\)"):
        make_model(model_class, "absolute")(torch.zeros(shape))


@every_plain_class
@pytest.mark.parametrize(
    ("size", "lower", "upper"),
    [((17, 24), "16x24", "20x24"), ((16, 23), "16x20", "16x24"), ((3, 5), "4x4", "4x8"), ((0, 8), "4x8", "0x8")],
)
def test_a_size_that_patches_do_not_divide(model_class, size, lower, upper):
    with pytest.raises(ValueError, match=f"of {size[0]}x{size[1]} pixels cannot be cut.*4x4.*{lower}.*{upper}"):
        make_model(model_class, "absolute")(torch.zeros(1, 3, *size))


def test_a_mask_needs_a_mask_token():
    model = make_model(ViTModel, "absolute")
    with pytest.raises(ValueError, match="set use_mask_token=True"):
        model(make_images(model.config), make_mask(model.config))
