"""Models that begin from scratch."""

import json

import pytest
import torch

import vitrail
from small_models import TINY, tiny_config
from vitrail.errors import UnsupportedCheckpointError, VitrailError
from vitrail.pretraining.architectures import new_model


@pytest.fixture
def write(tmp_path):
    def write(**content):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("method", "name", "image_size", "checkpoint", "parameters"),
    [
        ("dino", "vit_small_patch16", 224, "dino-vits16", 21_665_664),  # timm's and the original's, without a classifier
        ("dinov2", "vit_small_patch14", 518, "dinov2-vits14", 22_056_576),  # as the published file, its mask token included
    ],
)
def test_a_name_is_the_original_architecture(method, name, image_size, checkpoint, parameters):
    """The catalog describes this architecture for the published checkpoint."""
    from vitrail.convert.sources.catalog import find_checkpoint, official_config, official_image_processor

    model, image_processor = new_model(name, image_size=image_size, seed=0, method=method)
    row = find_checkpoint(checkpoint)
    ignored = {"id2label", "label2id", "architectures", "dtype", "_name_or_path"}
    found, expected = (
        {name: value for name, value in config.to_dict().items() if name not in ignored}
        for config in (model.config, official_config(row))
    )
    assert found.pop("layer_scale_init_value") == (1e-5 if method == "dinov2" else None)  # of a new model
    expected.pop("layer_scale_init_value")
    assert found == expected
    assert model.num_parameters() == parameters
    assert image_processor.crop_size == {"height": image_size, "width": image_size}
    if method == "dino":  # the published DINOv2 crops 224 pixels
        assert image_processor.to_dict() == official_image_processor(row).to_dict()
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "size", "expected", "hidden_size"),
    [
        ("vit_tiny_patch16", 32, 32, 192),
        ("vit_tiny_patch14", 224, 224, 192),
        ("vit_tiny_patch14", 32, 42, 192),
        ("vit_small_patch32", 96, 96, 384),
    ],
)
def test_sizes_and_patches(name, size, expected, hidden_size):
    model, image_processor = new_model(name, image_size=size, seed=0)
    config = model.config
    assert config.image_size == expected
    assert config.patch_size == int(name[-2:])
    assert config.hidden_size == hidden_size
    assert (image_processor.crop_size["height"], image_processor.crop_size["width"]) == (expected, expected)


def test_the_seed_chooses_the_weights(write):
    name = write(**TINY)
    first, again, other = (new_model(name, image_size=224, seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embeddings.cls_token"], other["embeddings.cls_token"])


def test_a_config_of_ones_own(write):
    model, image_processor = new_model(write(**TINY | {"image_size": [16, 24], "num_channels": 1}), image_size=224, seed=0)
    assert type(model) is vitrail.ViTModel
    assert (model.config.image_size, model.config.num_channels, model.config.hidden_size) == ((16, 24), 1, 32)
    assert (image_processor.size["height"], image_processor.size["width"]) == (16, 24)
    assert image_processor.num_channels == len(image_processor.image_mean) == 1


def test_the_config_of_a_model_of_ours(tmp_path):
    config = tiny_config(image_size=16, num_register_tokens=2, num_labels=3)
    vitrail.save(vitrail.ViTForImageClassification(config), vitrail.make_image_processor("dino", image_size=16), tmp_path / "model")
    model, _ = new_model(str(tmp_path / "model" / "config.json"), image_size=224, seed=0)
    assert type(model) is vitrail.ViTModel
    assert (model.config.num_register_tokens, model.config.image_size) == (2, 16)


@pytest.mark.parametrize(
    "name", ["resnet50", "vit_small", "vit_enormous_patch16", "vit_giant_patch14", "vit_small_patch0", "nowhere.json", ""]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(VitrailError, match=f'no architecture "{name}": give vit_SIZE_patchP, where SIZE is one of tiny, small'):
        new_model(name, image_size=224, seed=0)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"hiden_size": 32}, VitrailError, r"config\.json has unknown fields hiden_size; expected the fields of ViTConfig"),
        ({"model_type": "vit"}, VitrailError, r'config\.json has model_type "vit"'),
        ({"hidden_size": 33}, UnsupportedCheckpointError, "hidden_size 33"),
        ({"hidden_size": "wide"}, UnsupportedCheckpointError, "hidden_size"),
    ],
)
def test_a_config_with_a_mistake_is_refused(write, content, error, message):
    with pytest.raises(error, match=message):
        new_model(write(**content), image_size=224, seed=0)
