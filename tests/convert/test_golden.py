"""Every golden case, loaded from files in the original containers, against the outputs of the original implementation.

`load` receives no format: it detects the format of each file. The cases of timm are loaded twice: as the folder that timm writes,
and as the bare .safetensors file.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deterministic
import vitrail

TOLERANCE = 2e-5  # absolute, of values whose largest are about 5

DINO = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "position_interpolation_offset": 0.1, "num_register_tokens": 0}
DINOV2 = DINO | {
    "use_mask_token": True,
    "layer_scale_init_value": 1.0,
    "mlp_type": "mlp",
    "image_size": 518,
    "patch_size": 14,
}
REGISTERS = {"num_register_tokens": 4, "position_interpolation_offset": 0.0, "position_interpolation_antialias": True}
GOOGLE = {
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "position_interpolation_mode": "bilinear",
    "position_interpolation_align_corners": True,
}
RELATIVE = {"position_embedding_type": "relative_mlp", "patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-6}
DINOV3 = {
    "position_embedding_type": "rotary",
    "layer_norm_eps": 1e-5,
    "num_register_tokens": 4,
    "layer_scale_init_value": 1e-5,
    "pooling": "cls",
    "patch_size": 16,
    "separate_cls_norm": False,
}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
MEDIUM = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 128, "num_attention_heads": 2}

# How the file of each case is detected: the family, and fields of the config
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dino_vits8": ("dino", DINO | SMALL | {"patch_size": 8}),
    "dino_vitb16": ("dino", DINO | BASE | {"patch_size": 16}),
    "dinov2_vits14": ("dinov2", DINOV2 | SMALL),
    "dinov2_vits14_reg4": ("dinov2", DINOV2 | SMALL | REGISTERS),
    "dinov2_swiglu_tiny": ("dinov2", DINOV2 | TINY | {"num_hidden_layers": 3, "mlp_type": "swiglu", "intermediate_size": 344}),
    "dinov2_chunked_teacher_tiny": ("dinov2", DINOV2 | TINY | {"num_hidden_layers": 4, "image_size": 98}),
    "dinov3_vits16": ("dinov3", DINOV3 | SMALL | {"mlp_type": "mlp"}),
    "dinov3_vits16plus": ("dinov3", DINOV3 | SMALL | {"mlp_type": "swiglu"}),
    "dinov3_untied_tiny": ("dinov3", DINOV3 | TINY | {"separate_cls_norm": True}),
    "dinov3_vit7b16_two_blocks": (
        "dinov3",
        DINOV3 | {"num_attention_heads": 32, "mlp_type": "swiglu", "intermediate_size": 8192, "qkv_bias": False},
    ),
    "google_b32_in21k": ("google", GOOGLE | BASE | {"patch_size": 32, "representation_size": 768, "num_labels": 218}),
    "google_s16_augreg": ("google", GOOGLE | SMALL | {"patch_size": 16, "representation_size": None, "num_labels": 1000}),
    "timm_vit_base_patch8_224.dino": (
        "timm",
        BASE | {"patch_size": 8, "pooling": "cls", "position_interpolation_offset": 0.0, "position_interpolation_antialias": True},
    ),
    "timm_vit_relpos_base_patch16_clsgap_224.sw_in1k": ("timm", RELATIVE | BASE | {"pooling": "avg", "norm_before_pooling": False}),
    "timm_vit_relpos_medium_patch16_cls_224.sw_in1k": ("timm", RELATIVE | MEDIUM | {"pooling": "cls", "use_cls_token": True}),
    "timm_vit_relpos_small_patch16_224.sw_in1k": ("timm", RELATIVE | SMALL | {"pooling": "avg", "use_cls_token": False}),
    "timm_vit_srelpos_small_patch16_224.sw_in1k": ("timm", RELATIVE | SMALL | {"pooling": "avg", "share_relative_position": True}),
}
TIMM_DINOV3 = DINOV3 | SMALL | {"pooling": "avg", "image_size": 256}
CASES |= {
    "timm_vit_small_patch16_dinov3.lvd1689m": ("timm", TIMM_DINOV3 | {"mlp_type": "mlp", "qkv_bias": False}),
    "timm_vit_small_plus_patch16_dinov3_qkvb.lvd1689m": ("timm", TIMM_DINOV3 | {"mlp_type": "swiglu", "qkv_bias": True}),
    "transformers_dinov3_vits16": ("transformers", DINOV3 | SMALL | {"layer_scale_init_value": 1.0, "rope_rescale": None}),
}
# Head files, by case and name: the number of blocks whose [CLS] they read, and whether they read the mean patch
HEADS = {
    "dino_vits8": {"head": (4, False)},
    "dino_vitb16": {"head": (1, True)},
    "dinov2_vits14": {"head1": (1, True), "head4": (4, True)},
    "dinov3_vits16": {"head1": (1, True)},
    "dinov3_vit7b16_two_blocks": {"head1": (1, True)},
}
LOGITS = {"head": "logits", "head1": "logits_head1", "head4": "logits_head4"}  # among the reference outputs


@dataclasses.dataclass
class Golden:
    """A case, the folder of its files, the reference outputs, and the models: without a head file, or with each head ("head", …)."""

    case: dict
    folder: Path
    reference: dict[str, torch.Tensor]
    models: dict[str | None, vitrail.ViTPreTrainedModel]
    processor: vitrail.VitrailImageProcessor
    report: vitrail.ConversionReport

    @property
    def encoder(self) -> vitrail.ViTModel:
        model = next(iter(self.models.values()))
        return getattr(model, "vit", model)


@pytest.fixture(scope="module", params=CASES)
def golden(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    case = deterministic.case(request.param)
    loaded = {head: vitrail.load(source, head=file) for head, (source, file) in write_files(case, folder).items()}
    _, processor, report = next(iter(loaded.values()))
    reference = load_file(deterministic.GOLDEN / f"{request.param}.safetensors")
    yield Golden(case, folder, reference, {head: model for head, (model, _, _) in loaded.items()}, processor, report)
    delete(folder)


def write_files(case: dict, folder: Path) -> dict[str | None, tuple[Path, Path | None]]:
    """The files of a case as they are published: for each way to load it, the source and the head file."""
    if case["file"]["kind"] == "safetensors":
        deterministic.write_checkpoint(case, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(case["config"]))
        return {None: (folder, None)}
    source = folder / {"npz": "ViT.npz", "torch": "checkpoint.pth"}[case["file"]["kind"]]
    deterministic.write_checkpoint(case, source)
    files: dict[str | None, tuple[Path, Path | None]] = {}
    for head in HEADS.get(case["name"], {}):
        tensors = deterministic.weights(case[head])
        # DINO's linear evaluation saves its whole state; DINOv2's heads are {"weight", "bias"}
        is_dino = case["format"] == "dino"
        content = {"state_dict": tensors} if is_dino else {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        torch.save(content, folder / f"{head}.pth")
        files[head] = source, folder / f"{head}.pth"
    return files or {None: (source, None)}


def delete(folder: Path) -> None:
    """pytest keeps its temporary folders, and these are large."""
    for file in folder.iterdir():
        file.unlink()


def features_of(encoder: vitrail.ViTModel, pixel_values: torch.Tensor, spec: dict) -> dict[str, torch.Tensor]:
    """Returns the outputs of an encoder that the golden cases contain."""
    outputs = encoder(pixel_values)
    features = {"last_hidden_state": outputs.last_hidden_state[:, spec["token_index"]], "pooled": outputs.pooler_output}
    for name, norm in (("layers", True), ("layers_raw", False)) if "layers" in spec else ():
        layers = encoder.get_intermediate_layers(pixel_values, n=spec["layers"], return_class_token=True, norm=norm)
        features[f"{name}_cls"] = torch.stack([cls for _, cls in layers])
        features[f"{name}_patches"] = torch.stack([patches[:, spec["patch_index"]] for patches, _ in layers])
    if encoder.config.use_cls_token:
        features["cls"] = outputs.last_hidden_state[:, 0]
        features["cls_attention"] = encoder.attention_maps(pixel_values)[:, 0].flatten(2)
    return features


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_every_array_equals_the_original(golden):
    found = {}
    for size, spec in golden.case["inputs"].items():
        pixel_values = deterministic.pixel_values(spec)
        features = features_of(golden.encoder, pixel_values, spec)
        for head, model in golden.models.items():
            if isinstance(model, vitrail.ViTForImageClassification):
                features[LOGITS[head] if head else "logits"] = model(pixel_values).logits
            else:
                features["logits"] = features["pooled"]  # of timm's models without a classifier
        found |= {f"{size}/{name}": array for name, array in features.items()}
    assert golden.reference.keys() <= found.keys()
    for name, expected in golden.reference.items():
        close(found[name], expected)


@torch.no_grad()
def test_eager_attention_equals_the_original(golden):
    """The plain form, which gives attention weights, in place of PyTorch's fused one."""
    size, spec = list(golden.case["inputs"].items())[-1]
    golden.encoder.set_attn_implementation("eager")
    outputs = golden.encoder(deterministic.pixel_values(spec))
    golden.encoder.set_attn_implementation("sdpa")
    close(outputs.last_hidden_state[:, spec["token_index"]], golden.reference[f"{size}/last_hidden_state"])


def test_the_family_and_the_architecture_are_found(golden):
    family, fields = CASES[golden.case["name"]]
    assert golden.report.format == golden.case["format"] == family
    config = golden.encoder.config
    assert {name: getattr(config, name) for name in fields} == fields
    reads = {
        head: (model.config.classifier_cls_layers, model.config.classifier_mean_patch) for head, model in golden.models.items()
    }
    assert reads == HEADS.get(golden.case["name"], {None: (1, False)})


def test_the_report_names_what_was_read(golden):
    report, case = golden.report, golden.case
    has_head_file = case["name"] in HEADS
    ignored = [name for name in case["checkpoint"] if name.startswith("local_cls_norm.")]
    converted = len(case["checkpoint"]) - len(ignored)
    assert report.coverage == {"converted": converted + 2 * has_head_file, "ignored": ignored}
    assert report.root == case["file"].get("root")
    assert len(report.source.sha256) == 64
    assert (report.head is not None) == has_head_file


def test_images_are_prepared_as_the_original_does(golden):
    processor, case = golden.processor, golden.case
    if case["format"] == "google":
        assert (dict(processor.size), processor.do_center_crop) == ({"height": 224, "width": 224}, False)
        assert (processor.resample, list(processor.image_mean)) == (2, [0.5] * 3)
        return
    if case["format"] in ("dinov3", "transformers"):
        assert (dict(processor.size), processor.do_center_crop) == ({"height": 256, "width": 256}, False)
        assert (processor.resample, list(processor.image_mean)) == (2, [0.485, 0.456, 0.406])
        return
    if "dinov3" in case["name"]:
        assert (dict(processor.size), dict(processor.crop_size)) == ({"shortest_edge": 256}, {"height": 256, "width": 256})
        return
    # 224 / 0.9 for timm, and 256 for DINO and DINOv2; the tiny teacher was trained at 98 pixels, which it is not evaluated at
    assert dict(processor.size) == {"shortest_edge": 248 if case["format"] == "timm" else 256}
    assert dict(processor.crop_size) == {"height": 224, "width": 224}
    assert processor.resample == 3
    mean = case["config"]["pretrained_cfg"]["mean"] if case["format"] == "timm" else [0.485, 0.456, 0.406]
    assert list(processor.image_mean) == mean


@pytest.mark.parametrize("golden", [name for name in CASES if name.startswith("timm")], indirect=True)
@torch.no_grad()
def test_a_bare_file_of_timm_needs_no_config(golden, tmp_path):
    file = tmp_path / f"{golden.case['name']}.safetensors"
    file.hardlink_to(golden.folder / "model.safetensors")
    model, _, report = vitrail.load(file)
    delete(tmp_path)
    assert report.format == "timm"
    size, spec = next(iter(golden.case["inputs"].items()))
    outputs = getattr(model, "vit", model)(deterministic.pixel_values(spec))
    close(outputs.last_hidden_state[:, spec["token_index"]], golden.reference[f"{size}/last_hidden_state"])
    close(outputs.pooler_output, golden.reference[f"{size}/pooled"])
