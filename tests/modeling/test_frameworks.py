"""Models of transformers that take our config as `backbone_config`, `vision_config` or encoder: they run, train, and are saved."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import vitrail
from small_models import parameters_without_gradient, tiny_config

ENCODERS = {
    "registers": {"num_register_tokens": 2, "layer_scale_init_value": 1.0},
    "rotary": {"num_register_tokens": 2, "position_embedding_type": "rotary", "separate_cls_norm": True, "layer_norm_eps": 1e-5},
}
STAGES = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
SEQUENCES = {"reshape_hidden_states": False, "return_register_tokens": False}
TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
DECODER = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4}
SMALL_PIXEL_DECODER = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 16}
IMAGE_TOKEN = 19


def upernet(fields):
    backbone = tiny_config(**STAGES, **fields)
    heads = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_in_channels": 32, "auxiliary_channels": 8}
    return transformers.UperNetForSemanticSegmentation(transformers.UperNetConfig(backbone_config=backbone, **heads))


def dpt(fields):
    backbone = tiny_config(**STAGES, **SEQUENCES, **fields)
    config = transformers.DPTConfig(backbone_config=backbone, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8)
    return transformers.DPTForDepthEstimation(config)


def mask2former(fields):
    config = transformers.Mask2FormerConfig(
        backbone_config=tiny_config(**STAGES, **fields),
        **SMALL_PIXEL_DECODER,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=4,
    )
    return transformers.Mask2FormerForUniversalSegmentation(config)


def detr(fields):
    config = transformers.DetrConfig(
        backbone_config=tiny_config(**fields), encoder_attention_heads=2, decoder_attention_heads=2, **DECODER
    )
    return transformers.DetrForObjectDetection(config)


def dual_encoder(fields):
    configs = tiny_config(**fields), transformers.BertConfig(**TEXT)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(*configs, projection_dim=8)
    return transformers.VisionTextDualEncoderModel(config)


def encoder_decoder(fields):
    text = transformers.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tiny_config(**fields), text)
    config.decoder_start_token_id = config.pad_token_id = 0
    return transformers.VisionEncoderDecoderModel(config)


def llava(fields):
    config = transformers.LlavaConfig(
        vision_config=tiny_config(**fields),
        text_config=transformers.LlamaConfig(**TEXT, num_key_value_heads=2, pad_token_id=0),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaForConditionalGeneration(config)


IDS = torch.ones(2, 4, dtype=torch.long)
NUM_IMAGE_TOKENS = 1 + 2 + 4 * 6  # [CLS], registers, patches
PROMPT = torch.tensor([[1] + [IMAGE_TOKEN] * NUM_IMAGE_TOKENS + [2]] * 2)
# How to make a model of transformers, its inputs besides pixel_values, the output to compare, and the final norms that it does not read:
# a model that reads patches alone needs no norm of [CLS]
CONSUMERS = {
    "UperNet": (upernet, {}, "logits", {"cls_layernorm"}),
    "DPT": (dpt, {}, "predicted_depth", set()),
    "Mask2Former": (mask2former, {}, "masks_queries_logits", {"cls_layernorm"}),
    "DETR": (detr, {}, "pred_boxes", {"cls_layernorm"}),
    "VisionTextDualEncoder": (dual_encoder, {"input_ids": IDS}, "image_embeds", {"layernorm"}),
    "VisionEncoderDecoder": (encoder_decoder, {"decoder_input_ids": IDS}, "logits", set()),
    "LLaVA": (llava, {"input_ids": PROMPT}, "logits", {"cls_layernorm", "layernorm"}),
}


def encoder_of(model):
    return next(module for module in model.modules() if isinstance(module, vitrail.ViTModel))


@pytest.mark.parametrize("fields", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("name", CONSUMERS)
def test_a_model_of_transformers_on_our_encoder(name, fields, tmp_path):
    make, inputs, output, unread = CONSUMERS[name]
    torch.manual_seed(0)
    model = make(fields).eval()
    inputs = inputs | {"pixel_values": torch.randn(2, 3, 32, 48)}
    expected = model(**inputs)[output]
    weights = torch.randn(
        expected.shape, generator=torch.Generator().manual_seed(0)
    )  # a plain sum of normed values has no gradient
    (expected * weights).sum().backward()
    encoder = encoder_of(model)
    if not encoder.config.separate_cls_norm and name != "LLaVA":
        unread = set()
    assert parameters_without_gradient(encoder) == {f"{norm}.{kind}" for norm in unread for kind in ("weight", "bias")} & {
        key for key, _ in encoder.named_parameters()
    }
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert type(encoder_of(loaded).config) is vitrail.ViTConfig
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs)[output], expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_lora_inside_a_model_of_transformers():
    model = get_peft_model(upernet(ENCODERS["rotary"]), LoraConfig(r=2, target_modules=["qkv"]))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * STAGES["num_hidden_layers"]
    assert all(".qkv.lora_" in name for name in trained)
    model(pixel_values=torch.randn(2, 3, 32, 48)).logits.square().mean().backward()
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert gradients == trained


@torch.no_grad()
def test_dpt_reads_cls_and_patches_of_a_backbone_with_registers():
    model = vitrail.ViTBackbone(tiny_config(num_register_tokens=3)).eval()
    pixel_values = torch.randn(2, 3, 32, 48)
    model.config.reshape_hidden_states = False
    everything = model(pixel_values).feature_maps[0]
    model.config.return_register_tokens = False
    assert torch.equal(model(pixel_values).feature_maps[0], torch.cat([everything[:, :1], everything[:, 4:]], dim=1))
