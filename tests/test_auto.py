"""The Auto classes build our classes from our config, and nothing changes for anyone else."""

import importlib
import json
import pkgutil
import subprocess
import sys
import types

import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForSemanticSegmentation,
)
from transformers.models import auto
from transformers.models.auto import auto_factory
from transformers.models.auto.auto_factory import _LazyAutoMapping

import vitrail

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
BUILT = {
    AutoModel: vitrail.ViTModel,
    AutoModelForImageClassification: vitrail.ViTForImageClassification,
    AutoModelForMaskedImageModeling: vitrail.ViTForMaskedImageModeling,
    AutoModelForSemanticSegmentation: vitrail.ViTForSemanticSegmentation,
    AutoModelForDepthEstimation: vitrail.ViTForDepthEstimation,
    AutoBackbone: vitrail.ViTBackbone,
}


@pytest.fixture(autouse=True)
def _local_folders_for_auto_backbone(monkeypatch):
    """`AutoBackbone.from_pretrained` queries the Hub for a repository of that name even when it receives a folder."""
    monkeypatch.setattr(auto_factory, "hf_api", lambda: types.SimpleNamespace(repo_exists=lambda name: True))


def mappings():
    """Every mapping from config classes that transformers' Auto classes look into, by name."""
    modules = [importlib.import_module(f"{auto.__name__}.{module.name}") for module in pkgutil.iter_modules(auto.__path__)]
    return {name: value for module in modules for name, value in vars(module).items() if isinstance(value, _LazyAutoMapping)}


# -------------------------------------------------------------------------------------------------------------- our classes


def test_every_mapping_that_knows_transformers_vit_knows_ours():
    """Else it would build transformers' model from our config, because configs are looked up by the name of their class."""
    by_name = {name: mapping for name, mapping in mappings().items() if transformers.ViTConfig in mapping}
    assert {"MODEL_MAPPING", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "IMAGE_PROCESSOR_MAPPING"} <= by_name.keys()
    for name, mapping in by_name.items():
        ours, theirs = mapping[vitrail.ViTConfig], mapping[transformers.ViTConfig]
        for classes, package in ((ours, "vitrail"), (theirs, "transformers")):
            for found in classes.values() if isinstance(classes, dict) else [classes]:
                module = found.__module__ if isinstance(found, type) else "transformers"  # theirs may be kept by name
                assert module.split(".")[0] == package, f"{name} gives {found}"


def test_every_mapping_that_has_our_config_gives_our_class():
    for name, mapping in mappings().items():
        if vitrail.ViTConfig in mapping:
            assert vitrail.ViTConfig in mapping._extra_content, f"{name} finds transformers' ViT for our config"


def test_the_config_is_found_by_its_model_type(tmp_path):
    config = AutoConfig.for_model("vitrail", **SMALL)
    assert type(config) is vitrail.ViTConfig
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vitrail"
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is vitrail.ViTConfig
    assert loaded.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    assert loaded.image_size == 32


@pytest.mark.parametrize("auto_class", BUILT)
def test_auto_classes_build_and_load_our_classes(auto_class, tmp_path):
    torch.manual_seed(0)
    model = auto_class.from_config(vitrail.ViTConfig(**SMALL, use_mask_token=True, num_labels=4)).eval()
    assert type(model) is BUILT[auto_class]
    model.save_pretrained(tmp_path)
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is BUILT[auto_class]
    assert not any(info.values())
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        for ours, theirs in zip(model(images).to_tuple(), loaded(images).to_tuple(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@pytest.mark.parametrize("auto_class", BUILT)
def test_any_auto_class_loads_the_folder_of_an_encoder(auto_class, tmp_path):
    encoder = vitrail.ViTModel(vitrail.ViTConfig(**SMALL))
    encoder.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is BUILT[auto_class]
    tokens = loaded if auto_class is AutoModel else loaded.vit
    assert torch.equal(tokens.layers[-1].mlp.fc2.weight, encoder.layers[-1].mlp.fc2.weight)


@torch.no_grad()
def test_auto_backbone_takes_stages_and_options(tmp_path):
    encoder = vitrail.ViTModel(vitrail.ViTConfig(**SMALL)).eval()
    encoder.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 48)
    hidden_states = encoder(images, output_hidden_states=True).hidden_states
    for stages in ({"out_features": ["stage1", "stage3"]}, {"out_indices": [1, 3]}, {"out_indices": (1, -1)}):
        backbone = AutoBackbone.from_pretrained(tmp_path, **stages)
        assert backbone.out_features == ["stage1", "stage3"]
        assert backbone.channels == [32, 32]
        maps = backbone(images).feature_maps
        expected = [encoder.layernorm(hidden_states[stage])[:, 1:].transpose(1, 2).reshape(2, 32, 4, 6) for stage in (1, 3)]
        torch.testing.assert_close(list(maps), expected)
    backbone = AutoBackbone.from_pretrained(tmp_path, apply_layernorm=False, reshape_hidden_states=False)
    torch.testing.assert_close(backbone(images).feature_maps, (hidden_states[3],))


def test_registering_again_changes_nothing():
    before = {name: dict(mapping._extra_content) for name, mapping in mappings().items()}
    vitrail.auto.register()
    assert {name: dict(mapping._extra_content) for name, mapping in mappings().items()} == before


@pytest.mark.parametrize("backend", [None, "pil", "torch"])
def test_the_image_processor_is_found_with_every_backend(backend, tmp_path):
    vitrail.ViTConfig(**SMALL).save_pretrained(tmp_path)
    saved = vitrail.make_image_processor("dino", image_size=32)
    saved.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path, **({"backend": backend} if backend else {}))
    assert isinstance(processor, vitrail.VitrailImageProcessor)
    assert processor.backend == (backend or saved.backend)
    image = Image.effect_noise((60, 40), 50).convert("RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixel_values, saved(image, return_tensors="pt")["pixel_values"], atol=0.05, rtol=0)


def test_the_image_processor_is_found_by_the_config_alone(tmp_path):
    """A folder whose preprocessor_config.json names no class."""
    vitrail.ViTConfig(**SMALL).save_pretrained(tmp_path)
    vitrail.make_image_processor("dino", image_size=32).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "image_processor_type"})
    )
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), vitrail.VitrailImageProcessor)


# --------------------------------------------------------------------------------------------------------- everyone else's

BEFORE_AND_AFTER = """
import importlib, json, pkgutil, sys
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.models import auto
from transformers.models.auto.auto_factory import _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

modules = [importlib.import_module(f"{auto.__name__}.{module.name}") for module in pkgutil.iter_modules(auto.__path__)]
mappings = {n: m for module in modules for n, m in vars(module).items() if isinstance(m, _LazyAutoMapping)}
folders = sys.argv[1:]
other_configs = [transformers.ViTConfig, transformers.Dinov2Config, transformers.Dinov2WithRegistersConfig, transformers.DeiTConfig]

def state():
    found = {}
    for name, mapping in mappings.items():
        ours = {k: v for k, v in mapping._extra_content.items() if k.__module__.startswith("vitrail")}
        found[f"{name} names"] = {k: str(v) for k, v in mapping._model_mapping.items()}
        found[f"{name} configs"] = dict(mapping._config_mapping)
        found[f"{name} reverse"] = dict(mapping._reverse_config_mapping)
        found[f"{name} extra"] = {str(k): str(v) for k, v in mapping._extra_content.items() if k not in ours}
        found[f"{name} length"] = len(mapping) - len(ours)
        for config in other_configs:
            found[f"{name} {config}"] = str(mapping.get(config, None))
    found["configs"] = {k: str(v) for k, v in CONFIG_MAPPING._extra_content.items() if k != "vitrail"}
    found["vit config"] = str(CONFIG_MAPPING["vit"])
    found["image processors"] = {k: {b: str(c) for b, c in v.items()} for k, v in IMAGE_PROCESSOR_MAPPING_NAMES.items()}
    for folder in folders:
        found[folder] = [str(type(c.from_pretrained(folder))) for c in (AutoConfig, AutoModel, AutoImageProcessor)]
        found[folder] += [str(type(AutoImageProcessor.from_pretrained(folder, backend="pil")))]
    return found

before = state()
import vitrail
assert transformers.models.auto.modeling_auto.MODEL_MAPPING[vitrail.ViTConfig] is vitrail.ViTModel
after = state()
print(json.dumps({"changed": {k: [before[k], after.get(k)] for k in before if before[k] != after.get(k)},
                  "found": {folder: after[folder] for folder in folders}}))
"""


def save_transformers_model(folder, config, model_class, processor_class):
    model_class(config).save_pretrained(folder)
    processor_class(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_importing_changes_nothing_for_other_models(tmp_path):
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    vit = transformers.ViTConfig(**SMALL)
    dinov2 = transformers.Dinov2Config(**{key: value for key, value in SMALL.items() if key != "intermediate_size"})
    folders = [
        save_transformers_model(tmp_path / "vit", vit, transformers.ViTModel, ViTImageProcessorPil),
        save_transformers_model(tmp_path / "dinov2", dinov2, transformers.Dinov2Model, BitImageProcessorPil),
    ]
    ended = subprocess.run([sys.executable, "-c", BEFORE_AND_AFTER, *folders], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    output = json.loads(ended.stdout.splitlines()[-1])
    assert output["changed"] == {}
    for folder, name in zip(folders, ("vit", "dinov2"), strict=True):
        for found in output["found"][folder]:
            assert "'transformers." in found
        assert f"transformers.models.{name}.configuration" in output["found"][folder][0]
        assert f"transformers.models.{name}.modeling" in output["found"][folder][1]


def test_a_transformers_vit_loads_next_to_ours(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is transformers.ViTConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is transformers.ViTModel
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is transformers.ViTForImageClassification
    assert type(AutoModelForMaskedImageModeling.from_pretrained(tmp_path)) is transformers.ViTForMaskedImageModeling


def test_heads_of_transformers_that_compute_with_sizes():
    """DPT and LLaVA-NeXT divide by the size of a patch, which is one number in the backbones of transformers."""
    backbone = vitrail.ViTConfig(**SMALL, out_indices=[0, 1, 2, 3], reshape_hidden_states=False)
    widths = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
    model = transformers.DPTForDepthEstimation(transformers.DPTConfig(backbone_config=backbone, **widths)).eval()
    assert model(torch.zeros(1, 3, 32, 32)).predicted_depth.shape == (1, 64, 64)
