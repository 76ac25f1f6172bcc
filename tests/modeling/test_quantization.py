"""bitsandbytes and torchao through `quantization_config`: `make test-quantization` runs this file, because both warn on import."""

import pytest
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig, TorchAoConfig

from small_models import make_images, make_model, run
from vitrail.modeling.modeling_vit import ViTForImageClassification

METHODS = {
    "int8-bitsandbytes": (BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"]), 0.99),
    "4bit-bitsandbytes": (BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["classifier"]), 0.85),
    "int8-torchao": (TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["classifier"]), 0.99),
}


@pytest.mark.parametrize("name", ["absolute", "relative_mlp", "relative_mlp_shared"])
@pytest.mark.parametrize("method", METHODS)
def test_quantized_models(method, name, tmp_path):
    config, similarity = METHODS[method]
    model = make_model(ViTForImageClassification, name, hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path / "model")
    images = make_images(model.config)
    expected = run(model, images)

    quantized = ViTForImageClassification.from_pretrained(tmp_path / "model", quantization_config=config)
    plain = {key for key, layer in quantized.named_modules() if type(getattr(layer, "weight", None)) is nn.Parameter}
    linear = {key for key, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert linear & plain == {key for key in linear if "relative_position" in key} | {"classifier"}
    outputs = run(quantized, images)
    assert torch.cosine_similarity(outputs.flatten(), expected.flatten(), dim=0) > similarity

    quantized.save_pretrained(tmp_path / "quantized")
    assert torch.equal(run(ViTForImageClassification.from_pretrained(tmp_path / "quantized"), images), outputs)
