"""Models that others derive from published ones, such as those of pathology: names and shapes of each, with two blocks.

Sizes, config.json and preprocessing are those of the model cards on the Hub: MahmoodLab/UNI and UNI2-h, paige-ai/Virchow and Virchow2,
bioptimus/H-optimus-0, microsoft/rad-dino, StanfordAIMI/dinov2-base-xray-224. Where timm's users pass arguments by hand, the shapes show
them here. It could not be verified whether the registers of Virchow2 have positions: both are tested.
"""

import json
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.convert import detection
from vitrail.convert.loading import convert_family
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.utils.weight_files import CheckpointFile

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PATHOLOGY = {"mean": [0.707223, 0.578729, 0.703617], "std": [0.211883, 0.230117, 0.177517]}


@dataclass
class Derivative:
    """A model in timm's layout: sizes of its tensors, its config.json, and what the model must be."""

    width: int
    heads: int
    patch: int
    fc1: int
    positions: int
    architecture: str
    registers: int = 0
    swiglu: bool = False
    model_args: dict = field(default_factory=dict)
    normalization: dict = field(default_factory=lambda: IMAGENET)

    def shapes(self) -> dict[str, list[int]]:
        width = self.width
        shapes = {"cls_token": [1, 1, width], "pos_embed": [1, self.positions, width]}
        shapes |= {"reg_token": [1, self.registers, width]} if self.registers else {}
        shapes |= {"patch_embed.proj.weight": [width, 3, self.patch, self.patch], "patch_embed.proj.bias": [width]}
        for block in ("blocks.0", "blocks.1"):
            inner = self.fc1 // 2 if self.swiglu else self.fc1
            layers = {
                "attn.qkv": (3 * width, width),
                "attn.proj": (width, width),
                "mlp.fc1": (self.fc1, width),
                "mlp.fc2": (width, inner),
            }
            for name, (rows, columns) in layers.items():
                shapes |= {f"{block}.{name}.weight": [rows, columns], f"{block}.{name}.bias": [rows]}
            shapes |= {f"{block}.{norm}.{kind}": [width] for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
            shapes |= {f"{block}.{name}.gamma": [width] for name in ("ls1", "ls2")}
        return shapes | {"norm.weight": [width], "norm.bias": [width]}

    def config(self) -> dict:
        arguments = {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True, **self.model_args}
        preprocessing = {"input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 1.0, **self.normalization}
        return {
            "architecture": self.architecture,
            "num_classes": 0,
            "global_pool": self.model_args.get("global_pool", "token"),
            "model_args": arguments,
            "pretrained_cfg": preprocessing,
        }


VIRCHOW = {"mlp_ratio": 5.3375, "global_pool": ""}  # its users read [CLS] and the mean of the patches
TIMM = {
    "UNI": Derivative(1024, 16, 16, 4096, 197, "vit_large_patch16_224"),
    "UNI2-h": Derivative(1536, 24, 14, 8192, 256, "vit_giant_patch14_224", registers=8, swiglu=True),
    "Virchow": Derivative(1280, 16, 14, 6832, 257, "vit_huge_patch14_224", swiglu=True, model_args=VIRCHOW),
    "Virchow2, positions for registers": Derivative(
        1280, 16, 14, 6832, 261, "vit_huge_patch14_224", registers=4, swiglu=True, model_args=VIRCHOW | {"reg_tokens": 4}
    ),
    "Virchow2, no positions for registers": Derivative(
        1280, 16, 14, 6832, 256, "vit_huge_patch14_224", registers=4, swiglu=True, model_args=VIRCHOW | {"reg_tokens": 4}
    ),
    "H-optimus-0": Derivative(
        1536, 24, 14, 8192, 256, "vit_giant_patch14_reg4_dinov2", registers=4, swiglu=True, normalization=PATHOLOGY
    ),
}


def read(path, shapes, config, monkeypatch):
    (path / "config.json").write_text(json.dumps(config))
    content = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with monkeypatch.context() as patch:
        patch.setattr(detection, "read_checkpoint", lambda file: CheckpointFile(file, "torch", content))
        raw = detection.open_checkpoint(path / "pytorch_model.bin")
    family = detection.find_family(raw)
    fields = ViTConfig(**family.configure(raw, None))
    tensors, coverage = convert_family(raw, family, raw.warnings)
    assert not coverage.unexpected
    with torch.device("meta"):
        model = ViTModel(fields)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }
    return model.config, family.image_processor(raw, model.config), raw.warnings


@pytest.mark.parametrize("name", TIMM)
def test_a_derivative_in_the_layout_of_timm(name, tmp_path, monkeypatch):
    expected = TIMM[name]
    config, image_processor, warnings = read(tmp_path, expected.shapes(), expected.config(), monkeypatch)
    assert (config.num_attention_heads, config.patch_size, config.image_size) == (expected.heads, expected.patch, 224)
    assert (config.num_register_tokens, config.layer_scale_init_value, config.pooling) == (expected.registers, 1e-5, "cls")
    inner = expected.fc1 // 2 if expected.swiglu else expected.fc1
    assert (config.mlp_type, config.intermediate_size) == ("swiglu" if expected.swiglu else "mlp", inner)
    assert config.use_cls_position == (expected.positions > 256 or expected.patch == 16)
    assert list(image_processor.image_mean) == expected.normalization["mean"]
    assert not any("attention heads assumed" in warning for warning in warnings)


@pytest.mark.parametrize("image_size", [518, 224], ids=["rad-dino", "dinov2-base-xray-224"])
def test_a_derivative_in_the_layout_of_transformers(image_size, tmp_path, monkeypatch):
    with torch.device("meta"):
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(num_hidden_layers=2, image_size=image_size))
    shapes = {name: list(tensor.shape) for name, tensor in revert_weight_conversion(theirs, theirs.state_dict()).items()}
    config, _, _ = read(tmp_path, shapes, json.loads(theirs.config.to_json_string()), monkeypatch)
    assert (config.num_attention_heads, config.patch_size, config.image_size) == (12, 14, image_size)
    assert (config.num_register_tokens, config.layer_scale_init_value is None, config.pooling) == (0, False, "cls")
