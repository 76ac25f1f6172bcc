"""Every Python block of README and docs/ runs, on a small model and small images; the blocks of one page share their names."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

import deterministic
import paths
import vitrail
from documentation import PAGES, blocks, load_generator, page_id
from image_folders import write_images

# README and the quickstart run with their outputs (test_generated.py); api.md shows signatures
OTHERS = {*load_generator().RUN, paths.CHECKOUT / "docs" / "reference" / "api.md"}
if not find_spec("torchao"):  # `make test-quantization` brings the packages of this page
    OTHERS.add(paths.CHECKOUT / "docs" / "guides" / "quantization.md")
WITH_PYTHON = [page for page in PAGES if page not in OTHERS and blocks(page, "python")]
# Numbers of the pages that would take too long here
SMALLER = {
    "guides/pretraining.md": {
        "num_train_epochs=20, warmup_epochs=2, per_device_train_batch_size=32": (
            "num_train_epochs=1, warmup_epochs=0, per_device_train_batch_size=2, num_prototypes=64, max_steps=1, use_cpu=True"
        ),
        "vitrail.DINO_AUGMENTATION": "SMALL_AUGMENTATION",
        "vitrail.DINOV2_AUGMENTATION": "SMALL_AUGMENTATION",
        "num_train_epochs=30, per_device_train_batch_size=64": (
            "num_train_epochs=1, warmup_epochs=0, per_device_train_batch_size=2, max_steps=1, use_cpu=True"
        ),
        'recipe="adapt"': "recipe=SHORT_ADAPTATION",
    },
    "guides/evaluation.md": {'recipe="quick"': "recipe=SHORT_RECIPE"},
    "guides/dense.md": {'recipe="dinov3"': "recipe=SHORT_DENSE_RECIPE"},
    "guides/fine-tuning.md": {'report_to="none"': 'report_to="none", use_cpu=True', "num_train_epochs=3": "num_train_epochs=1"},
}


def write_dino_files(folder):
    """The checkpoint on board and a linear classifier, in float32, named as the published files are."""
    teacher = torch.load(paths.EXAMPLES / "digits" / "dino_vit_digits.pth", weights_only=True)["teacher"]
    torch.save({"teacher": {name: tensor.float() for name, tensor in teacher.items()}}, folder / "dino_deitsmall8_pretrain.pth")
    head = {
        "module.linear.weight": deterministic.weight("linear.weight", {"shape": [2, 4 * 128], "offset": 0.0, "scale": 0.1}),
        "module.linear.bias": torch.zeros(2),
    }
    torch.save({"state_dict": head}, folder / "dino_deitsmall8_linearweights.pth")


def write_dinov2_files(folder):
    """A small DINOv2 and two dense heads for it, named as the published files are."""
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), folder / "dinov2_vits14_pretrain.pth")
    shapes = {
        "nyu_linear": {"conv_depth.weight": (256, 256, 1, 1), "conv_depth.bias": (256,)},
        "ade20k_linear": {"conv_seg.weight": (150, 128, 1, 1), "conv_seg.bias": (150,)}
        | {f"bn.{name}": (128,) for name in ("weight", "bias", "running_mean", "running_var")},
    }
    for name, tensors in shapes.items():
        head = {f"decode_head.{key}": torch.full(shape, 0.1) for key, shape in tensors.items()}
        torch.save({"meta": {}, "state_dict": head}, folder / f"dinov2_vits14_{name}_head.pth")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Create the files that the pages call photo.jpg, photos/, images/, dino-vits8/ and so on."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("photo.jpg", "another.png", "a.jpg", "b.jpg"):
        with Image.open(paths.EXAMPLES / "chelsea.jpg") as image:
            image.resize((96, 72)).save(folder / name)
    write_images(folder / "photos", 6)
    write_images(folder / "images", 30)
    shutil.rmtree(next((folder / "images").iterdir()))  # two classes are left
    for part, channels in (("images", (3,)), ("masks", ())):
        (folder / "street" / part).mkdir(parents=True)
        for number in range(4):
            array = np.random.default_rng(number).integers(0, 3, (24, 32, *channels)).astype(np.uint8)
            Image.fromarray(array).save(folder / "street" / part / f"{number}.png")
    write_dino_files(folder)
    write_dinov2_files(folder)
    checkpoint, head = folder / "dino_deitsmall8_pretrain.pth", folder / "dino_deitsmall8_linearweights.pth"
    vitrail.convert_checkpoint(checkpoint, folder / "dino-vits8")
    vitrail.convert_checkpoint(checkpoint, folder / "user" / "dino-vits8")
    vitrail.convert_checkpoint(checkpoint, folder / "classifier", head=head)
    return folder


@pytest.fixture
def small_settings():
    """Names for what SMALLER puts in the place of long runs."""
    from dataclasses import replace

    from vitrail.evaluation.dense_recipes import DENSE_RECIPES
    from vitrail.evaluation.recipes import RECIPES
    from vitrail.pretraining.recipes import RECIPES as PRETRAINING_RECIPES

    crops = vitrail.DINO_AUGMENTATION
    small_crops = replace(
        crops,
        global_crops=tuple(replace(crop, size=32) for crop in crops.global_crops),
        local_crop=replace(crops.local_crop, size=16),
        num_local_crops=1,
    )
    adapt = PRETRAINING_RECIPES["adapt"]
    return {
        "SMALL_AUGMENTATION": small_crops,
        "SHORT_ADAPTATION": replace(
            adapt,
            epochs=1,
            batch_size=2,
            arguments={**adapt.arguments, "warmup_epochs": 0, "num_prototypes": 64},
            augmentation=small_crops,
        ),
        "SHORT_RECIPE": replace(RECIPES["quick"], iterations=5, batch_size=8),
        "SHORT_DENSE_RECIPE": replace(DENSE_RECIPES["segmentation"]["dinov3"], max_epochs=1),
    }


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_blocks_run(page, files, small_settings, tmp_path, monkeypatch, no_network, one_thread, cache_of_datasets):
    folder = tmp_path / "reader"
    shutil.copytree(files, folder)
    monkeypatch.chdir(folder)
    namespace = dict(small_settings)
    code = blocks(page, "python")
    for old, new in SMALLER.get(page_id(page).removeprefix("docs/"), {}).items():
        assert any(old in block for block in code), f"{old} is no longer on the page"
        code = [block.replace(old, new) for block in code]
    for block in code:
        exec(compile(block, page_id(page), "exec"), namespace)
