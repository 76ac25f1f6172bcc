"""MAE's .pth files, small and in the published layouts; the outputs are those of timm's class, which MAE's code extends."""

import pytest
import torch
from safetensors.torch import load_file

import deterministic
import vitrail
from vitrail.convert import loading
from vitrail.convert.sources.catalog import find_checkpoint, official_image_processor
from vitrail.convert.sources.resolver import ResolvedSource

CASES = deterministic.case("timm_variants")
REFERENCE = load_file(deterministic.GOLDEN / "timm_variants.safetensors")
FINE_TUNED = deterministic.weights(CASES["cases"]["absolute, mean patch, fc_norm"]["checkpoint"])
ENCODER = {
    name: tensor
    for name, tensor in deterministic.weights(CASES["cases"]["absolute, [CLS]"]["checkpoint"]).items()
    if not name.startswith("head.")
}
DECODER = {  # models_mae.py, of a width of its own
    "mask_token": torch.zeros(1, 1, 48),
    "decoder_pos_embed": torch.zeros(1, 17, 48),
    "decoder_embed.weight": torch.zeros(48, 128),
    "decoder_embed.bias": torch.zeros(48),
    "decoder_blocks.0.norm1.weight": torch.zeros(48),
    "decoder_norm.weight": torch.zeros(48),
    "decoder_pred.weight": torch.zeros(192, 48),
}


@torch.no_grad()
def outputs_of(model):
    pixel_values = deterministic.pixel_values(CASES["inputs"]["32x32"])
    encoder = getattr(model, "vit", model)
    pooled = encoder(pixel_values).pooler_output
    return {"pooled": pooled, "logits": model(pixel_values).logits} if model is not encoder else {"pooled": pooled}


def assert_equal(model, variant):
    for name, array in outputs_of(model).items():
        torch.testing.assert_close(array, REFERENCE[f"{variant}/32x32/{name}"], atol=2e-5, rtol=0)


def test_a_fine_tuned_file(tmp_path):
    torch.save({"model": FINE_TUNED, "epoch": 99}, tmp_path / "mae_finetuned.pth")
    model, image_processor, report = vitrail.load(tmp_path / "mae_finetuned.pth")
    assert report.format == "mae"
    assert_equal(model, "absolute, mean patch, fc_norm")
    # util/datasets.py: int(32 / (224 / 256)), bicubic, ImageNet's mean
    assert (dict(image_processor.size), dict(image_processor.crop_size)) == ({"shortest_edge": 36}, {"height": 32, "width": 32})
    assert (int(image_processor.resample), list(image_processor.image_mean)) == (3, [0.485, 0.456, 0.406])
    assert any('pass format="timm"' in warning for warning in report.warnings)
    assert vitrail.load(tmp_path / "mae_finetuned.pth", format="timm")[2].format == "timm"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_decoder_is_left_out_and_named(tmp_path, prefix):
    torch.save({"model": {prefix + name: tensor for name, tensor in (ENCODER | DECODER).items()}}, tmp_path / "checkpoint-799.pth")
    model, _, report = vitrail.load(tmp_path / "checkpoint-799.pth")
    assert (report.format, set(report.coverage["ignored"])) == ("mae", set(DECODER))
    assert any("decoder" in warning and "7 tensors" in warning for warning in report.warnings)
    assert_equal(model, "absolute, [CLS]")


def test_a_file_of_the_encoder_has_the_layout_of_dino(tmp_path):
    torch.save({"model": ENCODER}, tmp_path / "mae_pretrain.pth")
    _, _, report = vitrail.load(tmp_path / "mae_pretrain.pth")
    assert report.format == "dino"
    assert any('format="mae"' in warning for warning in report.warnings)
    model, _, report = vitrail.load(tmp_path / "mae_pretrain.pth", format="mae")
    assert report.format == "mae"
    assert_equal(model, "absolute, [CLS]")
    # util/pos_embed.py resizes to the size itself, without DINO's 0.1, and with neither antialiasing nor aligned corners
    config = model.config
    assert (config.position_interpolation_offset, config.position_interpolation_antialias) == (0.0, False)


def test_a_file_of_the_catalog_has_the_family_of_its_row(tmp_path, monkeypatch):
    """Its layout is DINO's; the row says that it is MAE's, and nothing is assumed."""
    torch.save({"model": ENCODER}, tmp_path / "mae_pretrain.pth")
    row = find_checkpoint("mae-vitb16")
    monkeypatch.setattr(
        loading, "resolve", lambda *_, **__: ResolvedSource(tmp_path / "mae_pretrain.pth", row.name, checkpoint=row)
    )
    model, image_processor, report = vitrail.load(row.url)
    assert (report.format, report.checkpoint, report.warnings) == ("mae", "mae-vitb16", [])
    assert model.config.position_interpolation_offset == 0.0
    assert image_processor.to_dict() == official_image_processor(row).to_dict()


def test_a_fine_tuned_model_above_224_pixels_is_not_cropped(tmp_path):
    grid = FINE_TUNED | {"pos_embed": torch.zeros(1, 30**2 + 1, 128)}
    torch.save({"model": grid}, tmp_path / "large.pth")
    _, image_processor, _ = vitrail.load(tmp_path / "large.pth")
    assert dict(image_processor.size) == {"shortest_edge": 240}
