"""Models written back: bit for bit in the source's own format, and readable by transformers' own classes."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import deterministic
import forked
import vitrail
from small_models import tiny_config
from vitrail.convert.detection import open_checkpoint
from vitrail.errors import UnsupportedCheckpointError, VitrailError

SMALL = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256}  # a head 64 wide, as in published models
# Config fields that distinguish a model of each format, as far as its layout can express them
MODELS = {
    "dino": {"position_interpolation_offset": 0.1},
    "dinov2": {"position_interpolation_offset": 0.1, "layer_scale_init_value": 0.5, "use_mask_token": True},
    "dinov2 with registers": {
        "layer_scale_init_value": 0.5,
        "use_mask_token": True,
        "num_register_tokens": 4,
        "position_interpolation_antialias": True,
    },
    "dinov2 with swiglu": {
        "position_interpolation_offset": 0.1,
        "layer_scale_init_value": 0.5,
        "use_mask_token": True,
        "mlp_type": "swiglu",
        "intermediate_size": 176,  # as transformers computes it from a whole ratio
    },
    "google": {
        "hidden_act": "gelu_pytorch_tanh",
        "representation_size": 48,
        "position_interpolation_mode": "bilinear",
        "position_interpolation_align_corners": True,
    },
    "timm": {"position_interpolation_antialias": True},
    "timm relpos": {
        "position_embedding_type": "relative_mlp",
        "layer_scale_init_value": 1e-5,
        "pooling": "avg",
        "norm_before_pooling": False,
        "qkv_bias": False,
        "use_cls_token": True,
    },
    "timm table, shared": {
        "position_embedding_type": "relative_table",
        "share_relative_position": True,
        "layer_scale_init_value": 1e-5,
        "pooling": "avg",
        "use_cls_token": False,
    },
    "timm residual post-norm": {
        "position_embedding_type": "relative_mlp",
        "norm_position": "residual_post",
        "pooling": "avg",
        "use_cls_token": False,
    },
    "transformers vit": {"layer_norm_eps": 1e-12},
    "transformers dinov2": {"layer_scale_init_value": 0.5, "use_mask_token": True},
}
CLASSIFIERS = {"dino": {"classifier_cls_layers": 2}, "dinov2": {"classifier_cls_layers": 1, "classifier_mean_patch": True}}


def random_model(fields, num_labels=0):
    """A model whose every parameter is noise, the fresh zeros and ones too."""
    torch.manual_seed(0)
    model_class = vitrail.ViTForImageClassification if num_labels else vitrail.ViTModel
    model = model_class(tiny_config(**SMALL | fields, num_labels=num_labels or 2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, vitrail.make_image_processor("google" if "hidden_act" in fields else "dino", image_size=32)


SUFFIXES = {"dino": ".pth", "dinov2": ".pth", "google": ".npz"}


def export(model, processor, tmp_path, to, name="model", **options):
    vitrail.save(model, processor, tmp_path / f"saved {name}")
    path = tmp_path / f"{name}{SUFFIXES.get(to, '')}"
    return path, vitrail.export_model(tmp_path / f"saved {name}", path, to=to, **options)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_its_own_format(tmp_path, name):
    to = name.split()[0]
    model, processor = random_model(MODELS[name], num_labels=0 if to in ("dino", "dinov2") else 3 * (to != "transformers"))
    path, _ = export(model, processor, tmp_path, to)
    again, processor_again, report = vitrail.load(path)
    assert report.format == to
    assert type(again) is type(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in again.state_dict().items())
    for size in ((32, 32), (24, 48)):
        pixel_values = torch.randn(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(again(pixel_values)[0], model(pixel_values)[0])
    if to in ("timm", "transformers"):
        assert {key: processor_again.to_dict()[key] for key in ("size", "resample", "image_mean", "image_std")} == {
            key: processor.to_dict()[key] for key in ("size", "resample", "image_mean", "image_std")
        }
    # and the file of the exported model, exported again, is the same file
    second, _ = export(again, processor_again, tmp_path, to, name="second")
    first_raw, second_raw = open_checkpoint(path), open_checkpoint(second)
    assert first_raw.tensors.keys() == second_raw.tensors.keys()
    assert all(torch.equal(tensor, second_raw.tensors[key]) for key, tensor in first_raw.tensors.items())


@pytest.mark.parametrize("case", ["dinov2_chunked_teacher_tiny", "dinov2_swiglu_tiny", "google_s16_augreg"])
def test_the_originals_tensors_come_back_bit_for_bit(tmp_path, case):
    case = deterministic.case(case)
    source = tmp_path / "source"
    deterministic.write_checkpoint(case, source)
    path = tmp_path / f"back{SUFFIXES[case['format']]}"
    vitrail.export_model(source, path, to=case["format"])
    back, original = open_checkpoint(path), open_checkpoint(source)
    assert back.tensors.keys() == original.tensors.keys()
    assert all(torch.equal(tensor, original.tensors[name]) for name, tensor in back.tensors.items())


@pytest.mark.parametrize("to", ["dino", "dinov2"])
def test_a_separate_classifier_is_written_next_to_the_backbone(tmp_path, to):
    for parts in (
        {1: {}, 2: {"classifier_mean_patch": True}, 3: {"classifier_cls_layers": 3}}[n]
        for n in ((1, 2, 3) if to == "dino" else (1, 2))
    ):
        model, processor = random_model(MODELS[to] | {"num_hidden_layers": 3} | parts, num_labels=5)
        path, _ = export(model, processor, tmp_path, to, name=str(len(list(tmp_path.iterdir()))))
        head = path.with_name(f"{path.stem}_linear.pth")
        again, _, _ = vitrail.load(path, head=head)
        pixel_values = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


FOR_TRANSFORMERS = [
    (name, num_labels)
    for name in ("transformers vit", "transformers dinov2", "dinov2 with registers", "dinov2 with swiglu", "dino", "timm")
    for num_labels in (0, 3)
]
WITHOUT_VITRAIL = """
import sys, torch
from pathlib import Path
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

pixel_values = torch.load("pixel_values.pt")
for folder in Path("exported").iterdir():
    auto = AutoModelForImageClassification if folder.name.endswith("3") else AutoModel
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, loading)
    assert type(model).__module__.startswith("transformers."), folder
    AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        torch.save(model.eval()(pixel_values)[0], f"{folder.name}.pt")
assert "vitrail" not in sys.modules
"""


@pytest.fixture(scope="module")
def answers_of_transformers(tmp_path_factory):
    """For each model, our output and the output of transformers' class, from a process without vitrail."""
    folder = tmp_path_factory.mktemp("transformers")
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(pixel_values, folder / "pixel_values.pt")
    ours = {}
    for name, num_labels in FOR_TRANSFORMERS:
        fields = MODELS[name] | ({"classifier_mean_patch": True} if num_labels and "dinov2" in name else {})
        model, processor = random_model(fields, num_labels)
        vitrail.save(model, processor, folder / "saved" / f"{name} {num_labels}")
        vitrail.export_model(
            folder / "saved" / f"{name} {num_labels}", folder / "exported" / f"{name} {num_labels}", to="transformers"
        )
        with torch.no_grad():
            ours[name, num_labels] = model(pixel_values)[0]
    ended = subprocess.run([sys.executable, "-c", WITHOUT_VITRAIL], capture_output=True, text=True, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return {key: (output, torch.load(folder / f"{key[0]} {key[1]}.pt")) for key, output in ours.items()}


@pytest.mark.parametrize("key", FOR_TRANSFORMERS, ids=str)
def test_transformers_reads_it_without_vitrail(answers_of_transformers, key):
    """No key is missing or unexpected (asserted in the other process), and the outputs are the same."""
    ours, theirs = answers_of_transformers[key]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_registers_go_to_timm_as_timm_has_them(tmp_path):
    """timm's own DINOv2 files with registers keep positions for patches only, and [CLS]'s inside [CLS]: the outputs stay the same."""
    model, processor = random_model(MODELS["dinov2 with registers"])
    path, warnings = export(model, processor, tmp_path, "timm")
    tensors = load_file(path / "model.safetensors")
    assert tensors["pos_embed"].shape == (1, 16, 64)
    assert tensors["reg_token"].shape == (1, 4, 64)
    assert "mask_token" not in tensors
    assert any("mask token is left out" in warning for warning in warnings)
    again, _, _ = vitrail.load(path)
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(pixel_values)[0], model(pixel_values)[0])


def test_another_rule_of_interpolation_is_reported():
    model, processor = random_model(MODELS["dino"])
    from vitrail.convert.export import to_format

    assert any("offset 0.0 instead of 0.1" in warning for warning in to_format(model, processor, "transformers").warnings)


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("dino", "google", "hidden_act is gelu, but google would read gelu_pytorch_tanh"),
        ("dino", "dinov2", r"LayerScale \(layer_scale_init_value\) is False, but dinov2 would read True"),
        ("dinov2", "dino", "layer_scale_init_value is 0.5; expected None"),
        ("dinov2 with registers", "google", "num_register_tokens is 4; expected 0"),
        ("google", "timm", "representation_size is 48; expected None"),
        ("google", "dino", "representation_size is 48; expected None"),
        ("timm relpos", "transformers", "position_embedding_type is relative_mlp; expected absolute"),
        ("timm residual post-norm", "dinov2", "position_embedding_type is relative_mlp; expected absolute"),
        ("transformers vit", "dino", "layer_norm_eps is 1e-12, but dino would read 1e-06"),
        ("transformers vit", "timm", "layer_norm_eps"),
        ("dino", "onnxx", "Unsupported export format"),
    ],
)
def test_what_a_format_cannot_express_is_refused_before_anything_is_written(tmp_path, name, to, message):
    model, processor = random_model(MODELS[name])
    with pytest.raises(UnsupportedCheckpointError, match=message):
        export(model, processor, tmp_path, to)
    assert [path.name for path in tmp_path.iterdir()] == ["saved model"]


def test_a_classifier_that_a_format_cannot_hold_is_refused(tmp_path):
    model, processor = random_model(MODELS["timm"] | {"classifier_cls_layers": 2}, num_labels=3)
    for to, message in (
        ("timm", "classifier_cls_layers is 2"),
        ("transformers", "classifier_cls_layers"),
        ("dinov2", "LayerScale|head"),
    ):
        with pytest.raises(UnsupportedCheckpointError, match=message):
            export(model, processor, tmp_path, to, name=to)
    model, processor = random_model(MODELS["dino"] | {"classifier_cls_layers": 2}, num_labels=3)
    with pytest.raises(
        UnsupportedCheckpointError,
        match=r"is for another input\. To leave the classifier out, export the model with classifier=False",
    ):
        export(model, processor, tmp_path, "dino", name="dino")
    path, _ = export(model, processor, tmp_path, "transformers", name="encoder", classifier=False)
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(vitrail.load(path)[0](pixel_values)[0], model.vit(pixel_values)[0])


def test_nothing_is_written_over(tmp_path):
    model, processor = random_model(MODELS["dino"])
    (tmp_path / "model.pth").write_text("mine")
    with pytest.raises(VitrailError, match="exists already"):
        export(model, processor, tmp_path, "dino")
    assert (tmp_path / "model.pth").read_text() == "mine"


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("dino", "out", r"one file, but .*out does not end in \.pth or \.pt: add the extension"),
        ("google", "out.pth", r"does not end in \.npz"),
        ("timm", "out.safetensors", r"a folder, but .* leave \.safetensors out"),
        ("onnx", "out.onnx", r"a folder, but .* leave \.onnx out"),
    ],
)
def test_an_output_has_the_name_of_its_kind(tmp_path, to, name, message):
    with pytest.raises(VitrailError, match=message):
        vitrail.export_model(tmp_path / "not read", tmp_path / name, to=to)
    assert not list(tmp_path.iterdir())


def test_timm_config_names_what_the_model_is(tmp_path):
    model, processor = random_model(MODELS["timm relpos"], num_labels=3)
    path, _ = export(model, processor, tmp_path, "timm")
    config = json.loads((path / "config.json").read_text())
    assert config["architecture"] == "vit_relpos_base_patch16_224"
    assert config["num_classes"] == 3
    assert config["model_args"]["embed_dim"] == 64
    assert config["model_args"]["fc_norm"] is True
    assert config["pretrained_cfg"]["crop_pct"] == pytest.approx(32 / 36)


def export_again(folder):
    vitrail.export_model(folder / "saved model", folder / "again" / "model.pth", to="dino")


def test_an_exported_file_is_the_same_every_time(tmp_path):
    """Its names stand in the order of the model, not in that of a set, which changes from process to process."""
    model, processor = random_model(MODELS["dino"])
    path, _ = export(model, processor, tmp_path, "dino")
    names = list(open_checkpoint(path).tensors)
    assert forked.exit_code(__file__, "export_again", tmp_path) == 0
    assert (tmp_path / "again" / "model.pth").read_bytes() == path.read_bytes()
    assert names.index("blocks.0.attn.qkv.weight") < names.index("blocks.1.attn.qkv.weight")


def test_a_strangers_classifier_file_is_not_written_over(tmp_path):
    model, processor = random_model(MODELS["dino"], num_labels=3)
    (tmp_path / "model_linear.pth").write_text("mine")
    vitrail.save(model, processor, tmp_path / "saved")
    with pytest.raises(VitrailError, match=r"model_linear\.pth exists already"):
        vitrail.export_model(tmp_path / "saved", tmp_path / "model.pth", to="dino")
    assert (tmp_path / "model_linear.pth").read_text() == "mine"
    assert not (tmp_path / "model.pth").exists()


def test_another_preparation_of_images_is_reported():
    from vitrail.convert.export import to_format

    model, processor = random_model(MODELS["dino"])
    assert not any("preprocesses images" in warning for warning in to_format(model, processor, "dino").warnings)
    squash = vitrail.make_image_processor("google", image_size=32)
    assert any("preprocesses images differently: size" in warning for warning in to_format(model, squash, "dino").warnings)
    drafts = vitrail.VitrailImageProcessor.from_dict(processor.to_dict(), jpeg_draft=True)
    (warning,) = (warning for warning in to_format(model, drafts, "dino").warnings if "preprocesses images" in warning)
    assert warning.endswith("preprocesses images differently: jpeg_draft False instead of True")
