import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import vitrail
from fuzzing import Fuzzer
from small_models import randomize, tiny_model
from vitrail.modeling.modeling_vit import ViTForImageClassification

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16}
GOOGLE = {"hidden_act": "gelu_pytorch_tanh", "position_interpolation_mode": "bilinear"}


@pytest.fixture
def fuzz(request):
    """Judge damaged inputs: see `Fuzzer`."""
    return Fuzzer(request.node.nodeid)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder with a model in every container and layout, by the name of its kind."""
    folder = tmp_path_factory.mktemp("sources")
    image_processor = vitrail.make_image_processor("inception", image_size=16)
    for name, fields in {"vitrail": {}, "google": GOOGLE}.items():
        model = randomize(tiny_model(ViTForImageClassification, **SMALL, **fields, num_labels=3))
        vitrail.save(model, image_processor, folder / name, code=False)
    vitrail.export_model(folder / "vitrail", folder / "dino.pth", to="dino")
    vitrail.export_model(folder / "google", folder / "google.npz", to="google")
    (folder / "google.npz").rename(folder / "npz")
    for to in ("transformers", "timm"):
        vitrail.export_model(folder / "vitrail", folder / to, to=to)
    shutil.copytree(folder / "vitrail", folder / "shards", ignore=lambda *_: ["model.safetensors"])
    model.save_pretrained(folder / "shards", max_shard_size="10KB")
    tensors = torch.load(folder / "dino.pth", weights_only=True)
    torch.save(tensors, folder / "torch-zip")
    torch.save(tensors, folder / "torch-legacy", _use_new_zipfile_serialization=False)
    for kind in ("torch-zip", "npz"):
        with zipfile.ZipFile(folder / kind) as stored, zipfile.ZipFile(folder / f"{kind}-deflated", "w") as packed:
            for member in stored.namelist():
                packed.writestr(member, stored.read(member), zipfile.ZIP_DEFLATED)
    return folder


@pytest.fixture(scope="session")
def everything_about():
    """The function that loads a model and returns everything that loading determines, to compare."""

    def load(source: Path) -> dict[str, object]:
        model, image_processor, _ = vitrail.load(source, num_heads=2)
        state = {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()}
        return state | {"config": model.config.to_json_string(), "image processor": image_processor.to_json_string()}

    return load
