"""DeiT's .pth files, small and in the published layouts; the outputs are those of timm's class, which DeiT's code extends."""

import re

import pytest
import torch
from safetensors.torch import load_file

import deterministic
import vitrail

CASES = deterministic.case("timm_variants")
REFERENCE = load_file(deterministic.GOLDEN / "timm_variants.safetensors")


def in_deit_layout(tensors):
    """LayerScale as models_v2.py calls it."""
    return {re.sub(r"\.ls(\d)\.gamma", r".gamma_\1", name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("variant", ["absolute, [CLS]", "absolute, no_embed_class"])  # DeiT, DeiT III
@torch.no_grad()
def test_a_file_of_deit(tmp_path, variant):
    tensors = in_deit_layout(deterministic.weights(CASES["cases"][variant]["checkpoint"]))
    torch.save({"model": tensors}, tmp_path / "deit.pth")
    model, image_processor, report = vitrail.load(tmp_path / "deit.pth")
    assert (report.format, report.coverage["converted"]) == ("deit", len(tensors))
    pixel_values = deterministic.pixel_values(CASES["inputs"]["32x32"])
    logits = model(pixel_values).logits
    torch.testing.assert_close(logits, REFERENCE[f"{variant}/32x32/logits"], atol=2e-5, rtol=0)
    # datasets.py: int(32 / 0.875), bicubic, ImageNet's mean
    assert (dict(image_processor.size), dict(image_processor.crop_size)) == ({"shortest_edge": 36}, {"height": 32, "width": 32})
    assert list(image_processor.image_mean) == [0.485, 0.456, 0.406]
    assert any('format="timm"' in warning for warning in report.warnings)


def test_only_the_key_of_deits_code_makes_it_deit(tmp_path):
    tensors = deterministic.weights(CASES["cases"]["absolute, [CLS]"]["checkpoint"])
    for name, content in (("bare", tensors), ("timm", {"state_dict": tensors}), ("deit", {"model": tensors})):
        torch.save(content, tmp_path / f"{name}.pth")
    assert [vitrail.load(tmp_path / f"{name}.pth")[2].format for name in ("bare", "timm", "deit")] == ["timm", "timm", "deit"]
    assert vitrail.load(tmp_path / "deit.pth", format="timm")[2].format == "timm"
