"""CompiledModel against the modules they are made of, by engines that torch itself has; the others are in test_engines.py."""

import threading
import warnings

import pytest
import torch
from torch import nn

from image_folders import small_model
from small_models import IMPORT_OF_THE_COMPILER
from vitrail.errors import VitrailError
from vitrail.features.feature_types import compute_features, feature_outputs, parse_features
from vitrail.runtime import compiled as module
from vitrail.runtime.compiled import DEFAULT_RUNTIME, Agreement, CompiledModel, Engine, Runtime

pytestmark = pytest.mark.usefixtures("one_thread")


def outputs_of(vit, *names):
    return feature_outputs(vit, parse_features(names or ("cls", "patches"), vit.config)).eval()


def images(number=3, size=32, seed=0):
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def broken(monkeypatch):
    """An engine with wrong outputs."""

    def build(module, example, **options):
        return lambda pixel_values: tuple(-output for output in module(pixel_values))

    monkeypatch.setitem(module.ENGINES, "eager", Engine(build, ("float32", "bfloat16", "float16"), fixed_size=False))


@pytest.fixture
def built(monkeypatch):
    """The examples and options that programs are built from, of an engine that fixes the size of images."""
    calls = []

    def build(module, example, **options):
        calls.append((example, options))
        return module

    monkeypatch.setitem(module.ENGINES, "openvino", Engine(build, ("float32", "int8"), fixed_size=True, devices=("cpu",)))
    return calls


def test_the_default_is_the_model_itself():
    vit = small_model()
    programs = CompiledModel(outputs_of(vit), DEFAULT_RUNTIME, batch_size=2)
    with torch.no_grad():
        expected = compute_features(vit, images(), parse_features(("cls", "patches"), vit.config))
        for output, wanted in zip(programs(images()), expected.values(), strict=True):
            assert torch.equal(output, wanted)
    assert programs.is_module
    assert programs.agreement == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_without_a_precision_it_is_that_of_the_weights(dtype):
    vit = small_model().to(dtype)
    programs = CompiledModel(outputs_of(vit, "mean"), DEFAULT_RUNTIME, batch_size=2)
    (output,) = programs(images())
    with torch.no_grad():
        expected = vit(images().to(dtype)).last_hidden_state[:, 1:].mean(dim=1)
    assert output.dtype == torch.float32
    assert torch.equal(output, expected.float())


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_another_precision_runs_a_copy_and_reports_how_near_it_comes(precision, dtype):
    vit = small_model()
    programs = CompiledModel(outputs_of(vit), Runtime(precision), batch_size=2)
    outputs = programs(images())
    assert vit.dtype == torch.float32
    with torch.no_grad():
        expected = outputs_of(vit)(images())
        rounded = outputs_of(small_model().to(dtype))(images().to(dtype))
    for output, own, wanted, agreement in zip(outputs, rounded, expected, programs.agreement, strict=True):
        assert torch.equal(output, own.float())
        rows, columns = output.double().flatten(1), wanted.double().flatten(1)
        cosines = (rows * columns).sum(1) / rows.norm(dim=1) / columns.norm(dim=1)
        assert agreement.cosine == pytest.approx(cosines.min().item(), abs=1e-9)
        assert agreement.max_difference == pytest.approx((output - wanted).abs().max().item())
        assert 0 < 1 - agreement.cosine < 1e-3


def test_a_half_precision_model_is_compared_with_float32_weights():
    vit = small_model().to(torch.bfloat16)
    programs = CompiledModel(outputs_of(vit), Runtime("float32"), batch_size=2)
    programs(images())
    assert all(agreement.cosine > 1 - 1e-9 for agreement in programs.agreement)


@IMPORT_OF_THE_COMPILER
def test_compiled_programs_take_any_number_of_images_from_any_thread():
    vit = small_model(num_hidden_layers=1)
    programs = CompiledModel(outputs_of(vit, "cls"), Runtime(engine="compile"), batch_size=2)
    with torch.no_grad():
        expected = outputs_of(vit, "cls")(images(5))[0]
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = {}

    def run(number):
        with torch.inference_mode():
            found[number] = programs(images(5)[:number])[0]

    run(2)
    after_first = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == after_first > compilations
    for number, output in found.items():
        torch.testing.assert_close(output, expected[:number], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_wrong_outputs_are_refused(broken, precision):
    programs = CompiledModel(outputs_of(small_model().to(torch.float16)), Runtime(precision), batch_size=2)
    with pytest.raises(VitrailError, match=r"outputs of eager in .* cosine similarity is -1"):
        programs(images())


def test_numbers_that_are_not_finite_are_refused():
    vit = small_model()
    with torch.no_grad():
        vit.layers[0].mlp.fc2.weight.mul_(1e30)
    with pytest.raises(VitrailError, match="nan"):
        CompiledModel(outputs_of(vit), Runtime("float16"), batch_size=2)(images())


def test_a_program_for_each_size_the_least_used_of_which_go(built, monkeypatch):
    monkeypatch.setattr(module, "MAX_SIZES", 2)
    programs = CompiledModel(outputs_of(small_model()), Runtime("float32", "openvino"), batch_size=3, num_streams=2)
    for size in (32, 64, 32, 96, 32, 64):
        programs(images(2, size))
    assert [tuple(example.shape) for example, _ in built] == [(3, 3, size, size) for size in (32, 64, 96, 64)]
    assert all(options["num_streams"] == 2 and options["precision"] == "float32" for _, options in built)


def test_int8_is_calibrated_at_the_size_that_runs(built):
    calibration = images(7, 32)
    programs = CompiledModel(outputs_of(small_model()), Runtime("int8", "openvino"), batch_size=1, calibration=calibration)
    programs(images(2, 32))
    programs(images(2, 64))
    assert [tuple(options["calibration"].shape) for _, options in built] == [(7, 3, 32, 32), (7, 3, 64, 64)]
    assert torch.equal(built[0][1]["calibration"], calibration)
    with pytest.raises(VitrailError, match="int8 requires calibration images"):
        CompiledModel(outputs_of(small_model()), Runtime("int8", "openvino"), batch_size=1)


def test_the_worst_of_all_sizes_counts(built):
    programs = CompiledModel(outputs_of(small_model(), "cls"), Runtime("float32", "openvino"), batch_size=1)
    programs(images(2, 32))
    programs.agreement = (Agreement(0.9, 0.0),)
    programs(images(2, 64))
    assert programs.agreement == (Agreement(0.9, 0.0),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine": "tensorrt"}, "engine='tensorrt'; write one of eager, compile, onnxruntime, openvino or auto"),
        ({"precision": "int4"}, "precision='int4'; write one of float32"),
        ({"precision": "int8"}, "engine eager does not support int8: choose one of float32, .* or the engine .*openvino"),
        ({"precision": "bfloat16", "engine": "onnxruntime"}, "onnxruntime does not support bfloat16"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(fields, words):
    with pytest.raises(VitrailError, match=words):
        Runtime(**fields)


def test_engines_of_a_processor_refuse_other_devices():
    with torch.device("meta"):
        elsewhere = nn.Linear(2, 2)
    with pytest.raises(VitrailError, match="openvino runs on a CPU, but the model is on meta"):
        CompiledModel(elsewhere, Runtime("float32", "openvino"), batch_size=1)


def test_a_new_image_size_of_changed_weights_is_refused(built):
    """The versions of two sizes would be of different weights."""
    vit = small_model()
    programs = CompiledModel(outputs_of(vit), Runtime("float32", "openvino"), batch_size=1)
    programs(images(1))
    assert programs.is_current
    vit.layernorm.bias.data += 1
    assert not programs.is_current
    with pytest.raises(VitrailError, match="weights of the model have changed since it was compiled"):
        programs(images(1, size=48))


def test_the_engine_cannot_run_the_precision_of_the_weights():
    with pytest.raises(
        VitrailError, match=r"weights are float16, which engine onnxruntime does not .*float32 or int8 \(--precision"
    ):
        CompiledModel(outputs_of(small_model().half()), Runtime(engine="onnxruntime"), batch_size=1)


def test_other_names_of_precisions_are_answered_by_ours():
    with pytest.raises(VitrailError, match="found precision='fp16'; write float16"):
        Runtime("fp16")


def test_no_advice_to_round_float32(monkeypatch):
    """torch gives it when it first compiles on a GPU."""
    vit = small_model()

    def compile_with_advice(module, **options):
        def run(pixel_values):
            if not told:
                told.append(True)
                warnings.warn(
                    "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.", stacklevel=1
                )
            return module(pixel_values)

        return run

    told = []
    monkeypatch.setattr(torch, "compile", compile_with_advice)
    compiled = CompiledModel(outputs_of(vit, "cls"), Runtime("float32", "compile"), batch_size=2)
    assert torch.equal(compiled(images())[0], outputs_of(vit, "cls")(images())[0])
    assert told
