"""I-JEPA's .pth.tar files, small and in the published layout; the outputs are those of transformers' IJepaModel."""

import pytest
import torch
from transformers import IJepaConfig, IJepaModel

import vitrail

NAMES = {  # transformers/models/ijepa/convert_ijepa_to_hf.py, from its modules of today
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layers.": "blocks.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "layernorm": "norm",
}


def original_names(model):
    """The state dict of a model with I-JEPA's names."""
    tensors = {}
    state = model.state_dict()
    for name, tensor in state.items():
        if "attention.k_proj" in name or "attention.v_proj" in name:
            continue
        if "attention.q_proj" in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
            name = name.replace("attention.q_proj", "attn.qkv")
        for theirs, original in NAMES.items():
            name = name.replace(theirs, original)
        tensors[name] = tensor
    return tensors


def tiny(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 160}
    return IJepaModel(IJepaConfig(**sizes, image_size=32, patch_size=8, layer_norm_eps=1e-6)).eval()


@pytest.fixture(scope="module")
def encoders():
    return {"target_encoder": tiny(0), "encoder": tiny(1)}


@pytest.fixture(scope="module")
def file(encoders, tmp_path_factory):
    networks = {
        key: {f"module.{name}": tensor for name, tensor in original_names(model).items()} for key, model in encoders.items()
    }
    predictor = {"module.predictor_pos_embed": torch.zeros(1, 16, 24), "module.predictor_blocks.0.norm1.weight": torch.zeros(24)}
    path = tmp_path_factory.mktemp("ijepa") / "IN1K-vit.h.14-300e.pth.tar"
    torch.save(networks | {"predictor": predictor, "opt": {"state": {}}, "scaler": {"scale": 65536.0}, "epoch": 300}, path)
    return path


@pytest.mark.parametrize(("branch", "key"), [("teacher", "target_encoder"), ("student", "encoder")])
@torch.no_grad()
def test_both_encoders(file, encoders, branch, key):
    model, image_processor, report = vitrail.load(file, branch=branch)
    assert (report.format, report.root) == ("ijepa", key)
    assert (model.config.use_cls_token, model.config.pooling, model.config.image_shape) == (False, "avg", (32, 32))
    for height, width in ((32, 32), (56, 40)):
        pixel_values = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        expected = encoders[key](pixel_values, interpolate_pos_encoding=True).last_hidden_state
        output = model(pixel_values)
        torch.testing.assert_close(output.last_hidden_state, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(output.pooler_output, expected.mean(dim=1), atol=2e-5, rtol=0)
    assert list(image_processor.image_mean) == [0.485, 0.456, 0.406]  # src/transforms.py
    assert any("predictor" in warning for warning in report.warnings)
