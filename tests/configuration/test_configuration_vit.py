import ast
import dataclasses
import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError, StrictDataclassFieldValidationError

from vitrail.configuration.configuration_vit import ViTConfig

OWN_FIELDS = {field.name for field in dataclasses.fields(ViTConfig) if field.name in ViTConfig.__annotations__}
OWN_FIELDS -= {"_out_features", "_out_indices"}


def test_the_defaults_are_vit_b16():
    config = ViTConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.intermediate_size, config.image_size, config.patch_size) == (3072, 224, 16)
    assert config.patch_grid == (14, 14)
    assert config.model_type == "vitrail"


def test_the_docstring_lists_every_field_with_its_default():
    documented = {}
    entry = re.compile(r"^ {8}(\w+(?:, \w+)*)(?: \((.*?)\))?(?::|$)", re.MULTILINE)
    for names, description in entry.findall(ViTConfig.__doc__.split("Raises:")[0]):
        default = re.search(r"defaults to (`.*?`|[\d.e-]+)", description)
        value = None if default is None else ast.literal_eval(default[1].strip("`"))
        documented |= dict.fromkeys(names.split(", "), value)
    assert documented.pop("out_features") is None
    assert documented.pop("out_indices") is None
    assert documented == {name: getattr(ViTConfig(), name) for name in OWN_FIELDS}


@pytest.mark.parametrize("name", ["image_size", "patch_size"])
@pytest.mark.parametrize(
    ("given", "kept"), [(32, 32), ([32, 32], 32), ((32, 32), 32), ([32, 64], (32, 64)), ((64, 32), (64, 32))], ids=str
)
def test_a_size_is_one_number_where_it_is_square(tmp_path, name, given, kept):
    """As in transformers' own configs, whose users compute with it; a shape is always a pair."""
    config = ViTConfig(**{"image_size": 64} | {name: given})
    config.save_pretrained(tmp_path)
    for read in (config, ViTConfig.from_pretrained(tmp_path), ViTConfig.from_pretrained(tmp_path, **{name: given})):
        assert getattr(read, name) == kept
        assert getattr(read, name.replace("size", "shape")) == (kept if isinstance(kept, tuple) else (kept, kept))
    saved = json.loads((tmp_path / "config.json").read_text())[name]
    assert saved == (list(kept) if isinstance(kept, tuple) else kept)


def test_a_size_given_while_loading_changes_the_grid(tmp_path):
    ViTConfig(image_size=32, patch_size=8).save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path, image_size=64).patch_grid == (8, 8)


@pytest.mark.parametrize(
    ("fields", "grid"),
    [
        ({}, (14, 14)),
        ({"image_size": (32, 48), "patch_size": 8}, (4, 6)),
        ({"image_size": (32, 48), "patch_size": (16, 8)}, (2, 6)),
    ],
)
def test_patch_grid_is_rows_and_columns(fields, grid):
    assert ViTConfig(**fields).patch_grid == grid


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({}, 1),
        ({"num_register_tokens": 4}, 5),
        ({"use_cls_token": False, "pooling": "avg"}, 0),
        ({"use_cls_token": False, "pooling": "avg", "num_register_tokens": 4}, 4),
    ],
)
def test_num_prefix_tokens(fields, number):
    assert ViTConfig(**fields).num_prefix_tokens == number


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 768),
        ({"pooling": "avg"}, 768),
        ({"pooling": "cls+avg"}, 1536),
        ({"representation_size": 100}, 100),
        ({"pooling": "cls+avg", "representation_size": 100}, 100),
        ({"classifier_cls_layers": 4}, 4 * 768),
        ({"classifier_mean_patch": True}, 2 * 768),
        ({"classifier_cls_layers": 4, "classifier_mean_patch": True}, 5 * 768),
    ],
)
def test_classifier_input_size(fields, size):
    config = ViTConfig(**fields)
    assert config.classifier_input_size == size
    assert config.classifier_reads_tokens == ("classifier" in " ".join(fields))


EVERY_FIELD_CHANGED = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": (32, 48),
    "patch_size": (8, 4),
    "num_channels": 1,
    "use_cls_token": False,
    "num_register_tokens": 2,
    "use_mask_token": True,
    "position_embedding_type": "absolute",
    "use_cls_position": False,
    "share_relative_position": True,
    "relative_position_hidden_size": 16,
    "rope_theta": 50,
    "rope_shift": 0.25,
    "rope_jitter": 1.5,
    "rope_rescale": 2.0,
    "position_interpolation_mode": "bilinear",
    "position_interpolation_offset": 0.1,
    "position_interpolation_antialias": True,
    "position_interpolation_align_corners": True,
    "norm_position": "residual_post",
    "qkv_bias": False,
    "mlp_type": "swiglu",
    "hidden_act": "gelu_pytorch_tanh",
    "layer_scale_init_value": 1e-5,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
    "drop_path_rate": 0.3,
    "drop_path_schedule": "constant",
    "drop_path_mode": "batch",
    "initializer_range": 0.01,
    "pooling": "avg",
    "norm_before_pooling": False,
    "separate_cls_norm": False,
    "representation_size": 20,
    "classifier_cls_layers": 1,
    "classifier_mean_patch": False,
    "dense_layers": [0, 1, 1, 2],
    "dense_norm": False,
    "semantic_loss_ignore_index": 0,
    "segmentation_size": 64,
    "segmentation_window": 32,
    "segmentation_stride": 20,
    "segmentation_scales": (1.0, 1.5),
    "segmentation_flip": True,
    "depth_head": "dpt",
    "depth_readout": "ignore",
    "depth_batch_norm": True,
    "depth_upsampling": 2,
    "depth_level_sizes": [4, 4, 8, 8],
    "depth_fusion_size": 16,
    "depth_hidden_size": 4,
    "depth_fusion_bias": True,
    "depth_fusion_projection": False,
    "depth_num_bins": 1,
    "depth_bins": "mixed_log",
    "depth_range": (0.5, 80.0),
    "depth_clamp": True,
    "apply_layernorm": False,
    "reshape_hidden_states": False,
    "return_register_tokens": False,
}


def test_every_field_survives_saving_and_loading(tmp_path):
    assert EVERY_FIELD_CHANGED.keys() == OWN_FIELDS
    config = ViTConfig(**EVERY_FIELD_CHANGED, out_indices=[1, 3], num_labels=7)
    config.save_pretrained(tmp_path)
    loaded = ViTConfig.from_pretrained(tmp_path)
    for name, value in EVERY_FIELD_CHANGED.items():
        assert getattr(loaded, name) == value, name
    assert loaded.out_features == ["stage1", "stage3"]
    assert loaded.num_labels == 7
    assert loaded.to_dict() == config.to_dict()
    assert "auto_map" in config.to_dict(), "for the code in the same folder"
    assert ViTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_backbone_stages():
    config = ViTConfig(num_hidden_layers=3)
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert config.out_features == ["stage3"]
    assert ViTConfig(num_hidden_layers=3, out_indices=[0, -1]).out_features == ["stem", "stage3"]
    assert ViTConfig(num_hidden_layers=3, out_features=["stage1", "stage2"]).out_indices == [1, 2]
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        ViTConfig(num_hidden_layers=3, out_features=["stage4"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 225}, r"image_size 225x225 is not a multiple of patch_size 16x16: write image_size=\(224, 224\)"),
        ({"image_size": (224, 250), "patch_size": (16, 14)}, r"write image_size=\(224, 252\)"),
        ({"image_size": 3}, r"write image_size=\(16, 16\)"),
        ({"hidden_size": 0}, "hidden_size is 0: it must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"intermediate_size": -1}, "intermediate_size is -1"),
        ({"num_channels": 0}, "num_channels is 0"),
        ({"num_attention_heads": 7}, "hidden_size 768 cannot be split into num_attention_heads=7 equal heads"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1"),
        ({"num_register_tokens": 4, "position_embedding_type": "relative_table"}, "set num_register_tokens=0"),
        ({"num_register_tokens": 4, "position_embedding_type": "relative_mlp"}, "set num_register_tokens=0"),
        ({"use_cls_token": False}, 'pooling="cls" needs a .CLS. token: set use_cls_token=True or pooling="avg"'),
        ({"use_cls_token": False, "pooling": "cls+avg"}, r'pooling="cls\+avg" needs a .CLS. token'),
        ({"pooling": "cls+avg", "norm_before_pooling": False}, "set norm_before_pooling=True"),
        ({"position_embedding_type": "rotary", "num_attention_heads": 128}, "are 6 wide: choose another num_attention_heads"),
        ({"rope_theta": float("inf")}, "rope_theta is inf: it must be a finite number, at least 1"),
        ({"rope_jitter": 0.5}, "rope_jitter is 0.5"),
        ({"separate_cls_norm": True, "use_cls_token": False, "pooling": "avg"}, "separate_cls_norm needs .CLS. and a norm"),
        ({"classifier_cls_layers": 13}, "classifier_cls_layers is 13, but the model has 12 blocks"),
        ({"classifier_cls_layers": 0}, "classifier_cls_layers is 0"),
        ({"classifier_cls_layers": 4, "use_cls_token": False, "pooling": "avg"}, "they need use_cls_token=True"),
        ({"classifier_mean_patch": True, "norm_before_pooling": False}, "norm_before_pooling=True"),
        ({"classifier_mean_patch": True, "representation_size": 10}, "set representation_size=None"),
        ({"dense_layers": [3, 12]}, "choose among the blocks 0 to 11"),
        ({"depth_head": "dpt"}, r'depth_head="dpt" reads four blocks, but dense_layers is None'),
        ({"depth_readout": "project"}, 'write "ignore" or "concatenate", or depth_head="dpt"'),
        ({"depth_readout": "concatenate", "use_cls_token": False, "pooling": "avg"}, 'write depth_readout="ignore"'),
        ({"depth_range": (10, 1)}, r"depth_range is \(10.0, 1.0\): write the smallest and largest depth in meters"),
        ({"segmentation_scales": (1, -1)}, "write numbers above 0"),
        ({"segmentation_window": 0}, "segmentation_window is 0: write a number of pixels"),
    ],
)
def test_fields_that_contradict_each_other(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        ViTConfig(**fields)


@pytest.mark.parametrize("size", [0, -16, (16, 0)])
def test_a_size_of_nothing(size):
    with pytest.raises(ValueError, match=r"write one number of pixels from 1 to 65536, or a \(height, width\) pair"):
        ViTConfig(image_size=size)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "768"),
        ("hidden_size", 768.0),
        ("hidden_size", True),
        ("image_size", (224, 224, 3)),
        ("image_size", 224.0),
        ("use_cls_token", 1),
        ("pooling", "max"),
        ("position_embedding_type", "sine"),
        ("position_interpolation_mode", "nearest"),
        ("norm_position", "post"),
        ("mlp_type", "glu"),
        ("layer_norm_eps", None),
    ],
)
def test_a_field_of_the_wrong_type_is_named(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        ViTConfig(**{name: value})


@pytest.mark.parametrize("edges", [(1, 1), (7, 9), (17, 33)])
def test_a_grid_of_any_shape_is_accepted(edges):
    rows, columns = edges
    assert ViTConfig(image_size=(14 * rows, 14 * columns), patch_size=14).patch_grid == edges


@pytest.mark.parametrize(
    "fields",
    [
        {"representation_size": 0},
        {"relative_position_hidden_size": 0},
        {"position_interpolation_offset": -0.1},
        {"hidden_dropout_prob": -0.1},
        {"attention_probs_dropout_prob": 1.5},
        {"layer_norm_eps": float("nan")},
        {"layer_scale_init_value": 1e308},
        {"output_hidden_states": 0.5},
        {"output_hidden_states": [1, "x"]},
    ],
    ids=str,
)
def test_numbers_out_of_range(fields):
    with pytest.raises(StrictDataclassError, match=f"{next(iter(fields))} is .*: it must"):
        ViTConfig(**fields)
