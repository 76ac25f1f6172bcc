"""transformers' own folders, written by its classes at random weights, against those classes in the same process."""

import json

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import paths
import vitrail
from small_models import with_random_weights
from vitrail.convert.families.family import RawCheckpoint
from vitrail.convert.families.transformers import TRANSFORMERS
from vitrail.errors import ConversionError, UnsupportedCheckpointError

CLOSE = {"atol": 1e-5, "rtol": 0}
PHOTO = paths.IMAGES / "chelsea.jpg"

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
VIT, DINOV2 = SMALL | {"intermediate_size": 40}, SMALL | {"mlp_ratio": 2, "layerscale_value": 0.5}
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "bird"}, "label2id": {"cat": 0, "dog": 1, "bird": 2}}

# Prefixes of the encoder's names in files of models with a head
PREFIXES = {
    "vit": "vit.",
    "vit_mae": "vit.",
    "deit": "deit.",
    "dinov2": "dinov2.",
    "dinov2_with_registers": "dinov2_with_registers.",
}


def vit(**fields):
    return transformers.ViTConfig(**VIT | fields)


def dinov2(**fields):
    return transformers.Dinov2Config(**DINOV2 | fields)


def registers(**fields):
    return transformers.Dinov2WithRegistersConfig(**DINOV2 | {"num_register_tokens": 2} | fields)


MODELS = {
    "vit": lambda: transformers.ViTModel(vit()),
    "vit, no qkv bias, tanh GELU": lambda: transformers.ViTModel(
        vit(qkv_bias=False, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3)
    ),
    "vit, narrow pooler": lambda: transformers.ViTModel(vit(pooler_output_size=16)),
    "vit, classifier": lambda: transformers.ViTForImageClassification(vit(**LABELS)),
    "vit, masked image modeling": lambda: transformers.ViTForMaskedImageModeling(vit(encoder_stride=8)),
    "vit_mae": lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT, mask_ratio=0.0)),
    "vit_mae, decoder": lambda: transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **VIT, mask_ratio=0.0, decoder_hidden_size=12, decoder_num_attention_heads=3, decoder_num_hidden_layers=1
        )
    ),
    "dinov2": lambda: transformers.Dinov2Model(dinov2()),
    "dinov2, swiglu": lambda: transformers.Dinov2Model(dinov2(use_swiglu_ffn=True)),
    "dinov2, no mask token": lambda: transformers.Dinov2Model(dinov2(use_mask_token=False)),
    "dinov2, classifier": lambda: transformers.Dinov2ForImageClassification(dinov2(**LABELS)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(registers()),
    "registers, swiglu, classifier": lambda: transformers.Dinov2WithRegistersForImageClassification(
        registers(use_swiglu_ffn=True, **LABELS)
    ),
}
HEADS = ("classifier.", "decoder.")  # what no prefix stands before


def write(folder, model, layout="hub", prefix="as saved", container="safetensors"):
    """Write the files of `save_pretrained`; with today's names, with or without the prefix, or as a pickle instead."""
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if layout == "module":
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = PREFIXES[model.config.model_type]
    if prefix == "without":
        tensors = {name.removeprefix(before): tensor for name, tensor in tensors.items()}
    elif prefix == "with":
        tensors = {name if name.startswith((before, *HEADS)) else before + name: tensor for name, tensor in tensors.items()}
    (folder / "model.safetensors").unlink()
    if container == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def outputs_of(theirs, pixel_values):
    """last_hidden_state, and pooler_output or logits where there are, of transformers' model."""
    arguments = {}
    if theirs.config.model_type == "vit_mae":  # without masking, and this noise leaves the patches in their order
        encoder = getattr(theirs, "vit", theirs)
        height, width = (length // 8 for length in pixel_values.shape[-2:])
        arguments = {"noise": torch.arange(height * width, dtype=torch.float32)[None]}
    else:
        encoder = getattr(theirs, theirs.base_model_prefix, theirs)
    if theirs.config.model_type in ("vit", "vit_mae"):
        arguments["interpolate_pos_encoding"] = True
    outputs = encoder(pixel_values, **arguments)
    found = {"last_hidden_state": outputs.last_hidden_state}
    if getattr(encoder, "pooler", None) is not None or theirs.config.model_type.startswith("dinov2"):
        found["pooler_output"] = outputs.pooler_output
    if hasattr(theirs, "classifier"):
        arguments.pop("noise", None)
        found["logits"] = theirs(pixel_values, **arguments).logits
    return found


@torch.no_grad()
def compare(ours, theirs, size):
    pixel_values = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = outputs_of(theirs, pixel_values)
    outputs = getattr(ours, "vit", ours)(pixel_values)
    for name, array in expected.items():
        found = ours(pixel_values).logits if name == "logits" else getattr(outputs, name)
        torch.testing.assert_close(found, array, **CLOSE)


@pytest.fixture(scope="module", params=MODELS)
def theirs(request):
    return with_random_weights(MODELS[request.param]())


SIZES = [(32, 32), (48, 24)]  # the native one, and a rectangular one


@pytest.mark.parametrize(
    ("layout", "prefix", "container"),
    [
        ("hub", "as saved", "safetensors"),
        ("hub", "with", "safetensors"),
        ("hub", "without", "bin"),
        ("module", "with", "safetensors"),
        ("module", "without", "safetensors"),
    ],
)
def test_every_model_matches_transformers(theirs, tmp_path, layout, prefix, container):
    ours, _, report = vitrail.load(write(tmp_path, theirs, layout, prefix, container))
    assert report.format == "transformers"
    assert isinstance(ours, vitrail.ViTForImageClassification if hasattr(theirs, "classifier") else vitrail.ViTModel)
    for size in SIZES:
        compare(ours, theirs, size)
    assert all("decoder." in name for name in report.coverage["ignored"])
    assert report.coverage["converted"] == sum(not name.startswith("decoder.") for name in tensors_of(tmp_path))


def tensors_of(folder):
    file = folder / "model.safetensors"
    return load_file(file) if file.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000)
        ),
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(
                hidden_size=384, num_hidden_layers=4, num_attention_heads=6, patch_size=14, image_size=518
            )
        ),
    ],
    ids=["ViT-S/16", "4 blocks of ViT-S/14 with registers"],
)
def test_models_of_published_size(tmp_path, make):
    torch.manual_seed(0)
    theirs = make().eval()  # initialized as transformers does: activations of a deep random network would grow
    theirs.save_pretrained(tmp_path)
    ours, _, _ = vitrail.load(tmp_path)
    for size in ((224, 224), (112, 336)):
        compare(ours, theirs, size)


def test_weights_in_several_files(tmp_path):
    theirs = with_random_weights(MODELS["vit, classifier"]())
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    compare(vitrail.load(tmp_path)[0], theirs, (32, 32))


@pytest.mark.parametrize("layout", ["hub", "module"])
def test_deit_without_distillation_is_a_vit(tmp_path, layout):
    """facebook/deit-base-patch16-224 is such a model. transformers' own DeiT class always has a distillation token."""
    theirs = with_random_weights(MODELS["vit, classifier"]())
    write(tmp_path, theirs, layout)
    tensors = {name.replace("vit.", "deit."): tensor for name, tensor in tensors_of(tmp_path).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    compare(vitrail.load(edit_config(tmp_path, model_type="deit"))[0], theirs, (32, 32))


def test_deit_with_distillation_is_refused(tmp_path):
    transformers.DeiTForImageClassification(transformers.DeiTConfig(**VIT)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedCheckpointError, match=r"distillation token.*trained without distillation"):
        vitrail.load(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- config.json


def test_labels_come_along(tmp_path):
    ours, _, _ = vitrail.load(write(tmp_path, with_random_weights(MODELS["vit, classifier"]())))
    assert ours.config.id2label == LABELS["id2label"]
    assert ours.config.label2id == LABELS["label2id"]


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))
    return folder


@pytest.mark.parametrize(("changes", "labels"), [({"label2id": "absent"}, LABELS), ({"id2label": None, "label2id": None}, None)])
def test_labels_that_are_half_there(tmp_path, changes, labels):
    folder = edit_config(write(tmp_path, with_random_weights(MODELS["vit, classifier"]())), **changes)
    config = vitrail.load(folder)[0].config
    assert config.num_labels == 3
    if labels is not None:
        assert {"id2label": config.id2label, "label2id": config.label2id} == labels


def test_labels_of_ones_own_are_not_those_of_imagenet(tmp_path):
    names = {index: f"part {index}" for index in range(1000)}
    config = vit(id2label=names, label2id={name: index for index, name in names.items()})
    ours, _, _ = vitrail.load(write(tmp_path, transformers.ViTForImageClassification(config)))
    assert ours.config.id2label == names


def test_a_classifier_without_labels_has_as_many_as_rows(tmp_path):
    folder = write(tmp_path, transformers.ViTForImageClassification(vit(num_labels=2)))
    assert "id2label" not in json.loads((folder / "config.json").read_text())
    assert vitrail.load(folder)[0].config.num_labels == 2


SAME_NAME = ("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "num_channels", "qkv_bias")


@pytest.mark.parametrize(
    "config",
    [
        transformers.ViTConfig(),
        transformers.ViTMAEConfig(),
        transformers.DeiTConfig(),
        transformers.Dinov2Config(),
        transformers.Dinov2WithRegistersConfig(),
    ],
    ids=lambda config: config.model_type,
)
def test_what_a_config_leaves_out_is_what_transformers_takes(config):
    """Configs on the Hub are years old, and lack the fields that came later."""
    raw = RawCheckpoint({}, "safetensors", config={"model_type": config.model_type})
    ours = vitrail.ViTConfig(**TRANSFORMERS.configure(raw, None))
    assert {name: getattr(ours, name) for name in SAME_NAME} == {name: getattr(config, name) for name in SAME_NAME}
    assert ours.image_size == config.image_size
    assert ours.patch_size == config.patch_size
    assert ours.num_register_tokens == getattr(config, "num_register_tokens", 0)
    assert ours.layer_scale_init_value == getattr(config, "layerscale_value", None)
    assert ours.intermediate_size == getattr(config, "intermediate_size", 4 * config.hidden_size)


# -------------------------------------------------------------------------------------------------------------------- pooler


def test_a_trained_pooler_is_the_representation_layer(tmp_path):
    theirs = with_random_weights(MODELS["vit"]())
    ours, _, report = vitrail.load(write(tmp_path, theirs))
    assert ours.config.representation_size == 24
    assert torch.equal(ours.representation.weight, theirs.pooler.dense.weight)
    assert not any("pooler" in warning for warning in report.warnings)


def dropped(report):
    return [warning for warning in report.warnings if "pooler is dropped" in warning]


@torch.no_grad()
def test_a_pooler_that_was_never_trained_is_dropped(tmp_path):
    theirs = with_random_weights(MODELS["vit"]())
    theirs.pooler.dense.bias.zero_()
    ours, _, report = vitrail.load(write(tmp_path, theirs))
    assert ours.config.representation_size is None
    assert "never trained" in dropped(report)[0]
    assert set(report.coverage["ignored"]) == {"pooler.dense.weight", "pooler.dense.bias"}
    outputs = ours(torch.zeros(1, 3, 32, 32))
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


@pytest.mark.parametrize("trained", [True, False])
def test_a_pooler_next_to_a_classifier_is_dropped(tmp_path, trained):
    """Older files hold both, and transformers' classifier reads [CLS] itself."""
    theirs = with_random_weights(MODELS["vit, classifier"]())
    write(tmp_path, theirs)
    pooler = {"vit.pooler.dense.weight": torch.ones(24, 24), "vit.pooler.dense.bias": torch.full((24,), float(trained))}
    save_file(tensors_of(tmp_path) | pooler, tmp_path / "model.safetensors")
    ours, _, report = vitrail.load(tmp_path)
    assert "classifier does not read it" in dropped(report)[0]
    compare(ours, theirs, (32, 32))


def test_a_pooler_of_another_activation_is_refused(tmp_path):
    theirs = with_random_weights(transformers.ViTModel(vit(pooler_act="relu")))
    with pytest.raises(UnsupportedCheckpointError, match=r'pooler.*"relu".*"tanh"'):
        vitrail.load(write(tmp_path, theirs))


def test_a_missing_projection_is_named(tmp_path):
    write(tmp_path, with_random_weights(MODELS["vit"]()))
    tensors = tensors_of(tmp_path)
    del tensors["encoder.layer.1.attention.attention.value.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=r"encoder\.layer\.1\.attention\.attention\.value\.bias"):
        vitrail.load(tmp_path)


# --------------------------------------------------------------------------------------------------- preprocessor_config.json

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
SQUARE = {"height": 224, "width": 224}
FLAGS = {"do_resize": True, "do_normalize": True}

# Files on the Hub, and transformers' processor for each as it is written today
PROCESSORS = {
    "google/vit-base-patch16-224, 2021": (
        {**FLAGS, "feature_extractor_type": "ViTFeatureExtractor", **HALF, "resample": 2, "size": 224},
        lambda: ViTImageProcessorPil(size=SQUARE, resample=2, **HALF),
    ),
    "google/vit-base-patch16-224, 2023": (
        {**FLAGS, "image_processor_type": "ViTImageProcessor", **HALF, "resample": 2, "size": SQUARE, "do_rescale": True}
        | {"rescale_factor": 0.00392156862745098},
        lambda: ViTImageProcessorPil(size=SQUARE, resample=2, **HALF),
    ),
    "facebook/dino-vits8": (
        {**FLAGS, "feature_extractor_type": "ViTFeatureExtractor", **IMAGENET, "resample": 2, "size": 224},
        lambda: ViTImageProcessorPil(size=SQUARE, resample=2, **IMAGENET),
    ),
    "facebook/dinov2-base": (
        {**FLAGS, "image_processor_type": "BitImageProcessor", **IMAGENET, "resample": 3, "size": {"shortest_edge": 256}}
        | {"crop_size": SQUARE, "do_center_crop": True, "do_convert_rgb": True, "do_rescale": True, "rescale_factor": 1 / 255},
        lambda: BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=SQUARE, resample=3, **IMAGENET),
    ),
    "BitImageProcessor, a lone number": (
        {**FLAGS, "feature_extractor_type": "BitFeatureExtractor", **IMAGENET, "resample": 3, "size": 256, "crop_size": 224}
        | {"do_center_crop": True},
        lambda: BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=SQUARE, resample=3, **IMAGENET),
    ),
    "facebook/deit-base-patch16-224": (
        {**FLAGS, "feature_extractor_type": "DeiTFeatureExtractor", **IMAGENET, "resample": 3, "size": 256, "crop_size": 224}
        | {"do_center_crop": True},
        lambda: DeiTImageProcessorPil(size={"height": 256, "width": 256}, crop_size=SQUARE, resample=3, **IMAGENET),
    ),
    "no normalization": (
        {"do_resize": True, "do_normalize": False, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 224}
        | {"image_mean": None, "image_std": None},
        lambda: ViTImageProcessorPil(size=SQUARE, resample=2, do_normalize=False),
    ),
}


def assert_same_pixels(ours, theirs):
    with Image.open(PHOTO) as image:
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours(image, return_tensors="pt")["pixel_values"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("age", PROCESSORS)
def test_a_processor_of_any_age_gives_the_same_pixels(tmp_path, age):
    saved, make = PROCESSORS[age]
    write(tmp_path, transformers.ViTModel(vit(image_size=224, patch_size=56)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    _, processor, _ = vitrail.load(tmp_path)
    assert isinstance(processor, vitrail.VitrailImageProcessor)
    assert_same_pixels(processor, make())


@pytest.mark.parametrize(
    "theirs",
    [
        ViTImageProcessorPil(size={"height": 64, "width": 48}, **IMAGENET),
        BitImageProcessorPil(size={"shortest_edge": 80}, crop_size={"height": 64, "width": 48}),
    ],
    ids=lambda theirs: type(theirs).__name__,
)
def test_what_transformers_saves_today_gives_the_same_pixels(tmp_path, theirs):
    write(tmp_path, transformers.ViTModel(vit()))
    theirs.save_pretrained(tmp_path)
    assert_same_pixels(vitrail.load(tmp_path)[1], theirs)


def test_a_saved_processor_goes_with_another_number_of_channels(tmp_path):
    write(tmp_path, transformers.ViTModel(vit()))
    ViTImageProcessorPil(size={"height": 32, "width": 32}, **IMAGENET).save_pretrained(tmp_path)
    _, processor, _ = vitrail.load(tmp_path, num_channels=1)
    with Image.open(PHOTO) as image:
        assert processor(image.convert("L"), return_tensors="pt")["pixel_values"].shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("model", "theirs"),
    [
        ("vit", ViTImageProcessorPil(size={"height": 32, "width": 32})),
        ("dinov2", BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=SQUARE, **IMAGENET)),
    ],
)
def test_without_a_processor_it_is_what_the_family_does(tmp_path, model, theirs):
    assert_same_pixels(vitrail.load(write(tmp_path, MODELS[model]()))[1], theirs)


# ------------------------------------------------------------------------------------------------------------- other classes


BACKBONES = {
    "Dinov2Backbone": lambda **fields: transformers.Dinov2Backbone(dinov2(**fields)),
    "Dinov2WithRegistersBackbone": lambda **fields: transformers.Dinov2WithRegistersBackbone(registers(**fields)),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("options", [{"out_indices": [1, 3]}, {"out_features": ["stage2"], "apply_layernorm": False}])
@torch.no_grad()
def test_a_backbone_keeps_its_stages(tmp_path, name, options):
    theirs = with_random_weights(BACKBONES[name](**options))
    theirs.save_pretrained(tmp_path / "theirs")
    encoder, image_processor, report = vitrail.load(tmp_path / "theirs")
    assert any("vitrail.ViTBackbone" in warning for warning in report.warnings)
    vitrail.save(encoder, image_processor, tmp_path / "ours")
    ours = vitrail.ViTBackbone.from_pretrained(tmp_path / "ours")
    pixel_values = torch.randn(1, 3, 48, 24)
    found, expected = ours(pixel_values).feature_maps, theirs(pixel_values).feature_maps
    assert len(found) == len(expected) == len(theirs.out_features)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.ViTForImageClassification(vit(num_labels=0)), "names a classifier, but the file has none"),
        (lambda: transformers.Dinov2ForImageClassification(dinov2(num_labels=0)), "names a classifier, but the file has none"),
        (MODELS["vit_mae, decoder"], "the decoder of the pre-training is left out"),
        (MODELS["vit, masked image modeling"], "the decoder of the pre-training is left out"),
        (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT)), "ViTMAE masks patches at random"),
        (MODELS["vit"], 'preset="google-hub" is assumed (images of 32x32 pixels, mean 0.5, std 0.5)'),
        (MODELS["dinov2"], 'preset="dinov2" is assumed (images of 224x224 pixels, mean 0.485, 0.456, 0.406'),
    ],
)
def test_what_differs_or_is_assumed_is_a_warning(tmp_path, make, message):
    report = vitrail.load(write(tmp_path, make()))[2]
    assert any(message in warning for warning in report.warnings)


def test_a_bare_file_needs_its_config(tmp_path):
    torch.save(MODELS["vit, classifier"]().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"names are those of transformers: pass the folder.*config\.json"):
        vitrail.load(tmp_path / "vit.pth")


def test_the_model_classes_refuse_folders_of_other_models(tmp_path):
    """transformers would initialize an encoder at random, and say so in a log."""
    write(tmp_path, MODELS["vit"]())
    for model_class in (vitrail.ViTModel, vitrail.ViTForImageClassification, vitrail.ViTBackbone, vitrail.ViTConfig):
        with pytest.raises(ValueError, match=r'model type "vit"; expected "vitrail"\. Load the checkpoint with vitrail\.load'):
            model_class.from_pretrained(tmp_path)
