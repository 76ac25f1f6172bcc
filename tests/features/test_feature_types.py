import pytest
import torch

from small_models import CONFIGS, make_config, make_images, make_model
from vitrail.errors import VitrailError
from vitrail.features.feature_types import compute_features, parse_features, vector_size
from vitrail.modeling.modeling_vit import ViTModel


def computed(model, *names):
    feature_types = parse_features(names, model.config)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        return feature_types, compute_features(model, pixel_values, feature_types), pixel_values


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_model_gives(name):
    model = make_model(ViTModel, name)
    feature_types, features, pixel_values = computed(model, "pooled", "mean", "patches")
    with torch.no_grad():
        outputs = model(pixel_values)
    patches = outputs.last_hidden_state[:, model.config.num_prefix_tokens :]
    torch.testing.assert_close(features["pooled"], outputs.pooler_output)
    torch.testing.assert_close(features["mean"], patches.mean(dim=1))
    assert features["patches"].shape[1:3] == outputs.patch_grid
    torch.testing.assert_close(features["patches"].flatten(1, 2), patches)
    for kind in feature_types[:2]:
        assert features[kind.column].shape == (2, vector_size(kind, model.config))


@pytest.mark.parametrize("name", [name for name in CONFIGS if make_config(name).use_cls_token])
def test_cls_and_layers(name):
    """`get_intermediate_layers` is checked against DINOv2's own."""
    model = make_model(ViTModel, name)
    feature_types, features, pixel_values = computed(model, "cls", "cls+mean", "layers=0,-1")
    with torch.no_grad():
        (_, first), (patches, last) = model.get_intermediate_layers(pixel_values, n=[0, 2], return_class_token=True)
    torch.testing.assert_close(features["cls"], last)
    torch.testing.assert_close(features["cls_mean"], torch.cat((last, patches.mean(dim=1)), dim=1))
    torch.testing.assert_close(features["layers"], torch.stack((first, last), dim=1))
    assert [kind.is_vector for kind in feature_types] == [True, True, False]
    assert vector_size(feature_types[1], model.config) == features["cls_mean"].shape[1]


@pytest.mark.parametrize("name", [name for name in CONFIGS if make_config(name).use_cls_token])
def test_cls_alone_is_the_same_for_less(name):
    model = make_model(ViTModel, name)
    _, features, pixel_values = computed(model, *(["cls", "pooled"] if model.config.pooling == "cls" else ["cls"]))
    with torch.no_grad():
        outputs = model(pixel_values)
    torch.testing.assert_close(features["cls"], outputs.last_hidden_state[:, 0])
    if "pooled" in features:
        torch.testing.assert_close(features["pooled"], outputs.pooler_output)
    tokens = []
    model.layers[-1].mlp.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].shape[1]))
    with torch.no_grad():
        compute_features(model, pixel_values, parse_features(["cls"], model.config))
    assert tokens == [1]


@pytest.mark.parametrize("name", ["no_cls", "relative_table_shared"])
def test_layers_of_a_model_without_cls_are_mean_patches(name):
    model = make_model(ViTModel, name)
    _, features, pixel_values = computed(model, "layers=1,0")
    with torch.no_grad():
        patches = model.get_intermediate_layers(pixel_values, n=[1, 0])
    torch.testing.assert_close(features["layers"], torch.stack([tokens.mean(dim=1) for tokens in patches], dim=1))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["clss"], "found the features 'clss'; write one of pooled, cls, mean"),
        (["cls=3"], "found the features 'cls=3'"),
        (["layers"], "found the features 'layers'"),
        (["layers=one"], "layers=one; write indices"),
        (["layers=3"], "blocks 0 to 2, or -3 to -1"),
        (["cls", "cls"], "name each type once"),
        ([], "name each type once"),
    ],
)
def test_mistakes(names, message):
    with pytest.raises(VitrailError, match=message):
        parse_features(names, make_config("absolute"))


def test_a_model_without_cls_has_none_to_give():
    with pytest.raises(VitrailError, match=r"no \[CLS\] token; write mean or pooled"):
        parse_features(["cls+mean"], make_config("no_cls"))
