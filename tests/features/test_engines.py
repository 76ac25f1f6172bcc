"""Programs of onnxruntime and OpenVINO against torch."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from small_models import make_images, make_model
from vitrail.errors import VitrailError
from vitrail.features.engines import onnxruntime_program, openvino_program, threads_for_each
from vitrail.modeling.modeling_vit import ViTModel

BUILDERS = {"onnxruntime": onnxruntime_program, "openvino": openvino_program}


class Pooled(torch.nn.Module):
    """What the model pools, and the mean of its patches."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, pixel_values):
        outputs = self.vit(pixel_values)
        return outputs.pooler_output, outputs.last_hidden_state[:, 1:].mean(dim=1)


@pytest.fixture(scope="module")
def module():
    return Pooled(make_model(ViTModel, "absolute", num_hidden_layers=1))


@pytest.fixture(scope="module", params=BUILDERS)
def program(request, module):
    """Built for two callers, at a size that is not the model's."""
    example = make_images(module.vit.config, batch_size=1, grid=(3, 5))
    return BUILDERS[request.param](module, example, precision="float32", calibration=None, num_streams=2)


@torch.inference_mode()
def test_programs_answer_as_torch_does(module, program):
    for batch_size in (1, 3):
        images = make_images(module.vit.config, batch_size=batch_size, grid=(3, 5), seed=batch_size)
        torch.testing.assert_close(program(images), module(images), atol=1e-5, rtol=1e-5)
        apart = images.transpose(2, 3).contiguous().transpose(2, 3)  # in another order in memory
        torch.testing.assert_close(program(apart), module(images), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_several_threads_call_a_program_at_once(module, program):
    batches = [make_images(module.vit.config, batch_size=1 + seed % 3, grid=(3, 5), seed=seed) for seed in range(24)]
    expected = [module(batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(program, batches))  # all are kept: none is written over by a later one
    torch.testing.assert_close(answers, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_building_leaves_the_module_as_it_was(build):
    module = Pooled(make_model(ViTModel, "relative_mlp", num_hidden_layers=1, use_cls_token=False)).to(torch.bfloat16).train()
    before = copy.deepcopy(module)
    example = make_images(module.vit.config)
    program = build(module, example, precision="float32", calibration=None, num_streams=1)
    assert module.training
    for (name, tensor), expected in zip(module.state_dict().items(), before.state_dict().values(), strict=True):
        assert tensor.dtype == torch.bfloat16, name
        assert torch.equal(tensor, expected), name
    with torch.no_grad():
        torch.testing.assert_close(program(example), before.float().eval()(example), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_precisions_that_an_engine_has_not(build, module, monkeypatch):
    example = make_images(module.vit.config)
    engine = next(name for name, known in BUILDERS.items() if known is build)
    with pytest.raises(VitrailError, match=f"{engine} does not compute in float8 on a processor: choose float32"):
        build(module, example, precision="float8", calibration=None, num_streams=1)


def test_half_precision_of_onnxruntime(module):
    with pytest.raises(VitrailError, match="or the engine openvino"):
        onnxruntime_program(module, make_images(module.vit.config), precision="bfloat16", calibration=None, num_streams=1)


@pytest.mark.parametrize(
    ("build", "package", "extra"), [(onnxruntime_program, "onnxscript", "onnx"), (openvino_program,) + ("openvino",) * 2]
)
def test_missing_packages(build, package, extra, module, monkeypatch):
    find = sys.modules["vitrail.convert.packages"].find_spec
    monkeypatch.setattr("vitrail.convert.packages.find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(VitrailError, match=rf'not installed \({package}\): pip install "vitrail\[{extra}\]"'):
        build(module, make_images(module.vit.config), precision="float32", calibration=None, num_streams=1)


def test_threads_are_shared_out():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert [threads_for_each(number) for number in (1, 2, 3, 4, 8)] == [4, 2, 1, 1, 1]
    finally:
        torch.set_num_threads(threads)
