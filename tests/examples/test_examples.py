"""Each script of examples/, run as a user runs it, on files of the real architecture in the published container."""

import json
import math
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import deterministic
import paths
from vitrail.convert.sources.catalog import find_checkpoint

EXAMPLES = paths.EXAMPLES
PHOTO = EXAMPLES / "chelsea.jpg"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

# Files on the Hub next to the weights. These checkpoints must work above all, so the models have all their blocks
DINO_VITS8 = {
    "config.json": {
        "architectures": ["ViTModel"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 384,
        "image_size": 224,
        "initializer_range": 0.02,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": 6,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "patch_size": 8,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "transformers_version": "4.12.0.dev0",
    },
    "preprocessor_config.json": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "resample": 2,
        "size": 224,
        **IMAGENET,
    },
}
DINOV2_SMALL = {
    "config.json": {
        "apply_layernorm": True,
        "architectures": ["Dinov2Model"],
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_size": 384,
        "image_size": 518,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "mlp_ratio": 4,
        "model_type": "dinov2",
        "num_attention_heads": 6,
        "num_channels": 3,
        "num_hidden_layers": 12,
        "out_features": ["stage12"],
        "out_indices": [12],
        "patch_size": 14,
        "qkv_bias": True,
        "reshape_hidden_states": True,
        "torch_dtype": "float32",
        "use_swiglu_ffn": False,
    },
    "preprocessor_config.json": {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
        **IMAGENET,
    },
}
DINOV3_PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
    **IMAGENET,
}
VIT_LARGE = {
    "config.json": {
        "architectures": ["ViTForImageClassification"],
        "hidden_size": 1024,
        "id2label": {str(index): f"class {index} of the file" for index in range(1000)},
        "image_size": 224,
        "intermediate_size": 4096,
        "label2id": {f"class {index} of the file": index for index in range(1000)},
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 16,
    },
    "preprocessor_config.json": {"do_normalize": True, "do_resize": True, "resample": 2, "size": 224, **HALF},
}


def hub_weights(config, prefix=""):
    """The tensors of a ViT or DINOv2, by the names that the Hub's files have for them."""
    width, patch, is_dinov2 = config["hidden_size"], config["patch_size"], config["model_type"] == "dinov2"
    tokens, mlp_width = (config["image_size"] // patch) ** 2 + 1, 4 * width
    linear_layers = {
        **{f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")},
        "attention.output.dense": (width, width),
        "mlp.fc1" if is_dinov2 else "intermediate.dense": (mlp_width, width),
        "mlp.fc2" if is_dinov2 else "output.dense": (width, mlp_width),
    }
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, tokens, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    if is_dinov2:
        shapes["embeddings.mask_token"] = (1, width)
    for block in (f"encoder.layer.{index}" for index in range(config["num_hidden_layers"])):
        for norm in ("norm1", "norm2") if is_dinov2 else ("layernorm_before", "layernorm_after"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, shape in linear_layers.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        if is_dinov2:
            shapes |= {f"{block}.layer_scale{which}.lambda1": (width,) for which in (1, 2)}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    if "id2label" in config:
        shapes |= {"classifier.weight": (len(config["id2label"]), width), "classifier.bias": (len(config["id2label"]),)}
    return {name: trained_like(name, shape) for name, shape in shapes.items()}


def trained_like(name, shape):
    """Numbers that keep activations where a trained network has them."""
    if "embeddings.projection.weight" in name or (len(shape) == 2 and name.endswith(".weight")):
        return deterministic.weight(name, {"shape": shape, "offset": 0.0, "scale": 1.5 / math.sqrt(math.prod(shape[1:]))})
    if "norm" in name or "lambda" in name:
        return deterministic.weight(name, {"shape": shape, "offset": float(not name.endswith(".bias")), "scale": 0.3})
    return deterministic.weight(name, {"shape": shape, "offset": 0.0, "scale": 0.5 if "token" in name else 0.1})


@pytest.fixture
def folder(tmp_path):
    """A folder as on the Hub, removed after the test: pytest would keep it, and the weights are large."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    yield path
    shutil.rmtree(tmp_path)


def write(folder, files, weights_name):
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    config = files["config.json"]
    if weights_name == "model.safetensors":
        save_file(hub_weights(config), folder / weights_name, metadata={"format": "pt"})
    else:
        torch.save(hub_weights(config, prefix="vit."), folder / weights_name)


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Runs a script; returns its variables and the lines that it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        variables = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return variables, capsys.readouterr().out.splitlines()

    return run


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def printed_numbers(line, count=4):
    return torch.tensor([float(word) for word in line.split()[-count:]])


def published(script, source):
    """Without arguments a script takes the published checkpoint."""
    default = script["parser"].get_default("source")
    assert default == source
    assert find_checkpoint(default).hub_id == source


# timm -----------------------------------------------------------------------------------------------------------------


def write_golden(name, folder):
    """A golden case as timm's folder on the Hub, and timm's outputs."""
    case = deterministic.case(name)
    deterministic.write_checkpoint(case, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(case["config"]))
    return case["inputs"]["224x224"], load_file(deterministic.GOLDEN / f"{name}.safetensors")


def timm_pixels(plan, image_mean, image_std):
    pixels = load_file(deterministic.GOLDEN / "preprocessing.safetensors")[f"chelsea/{plan}"] / 255
    return ((pixels - torch.tensor(image_mean)[:, None, None]) / torch.tensor(image_std)[:, None, None])[None]


@torch.inference_mode()
def answers_as_timm(model, inputs, expected):
    """timm's forward_features and forward_head, on the pixels of the golden case."""
    features = model.forward_features(deterministic.pixel_values(inputs))
    close(features[:, inputs["token_index"]], expected["224x224/last_hidden_state"])
    close(model.forward_head(features, pre_logits=True), expected["224x224/pooled"])
    close(model.forward_head(features), expected["224x224/logits"])


def test_timm_vit_base_patch8_224_dino(folder, run_example):
    inputs, expected = write_golden("timm_vit_base_patch8_224.dino", folder)
    script, lines = run_example("timm_vit_base_patch8_224_dino", folder)
    published(script, "timm/vit_base_patch8_224.dino")
    answers_as_timm(script["model"], inputs, expected)
    close(script["pixel_values"], timm_pixels("timm_crop0.9_imagenet", **IMAGENET), 1e-6)
    assert lines[0] == "forward_features: (1, 785, 768)"
    assert lines[1].startswith("forward_head(pre_logits=True): (1, 768)")
    close(printed_numbers(lines[1]), script["features"][0, 0, :4])  # this model pools [CLS]


def test_timm_vit_relpos_base_patch16_clsgap_224_sw_in1k(folder, run_example, http_server, page, no_network):
    """With the image from the web."""
    inputs, expected = write_golden("timm_vit_relpos_base_patch16_clsgap_224.sw_in1k", folder)
    http_server.pages["/photos/cat.jpg"] = page(PHOTO.read_bytes())
    script, lines = run_example(
        "timm_vit_relpos_base_patch16_clsgap_224_sw_in1k", folder / "model.safetensors", f"{http_server.url}/photos/cat.jpg"
    )
    published(script, "timm/vit_relpos_base_patch16_clsgap_224.sw_in1k")
    answers_as_timm(script["model"], inputs, expected)
    close(script["pixel_values"], timm_pixels("timm_crop0.9_half", **HALF), 1e-6)

    percent = 100 * script["model"](script["pixel_values"]).logits[0].softmax(dim=-1)
    values, indices = percent.sort(descending=True)
    assert lines == [  # the names of the classes come with the checkpoint of the catalog, not with a local folder
        *(f"{values[rank]:6.2f} %  LABEL_{indices[rank]}" for rank in range(5)),
        "unpooled (1, 197, 768), pooled (1, 768)",
    ]
    close(script["pooled"], script["model"].vit.layernorm(script["features"][:, 1:].mean(dim=1)))


# transformers ---------------------------------------------------------------------------------------------------------


def theirs(model_class, folder, **options):
    """Return the outputs of transformers' own image processor and model."""
    model = model_class.from_pretrained(folder, **options)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode(), Image.open(PHOTO) as image:
        return model(**image_processor(image, return_tensors="pt"))


def test_facebook_dino_vits8(folder, run_example, hub):
    """Without arguments, from the Hub."""
    write(folder, DINO_VITS8, "model.safetensors")
    hub("facebook/dino-vits8", {path.name: path.read_bytes() for path in folder.iterdir()})
    script, lines = run_example("facebook_dino_vits8")
    published(script, "facebook/dino-vits8")
    expected = theirs(transformers.ViTModel, folder, add_pooling_layer=False).last_hidden_state
    close(script["last_hidden_state"], expected)
    assert lines[0] == "pixel_values (1, 3, 224, 224) -> last_hidden_state (1, 785, 384)"
    close(printed_numbers(lines[1]), expected[0, 0, :4])


def test_google_vit_large_patch16_224(folder, run_example):
    write(folder, VIT_LARGE, "pytorch_model.bin")
    script, lines = run_example("google_vit_large_patch16_224", folder)
    published(script, "google/vit-large-patch16-224")
    expected = theirs(transformers.ViTForImageClassification, folder).logits
    close(script["logits"], expected)
    assert lines == [f"Predicted class: class {expected.argmax()} of the file"]


def test_facebook_dinov2_small(folder, run_example, monkeypatch):
    write(folder, DINOV2_SMALL, "model.safetensors")
    monkeypatch.chdir(folder.parent)
    script, lines = run_example("facebook_dinov2_small", folder / "model.safetensors", PHOTO)
    published(script, "facebook/dinov2-small")
    expected = theirs(transformers.Dinov2Model, folder)
    close(script["outputs"].last_hidden_state, expected.last_hidden_state)
    close(printed_numbers(lines[2]), expected.pooler_output[0, :4])
    assert lines[:2] == [
        "Converted model.safetensors into dinov2-small",
        "last_hidden_state (1, 257, 384): [CLS] and (16, 16) patches",
    ]
    _, again = run_example("facebook_dinov2_small", "gone", PHOTO)
    assert again == lines[1:]  # converted once


def test_facebook_dinov3_vits16(folder, run_example):
    """Files of this type hold no periods: transformers computes them, and so does vitrail. One block suffices."""
    config = transformers.DINOv3ViTConfig(num_register_tokens=4, num_hidden_layers=1)  # the defaults are those of ViT-S/16
    model = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(trained_like(name, tuple(parameter.shape)))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV3_PROCESSOR))
    script, lines = run_example("facebook_dinov3_vits16", folder)
    published(script, "facebook/dinov3-vits16-pretrain-lvd1689m")
    with Image.open(PHOTO) as image:
        pixels = torch.tensor(np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))) / 255
    mean, std = (torch.tensor(IMAGENET[name]) for name in ("image_mean", "image_std"))
    close(script["pixel_values"][0], ((pixels - mean) / std).permute(2, 0, 1), 1e-6)
    with torch.inference_mode():
        patches = model(script["pixel_values"]).last_hidden_state[0, 5:]  # after [CLS] and four registers
    close(script["features"], patches.T.reshape(384, 14, 14))
    expected = torch.nn.functional.normalize(patches, dim=1) @ torch.nn.functional.normalize(patches[7 * 14 + 7], dim=0)
    close(script["similarity"], expected.reshape(14, 14))
    assert lines[0] == "pixel_values (1, 3, 224, 224) -> patch features (384, 14, 14)"
    assert [len(line) for line in lines[1:]] == [28] * 14
    assert lines[8][14:16] == "@@"
