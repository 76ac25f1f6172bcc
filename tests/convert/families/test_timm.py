"""timm's own file formats: where pooling and the last norm stand, positions of every kind, config.json.

The outputs are timm's own: small models of each kind, in tests/golden/timm_variants.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deterministic
import vitrail
from vitrail.convert.families.family import RawCheckpoint
from vitrail.convert.families.plain_vit import attention_heads
from vitrail.convert.families.timm import usual_preset
from vitrail.errors import UnsupportedCheckpointError
from vitrail.modeling.modeling_vit import resize_relative_table

VARIANTS = deterministic.case("timm_variants")
CASES, INPUTS = VARIANTS["cases"], VARIANTS["inputs"]
REFERENCE = load_file(deterministic.GOLDEN / "timm_variants.safetensors")
TOLERANCE = 2e-5

FIELDS = {
    "absolute, [CLS]": {"pooling": "cls", "norm_before_pooling": True, "layer_scale_init_value": None},
    "absolute, mean patch, fc_norm": {"pooling": "avg", "norm_before_pooling": False, "use_cls_token": True},
    "absolute, no [CLS], norm, no qkv bias": {
        "pooling": "avg",
        "norm_before_pooling": True,
        "use_cls_token": False,
        "qkv_bias": False,
        "layer_scale_init_value": 1e-5,
    },
    "absolute, no_embed_class": {"use_cls_position": False, "num_register_tokens": 0},
    "absolute, registers": {"use_cls_position": False, "num_register_tokens": 3, "pooling": "cls"},
    "absolute, registers, no [CLS]": {
        "use_cls_token": False,
        "num_register_tokens": 3,
        "pooling": "avg",
        "norm_before_pooling": False,
    },
    "absolute, positions for registers": {"use_cls_position": True, "num_register_tokens": 3, "pooling": "cls"},
    "absolute, positions for registers, no [CLS]": {"use_cls_token": False, "num_register_tokens": 3, "pooling": "avg"},
    "absolute, swiglu": {"mlp_type": "swiglu", "intermediate_size": 160},
    "absolute, rpn": {"norm_position": "residual_post", "use_cls_token": False},
    "table": {"position_embedding_type": "relative_table", "use_cls_token": False, "norm_position": "pre"},
    "table, [CLS]": {"position_embedding_type": "relative_table", "use_cls_token": True, "pooling": "cls"},
    "table, shared": {"position_embedding_type": "relative_table", "share_relative_position": True, "norm_before_pooling": False},
    "mlp": {"position_embedding_type": "relative_mlp", "relative_position_hidden_size": 24, "share_relative_position": False},
    "mlp, shared": {
        "position_embedding_type": "relative_mlp",
        "relative_position_hidden_size": 128,
        "share_relative_position": True,
    },
    "mlp, rpn": {"position_embedding_type": "relative_mlp", "norm_position": "residual_post", "layer_scale_init_value": None},
}


def write_folder(path, tensors, config=None):
    """Write the files of a Hub repository: model.safetensors and config.json."""
    save_file(tensors, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


CONTAINERS = ("folder", "bare .safetensors", "bare .pth")
# Only the architecture in config.json determines that norms follow the layers
NEEDS_CONFIG = ("absolute, rpn",)


@pytest.mark.parametrize(
    ("variant", "container"),
    [(variant, container) for variant in CASES for container in CONTAINERS if container == "folder" or variant not in NEEDS_CONFIG],
)
@torch.no_grad()
def test_every_kind_matches_timm(variant, container, tmp_path):
    case = CASES[variant]
    tensors = deterministic.weights(case["checkpoint"])
    if container == "folder":
        source = write_folder(tmp_path, tensors, case["config"])
    elif container == "bare .safetensors":
        save_file(tensors, source := tmp_path / "timm.safetensors")
    else:
        torch.save(tensors, source := tmp_path / "timm.pth")
    model, _, report = vitrail.load(source)
    assert report.format == "timm"
    assert report.coverage == {"converted": len(tensors), "ignored": []}
    encoder = getattr(model, "vit", model)
    assert {name: getattr(encoder.config, name) for name in FIELDS[variant]} == FIELDS[variant]
    is_absolute = variant.startswith("absolute")
    # The relative MLP's weights do not determine the size; the weights of every other kind do
    assert encoder.config.image_shape == ((224, 224) if variant.startswith("mlp") else (32, 32))
    assert encoder.config.position_interpolation_antialias == is_absolute
    for size, spec in INPUTS.items():
        outputs = encoder(pixel_values := deterministic.pixel_values(spec))
        found = {"last_hidden_state": outputs.last_hidden_state[:, spec["token_index"]], "pooled": outputs.pooler_output}
        found["logits"] = model(pixel_values).logits if model is not encoder else outputs.pooler_output
        for name, array in found.items():
            torch.testing.assert_close(array, REFERENCE[f"{variant}/{size}/{name}"], atol=TOLERANCE, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- config.json

PLAIN = deterministic.weights(CASES["absolute, [CLS]"]["checkpoint"])
FC_NORM = deterministic.weights(CASES["absolute, mean patch, fc_norm"]["checkpoint"])
RELATIVE = deterministic.weights(CASES["mlp"]["checkpoint"])


@pytest.mark.parametrize(
    ("tensors", "config", "expected"),
    [
        (PLAIN, {"global_pool": "token"}, ("cls", True)),
        (PLAIN, {"global_pool": "avg"}, ("avg", True)),
        (PLAIN, {"model_args": {"global_pool": "avg"}}, ("avg", True)),
        (FC_NORM, {"global_pool": "token"}, ("cls", False)),
        (FC_NORM, {}, ("avg", False)),
    ],
)
@torch.no_grad()
def test_pooling_is_what_config_json_states(tmp_path, tensors, config, expected):
    model, _, _ = vitrail.load(write_folder(tmp_path, tensors, {"architecture": "vit", **config}))
    assert (model.config.pooling, model.config.norm_before_pooling) == expected
    outputs = model.vit(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    tokens = outputs.last_hidden_state
    pooled = tokens[:, 0] if expected[0] == "cls" else tokens[:, 1:].mean(dim=1)
    torch.testing.assert_close(outputs.pooler_output, pooled if expected[1] else model.vit.layernorm(pooled))


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        ({"architecture": "vit_base_patch16_gap_224"}, "num_attention_heads", 16),
        ({"architecture": "vit_giantopt_patch16_siglip_gap_256"}, "num_attention_heads", 16),
        ({"architecture": "vit_giantopt_patch16_siglip_gap_256"}, "hidden_act", "gelu_pytorch_tanh"),
        ({"architecture": "vit_so400m_patch16_siglip_gap_256"}, "hidden_act", "gelu_pytorch_tanh"),
        ({"architecture": "vit_so400m_patch14_siglip_gap_224"}, "hidden_act", "gelu"),
        ({"architecture": "vit_large_patch16_siglip_gap_512"}, "hidden_act", "gelu_pytorch_tanh"),
        ({"architecture": "vit_large_patch16_siglip_gap_384"}, "hidden_act", "gelu"),
        ({"architecture": "vit_small_patch16_224", "model_args": {"num_heads": 8}}, "num_attention_heads", 8),
        ({"architecture": "vit_small_patch16_224", "model_args": {"act_layer": "gelu_tanh"}}, "hidden_act", "gelu_pytorch_tanh"),
        ({"architecture": "vit_small_patch16_224"}, "num_attention_heads", 2),
    ],
)
def test_what_no_shape_determines_stands_in_config_json(tmp_path, config, field, value):
    assert getattr(vitrail.load(write_folder(tmp_path, PLAIN, config))[0].config, field) == value


def test_num_heads_goes_before_config_json(tmp_path):
    folder = write_folder(tmp_path, PLAIN, {"architecture": "vit_base_patch16_gap_224"})
    assert vitrail.load(folder, num_heads=4)[0].config.num_attention_heads == 4


@pytest.mark.parametrize(("width", "heads"), [(1152, 16), (1280, 16), (1408, 16), (1536, 24), (1664, 16)])
def test_the_widest_models_have_other_heads(width, heads):
    """timm's vit_so400m, vit_huge, vit_giant, vit_giant_patch14_dinov2 and vit_gigantic."""
    raw = RawCheckpoint({}, "torch")
    assert attention_heads(raw, width, None) == heads
    assert f"{heads} attention heads assumed" in raw.warnings[0]
    assert "num_heads=" in raw.warnings[0]


@pytest.mark.parametrize("kind", ["pretrained_cfg", "flat"])
def test_the_image_size_of_a_relative_mlp_stands_in_config_json(tmp_path, kind):
    cfg = {"input_size": [3, 64, 96]}
    config = (
        {"architecture": "vit_relpos", "pretrained_cfg": cfg} if kind == "pretrained_cfg" else {"architecture": "vit_relpos", **cfg}
    )
    assert vitrail.load(write_folder(tmp_path, RELATIVE, config))[0].config.image_shape == (64, 96)


@torch.no_grad()
def test_pre_logits_of_older_models_are_a_tanh_layer(tmp_path):
    torch.manual_seed(0)
    layer = {"pre_logits.fc.weight": torch.randn(16, 128), "pre_logits.fc.bias": torch.randn(16)}
    head = {"head.weight": torch.randn(5, 16), "head.bias": torch.randn(5)}
    save_file(PLAIN | layer | head, tmp_path / "vit.safetensors")
    model, _, _ = vitrail.load(tmp_path / "vit.safetensors")
    pixel_values = torch.randn(2, 3, 32, 32)
    cls_token = model.vit(pixel_values).last_hidden_state[:, 0]
    pre_logits = torch.tanh(cls_token @ layer["pre_logits.fc.weight"].T + layer["pre_logits.fc.bias"])
    torch.testing.assert_close(model.vit(pixel_values).pooler_output, pre_logits)
    torch.testing.assert_close(model(pixel_values).logits, pre_logits @ head["head.weight"].T + head["head.bias"])


# -------------------------------------------------------------------------------------------------------------- preprocessing

CFG = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def processor_of(tmp_path, cfg, tensors=PLAIN, **wrapped):
    config = {"architecture": "vit", **(wrapped or {"pretrained_cfg": cfg})}
    return vitrail.load(write_folder(tmp_path, tensors, config))[1]


@pytest.mark.parametrize(
    ("changes", "size", "crops", "resample"),
    [
        ({}, {"shortest_edge": 35}, True, 3),  # floor(32 / 0.9)
        ({"crop_pct": 1.0}, {"shortest_edge": 32}, True, 3),
        ({"crop_pct": 0.95, "interpolation": "bilinear"}, {"shortest_edge": 33}, True, 2),
        ({"crop_mode": "squash"}, {"height": 32, "width": 32}, False, 3),
    ],
)
def test_pretrained_cfg_gives_the_preprocessing(tmp_path, changes, size, crops, resample):
    processor = processor_of(tmp_path, CFG | changes)
    assert (dict(processor.size), processor.do_center_crop, processor.resample) == (size, crops, resample)
    if crops:
        assert dict(processor.crop_size) == {"height": 32, "width": 32}
    assert (list(processor.image_mean), list(processor.image_std)) == (CFG["mean"], CFG["std"])


def test_an_older_config_json_holds_the_same_without_a_level(tmp_path):
    processor = processor_of(tmp_path, None, **CFG)
    assert processor.to_dict() == processor_of(tmp_path, CFG).to_dict()


WIDE = {name: torch.zeros([{128: 192, 384: 576}.get(side, side) for side in tensor.shape]) for name, tensor in PLAIN.items()}
DINOV3 = ("patch_embed.proj.weight", "cls_token", "reg_token", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight")
CLS, SCALE, HEAD = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8)}, {"blocks.0.ls1.gamma": (8,)}, {"head.weight": (9, 8)}


@pytest.mark.parametrize(
    ("shapes", "root", "preset"),
    [
        (CLS | HEAD, None, "inception"),  # vit_base_patch16_224.augreg_in1k
        (CLS | HEAD, "model", "imagenet"),  # deit_small_patch16_224-cd65a155.pth
        (CLS, None, "imagenet"),  # vit_base_patch16_224.dino, vit_base_patch16_224.mae
        (CLS | HEAD | {"fc_norm.weight": (8,)}, None, "imagenet"),  # mae_finetuned_vit_base.pth
        (CLS | HEAD | SCALE, None, "imagenet"),  # deit3_base_patch16_224.fb_in1k
        (CLS | SCALE, None, "imagenet"),  # vit_base_patch14_dinov2.lvd142m, UNI
        (CLS | SCALE | {"reg_token": (1, 4, 8)}, None, "imagenet"),  # vit_base_patch14_reg4_dinov2.lvd142m, H-optimus-0
        (CLS | SCALE | {"reg_token": (1, 1, 8)}, None, "none"),  # vit_base_patch14_reg1_tipsv2.webli
        (dict.fromkeys(DINOV3, ()), None, "dinov3"),  # vit_small_patch16_dinov3.lvd1689m
        ({"pos_embed": (1, 4, 8)}, None, "inception"),  # vit_base_patch16_siglip_gap_224.webli
        (
            SCALE | HEAD | {"pos_embed": (1, 4, 8), "reg_token": (1, 1, 8)},
            None,
            "inception",
        ),  # vit_little_patch16_reg1_gap_256.sbb_in12k
        (SCALE | HEAD | {"cls_token": (1, 1, 8)}, None, "inception"),  # vit_relpos_medium_patch16_cls_224.sw_in1k
    ],
)
def test_without_config_json_it_is_what_most_models_with_the_same_parts_have(shapes, root, preset):
    """As pretrained_cfg of the published model in the comment."""
    raw = RawCheckpoint({name: torch.empty(shape) for name, shape in shapes.items()}, "torch", root=root)
    assert usual_preset(raw) == preset


def test_what_is_assumed_of_the_preprocessing_is_a_warning(tmp_path):
    save_file(PLAIN, tmp_path / "vit.safetensors")
    _, processor, report = vitrail.load(tmp_path / "vit.safetensors")
    assert (dict(processor.size), dict(processor.crop_size)) == ({"shortest_edge": 35}, {"height": 32, "width": 32})
    assert (list(processor.image_mean), processor.resample) == ([0.5, 0.5, 0.5], 3)
    assumed = 'no file states the preprocessing: preset="inception" is assumed (images of 32x32 pixels, mean 0.5, std 0.5); set preset= for'
    assert any(assumed in warning for warning in report.warnings)
    partly = {"interpolation": "bilinear", "crop_pct": 1.0}
    _, processor, report = vitrail.load(write_folder(tmp_path, PLAIN, {"architecture": "vit", "pretrained_cfg": partly}))
    assert (dict(processor.size), list(processor.image_mean), processor.resample) == ({"shortest_edge": 32}, [0.5, 0.5, 0.5], 2)
    assert any(assumed in warning for warning in report.warnings)


def test_labels_and_their_descriptions_make_the_round_trip(tmp_path):
    described = {"n01": "ant", "n02": "crane", "n03": "crane", "n04": "bee", "n05": "cat"}
    labels = {"label_names": list(described), "label_descriptions": described}
    write_folder(tmp_path, PLAIN, {"architecture": "vit", **labels})
    vitrail.export_model(tmp_path, tmp_path / "one", to="timm")
    vitrail.convert_checkpoint(tmp_path, tmp_path / "ours")
    vitrail.export_model(tmp_path / "ours", tmp_path / "two", to="timm")
    for folder in ("one", "two"):
        written = json.loads((tmp_path / folder / "config.json").read_text())
        assert {name: written[name] for name in labels} == labels
    model, _, _ = vitrail.load(tmp_path / "two")
    assert list(model.config.id2label.values()) == list(described.values())
    vitrail.convert_checkpoint(tmp_path, tmp_path / "others", labels=["a", "b", "c", "d", "e"])
    vitrail.export_model(tmp_path / "others", tmp_path / "three", to="timm")
    written = json.loads((tmp_path / "three" / "config.json").read_text())
    assert written["label_names"] == ["a", "b", "c", "d", "e"]
    assert "label_descriptions" not in written


@pytest.mark.parametrize(
    ("tensors", "config", "heads", "warned"),
    [
        (PLAIN, {"architecture": "vit_small_patch16_224", "model_args": {"num_heads": 4}}, 4, False),
        (PLAIN, {"architecture": "vit_small_patch16_224"}, 2, True),  # 128 wide, as no published model
        (WIDE, {"architecture": "vit_small_patch16_224"}, 3, False),
        (WIDE, {"architecture": "vit_small_patch16_224", "model_args": {"embed_dim": 192}}, 3, True),  # timm would have 6 heads
        (WIDE, {"architecture": ""}, 3, True),
    ],
)
def test_heads_are_assumed_with_a_warning_where_config_json_does_not_determine_them(tmp_path, tensors, config, heads, warned):
    model, _, report = vitrail.load(write_folder(tmp_path, tensors, config))
    assert model.config.num_attention_heads == heads
    assert any(f"{heads} attention heads assumed, each 64 wide" in warning for warning in report.warnings) == warned


@pytest.mark.parametrize("changes", [{"crop_mode": "border"}, {"interpolation": "lanczos"}])
def test_preprocessing_that_is_not_known_is_refused(tmp_path, changes):
    ((name, value),) = changes.items()
    with pytest.raises(UnsupportedCheckpointError, match=f'{name}="{value}".*Edit config.json'):
        processor_of(tmp_path, CFG | changes)


def test_a_model_of_gray_images_takes_the_average_of_color_statistics(tmp_path):
    gray = PLAIN | {"patch_embed.proj.weight": PLAIN["patch_embed.proj.weight"].sum(dim=1, keepdim=True)}
    processor = processor_of(tmp_path, CFG, gray)
    pixel_values = processor(np.full((40, 40), 255, np.uint8), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 1, 32, 32)
    torch.testing.assert_close(
        pixel_values[0, 0, 0, 0].item(), (1 - sum(CFG["mean"]) / 3) / (sum(CFG["std"]) / 3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("img_size", "cls_position"), [((16, 72), True), ((40, 56), False), ((24, 48), True)])
def test_a_rectangle_is_what_config_json_states(tmp_path, img_size, cls_position):
    """2 x 9 + 1 positions, 5 x 7 (+ 1 would be a square), 3 x 6 + 1: counts that could be read as something else."""
    grid = img_size[0] // 8, img_size[1] // 8
    tensors = dict(PLAIN)
    tensors["pos_embed"] = torch.randn(1, grid[0] * grid[1] + cls_position, tensors["cls_token"].shape[-1])
    config = {"architecture": "vit_base_patch16_224", "model_args": {"img_size": list(img_size)}, "pretrained_cfg": {}}
    write_folder(tmp_path, tensors, config)
    model, _, _ = vitrail.load(tmp_path)
    assert model.config.image_shape == img_size
    assert model.config.use_cls_position is cls_position


def test_an_activation_that_is_not_known_is_refused(tmp_path):
    config = {"architecture": "vit_base_patch16_224", "model_args": {"act_layer": "mish_mash"}}
    write_folder(tmp_path, PLAIN, config)
    with pytest.raises(UnsupportedCheckpointError, match='act_layer="mish_mash"'):
        vitrail.load(tmp_path)


def test_positions_of_no_known_kind_are_refused(tmp_path):
    write_folder(tmp_path, {name: tensor for name, tensor in PLAIN.items() if name != "pos_embed"})
    with pytest.raises(UnsupportedCheckpointError, match="neither pos_embed nor rel_pos"):
        vitrail.load(tmp_path)


# ------------------------------------------------------------------------------------------- arguments that change the model


SWIGLU = deterministic.weights(CASES["absolute, swiglu"]["checkpoint"])


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (PLAIN, {"model_args": {"pool_include_prefix": True}}, "pool_include_prefix=True"),
        (PLAIN, {"model_args": {"norm_layer": "layernorm2d"}}, "norm_layer='layernorm2d'"),
        (PLAIN, {"model_args": {"block_fn": "some"}}, "block_fn='some'"),
        (PLAIN, {"model_args": {"proj_bias": False}}, "proj_bias=False"),
        (PLAIN, {"model_args": {"global_pool": ""}}, 'global_pool="" \\(logits for each token\\)'),
        (SWIGLU, {"model_args": {"act_layer": "relu"}}, 'act_layer="relu" is not supported with SwiGLU; expected "silu"'),
        (PLAIN, {"model_args": [1]}, '"model_args": \\[1\\]; expected an object'),
        (PLAIN, {"model_args": {"img_size": "32"}}, '"img_size": 32; expected a whole number or a list'),
        (PLAIN, {"pretrained_cfg": {"crop_pct": "x"}}, '"crop_pct": x; expected a whole number or a number'),
        (PLAIN, {"pretrained_cfg": {"mean": [1, 2], "std": [1, None]}}, "does not describe a valid image processor"),
    ],
)
def test_an_argument_with_another_model_as_its_effect_is_refused(tmp_path, tensors, config, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(write_folder(tmp_path, tensors, {"architecture": "vit"} | config))


@pytest.mark.parametrize(
    ("tensors", "config", "expected"),
    [
        (PLAIN, {"model_args": {"pool_include_prefix": False, "norm_layer": "layernorm"}}, {"hidden_act": "gelu"}),
        (SWIGLU, {"model_args": {"act_layer": "swish"}}, {"mlp_type": "swiglu"}),
        (SWIGLU, {"model_args": {"global_pool": ""}}, {"pooling": "cls"}),  # no classifier: the encoder
        (PLAIN, {"architecture": "vit_base_patch16_224"}, {"position_interpolation_mode": "bicubic"}),
        (
            PLAIN,
            {"architecture": "flexivit_small"},  # _create_vision_transformer: bilinear, not antialiased
            {"position_interpolation_mode": "bilinear", "position_interpolation_antialias": False},
        ),
    ],
)
def test_arguments_and_architectures_that_determine_the_model(tmp_path, tensors, config, expected):
    model, _, _ = vitrail.load(write_folder(tmp_path, tensors, {"architecture": "vit"} | config))
    assert {name: getattr(model.config, name) for name in expected} == expected


def test_without_layer_scale_the_name_determines_where_the_norms_are(tmp_path):
    """init_values=0.0 leaves LayerScale out; without timm's name, only the rpn models do."""
    bare = {name: tensor for name, tensor in RELATIVE.items() if ".ls" not in name}
    for architecture, expected in (("vit_relpos_base_patch16_224", "pre"), ("vit_relpos_medium_patch16_rpn_224", "residual_post")):
        model, _, report = vitrail.load(write_folder(tmp_path, bare, {"architecture": architecture}))
        assert model.config.norm_position == expected
        assert not any("norms assumed" in warning for warning in report.warnings)
    save_file(bare, tmp_path / "bare.safetensors")
    model, _, report = vitrail.load(tmp_path / "bare.safetensors")
    assert model.config.norm_position == "residual_post"
    assert any("norms assumed after attention and MLP" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("mode", "size"),
    [("center", {"shortest_edge": 40}), ("squash", {"height": 36, "width": 36})],  # floor(36 / 0.9)
)
def test_an_image_size_that_patches_do_not_cover_keeps_its_scale(tmp_path, mode, size):
    """timm's vit_so400m_patch14_siglip_gap_384 drops the last 6 pixels."""
    config = {"architecture": "vit", "pretrained_cfg": CFG | {"input_size": [3, 36, 36], "crop_mode": mode}}
    model, processor, report = vitrail.load(write_folder(tmp_path, PLAIN, config))
    assert model.config.image_size == 32
    assert dict(processor.size) == size
    assert dict(processor.crop_size) == {"height": 32, "width": 32}
    assert processor(np.zeros((50, 60, 3), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert any("timm prepares images of 36x36 pixels and drops the last pixels" in warning for warning in report.warnings)
    with pytest.raises(ValueError, match="36x36 pixels cannot be cut into patches of 8x8: resize or crop them to 32x32"):
        model(torch.zeros(1, 3, 36, 36))


def test_an_axis_that_keeps_its_length_is_interpolated_with_the_other():
    """timm spaces the offsets of every axis geometrically, by at least 1%: 1 and 1 + 1.01 (resize_rel_pos_bias_table)."""
    by_row = torch.tensor([7.0, 5.0, 0.0, 1.0, 3.0])  # offsets -2 to 2 of 3 rows
    resized = resize_relative_table(by_row.repeat_interleave(5)[:, None], (3, 3), (3, 5)).view(5, 9)
    expected = torch.tensor([5 + 2 / 1.01, 5.0, 0.0, 1.0, 1 + 2 / 1.01])
    torch.testing.assert_close(resized, expected[:, None].expand(5, 9), atol=1e-5, rtol=0)


def test_a_bare_file_of_dinos_layout_names_the_other_reading(tmp_path):
    backbone = {name: tensor for name, tensor in PLAIN.items() if not name.startswith("head.")}
    save_file(backbone, tmp_path / "vit.safetensors")
    torch.save(backbone, tmp_path / "vit.pth")
    for name, other in (("vit.safetensors", "dino"), ("vit.pth", "timm")):
        warnings = vitrail.load(tmp_path / name)[2].warnings
        assert any(f'pass format="{other}"' in warning for warning in warnings)
        assert any(
            "2 attention heads assumed, each 64 wide as in published models: set num_heads=" in warning for warning in warnings
        )
