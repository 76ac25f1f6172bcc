"""Saving, loading, copying: the requirements of transformers' own common tests."""

import copy
import itertools
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from small_models import DENSE, HEADS, every_config, every_plain_class, make_config, make_images, make_model, randomize, run
from vitrail.modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

PAIRS = [
    pair
    for pair in itertools.permutations(HEADS, 2)
    if not {*DENSE} & {*pair} or {*pair} <= {ViTModel, *DENSE}  # of a dense head, those with the encoder and the other one
]


@every_plain_class
@every_config
def test_saved_and_loaded_is_the_same(name, model_class, tmp_path):
    model = make_model(model_class, name)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        assert torch.equal(run(loaded, images), run(model, images))


@pytest.mark.parametrize("name", ["registers", "relative_mlp"])
@pytest.mark.parametrize(("saved", "loaded"), PAIRS)
def test_every_class_loads_every_folder_and_reports_what_it_misses(name, saved, loaded, tmp_path):
    model = make_model(saved, name, use_mask_token=True)
    model.save_pretrained(tmp_path)
    other, info = loaded.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == HEADS[loaded]
    assert set(info["unexpected_keys"]) == HEADS[saved]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
    encoders = [m if isinstance(m, ViTModel) else m.vit for m in (model, other)]
    for key, value in encoders[0].state_dict().items():
        assert torch.equal(encoders[1].state_dict()[key], value), key


def test_masked_image_modeling_makes_the_mask_token_and_it_is_reported(tmp_path):
    config = make_config("absolute")
    ViTModel(config).save_pretrained(tmp_path)
    model, info = ViTForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"vit.embeddings.mask_token", "decoder.weight", "decoder.bias"}
    assert model.config.use_mask_token
    ViTForMaskedImageModeling(config)
    assert not config.use_mask_token


@pytest.mark.parametrize(
    "name", ["registers", "no_cls_position", "relative_table", "relative_mlp", "relative_mlp_shared", "swiglu"]
)
def test_a_missing_parameter_is_never_silent(name, tmp_path):
    torch.manual_seed(0)
    make_model(ViTForImageClassification, name).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for missing in (key for key in weights if "layers.0." not in key and "layers.1." not in key):
        rest = {key: value for key, value in weights.items() if key != missing}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        model, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {missing}
        check_fresh_weight(missing, model.get_parameter(missing), model.config)
        assert torch.equal(model.vit.layers[0].norm1.weight, weights["vit.layers.0.norm1.weight"])


def check_fresh_weight(name, parameter, config):
    if "norm" in name and name.endswith("weight"):
        assert torch.all(parameter == 1), name
    elif name.endswith(("bias", "mask_token")):
        assert torch.all(parameter == 0), name
    elif "layer_scale" in name:
        assert torch.all(parameter == config.layer_scale_init_value), name
    elif parameter.numel() > 1000:
        assert parameter.std().item() == pytest.approx(config.initializer_range, rel=0.1), name
        assert abs(parameter.mean().item()) < 0.1 * config.initializer_range, name
    else:
        assert 0 < parameter.abs().max() < 5 * config.initializer_range, name


@every_config
def test_fresh_weights(name):
    torch.manual_seed(0)
    model = ViTForImageClassification(make_config(name, initializer_range=0.01))
    for key, parameter in model.named_parameters():
        check_fresh_weight(key, parameter, model.config)


def test_another_number_of_classes_must_be_allowed(tmp_path):
    make_model(ViTForImageClassification, "absolute").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatched"):
        ViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    model, info = ViTForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model(make_images(model.config)).logits.shape == (2, 7)


def test_fields_can_be_changed_while_loading(tmp_path):
    make_model(ViTModel, "absolute").save_pretrained(tmp_path)
    assert ViTModel.from_pretrained(tmp_path, drop_path_rate=0.2).layers[-1].drop_path_rate == 0.2
    assert ViTBackbone.from_pretrained(tmp_path, out_indices=[1, 2]).out_features == ["stage1", "stage2"]
    assert ViTModel.from_pretrained(tmp_path, dtype=torch.bfloat16).layernorm.weight.dtype == torch.bfloat16


@every_config
def test_weights_go_into_a_model_made_on_the_meta_device(name):
    model = make_model(ViTModel, name)
    for fill in ({"assign": False}, {"assign": True}):
        with torch.device("meta"):
            empty = ViTModel(model.config).eval()
        if not fill["assign"]:
            empty.to_empty(device="cpu")
        empty.load_state_dict(copy.deepcopy(model.state_dict()), **fill)
        for grid in (None, (3, 5)):
            images = make_images(model.config, grid=grid)
            assert torch.equal(run(empty, images), run(model, images))


@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_mlp_shared"])
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(name, device_map, tmp_path):
    model = make_model(ViTForImageClassification, name)
    model.save_pretrained(tmp_path)
    loaded = ViTForImageClassification.from_pretrained(tmp_path, device_map=device_map).to("cpu")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        torch.testing.assert_close(run(loaded, images), run(model, images))


def clone_by_pickle(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("clone", [copy.deepcopy, clone_by_pickle])
@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_table_shared", "relative_mlp"])
def test_copies_are_equal_and_share_nothing(name, clone):
    model = make_model(ViTModel, name)
    images = make_images(model.config, grid=(3, 5))
    expected = run(model, images)  # fills the caches
    twin = clone(model)
    assert torch.equal(run(twin, images), expected)
    randomize(twin, seed=1)
    changed = run(twin, images)
    assert not torch.allclose(changed, expected)
    assert torch.equal(run(model, images), expected)
    fresh = ViTModel(model.config).eval()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(run(fresh, images), changed)
