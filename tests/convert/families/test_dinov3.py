"""DINOv3's own files, and the layouts of timm and transformers: training runs, masks, periods, gates, and exports to each other."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTModel

import deterministic
import originals
import vitrail
from small_models import randomize, tiny_config, with_random_weights
from vitrail.convert.export import export_model
from vitrail.convert.verification import verify
from vitrail.errors import ConversionError, UnsupportedCheckpointError

TINY = deterministic.case("dinov3_untied_tiny")  # 3 blocks, 128 wide, 2 heads, masks 1, 0, 1
ROTARY = {"position_embedding_type": "rotary", "num_register_tokens": 4, "layer_norm_eps": 1e-5, "layer_scale_init_value": 1e-5}
ROUNDED = torch.tensor([1.0, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5, 10.0, 13.3125, 17.75, 23.75, 31.625, 42.25])


@pytest.fixture(scope="module")
def tensors():
    return deterministic.weights(TINY["checkpoint"])


def save(content, path):
    torch.save(content, path)
    return path


def images(size=(48, 64)):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens(model):
    return getattr(model, "vit", model)(images()).last_hidden_state


# ------------------------------------------------------------------------------------------------------------ its own files


@torch.no_grad()
def test_a_file_is_written_back_as_it_was(tensors, tmp_path):
    source = save(tensors, tmp_path / "dinov3.pth")
    model, image_processor, report = vitrail.load(source)
    assert any('preset="dinov3" is assumed' in warning for warning in report.warnings)
    export_model(source, tmp_path / "again.pth", to="dinov3")
    again = torch.load(tmp_path / "again.pth")
    assert again.keys() == {name for name in tensors if not name.startswith("local_cls_norm")}
    assert {name: tensor.shape for name, tensor in again.items()} == {name: tensors[name].shape for name in again}
    masks = {name for name in again if name.endswith("bias_mask")}  # as the original initializes them
    assert all(torch.equal(again[name], tensors[name]) for name in masks)
    torch.testing.assert_close(tokens(model), originals.dinov3(again, images(), 2), atol=2e-5, rtol=0)
    checks = verify(model, image_processor, against=source)
    assert [check.passed for check in checks if check.name == "round trip"] == [True]


def test_a_hidden_bias_counts_for_nothing(tensors, tmp_path):
    """Published files are reported to hold masks of zeros, whatever the biases are."""
    masked = {name: torch.zeros_like(tensor) if name.endswith("bias_mask") else tensor for name, tensor in tensors.items()}
    source = save(masked, tmp_path / "masked.pth")
    model, image_processor, _ = vitrail.load(source)
    torch.testing.assert_close(tokens(model), originals.dinov3(masked, images(), 2), atol=2e-5, rtol=0)
    assert not model.layers[0].attention.qkv.bias.any()
    assert verify(model, image_processor, against=source)[0].passed
    unset = {name: tensor * torch.nan if name.endswith("bias_mask") else tensor for name, tensor in tensors.items()}
    with pytest.raises(ConversionError, match=r"NaN or inf in the tensor for layers\.0\.attention\.qkv\.bias"):
        vitrail.load(save(unset, tmp_path / "unset.pth"))


@pytest.mark.parametrize("base", [50.0, 100.0, 1000.0])
def test_the_base_follows_from_rounded_periods(tensors, tmp_path, base):
    periods = (base ** (torch.arange(16) / 16)).bfloat16().float()
    source = save(tensors | {"rope_embed.periods": periods}, tmp_path / "base.pth")
    assert vitrail.load(source)[0].config.rope_theta == base


def test_models_without_masks_or_without_biases(tensors, tmp_path):
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith("bias_mask")}
    with_bias, _, _ = vitrail.load(save(plain, tmp_path / "plain.pth"))
    assert torch.equal(with_bias.layers[1].attention.qkv.bias, plain["blocks.1.attn.qkv.bias"])
    bare = {name: tensor for name, tensor in plain.items() if not name.endswith("qkv.bias")}
    without, _, _ = vitrail.load(save(bare, tmp_path / "bare.pth"))
    assert not without.config.qkv_bias
    torch.testing.assert_close(tokens(without), originals.dinov3(bare, images(), 2), atol=2e-5, rtol=0)


def test_heads_and_periods_that_the_file_excludes(tensors, tmp_path):
    source = save(tensors, tmp_path / "dinov3.pth")
    with pytest.raises(
        UnsupportedCheckpointError, match="num_heads=4 contradicts the 16 periods of the file, which are of heads 64"
    ):
        vitrail.load(source, num_heads=4)
    damaged = save(tensors | {"rope_embed.periods": torch.arange(16.0)}, tmp_path / "damaged.pth")
    with pytest.raises(ConversionError, match="periods has values that are not positive"):
        vitrail.load(damaged)


def test_a_training_run_says_what_its_file_does_not_hold(tensors, tmp_path):
    teacher = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    heads = {f"{head}_head.mlp.0.weight": torch.ones(2, 2) for head in ("dino", "ibot")}
    model, _, report = vitrail.load(save({"teacher": teacher | heads}, tmp_path / "teacher_checkpoint.pth"))
    expected, _, _ = vitrail.load(save(tensors, tmp_path / "dinov3.pth"))
    assert torch.equal(tokens(model), tokens(expected))
    assert report.root == "teacher"
    assert any("layer_norm_eps=1e-6" in warning for warning in report.warnings)
    model.save_pretrained(tmp_path / "model")
    assert vitrail.ViTModel.from_pretrained(tmp_path / "model", layer_norm_eps=1e-6).layernorm.eps == 1e-6


def test_the_satellite_model_has_its_own_pixels(tmp_path):
    model = vitrail.ViTModel(tiny_config(**ROTARY, hidden_size=1024, intermediate_size=64, num_hidden_layers=1, patch_size=16))
    model.save_pretrained(tmp_path / "model")
    vitrail.make_image_processor("dinov3").save_pretrained(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "web.pth", to="dinov3")
    web = torch.load(tmp_path / "web.pth")
    norm = {f"local_cls_norm.{kind}": torch.ones(1024) for kind in ("weight", "bias")}
    _, processor, report = vitrail.load(save(web | norm, tmp_path / "satellite.pth"), num_heads=4)
    assert tuple(processor.image_mean) == (0.430, 0.411, 0.296)
    assert any('preset="sat" is assumed' in warning for warning in report.warnings)
    _, processor, _ = vitrail.load(tmp_path / "web.pth", num_heads=4)
    assert tuple(processor.image_mean) == (0.485, 0.456, 0.406)


# ------------------------------------------------------------------------------------------------- timm and transformers


def timm_folder(tmp_path, **changes):
    """A folder of timm's, made from its golden case with two blocks."""
    case = deterministic.case("timm_vit_small_plus_patch16_dinov3_qkvb.lvd1689m")
    specs = {name: spec for name, spec in case["checkpoint"].items() if not name.startswith("blocks.") or name[7:9] in ("0.", "1.")}
    save_file(deterministic.weights(specs), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case["config"] | changes))
    return tmp_path


def test_the_published_periods_are_an_option(tmp_path):
    folder = timm_folder(tmp_path)
    computed, _, report = vitrail.load(folder)
    torch.testing.assert_close(computed.rotary_position.periods, 100 ** (torch.arange(16) / 16))
    assert any("published_periods=True" in warning for warning in report.warnings)
    published, _, report = vitrail.load(folder, published_periods=True)
    assert torch.equal(published.rotary_position.periods[:14], ROUNDED)
    assert "rotary periods rounded to bfloat16, as in the published .pth files" in report.warnings
    assert 1e-5 < (tokens(published) - tokens(computed)).abs().max() < 5e-3
    with pytest.raises(UnsupportedCheckpointError, match="is for rotary positions"):
        vitrail.load(vitrail_folder(tmp_path / "plain", vitrail.ViTModel(tiny_config())), published_periods=True)


def vitrail_folder(path, model):
    model.save_pretrained(path)
    vitrail.make_image_processor("dinov3").save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rope_rotate_half": False}, "rope_rotate_half=False .* not supported with DINOv3; expected True"),
        ({"rope_type": "mixed"}, "rope_type='mixed'"),
        ({"scale_mlp": True}, "scale_mlp=True"),
    ],
)
def test_arguments_of_other_eva_models_are_refused(tmp_path, arguments, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(timm_folder(tmp_path, model_args=arguments))


def test_other_heads_and_periods_of_timm(tmp_path):
    model, _, _ = vitrail.load(
        timm_folder(tmp_path, model_args={"num_heads": 3, "rope_temperature": 50.0, "global_pool": "token"}, global_pool="token")
    )
    assert (model.config.num_attention_heads, model.config.rope_theta, model.config.pooling) == (3, 50.0, "cls")
    torch.testing.assert_close(model.rotary_position.periods, 50 ** (torch.arange(32) / 32))


@pytest.mark.parametrize("gate", ["silu", "gelu"])
@torch.no_grad()
def test_transformers_folders_in_both_layouts(tmp_path, gate):
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_register_tokens=3, image_size=32,
        use_gated_mlp=True, hidden_act=gate, key_bias=gate == "gelu",
    )  # fmt: skip
    theirs = with_random_weights(DINOv3ViTModel(config))
    theirs.save_pretrained(tmp_path / "hub")
    theirs.save_pretrained(tmp_path / "module")
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, tmp_path / "module" / "model.safetensors"
    )
    assert "model.layer.0.norm1.weight" in load_file(tmp_path / "module" / "model.safetensors")
    for layout in ("hub", "module"):
        ours, _, report = vitrail.load(tmp_path / layout)
        torch.testing.assert_close(tokens(ours), theirs(images()).last_hidden_state, atol=2e-5, rtol=0)
        assert any("the gate of the MLP is GELU" in warning for warning in report.warnings) == (gate == "gelu")
        assert ours.config.rope_rescale is None
    exported = export_model(tmp_path / "hub", tmp_path / "back", to="transformers")
    assert not [warning for warning in exported if "periods" in warning]
    back = DINOv3ViTModel.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(back(images()).last_hidden_state, theirs(images()).last_hidden_state)


@pytest.mark.parametrize("changes", [{"query_bias": False}, {"value_bias": False, "key_bias": True}, {"mlp_bias": False}])
def test_transformers_models_without_some_biases_are_refused(tmp_path, changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    DINOv3ViTModel(DINOv3ViTConfig(**sizes, **changes)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match=f"without some biases .*{next(iter(changes))}"):
        vitrail.load(tmp_path)


@torch.no_grad()
def test_the_backbone_of_transformers(tmp_path):
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, image_size=32, out_indices=[1, 3]
    )
    theirs = with_random_weights(DINOv3ViTBackbone(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _, _ = vitrail.load(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    backbone = vitrail.ViTBackbone.from_pretrained(tmp_path / "ours").eval()
    for found, expected in zip(backbone(images()).feature_maps, theirs(images()).feature_maps, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_exports_say_what_their_library_computes(tmp_path):
    fields = ROTARY | {"intermediate_size": 176, "mlp_type": "swiglu", "pooling": "avg", "qkv_bias": False, "patch_size": 16}
    model = randomize(vitrail.ViTModel(tiny_config(**fields, num_attention_heads=1)))
    model.rotary_position.periods.copy_(model.rotary_position.periods.bfloat16())
    folder = vitrail_folder(tmp_path / "model", model)
    for to in ("timm", "transformers", "dinov3"):
        warnings = export_model(folder, tmp_path / f"{to}.pth" if to == "dinov3" else tmp_path / to, to=to)
        assert any("outputs differ by 1e-3 to 3e-3" in warning for warning in warnings) == (to != "dinov3")
        assert any('pooler_output is "cls"' in warning for warning in warnings) == (to != "timm")
        assert not any("preprocesses images" in warning for warning in warnings)  # all three at 256 pixels
    (folder / "preprocessor_config.json").unlink()
    _, processor, _ = vitrail.load(folder)
    assert processor.to_dict() == vitrail.make_image_processor("dinov3").to_dict()
    model.rotary_position.periods.mul_(1.5)
    with pytest.raises(UnsupportedCheckpointError, match=r"not the series of rope_theta=100\.0.*Use the format dinov3"):
        export_model(vitrail_folder(tmp_path / "other", model), tmp_path / "other_timm", to="timm")
