"""`load`: its errors when the arguments or a config make no model, where the weights lie, and what it defers."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForImageClassification, initialization

import deterministic
import vitrail
from small_models import make_model
from vitrail.convert import report as report_module
from vitrail.convert.families.rules import Coverage
from vitrail.convert.loading import build_model
from vitrail.errors import ConversionError, CorruptFileError, SourceNotFoundError, UnsupportedCheckpointError, VitrailError
from vitrail.processing.resizing import output_size
from vitrail.utils.hashing import sha256


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "checkpoint.pth"
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image_size": 33}, r"write image_size=\(28, 28\)"), ({"num_heads": 5}, "num_attention_heads=5")],
)
def test_options_that_make_no_model(source, options, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(source, **options)


def test_two_models_in_one_file(source, tmp_path):
    tensors = torch.load(source, weights_only=True)["teacher"]
    tensors |= {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "both.pth")
    with pytest.raises(
        UnsupportedCheckpointError,
        match=r'holds 2 networks, under backbone\., \(no prefix\): name one with prefix="backbone\."',
    ):
        vitrail.load(tmp_path / "both.pth")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["blocks.0.0.attn.qkv.weight", "norm.bias"])
def test_one_weight_that_is_not_floating_point(name, dtype, source, tmp_path):
    content = torch.load(source, weights_only=True)
    name = next(found for found in content["teacher"] if found.endswith(name))
    content["teacher"][name] = content["teacher"][name].to(dtype)
    torch.save(content, tmp_path / "mixed.pth")
    with pytest.raises(UnsupportedCheckpointError, match=rf"is {dtype}; expected floating point"):
        vitrail.load(tmp_path / "mixed.pth")


@pytest.mark.usefixtures("no_network")
def test_a_damaged_download_leaves_the_cache(source, http_server, page):
    """Without a Content-Length, a connection that breaks looks as if the file had ended."""
    url = f"{http_server.url}/weights.pth?signature=SECRET"
    http_server.pages["/weights.pth"] = page(source.read_bytes()[:-100], chunked=True)
    with pytest.raises(CorruptFileError, match="Download it again"):
        vitrail.load(url)
    http_server.pages["/weights.pth"] = page(source.read_bytes())
    report = vitrail.load(url)[2]
    assert report.source.url == f"{http_server.url}/weights.pth"
    assert "SECRET" not in str(report.to_dict())


def test_an_activation_that_nobody_knows():
    with pytest.raises(Exception, match='hidden_act "foo" is not an activation'):
        vitrail.ViTConfig(hidden_act="foo")


# --------------------------------------------------------------------------------------- dtype, device, attention, config.json


@pytest.mark.parametrize("option", [{"dtype": "x"}, {"dtype": torch.int8}, {"dtype": 16}, {"device": "gpu"}, {"device": 1.5}])
def test_a_dtype_or_device_that_does_not_exist(source, option):
    ((name, value),) = option.items()
    with pytest.raises(UnsupportedCheckpointError, match=rf"{name}={value!r} is not a .*; expected"):
        vitrail.load(source, **option)


@pytest.mark.parametrize("name", ["flash_attention_2", "foo", "someone/kernel"])
def test_an_attention_that_is_not_installed(source, name):
    with pytest.raises(UnsupportedCheckpointError, match="The model cannot be made"):
        vitrail.load(source, attn_implementation=name)


def test_dtype_and_attention_are_those_that_are_given(source, tmp_path):
    half = {name: tensor.half() for name, tensor in torch.load(source, weights_only=True)["teacher"].items()}
    torch.save(half, tmp_path / "half.pth")
    for dtype, expected in ((None, "float16"), ("auto", "float16"), ("bfloat16", "bfloat16"), (torch.float32, "float32")):
        model, _, report = vitrail.load(tmp_path / "half.pth", dtype=dtype, attn_implementation="eager")
        assert model.dtype == model.config.dtype == getattr(torch, expected)
        assert model.config._attn_implementation == "eager"
        said = [
            warning
            for warning in report.warnings
            if 'the weights are float16, and so is the model: to train it, set dtype="float32"' in warning
        ]
        assert len(said) == (dtype is None)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize(("name", "taken"), [("someone/kernel", False), ({"": "someone/kernel"}, False), ("eager", True)])
def test_a_config_json_chooses_no_attention_that_would_be_downloaded(key, name, taken, folder):
    edit(folder / "config.json", {key: name})
    model, _, report = vitrail.load(folder)
    assert any("is ignored: choose one with attn_implementation=" in warning for warning in report.warnings) != taken
    assert AutoConfig.from_pretrained(folder)._attn_implementation == ("eager" if taken and "internal" not in key else None)
    assert model.config._attn_implementation == ("eager" if taken and "internal" not in key else "sdpa")


def edit(path, changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


ODD_CONFIGS = [
    *[
        {name: 10**30}
        for name in ("hidden_size", "num_hidden_layers", "num_channels", "num_labels", "image_size", "num_register_tokens")
    ],
    *[{name: float("nan")} for name in ("layer_norm_eps", "initializer_range", "layer_scale_init_value", "drop_path_rate")],
    *[{"image_size": value} for value in (0, [], ["x", "y"], [1, 2, 3], {}, None)],
    *[{"id2label": value} for value in (["a"], {"x": "a"}, 5)],
    *[{"out_indices": [10**6]}, {"out_features": 5}, {"problem_type": "x"}],
    *[{"model_type": ["vitrail"]}, {"architectures": 5, "hidden_size": "x"}, {"layer_norm_eps": -1.0}],
]
ODD_PROCESSORS = [
    *[{"image_std": [value] * 3} for value in (float("nan"), float("inf"), -1, "x", None)],
    *[{"image_mean": value} for value in (None, [float("nan")] * 3, {})],
    *[{"rescale_factor": value} for value in (float("inf"), float("nan"), 0, "x")],
    *[{"size": value} for value in ("x", [], {"height": -1, "width": 1}, {"sides": 3}, 10**9, {"shortest_edge": float("inf")})],
    *[{"do_center_crop": value} for value in ("x", float("nan"))],
]


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_odd_values_are_one_sentence(file, folder):
    path = folder / file
    before = path.read_text()
    for changes in ODD_CONFIGS if file == "config.json" else ODD_PROCESSORS:
        edit(path, changes)
        with pytest.raises(VitrailError):
            pytest.fail(f"{changes}: {vitrail.load(folder)[0].config}")
        path.write_text(before)


def test_a_config_json_replaces_no_method(folder):
    edit(folder / "config.json", {"to_dict": 5, "patch_grid": 5})
    assert vitrail.load(folder)[0].config.to_dict()["model_type"] == "vitrail"


def test_a_model_without_its_image_processor(folder):
    (folder / "preprocessor_config.json").unlink()
    _, image_processor, report = vitrail.load(folder)
    assert output_size(image_processor) == (16, 24)  # that of the model
    (warning,) = report.warnings
    assert 'preset="dino" is assumed (images of 16x24 pixels, mean 0.485, 0.456, 0.406, std 0.229' in warning
    assert "set preset= for another" in warning


IMAGENET_MEAN, SAT_MEAN = (0.485, 0.456, 0.406), (0.430, 0.411, 0.296)


@pytest.mark.parametrize(
    ("options", "size", "crops", "mean"),
    [
        ({"preset": "imagenet"}, (98, 98), True, IMAGENET_MEAN),  # the size of the model
        ({"preset": "none", "image_size": (14, 28)}, (14, 28), False, (0, 0, 0)),
        ({"preset": "dinov2"}, (224, 224), True, IMAGENET_MEAN),  # that of the preset
        ({"preset": "sat"}, (98, 98), False, SAT_MEAN),  # patches of 14 pixels do not divide its 256
        ({"preset": "sat", "patch_size": 16, "image_size": 32}, (32, 32), False, SAT_MEAN),
        ({"preset": "sat", "patch_size": 2}, (256, 256), False, SAT_MEAN),
        ({"preset": "imagenet", "num_channels": 1}, (98, 98), True, (sum(IMAGENET_MEAN) / 3,)),
    ],
)
def test_a_preset_is_the_preprocessing(source, options, size, crops, mean):
    _, image_processor, report = vitrail.load(source, **options)
    assert (output_size(image_processor), image_processor.do_center_crop) == (size, crops)
    assert image_processor.image_mean == pytest.approx(mean)
    assert any(f'preset="{options["preset"]}" takes the place' in warning for warning in report.warnings)
    assert not any("is assumed" in warning for warning in report.warnings)


def test_a_preset_goes_before_preprocessor_config_json(folder):
    _, image_processor, report = vitrail.load(folder, preset="clip")
    assert image_processor.image_mean == (0.48145466, 0.4578275, 0.40821073)
    assert report.warnings == [
        'preset="clip" takes the place of the checkpoint\'s preprocessing: images of 16x24 pixels, mean 0.481, 0.458, 0.408, std 0.269, '
        "0.261, 0.276"
    ]


def test_an_unknown_preset_is_refused(folder):
    with pytest.raises(VitrailError, match=r"found preset='sat493m'; write one of dino, dinov2, dinov3, sat"):
        vitrail.load(folder, preset="sat493m")


def test_a_user_who_does_not_exist():
    with pytest.raises(SourceNotFoundError, match="~nosuchuser"):
        vitrail.load("~nosuchuser/x")


# ---------------------------------------------------------------------------------------------------- where the weights lie


def mapped_bytes(model):
    """Return how many bytes of a model's parameters lie in pages of a file, according to the kernel."""
    regions = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, inode, path = [*line.split(maxsplit=5), ""][:6]
        if inode != "0" and path:
            regions.append([int(address, 16) for address in addresses.split("-")])
    return sum(p.nbytes for p in model.parameters() if any(start <= p.data_ptr() < end for start, end in regions))


on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux where memory lies")


@pytest.fixture
def folder(tmp_path):
    """A classifier as `save` writes it."""
    model = make_model(vitrail.ViTForImageClassification, "absolute")
    vitrail.save(model, vitrail.make_image_processor("dino", image_size=(16, 24)), tmp_path / "model")
    return tmp_path / "model"


@on_linux
def test_safetensors_are_mapped_into_place(folder):
    model, _, _ = vitrail.load(folder)
    assert mapped_bytes(model) == sum(p.nbytes for p in model.parameters())
    half, _, _ = vitrail.load(folder, dtype=torch.float16)
    assert mapped_bytes(half) == 0


@on_linux
def test_only_what_is_changed_is_copied(folder, tmp_path):
    vitrail.export_model(folder, tmp_path / "exported", to="transformers")  # which keeps q, k and v apart
    model, _, _ = vitrail.load(tmp_path / "exported")
    fused = sum(p.nbytes for name, p in model.named_parameters() if ".qkv." in name)
    assert fused
    assert mapped_bytes(model) == sum(p.nbytes for p in model.parameters()) - fused


@on_linux
def test_a_torch_file_is_copied(source):
    """torch.save overwrites in place."""
    model, _, _ = vitrail.load(source)
    assert mapped_bytes(model) == 0


def test_what_is_done_to_a_model_does_not_reach_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    model, _, _ = vitrail.load(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("replace", ["save", "save_pretrained", "save_file", "remove"])
def test_a_model_outlives_its_file(replace, folder):
    """Writers of safetensors make a new file and rename it; the old file stays as long as it is mapped."""
    model, image_processor, _ = vitrail.load(folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    other = make_model(vitrail.ViTForImageClassification, "absolute")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    if replace == "save":
        vitrail.save(other, image_processor, folder)
    elif replace == "save_pretrained":
        other.save_pretrained(folder)
    elif replace == "save_file":
        safetensors.torch.save_file(dict(other.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    else:
        shutil.rmtree(folder)
    if replace != "remove":
        assert not any(parameter.any() for parameter in vitrail.load(folder)[0].parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_parameters_never_share_memory():
    """Training the one would change the other; nor does a parameter keep a larger tensor alive, of which it is a part."""
    model = make_model(vitrail.ViTModel, "absolute")
    tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tied, whole = tensors["layers.0.norm1.bias"], torch.randn(2, len(tensors["layernorm.bias"]))
    tensors["layers.1.norm1.bias"], tensors["layernorm.bias"] = tied, whole[1]
    tensors["layers.2.norm1.bias"] = torch.ones(1).expand_as(tied)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    built = dict(build_model(model.config, tensors, Coverage(), "a test").named_parameters())
    assert all(torch.equal(built[name], tensor) for name, tensor in expected.items())
    assert len({parameter.untyped_storage().data_ptr() for parameter in built.values()}) == len(built)
    assert all(parameter.untyped_storage().nbytes() == parameter.nbytes for parameter in built.values())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_number_that_is_not_finite(number, dtype, folder):
    tensors = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()}
    tensors["vit.layers.2.mlp.fc2.weight"][-1, -2] = number
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"contains NaN or inf in the tensor for vit\.layers\.2\.mlp\.fc2\.weight"):
        vitrail.load(folder)


def test_the_largest_numbers_are_finite(folder):
    tensors = {
        name: torch.full_like(tensor, 65504).half()
        for name, tensor in safetensors.torch.load_file(folder / "model.safetensors").items()
    }
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vitrail.load(folder)  # though their sum is not


def test_nothing_is_initialized(folder, monkeypatch):
    """Neither `load` nor the Auto classes initialize weights, except on the device "meta", which holds no numbers."""
    model_class = vitrail.ViTForImageClassification
    drawn = []
    for module in (torch.nn.init, initialization):
        for name, function in vars(module).copy().items():
            if name.endswith("_") and not name.startswith("_") and callable(function):

                def watched(tensor, *args, function=function, **kwargs):
                    drawn.extend([tensor] * (not tensor.is_meta and not getattr(tensor, "_is_hf_initialized", False)))
                    return function(tensor, *args, **kwargs)

                monkeypatch.setattr(module, name, watched)
    state = torch.get_rng_state()
    vitrail.load(folder)
    AutoModelForImageClassification.from_pretrained(folder)
    assert not drawn
    assert torch.equal(torch.get_rng_state(), state)
    model_class(vitrail.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2))
    assert drawn  # what is watched is what would do it


# ------------------------------------------------------------------------------------------------------------- the SHA-256


def test_the_file_is_hashed_when_its_hash_is_asked_for_and_once(folder, tmp_path, monkeypatch):
    vitrail.convert_checkpoint(folder, tmp_path / "again")
    calls = []
    monkeypatch.setattr(report_module, "sha256", lambda *paths: calls.append(paths) or sha256(*paths))
    _, _, report = vitrail.load(tmp_path / "again")
    assert not calls
    assert report.origin.format == "vitrail"
    assert report.source.sha256 == hashlib.sha256((tmp_path / "again" / "model.safetensors").read_bytes()).hexdigest()
    assert report.to_dict()["source"]["sha256"] == report.source.sha256
    assert len(calls) == 1


@pytest.mark.parametrize("change", [lambda file: file.write_bytes(file.read_bytes() + b" "), lambda file: file.unlink()])
def test_a_file_that_was_changed_after_loading_has_no_hash(change, folder):
    """Otherwise the report would claim that the model came from another file."""
    file = folder / "model.safetensors"
    report = vitrail.load(folder)[2]
    moved = file.with_name("moved")
    shutil.copyfile(file, moved)
    moved.replace(file)  # the file that was loaded stays as it is: it is mapped
    change(file)
    with pytest.raises(VitrailError, match="has changed since it was loaded"):
        report.to_dict()


def test_a_hash_that_was_asked_for_is_kept(folder):
    report = vitrail.load(folder)[2]
    sha = report.source.sha256
    (folder / "model.safetensors").unlink()
    assert report.to_dict()["source"]["sha256"] == sha
