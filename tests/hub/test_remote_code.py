"""The code that goes with a model: it is the package's, and works where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_relative_import_files

import vitrail
from small_models import TINY, randomize, tiny_config
from vitrail.hub.remote_code import flat_code, remove_code
from vitrail.model_cards.model_folder import CODE_NAMES

PACKAGE = Path(vitrail.__file__).parent
SOURCES = {
    "configuration_vit.py": "configuration/configuration_vit.py",
    "modeling_vit.py": "modeling/modeling_vit.py",
    "modeling_vit_dense.py": "modeling/modeling_vit_dense.py",
    "image_processing_vit.py": "processing/image_processing_vit.py",
}
# Together they reach every module of the model
ARCHITECTURES = {
    "registers": {"num_register_tokens": 3, "mlp_type": "swiglu", "layer_scale_init_value": 0.1, "use_mask_token": True},
    "relative-mlp": {"position_embedding_type": "relative_mlp", "pooling": "avg", "norm_before_pooling": False},
    "relative-table": {"position_embedding_type": "relative_table", "use_cls_token": False, "pooling": "avg"},
    "two-layers": {"classifier_cls_layers": 2, "classifier_mean_patch": True, "position_interpolation_offset": 0.1},
}

WITHOUT_VITRAIL = """
import sys
sys.modules["vitrail"] = None  # an import of it raises
import json, torch
from pathlib import Path
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling
from transformers import AutoModelForDepthEstimation, pipeline

root = Path(sys.argv[1])
photo = Image.open(root / "photo.png")
outputs = {}
for folder in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "depth"):
    trusted = {"trust_remote_code": True}
    processors = {backend: AutoImageProcessor.from_pretrained(folder, backend=backend, **trusted) for backend in ("pil", "torch")}
    pixel_values = {backend: processor(photo, return_tensors="pt")["pixel_values"] for backend, processor in processors.items()}
    model = AutoModel.from_pretrained(folder, **trusted).eval()
    classifier = AutoModelForImageClassification.from_pretrained(folder, **trusted).eval()
    for made in (AutoConfig.from_pretrained(folder, **trusted), model, classifier, *processors.values()):
        assert type(made).__module__.startswith("transformers_modules."), type(made)
    with torch.no_grad():
        outputs[folder.name] = {
            **pixel_values,
            "pooled": model(pixel_values["pil"]).pooler_output,
            "logits": classifier(pixel_values["pil"]).logits,
        }
    classifier.save_pretrained(root / "again" / folder.name)
    again = AutoModelForImageClassification.from_pretrained(root / "again" / folder.name, **trusted).eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values["pil"]).logits, outputs[folder.name]["logits"])
painter = AutoModelForMaskedImageModeling.from_pretrained(root / "registers", **trusted)
assert type(painter).__name__ == "ViTForMaskedImageModeling"
photos = [photo, photo.transpose(Image.Transpose.ROTATE_180), photo.transpose(Image.Transpose.ROTATE_90)]
extract = pipeline("image-feature-extraction", model=str(root / "registers"), batch_size=2, **trusted)
assert type(extract.model).__module__.startswith("transformers_modules."), type(extract.model)
outputs["features"] = torch.cat(extract(photos, pool=True, return_tensors=True))
classify = pipeline("image-classification", model=str(root / "two-layers"), batch_size=2, **trusted)
scores = [{label["label"]: label["score"] for label in labels} for labels in classify(photos)]
outputs["scores"] = torch.tensor([[labels[f"LABEL_{number}"] for number in range(3)] for labels in scores])
depth = pipeline("depth-estimation", model=str(root / "depth"), **trusted)
assert type(depth.model).__module__.startswith("transformers_modules."), type(depth.model)
outputs["depth"] = depth(photo)["predicted_depth"]
torch.save(outputs, root / "outputs.pt")
"""


def small(**fields):
    torch.manual_seed(0)
    model = vitrail.ViTForImageClassification(tiny_config(num_labels=3, **fields)).eval()
    return randomize(model), vitrail.make_image_processor("dino", image_size=32)


@pytest.fixture
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", CODE_NAMES)
def test_the_code_is_that_of_the_package(name):
    header, *lines = flat_code(SOURCES[name]).split("\n")
    package = (PACKAGE / SOURCES[name]).read_text(encoding="utf-8").split("\n")
    assert header.startswith(f"# {SOURCES[name]} of vitrail {vitrail.__version__}")
    changed = [(ours, theirs) for ours, theirs in zip(lines, package, strict=True) if ours != theirs]
    imports = [("from .configuration_vit import ViTConfig", "from ..configuration.configuration_vit import ViTConfig")]
    assert changed == (imports if name.startswith("modeling_") else [])


def test_two_folders_hold_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        vitrail.save(*small(), tmp_path / name / "model")
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name / "model").iterdir()} for name in ("one", "two"))
    assert one == two
    assert set(CODE_NAMES) < one.keys()


def test_transformers_finds_every_file_that_the_code_needs(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    needed = get_relative_import_files(tmp_path / "model" / "modeling_vit.py")
    assert [Path(file).name for file in needed] == ["configuration_vit.py"]
    for name in ("configuration_vit.py", "image_processing_vit.py"):
        assert get_relative_import_files(tmp_path / "model" / name) == []


def test_without_vitrail_the_outputs_are_identical(tmp_path, photo):
    """A process that cannot import the package: the model, the classifier and both backends of the image processor."""
    photo.save(tmp_path / "photo.png")
    expected, models = {}, {}
    for name, fields in ARCHITECTURES.items():
        model, image_processor = small(**fields)
        vitrail.save(model, image_processor, tmp_path / name)
        pixel_values = {b: image_processor(photo, backend=b, return_tensors="pt")["pixel_values"] for b in ("pil", "torch")}
        with torch.no_grad():
            pooled, logits = model.vit(pixel_values["pil"]).pooler_output, model(pixel_values["pil"]).logits
        expected[name] = {**pixel_values, "pooled": pooled, "logits": logits}
        models[name] = model
    fields = {"num_hidden_layers": 4, "dense_layers": [0, 1, 2, 3], "depth_head": "dpt", "depth_fusion_size": 16}
    dense = randomize(vitrail.ViTForDepthEstimation(tiny_config(**fields)).eval())
    image_processor = vitrail.VitrailImageProcessor(do_resize=False, do_center_crop=False)
    vitrail.save(dense, image_processor, tmp_path / "depth")
    with torch.no_grad():
        depth = dense(image_processor(photo, return_tensors="pt")["pixel_values"]).predicted_depth[0]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT_VITRAIL, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(found.pop("depth"), depth, atol=1e-5, rtol=0)  # oneDNN chooses how to convolve in each process
    photos = [photo, photo.transpose(Image.Transpose.ROTATE_180), photo.transpose(Image.Transpose.ROTATE_90)]
    pixel_values = small()[1](photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features, scores = (
            models["registers"].vit(pixel_values).pooler_output,
            models["two-layers"](pixel_values).logits.softmax(-1),
        )
    torch.testing.assert_close(found.pop("features"), features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pop("scores"), scores, atol=1e-5, rtol=1e-5)
    assert scores.std(0).max() > 1e-3  # otherwise every order would be right
    assert found.keys() == expected.keys()
    for name, outputs in expected.items():
        for key, value in outputs.items():
            assert torch.equal(found[name][key], value), (name, key)


@pytest.mark.parametrize("trust_remote_code", [None, True])
def test_where_vitrail_is_installed_its_own_code_is_used(tmp_path, trust_remote_code):
    vitrail.save(*small(), tmp_path)
    classes = {
        AutoConfig: vitrail.ViTConfig,
        AutoModel: vitrail.ViTModel,
        AutoModelForImageClassification: vitrail.ViTForImageClassification,
        AutoModelForMaskedImageModeling: vitrail.ViTForMaskedImageModeling,
        AutoImageProcessor: vitrail.VitrailImageProcessor,
    }
    for auto, expected in classes.items():
        assert type(auto.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)) is expected


def test_save_pretrained_carries_the_code(tmp_path):
    model, image_processor = small()
    model.save_pretrained(tmp_path / "model")
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "configuration_vit.py",
        "modeling_vit.py",
        "modeling_vit_dense.py",
    }
    assert image_processor.save_pretrained(tmp_path / "images") == [str(tmp_path / "images" / "preprocessor_config.json")]
    assert {file.name for file in (tmp_path / "images").iterdir()} == {"preprocessor_config.json", "image_processing_vit.py"}


def test_the_trainer_carries_the_code(tmp_path):
    model, image_processor = small()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    Trainer(model=model, args=arguments, processing_class=image_processor).save_model()
    assert set(CODE_NAMES) < {file.name for file in tmp_path.iterdir()}
    assert "auto_map" in json.loads((tmp_path / "config.json").read_text())


def test_a_model_of_transformers_is_saved_as_ever(tmp_path):
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    ViTModel(ViTConfig(**TINY)).save_pretrained(tmp_path)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    assert not [file.name for file in tmp_path.iterdir() if file.suffix == ".py"]
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads((tmp_path / name).read_text())


def test_other_models_in_the_same_folder_are_left_alone(tmp_path):
    """Our image processor next to a model of transformers, and our model next to an image processor of transformers."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    model, image_processor = small()
    ViTModel(ViTConfig(**TINY)).save_pretrained(tmp_path / "their-model")
    image_processor.save_pretrained(tmp_path / "their-model")
    assert "auto_map" not in json.loads((tmp_path / "their-model" / "config.json").read_text())
    assert not (tmp_path / "their-model" / "modeling_vit.py").exists()
    assert type(AutoModel.from_pretrained(tmp_path / "their-model")) is ViTModel
    ViTImageProcessorPil().save_pretrained(tmp_path / "their-processor")
    model.save_pretrained(tmp_path / "their-processor")
    assert "auto_map" not in json.loads((tmp_path / "their-processor" / "preprocessor_config.json").read_text())
    assert not (tmp_path / "their-processor" / "image_processing_vit.py").exists()


def test_code_false_leaves_nothing_of_it(tmp_path):
    """A folder keeps neither its earlier content nor the entries of the loaded config."""
    vitrail.save(*small(), tmp_path / "model")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    image_processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    vitrail.save(model, image_processor, tmp_path / "model", code=False)
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "README.md",
    }
    for name in ("config.json", "preprocessor_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "model" / name).read_text())
    assert type(AutoModel.from_pretrained(tmp_path / "model")) is vitrail.ViTModel


def test_remove_code_leaves_the_other_files(tmp_path):
    (tmp_path / "notes.py").write_text("")
    remove_code(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.py"]
