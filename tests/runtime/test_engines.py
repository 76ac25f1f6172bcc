"""CompiledModel of onnxruntime and OpenVINO against torch."""

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

import paths
from small_models import make_images, make_model, randomize, tiny_model
from vitrail.errors import VitrailError
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.processing.presets import make_image_processor
from vitrail.runtime.graph_engines import build_onnxruntime, build_openvino, threads_for_each
from vitrail.utils.optional import import_without_telemetry

PHOTOS = paths.IMAGES
BUILDERS = {"onnxruntime": build_onnxruntime, "openvino": build_openvino}


class Pooled(torch.nn.Module):
    """Returns the pooled output of the model and the mean of its patches."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, pixel_values):
        outputs = self.vit(pixel_values)
        return outputs.pooler_output, outputs.last_hidden_state[:, 1:].mean(dim=1)


@pytest.fixture(scope="module")
def module():
    return Pooled(make_model(ViTModel, "absolute", num_hidden_layers=1))


@pytest.fixture(scope="module")
def photos():
    """Nine crops of three photos, of 64x64 pixels."""
    images = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    crops = [image.crop((left, left, left + 200, left + 200)) for left in (0, 40, 80) for image in images]
    return make_image_processor("dino", image_size=64)(crops, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module", params=BUILDERS)
def compiled(request, module):
    """Built for two callers, at a size that is not the model's."""
    example = make_images(module.vit.config, batch_size=1, grid=(3, 5))
    return BUILDERS[request.param](module, example, precision="float32", calibration=None, num_streams=2)


@torch.inference_mode()
def test_engines_agree_with_torch(module, compiled):
    for batch_size in (1, 3):
        images = make_images(module.vit.config, batch_size=batch_size, grid=(3, 5), seed=batch_size)
        torch.testing.assert_close(compiled(images), module(images), atol=1e-5, rtol=1e-5)
        apart = images.transpose(2, 3).contiguous().transpose(2, 3)  # in another order in memory
        torch.testing.assert_close(compiled(apart), module(images), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_several_threads_call_a_compiled_model_together(module, compiled):
    batches = [make_images(module.vit.config, batch_size=1 + seed % 3, grid=(3, 5), seed=seed) for seed in range(24)]
    expected = [module(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(compiled, batches))  # all are kept: a later output does not overwrite an earlier one
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "package", "extra"), [(build_onnxruntime, "onnxscript", "onnx"), (build_openvino, "nncf", "openvino")]
)
def test_missing_packages(build, package, extra, module, monkeypatch):
    find = sys.modules["vitrail.utils.optional"].find_spec
    monkeypatch.setattr("vitrail.utils.optional.find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(VitrailError, match=rf'not installed \({package}\): pip install "\.\[{extra}\]"'):
        build(module, make_images(module.vit.config), precision="float32", calibration=None, num_streams=1)


@torch.inference_mode()
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_int8_is_near_float32_and_quiet(build, photos, capfd, caplog):
    model = tiny_model(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=3072, image_size=64)
    module = Pooled(randomize(model))
    handlers = list(logging.getLogger().handlers)
    compiled = build(module, photos[:1], precision="int8", calibration=photos[:6], num_streams=1)
    assert logging.getLogger().handlers == handlers
    assert (*capfd.readouterr(), [record for record in caplog.records if record.levelno > logging.INFO]) == ("", "", [])
    for output, expected in zip(compiled(photos[6:]), module(photos[6:]), strict=True):
        cosines = torch.nn.functional.cosine_similarity(output, expected)
        assert cosines.min() > 0.995
        assert (output - expected).abs().max() > 1e-3  # int8 does compute in fewer bits


def test_what_the_processor_has_no_instructions_for(module, monkeypatch):
    import_without_telemetry("openvino")
    monkeypatch.setattr("openvino.Core.get_property", lambda *names: ["FP32", "INT8"])
    with pytest.raises(
        VitrailError, match="does not support bfloat16 on this CPU, which supports FP32, INT8: choose float32 or int8"
    ):
        build_openvino(module, make_images(module.vit.config), precision="bfloat16", calibration=None, num_streams=1)


def test_nothing_is_reported_over_the_network(tmp_path):
    """nncf is silent when pytest is imported, so this runs in a process without pytest."""
    program = """
import sys
asked = []
sys.addaudithook(lambda event, arguments: asked.append(arguments) if event in ("socket.connect", "socket.getaddrinfo") else None)
import torch
from vitrail.runtime.graph_engines import build_openvino
module = torch.nn.Conv2d(3, 4, 8, 8)
module.forward = lambda images, forward=module.forward: (forward(images),)
images = torch.randn(4, 3, 16, 16)
build_openvino(module, images, precision="int8", calibration=images, num_streams=1)(images)
import nncf, openvino, time
time.sleep(0.5)  # a thread would report
print(asked, {name for name in sys.modules if name.startswith("openvino_telemetry")})
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert ended.stdout.strip() == "[] set()"
    assert not list(tmp_path.iterdir())


def test_threads_are_shared_out():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert [threads_for_each(number) for number in (1, 2, 3, 4, 8)] == [4, 2, 1, 1, 1]
    finally:
        torch.set_num_threads(threads)
