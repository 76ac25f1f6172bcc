"""`vitrail.export_model` to ONNX and OpenVINO: the folder, and the refusal of other outputs."""

import dataclasses
import json

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor

import deterministic
import vitrail
from small_models import make_model
from vitrail.errors import OutputMismatchError, UnsupportedCheckpointError, VitrailError
from vitrail.processing.resizing import output_size
from vitrail.runtime import graph_export as graphs
from vitrail.runtime.graph import Graph, trace, write_onnx
from vitrail.runtime.outputs import named_outputs
from vitrail.utils.optional import import_without_telemetry

pytestmark = pytest.mark.usefixtures("one_thread")
openvino = import_without_telemetry("openvino")
CODE = {"configuration_vit.py", "modeling_vit.py", "modeling_vit_dense.py", "image_processing_vit.py"}
JSON = {"config.json", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a classifier of images of 16x24 pixels."""
    folder = tmp_path_factory.mktemp("models") / "classifier"
    model = make_model(vitrail.ViTForImageClassification, "absolute", num_hidden_layers=1)
    vitrail.save(model, vitrail.make_image_processor("dino", image_size=(16, 24)), folder, code=False)
    return folder


def run_onnx(folder, pixel_values):
    return onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"pixel_values": pixel_values})


def run_openvino(folder, pixel_values):
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return list(compiled(pixel_values).values())


@pytest.mark.parametrize(
    ("to", "files", "run"),
    [("onnx", {"model.onnx"}, run_onnx), ("openvino", {"openvino_model.xml", "openvino_model.bin"}, run_openvino)],
)
@torch.no_grad()
def test_a_folder_that_its_engine_and_transformers_read(classifier, to, files, run, tmp_path):
    warnings = vitrail.export_model(classifier, tmp_path / "out", to=to)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | JSON | CODE
    (warning,) = warnings
    assert "agrees with the model within " in warning
    assert warning.endswith("(images of 16x24)")
    images = [Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 20).convert("RGB")] * 3
    pixel_values = AutoImageProcessor.from_pretrained(tmp_path / "out")(images, return_tensors="np")["pixel_values"]
    model, _, _ = vitrail.load(classifier)
    (logits,) = run(tmp_path / "out", pixel_values)
    torch.testing.assert_close(torch.from_numpy(logits), model(torch.from_numpy(pixel_values)).logits, atol=1e-5, rtol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == model.config.id2label


@pytest.mark.parametrize(("to", "run"), [("onnx", run_onnx), ("openvino", run_openvino)])
def test_the_outputs_of_the_original_implementation(to, run, tmp_path):
    """DINOv2's own code, its positions for 37x37 patches: here for 8x8."""
    case = deterministic.case("dinov2_swiglu_tiny")
    deterministic.write_checkpoint(case, tmp_path / "dinov2.pth")
    vitrail.export_model(tmp_path / "dinov2.pth", tmp_path / "out", to=to, image_size=112)
    (inputs,) = case["inputs"].values()
    last_hidden_state, pooler_output = run(tmp_path / "out", deterministic.pixel_values(inputs).numpy())
    outputs = load_file(deterministic.GOLDEN / "dinov2_swiglu_tiny.safetensors")
    np.testing.assert_allclose(last_hidden_state[:, inputs["token_index"]], outputs["112x112/last_hidden_state"], atol=2e-5)
    np.testing.assert_allclose(pooler_output, outputs["112x112/cls"], atol=2e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["image_size"] == 112


def test_one_batch_size(classifier, tmp_path):
    vitrail.export_model(classifier, tmp_path / "out", to="openvino", batch_size=2)
    model = openvino.Core().read_model(tmp_path / "out" / "openvino_model.xml")
    assert model.input("pixel_values").partial_shape.to_string() == "[2,3,16,24]"


def test_any_image_size(tmp_path):
    """Is compared at three sizes; and asked of a model that can only be of one."""
    model = make_model(vitrail.ViTModel, "relative_table")
    shapes = graphs.shapes_to_compare(model, (8, 8), batch_size=None, dynamic_size=True)
    assert shapes == [(number, 3, *size) for size in ((8, 8), (16, 24), (20, 20)) for number in (1, 3)]
    vitrail.save(model, vitrail.make_image_processor("dino", image_size=8), tmp_path / "model", code=False)
    with pytest.raises(UnsupportedCheckpointError, match="write a graph for each image size"):
        vitrail.export_model(tmp_path / "model", tmp_path / "out", to="onnx", dynamic_size=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_graph_does_differently_is_said(tmp_path, monkeypatch):
    written = graphs.GraphFormat("model.onnx", lambda graph, path: path.touch(), lambda path: None, "onnxruntime", (), "onnx")
    monkeypatch.setitem(graphs.GRAPH_FORMATS, "onnx", written)
    monkeypatch.setattr(graphs, "trace", lambda *arguments: None)
    monkeypatch.setattr(graphs, "compare", lambda *arguments: "agrees")
    model, processor = make_model(vitrail.ViTModel, "absolute"), vitrail.make_image_processor("dino", image_size=8)
    assert graphs.export_graph(model, processor, tmp_path / "plain", to="onnx") == ["agrees"]
    warnings = graphs.export_graph(model.bfloat16(), processor, tmp_path / "half", to="onnx", dynamic_size=True)
    assert warnings[1:] == [
        "the graph computes in float32; the weights are bfloat16",
        "the graph does not check image sizes: it cuts off rows and columns that do not fill a patch",
    ]


@pytest.mark.parametrize(
    ("options", "prepared"),
    [
        ({}, (224, 224)),
        ({"do_center_crop": False, "size": {"height": 32, "width": 48}}, (32, 48)),
        ({"do_center_crop": False}, None),
        ({"do_center_crop": False, "size_divisor": 14}, None),
    ],
)
def test_the_size_that_an_image_processor_makes(options, prepared):
    processor = vitrail.VitrailImageProcessor.from_dict(vitrail.make_image_processor("dinov2").to_dict() | options)
    assert output_size(processor) == prepared


def with_another_activation(graph: Graph, path):
    """Writes a graph with an approximation of GELU, which the model has exact."""
    model = make_model(vitrail.ViTForImageClassification, "absolute", num_hidden_layers=1, hidden_act="quick_gelu")
    write_onnx(trace(named_outputs(model, *graphs.OUTPUT_NAMES[type(model)]), graph.shape, graph.output_names), path)


def test_a_graph_with_other_outputs_is_refused(classifier, tmp_path, monkeypatch):
    wrong = dataclasses.replace(graphs.GRAPH_FORMATS["onnx"], write=with_another_activation)
    monkeypatch.setitem(graphs.GRAPH_FORMATS, "onnx", wrong)
    with pytest.raises(
        OutputMismatchError,
        match=r"outputs of onnxruntime differ from the model: .* shape \(1, 3, 16, 24\), logits differs by up to",
    ):
        vitrail.export_model(classifier, tmp_path / "out", to="onnx")
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_not_numbers_are_refused_and_zeros_are_not():
    """Zeros are a valid output of a fresh classifier."""
    model = make_model(vitrail.ViTForImageClassification, "absolute")
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)

    def compare(output):
        logits = np.full((1, 5), output, np.float32)
        return graphs.compare(
            named_outputs(model, *graphs.OUTPUT_NAMES[type(model)]),
            lambda pixel_values: [logits],
            graphs.GRAPH_FORMATS["onnx"],
            [(1, 3, 16, 24)],
        )

    assert "agrees with the model within 0.0e+00" in compare(0)
    for wrong in (np.nan, 1e-3):
        with pytest.raises(OutputMismatchError, match="logits differs by up to"):
            compare(wrong)


def test_what_is_refused_before_any_work(classifier, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(VitrailError, match="there exists already: remove it, or give another name"):
        vitrail.export_model(classifier, tmp_path / "there", to="onnx")
    with pytest.raises(
        VitrailError, match=r"batch_size and dynamic_size are options of graphs \(onnx, openvino\), but timm holds weights"
    ):
        vitrail.export_model(classifier, tmp_path / "out", to="timm", batch_size=1)
    with pytest.raises(UnsupportedCheckpointError, match=r'Unsupported export format "onnxx".* timm, onnx, openvino'):
        vitrail.export_model(classifier, tmp_path / "out", to="onnxx")
    model = make_model(vitrail.ViTBackbone, "absolute")
    with pytest.raises(UnsupportedCheckpointError, match="ViTBackbone cannot be exported as a graph"):
        graphs.export_graph(model, vitrail.make_image_processor("dino"), tmp_path / "out", to="onnx")
    monkeypatch.setattr("vitrail.utils.optional.find_spec", lambda name: None)
    for to, message in (
        ("onnx", r"not installed \(onnx, onnxscript, onnxruntime\): pip install .\.\[onnx\]"),
        ("openvino", r"not installed \(openvino\): pip install .\.\[openvino\]"),
    ):
        with pytest.raises(VitrailError, match=message):
            vitrail.export_model(classifier, tmp_path / "out", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
