"""Loading with another image size, number of channels or number of classes follows the family's rule and emits a warning."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deterministic
import vitrail
from vitrail.convert.adaptation import adapt_grid, adapt_image_processor, resize_patches
from vitrail.errors import UnsupportedCheckpointError

CLOSE = {"atol": 1e-5, "rtol": 0}
VARIANTS = deterministic.case("timm_variants")
CASES, INPUTS = VARIANTS["cases"], VARIANTS["inputs"]
PLAIN = deterministic.weights(CASES["absolute, [CLS]"]["checkpoint"])  # 32 pixels, patches of 8, 5 classes
CONFIG = {"architecture": "vit", "model_args": {"num_heads": 2}, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
PROJECTION = "patch_embed.proj.weight"
DINOV2 = deterministic.weights(deterministic.case("dinov2_chunked_teacher_tiny")["checkpoint"])


def timm(tmp_path, tensors, config=None):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config or CONFIG))
    return tmp_path


# ----------------------------------------------------------------------------------------------------------------- image size

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 4,
}
RULES = {
    "DINO": {"position_interpolation_offset": 0.1},
    "DINOv2 with registers": {"num_register_tokens": 3, "position_interpolation_antialias": True},
    "Google": {"position_interpolation_mode": "bilinear", "position_interpolation_align_corners": True},
    "timm": {"position_interpolation_antialias": True},
    "timm, no position of [CLS]": {"position_interpolation_antialias": True, "use_cls_position": False},
    "timm, no [CLS]": {"position_interpolation_antialias": True, "use_cls_token": False, "pooling": "avg"},
    "transformers": {},
    "table": {"position_embedding_type": "relative_table", "use_cls_token": False, "pooling": "avg"},
    "table with [CLS]": {"position_embedding_type": "relative_table"},
    "shared table": {"position_embedding_type": "relative_table", "share_relative_position": True},
    "MLP": {"position_embedding_type": "relative_mlp"},
}


def random_model(**fields):
    torch.manual_seed(0)
    model = vitrail.ViTModel(vitrail.ViTConfig(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("image_size", [(48, 48), (16, 16), (20, 44)], ids=str)
@torch.no_grad()
def test_resizing_at_loading_is_what_the_model_does_when_it_runs(rule, image_size):
    fields = SMALL | RULES[rule]
    model = random_model(**fields)
    tensors = model.state_dict()
    warnings = adapt_grid(tensors, fields, image_size=image_size)
    assert fields["image_size"] == image_size
    resized = vitrail.ViTModel(vitrail.ViTConfig(**fields)).eval()
    resized.load_state_dict(tensors)
    pixel_values = torch.randn(1, 3, *image_size)
    torch.testing.assert_close(resized(pixel_values).last_hidden_state, model(pixel_values).last_hidden_state, **CLOSE)
    if rule == "MLP":  # works at any size as it is
        assert not warnings
    else:
        assert f"8x8 patches resized to {image_size[0] // 4}x{image_size[1] // 4}" in warnings[0]


@pytest.mark.parametrize("variant", CASES)
@torch.no_grad()
def test_a_resized_model_of_timm_matches_timms_own_resizing(tmp_path, variant):
    """timm's own `set_input_size` made the reference outputs."""
    folder = timm(tmp_path, deterministic.weights(CASES[variant]["checkpoint"]), CASES[variant]["config"])
    model, processor, report = vitrail.load(folder, image_size=(56, 40))
    assert model.config.image_shape == (56, 40)
    encoder, spec = getattr(model, "vit", model), INPUTS["56x40"]
    found = encoder(deterministic.pixel_values(spec)).last_hidden_state[:, spec["token_index"]]
    outputs = load_file(deterministic.GOLDEN / "timm_variants.safetensors")
    torch.testing.assert_close(found, outputs[f"{variant}/56x40/last_hidden_state"], atol=2e-5, rtol=0)
    # a relative MLP works at any size as it is
    assert any("resized to 7x5" in warning for warning in report.warnings) == ("mlp" not in variant)
    assert processor(np.zeros((60, 80, 3), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 56, 40)


@pytest.mark.parametrize(("image_size", "expected"), [(48, (48, 48)), ((48, 24), (48, 24)), ([24, 40], (24, 40))])
def test_one_number_is_a_square(tmp_path, image_size, expected):
    model, _, _ = vitrail.load(timm(tmp_path, PLAIN), image_size=image_size)
    assert model.config.image_shape == expected
    assert model.vit.embeddings.position_embeddings.shape[1] == expected[0] // 8 * expected[1] // 8 + 1


def test_the_size_that_the_file_has_changes_nothing(tmp_path):
    model, _, report = vitrail.load(timm(tmp_path, PLAIN), image_size=32)
    assert torch.equal(model.vit.embeddings.position_embeddings, PLAIN["pos_embed"])
    assert report.warnings == []


def test_positions_keep_the_dtype_of_the_file(tmp_path):
    folder = timm(tmp_path, {name: tensor.to(torch.bfloat16) for name, tensor in PLAIN.items()})
    assert vitrail.load(folder, image_size=48)[0].vit.embeddings.position_embeddings.dtype == torch.bfloat16


def test_a_size_that_patches_do_not_divide_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=r"33x33 is not a multiple of patch_size 8x8: write image_size=\(32, 32\)"):
        vitrail.load(timm(tmp_path, PLAIN), image_size=33)


# ----------------------------------------------------------------------------------------------------------------- patch size


def resizing(old, new):
    """The matrix (new, old) of bicubic resizing with antialiasing: the kernel of Keys, a = -0.5, widened where pixels become fewer."""
    scale = max(old / new, 1)
    distance = np.abs((np.arange(new)[:, None] + 0.5) * old / new - np.arange(old) - 0.5) / scale
    near, far = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (12, 5)], ids=str)
def test_patches_are_resized_by_the_pseudo_inverse(size):
    """The smallest weights whose tokens of resized images are closest: equations 3 and 4 of FlexiViT, arXiv 2212.08013."""
    weight = PLAIN[PROJECTION]
    resize = np.kron(resizing(8, size[0]), resizing(8, size[1]))
    expected, *_ = np.linalg.lstsq(resize.T, weight.double().flatten(2).reshape(-1, 64).T.numpy(), rcond=None)
    found = resize_patches(weight, size)
    np.testing.assert_allclose(found.double().flatten(2).reshape(-1, found[0, 0].numel()), expected.T, atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_patch_size(tmp_path):
    folder = timm(tmp_path, PLAIN)
    original, _, _ = vitrail.load(folder)
    model, processor, report = vitrail.load(folder, patch_size=16)
    assert (model.config.patch_size, model.config.image_size) == (16, 32)
    assert processor(np.zeros((40, 40, 3), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert report.warnings == [
        "patch projection of 8x8 pixels resized to 16x16, by FlexiViT's pseudo-inverse",
        "positions of 4x4 patches resized to 2x2, by the family's rule",
    ]
    enlarged, _, _ = vitrail.load(folder, patch_size=(16, 16), image_size=64)  # as many patches as before, so the same positions
    assert torch.equal(enlarged.vit.embeddings.position_embeddings, original.vit.embeddings.position_embeddings)
    image = torch.full((1, 3, 32, 32), 0.7)  # one color stays so when it is enlarged
    torch.testing.assert_close(enlarged(torch.full((1, 3, 64, 64), 0.7)).logits, original(image).logits, **CLOSE)
    assert vitrail.load(folder, patch_size=8)[2].warnings == []


def test_a_patch_size_that_does_not_divide_the_image_is_refused(tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=r"not a multiple of patch_size 12x12: write image_size=\(36, 36\)"):
        vitrail.load(timm(tmp_path, PLAIN), patch_size=12)


# ------------------------------------------------------------------------------------------------------------- image processor


@pytest.mark.parametrize(
    ("preset", "image_size", "size"),
    [
        ("dino", (448, 448), {"shortest_edge": 512}),
        ("dinov2", (518, 518), {"shortest_edge": 592}),
        ("inception", (384, 384), {"shortest_edge": 425}),  # 248 / 224 of it
        ("google", (384, 384), {"height": 384, "width": 384}),
        ("google", (384, 256), {"height": 384, "width": 256}),
        ("dino", (448, 224), {"height": 448, "width": 224}),  # a rectangle is not a center crop
    ],
)
def test_the_image_processor_goes_with_the_size(preset, image_size, size):
    processor = adapt_image_processor(
        vitrail.make_image_processor(preset), image_size=image_size, patch_size=(2, 2), num_channels=3
    )
    assert dict(processor.size) == size
    pixel_values = processor(np.zeros((700, 600, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, *image_size)


@pytest.mark.parametrize("length", [98, 294, 406, 812])
def test_a_processor_of_that_size_stays_as_it_is(length):
    """The quotient of these lengths is a hair below a whole number where it is taken in floating point."""
    processor = vitrail.make_image_processor("inception", image_size=length)
    adapted = adapt_image_processor(processor, image_size=(length, length), patch_size=(14, 14), num_channels=3)
    assert dict(adapted.size) == dict(processor.size)


# ------------------------------------------------------------------------------------------------------------------- channels


def gray(num_channels):
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return image.expand(-1, num_channels, -1, -1)


@pytest.mark.parametrize(
    ("num_channels", "rule", "named"),
    [
        (1, None, "sum"),
        (1, "sum", "sum"),
        (1, "average", "average"),
        (2, "average", "average"),
        (4, "average", "average"),
        (6, None, "repeat"),
        (9, "repeat", "repeat"),
    ],
)
@torch.no_grad()
def test_equal_channels_give_the_same_outputs_as_before(tmp_path, num_channels, rule, named):
    folder = timm(tmp_path, PLAIN)
    color, _, _ = vitrail.load(folder)
    model, processor, report = vitrail.load(folder, num_channels=num_channels, channel_rule=rule)
    assert model.config.num_channels == processor.num_channels == num_channels
    torch.testing.assert_close(model(gray(num_channels)).logits, color(gray(3)).logits, **CLOSE)
    assert any(f"from 3 to {num_channels} channels by the rule {named}" in warning for warning in report.warnings)


@pytest.mark.parametrize(("num_channels", "channels"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 0]), (5, [0, 1, 2, 0, 1])])
def test_repeat_takes_the_channels_in_turn_and_scales_them(tmp_path, num_channels, channels):
    """timm's adapt_input_conv, by hand."""
    model, _, _ = vitrail.load(timm(tmp_path, PLAIN), num_channels=num_channels, channel_rule="repeat")
    expected = torch.stack([PLAIN[PROJECTION][:, channel] for channel in channels], dim=1) * 3 / num_channels
    torch.testing.assert_close(model.vit.embeddings.patch_embeddings.projection.weight.data, expected)


def test_a_gray_model_becomes_one_of_color(tmp_path):
    folder = timm(tmp_path, PLAIN | {PROJECTION: PLAIN[PROJECTION][:, :1].contiguous()})
    model, processor, _ = vitrail.load(folder, num_channels=3)
    expected = PLAIN[PROJECTION][:, :1].expand(-1, 3, -1, -1) / 3
    torch.testing.assert_close(model.vit.embeddings.patch_embeddings.projection.weight.data, expected)
    assert len(processor.image_mean) == 3


def test_as_many_channels_as_the_file_has_change_nothing(tmp_path):
    model, _, report = vitrail.load(timm(tmp_path, PLAIN), num_channels=3, channel_rule="average")
    assert torch.equal(model.vit.embeddings.patch_embeddings.projection.weight, PLAIN[PROJECTION])
    assert report.warnings == []


def test_statistics_are_averaged_over_the_channels(tmp_path):
    cfg = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    _, processor, _ = vitrail.load(timm(tmp_path, PLAIN, {"architecture": "vit", "pretrained_cfg": cfg}), num_channels=2)
    assert processor.image_mean == pytest.approx([sum(cfg["mean"]) / 3] * 2)
    assert processor.image_std == pytest.approx([sum(cfg["std"]) / 3] * 2)
    assert processor(np.zeros((40, 40, 2), np.uint8), return_tensors="pt")["pixel_values"].shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("num_channels", "rule", "message"),
    [
        (2, "sum", r'channel_rule="sum" does not apply to 2 channels; expected "repeat" or "average"'),
        (4, "first", r'channel_rule="first" does not apply to 4 channels; expected "repeat" or "average"'),
        (0, None, "num_channels is 0"),
    ],
)
def test_a_channel_rule_that_does_not_fit_is_refused(tmp_path, num_channels, rule, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(timm(tmp_path, PLAIN), num_channels=num_channels, channel_rule=rule)


# --------------------------------------------------------------------------------------------------------------------- labels


THOUSAND = {name: tensor for name, tensor in PLAIN.items() if not name.startswith("head.")}
THOUSAND |= {"head.weight": torch.zeros(1000, PLAIN["cls_token"].shape[-1]), "head.bias": torch.zeros(1000)}


@pytest.mark.parametrize(
    ("config", "options", "first", "warning"),
    [
        (None, {}, "tench, Tinca tinca", 'labels="imagenet-1k" is assumed for the 1000 classes: set labels= for others'),
        (CONFIG, {}, "LABEL_0", 'config.json does not name the 1000 classes: if they are ImageNet\'s, set labels="imagenet-1k"'),
        (CONFIG, {"labels": "imagenet-1k"}, "tench, Tinca tinca", None),
        (CONFIG | {"label_names": [f"class {number}" for number in range(1000)]}, {}, "class 0", None),
        (CONFIG, {"labels": [f"class {number}" for number in range(1000)]}, "class 0", None),
        (None, {"num_labels": 2, "labels": ["ant", "bee"]}, "ant", None),
    ],
)
def test_names_of_imagenet_are_given_or_assumed_with_a_warning(tmp_path, config, options, first, warning):
    if config is None:
        save_file(THOUSAND, tmp_path / "vit.safetensors")
    source = tmp_path / "vit.safetensors" if config is None else timm(tmp_path, THOUSAND, config)
    model, _, report = vitrail.load(source, **options)
    assert (model.config.id2label[0], model.config.label2id[first]) == (first, 0)
    assert len(model.config.id2label) == len(model.classifier.weight)
    assert [text for text in report.warnings if "labels=" in text] == ([] if warning is None else [warning])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "imagenet-1k"}, "labels= holds 1000 names, but the model has 5 classes; expected one for each class"),
        ({"labels": ["ant"], "num_labels": 0}, "labels= holds 1 names, but the model has no classifier"),
        ({"labels": ["ant"], "num_labels": 2}, "1 names, but the model has 2 classes"),
    ],
)
def test_a_wrong_number_of_names_is_refused(tmp_path, options, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(timm(tmp_path, PLAIN), **options)


def fresh(report):
    return [warning for warning in report.warnings if "classes is untrained" in warning]


def test_a_fresh_classifier_takes_the_place_of_the_old(tmp_path):
    torch.manual_seed(0)
    model, _, report = vitrail.load(timm(tmp_path, PLAIN), num_labels=1000)
    assert model.classifier.weight.shape == (1000, 128)
    assert (model.classifier.bias == 0).all()
    assert 0.01 < model.classifier.weight.std() < 0.03
    assert fresh(report) == ["the classifier for 1000 classes is untrained; it replaces one for 5"]
    assert model.config.id2label[0] == "LABEL_0"  # the classes have no names yet


def test_a_backbone_gets_a_fresh_classifier(tmp_path):
    torch.save(DINOV2, tmp_path / "backbone.pth")
    assert isinstance(vitrail.load(tmp_path / "backbone.pth")[0], vitrail.ViTModel)
    model, _, report = vitrail.load(tmp_path / "backbone.pth", num_labels=7)
    assert isinstance(model, vitrail.ViTForImageClassification)
    assert model.classifier.weight.shape == (7, 128)
    assert fresh(report) == ["the classifier for 7 classes is untrained"]


def test_a_fresh_classifier_reads_what_the_old_one_read(tmp_path):
    torch.save(DINOV2, tmp_path / "backbone.pth")
    torch.save({"weight": torch.zeros(10, 5 * 128), "bias": torch.zeros(10)}, tmp_path / "head.pth")
    model, _, report = vitrail.load(tmp_path / "backbone.pth", head=tmp_path / "head.pth", num_labels=7)
    assert model.classifier.weight.shape == (7, 5 * 128)
    assert fresh(report) == ["the classifier for 7 classes is untrained; it replaces one for 10"]


def test_a_fresh_classifier_has_the_dtype_of_the_file(tmp_path):
    folder = timm(tmp_path, {name: tensor.half() for name, tensor in PLAIN.items()})
    assert vitrail.load(folder, num_labels=7)[0].dtype == torch.float16


@pytest.mark.parametrize(("option", "least"), [("num_labels", 0), ("num_channels", 1), ("num_heads", 1)])
@pytest.mark.parametrize("number", [-1, "ten", 1.5, True])
def test_counts_are_whole_numbers(tmp_path, option, least, number):
    with pytest.raises(UnsupportedCheckpointError, match=f"{option} is .*at least {least}"):
        vitrail.load(timm(tmp_path, PLAIN), **{option: number})


@torch.no_grad()
def test_no_classes_leave_the_encoder(tmp_path):
    """As timm's num_classes=0."""
    classifier, _, _ = vitrail.load(timm(tmp_path, PLAIN))
    encoder, _, report = vitrail.load(timm(tmp_path, PLAIN), num_labels=0)
    assert type(encoder) is vitrail.ViTModel
    assert any("classifier for 5 classes is left out" in warning for warning in report.warnings)
    pixel_values = torch.randn(1, 3, *encoder.config.image_shape)
    assert torch.equal(encoder(pixel_values).pooler_output, classifier.vit(pixel_values).pooler_output)


@torch.no_grad()
def test_everything_together(tmp_path):
    model, processor, report = vitrail.load(timm(tmp_path, PLAIN), image_size=(48, 40), num_channels=1, num_labels=2)
    pixel_values = processor(np.zeros((50, 60), np.uint8), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 1, 48, 40)
    assert model(pixel_values).logits.shape == (1, 2)
    assert len(report.warnings) == 3
