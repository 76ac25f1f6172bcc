"""Random configs, exported: the target's own implementation gives the same outputs, or the export is refused by the name of a field.

The target's own implementation is transformers, timm where it is installed, or the originals' code as tests/helpers/originals.py writes it
down. `VITRAIL_FUZZ=400` draws 400 configs for each format instead of a few.
"""

import os
import random

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

import originals
import vitrail
from small_models import make_images, randomize
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.convert.export import DENSE_FIELDS, to_format, write_exported
from vitrail.convert.families.registry import EXPORT_FORMATS
from vitrail.errors import UnsupportedCheckpointError

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_CONFIGS = int(os.environ.get("VITRAIL_FUZZ", "6"))

# The values of each field, the most usual first
VALUES = {
    "hidden_size": (64, 128),
    "num_hidden_layers": (2, 1, 4),
    "num_attention_heads": (1, 2, 4),
    "intermediate_size": (256, 128, 96, 24, 176, 344),
    "image_size": (32, 48, (32, 48), (16, 64)),
    "patch_size": (8, 16, (8, 16)),
    "num_channels": (3, 1, 4),
    "use_cls_token": (True, False),
    "num_register_tokens": (0, 1, 4),
    "use_mask_token": (False, True),
    "position_embedding_type": ("absolute", "relative_table", "relative_mlp", "rotary"),
    "use_cls_position": (True, False),
    "share_relative_position": (False, True),
    "relative_position_hidden_size": (128, 16),
    "rope_theta": (100.0, 50),
    "rope_shift": (None, 0.1),
    "rope_jitter": (None, 1.5),
    "rope_rescale": (None, 2.0),
    "position_interpolation_mode": ("bicubic", "bilinear"),
    "position_interpolation_offset": (0.0, 0.1, 0.3),
    "position_interpolation_antialias": (False, True),
    "position_interpolation_align_corners": (False, True),
    "norm_position": ("pre", "residual_post"),
    "qkv_bias": (True, False),
    "mlp_type": ("mlp", "swiglu", "geglu"),
    "hidden_act": ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "mish", "gelu_new"),
    "layer_scale_init_value": (None, 1.0, 1e-5, 0.0),
    "layer_norm_eps": (1e-6, 1e-12, 1e-5),
    "hidden_dropout_prob": (0.0, 0.1),
    "attention_probs_dropout_prob": (0.0, 0.1),
    "drop_path_rate": (0.0, 0.1),
    "drop_path_schedule": ("linear", "constant"),
    "drop_path_mode": ("image", "batch"),
    "initializer_range": (0.02, 0.01),
    "pooling": ("cls", "avg", "cls+avg"),
    "norm_before_pooling": (True, False),
    "separate_cls_norm": (False, True),
    "representation_size": (None, 64, 48),
    "classifier_cls_layers": (1, 2, 4),
    "classifier_mean_patch": (False, True),
    "apply_layernorm": (True, False),
    "reshape_hidden_states": (True, False),
    "return_register_tokens": (True, False),
    # of PreTrainedConfig
    "id2label": (None, {0: "ant", 1: "bee", 2: "cat"}),
    "problem_type": (None, "multi_label_classification"),
}
LAYER_SCALE = {"layer_scale_init_value": 1.0}
ANTIALIAS = {"position_interpolation_antialias": True}
AVERAGE = {"use_cls_token": False, "pooling": "avg"}
ROTARY = {"position_embedding_type": "rotary", "num_register_tokens": 4, "layer_norm_eps": 1e-5, "layer_scale_init_value": 1e-5}
GATED = {"mlp_type": "swiglu", "intermediate_size": 176}
# Models of each format, from which the draws set out
MODELS = {
    "dino": ({"position_interpolation_offset": 0.1},),
    "dinov2": (
        {"position_interpolation_offset": 0.1, "use_mask_token": True, **LAYER_SCALE},
        {"num_register_tokens": 4, "use_mask_token": True, **ANTIALIAS, **LAYER_SCALE},
    ),
    "dinov3": (ROTARY, ROTARY | GATED | {"separate_cls_norm": True}),
    "google": (
        {
            "hidden_act": "gelu_pytorch_tanh",
            "position_interpolation_mode": "bilinear",
            "position_interpolation_align_corners": True,
        },
    ),
    "timm": (
        ANTIALIAS,
        ANTIALIAS | LAYER_SCALE,
        ANTIALIAS | AVERAGE | {"num_register_tokens": 2},
        {"position_embedding_type": "relative_mlp", **AVERAGE, **LAYER_SCALE},
        {"position_embedding_type": "relative_table", "norm_position": "residual_post", **AVERAGE},
        ROTARY,
        ROTARY | GATED | {"pooling": "avg"},
    ),
    "transformers": (
        {},
        {"layer_norm_eps": 1e-12},
        LAYER_SCALE,
        {"num_register_tokens": 4, **ANTIALIAS, **LAYER_SCALE},
        GATED | LAYER_SCALE,
        ROTARY,
        ROTARY | GATED,
    ),
}


def draw(rng, to):
    """A valid config: a model of the format with some fields changed, and whether it has a classifier."""
    while True:
        fields = {name: values[0] for name, values in VALUES.items()} | rng.choice(MODELS[to])
        for name in rng.sample(list(VALUES), rng.choice((0, 1, 1, 2, 2, 3, 5))):
            fields[name] = rng.choice(VALUES[name])
        try:
            return make_config(fields), rng.random() < 0.5
        except StrictDataclassError:  # fields that contradict each other
            continue


def make_config(fields):
    values = {name: choices[0] for name, choices in VALUES.items()} | fields
    return ViTConfig(num_labels=3, **{name: value for name, value in values.items() if value is not None})


def load_peer(exported, path, num_heads):
    """The target's own implementation as a function of images; None where it is not installed."""
    if exported.format == "dinov3":
        tensors = torch.load(path, weights_only=True)
        return lambda images: {"features": originals.dinov3(tensors, images, num_heads)}
    if exported.format in ("dino", "dinov2"):
        tensors = torch.load(path, weights_only=True)
        return lambda images: {"features": originals.dino(tensors, images, num_heads)}
    if exported.format == "google":
        arrays = dict(np.load(path))
        return lambda images: originals.google(arrays, images)
    return EXPORT_FORMATS[exported.format].load_peer(path, exported)


def outputs(model, images):
    encoder = model.vit if hasattr(model, "classifier") else model
    found = encoder(images)
    features = {"features": found.last_hidden_state, "pooled": found.pooler_output}
    return features | ({"logits": model(images).logits} if hasattr(model, "classifier") else {})


@torch.no_grad()
def check(config, classifies, to, folder):
    """Return the export if the outputs are the same, or raise UnsupportedCheckpointError, and then nothing is written."""
    torch.manual_seed(0)
    model = randomize((vitrail.ViTForImageClassification if classifies else vitrail.ViTModel)(config)).eval()
    if config.position_embedding_type == "rotary" and to == "timm" and config.qkv_bias:  # which has no bias of the key
        for layer in getattr(model, "vit", model).layers:
            layer.attention.qkv.bias.chunk(3)[1].zero_()
    image_processor = vitrail.make_image_processor("inception", image_size=32, num_channels=config.num_channels)
    exported = to_format(model, image_processor, to)
    path, *head = write_exported(exported, folder / f"{to}.pth")
    again, _, _ = vitrail.load(path, num_heads=config.num_attention_heads, head=head[0] if head else None)
    like_target = type(model)(ViTConfig(**config.to_dict() | exported.conventions)).eval()
    like_target.load_state_dict(model.state_dict())
    rows, columns = config.patch_grid
    for grid in ((rows, columns), (rows + 2, max(columns - 1, 1))):
        native = grid == (rows, columns)
        if not native and EXPORT_FORMATS[to].native_size_only(config):
            continue
        images = make_images(config, grid=grid)
        expected = outputs(model if native and "pooling" not in exported.conventions else like_target, images)
        peer = load_peer(exported, path, config.num_attention_heads)
        for theirs in (outputs(again, images), {} if peer is None else peer(images)):
            for name in expected.keys() & theirs.keys():
                torch.testing.assert_close(theirs[name], expected[name], atol=1e-4, rtol=1e-4, msg=f"{name} of {config}")
    return exported


def test_the_values_cover_every_field():
    names = {
        name for name in ViTConfig.__annotations__ if not name.startswith(("_out", *DENSE_FIELDS))
    }  # no format holds a dense head
    assert names <= set(VALUES)


@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")  # timm's own
@pytest.mark.parametrize("to", MODELS)
def test_random_configs_are_equal_or_refused(tmp_path, to):
    outcomes = []
    for seed in range(NUM_CONFIGS):
        config, classifies = draw(random.Random(f"{to} {seed}"), to)
        (folder := tmp_path / str(seed)).mkdir()
        try:
            outcomes.append(check(config, classifies, to, folder).format)
        except UnsupportedCheckpointError as refusal:
            outcomes.append(str(refusal))
            folder.rmdir()  # it is empty
    assert to in outcomes
    assert all(outcome == to or any(name in outcome for name in [*VALUES, "classifier=False"]) for outcome in outcomes), outcomes


RELATIVE = {"position_embedding_type": "relative_mlp", **AVERAGE, **LAYER_SCALE}


@pytest.mark.parametrize(
    ("to", "fields", "message"),
    [
        ("timm", RELATIVE | {"mlp_type": "swiglu"}, "mlp_type is swiglu; expected mlp"),
        ("timm", RELATIVE | {"hidden_act": "relu"}, "hidden_act is relu; expected gelu"),
        ("timm", RELATIVE | {"norm_position": "residual_post"}, r"layer_scale_init_value is 1\.0; expected None"),
        ("timm", ANTIALIAS | {"hidden_act": "mish"}, "hidden_act is mish; expected gelu_pytorch_tanh or"),
        ("timm", ANTIALIAS | {"pooling": "cls+avg"}, r"pooling is cls\+avg; expected cls or avg"),
        ("transformers", AVERAGE, "use_cls_token is False; expected True"),
        ("transformers", {"num_register_tokens": 4}, "num_register_tokens is 4; expected 0"),
        ("transformers", LAYER_SCALE | {"image_size": (16, 64)}, r"image_size / patch_size, is \(2, 8\); expected equal"),
        ("transformers", LAYER_SCALE | {"intermediate_size": 24}, "intermediate_size is 24, but transformers would read 64"),
        ("dino", {"patch_size": (8, 16), "image_size": (32, 64)}, r"patch_size is \(8, 16\); expected equal height and width"),
        ("dinov2", AVERAGE | LAYER_SCALE, "use_cls_token is False; expected True"),
        ("google", {"image_size": (32, 48)}, r"image_size / patch_size, is \(4, 6\); expected equal"),
    ],
)
def test_what_a_target_cannot_hold_is_refused_by_name(tmp_path, to, fields, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        check(make_config(fields), False, to, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["dino", "dinov2"])
def test_a_classifier_that_no_head_file_holds(tmp_path, to):
    config = make_config(MODELS[to][0] | {"classifier_cls_layers": 2, "classifier_mean_patch": True})
    with pytest.raises(UnsupportedCheckpointError, match=r"reads 2 \[CLS\] tokens \(classifier_cls_layers\) and the mean patch"):
        check(config, True, to, tmp_path)


def test_timm_reads_every_variant_as_it_is(tmp_path):
    """The arguments that timm's classes need, where timm itself is not installed to show it."""

    def arguments(**fields):
        (folder := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        return check(make_config(ANTIALIAS | fields), True, "timm", folder).config["model_args"]

    assert arguments(num_register_tokens=4, **AVERAGE)["no_embed_class"]
    assert "act_layer" not in arguments(mlp_type="swiglu", hidden_act="relu")
    assert arguments(layer_scale_init_value=0.0)["init_values"] > 0
    arguments(share_relative_position=True)  # no field without effect is in the way
    arguments(use_cls_position=False, **AVERAGE)


def test_a_rectangle_goes_to_transformers_at_its_own_size(tmp_path):
    exported = check(make_config({"image_size": (16, 64), "patch_size": (8, 16)}), True, "transformers", tmp_path)
    assert any("at its own image size only" in warning for warning in exported.warnings)


def test_class_names_are_kept_or_reported(tmp_path):
    labels = {"id2label": {0: "ant", 1: "bee", 2: "cat"}}
    (tmp_path / "timm").mkdir()
    assert check(make_config(ANTIALIAS | labels), True, "timm", tmp_path / "timm").config["label_names"] == ["ant", "bee", "cat"]
    assert vitrail.load(tmp_path / "timm" / "timm.pth")[0].config.id2label == labels["id2label"]
    (tmp_path / "dino").mkdir()
    exported = check(make_config(MODELS["dino"][0] | labels | {"num_attention_heads": 2}), True, "dino", tmp_path / "dino")
    assert "the names of the classes are left out: the format has none" in exported.warnings
    assert "the file does not hold the number of attention heads: load it with num_heads=2" in exported.warnings
