"""Graphs of every kind of model, run by onnxruntime and OpenVINO, against the model in torch."""

import onnx
import onnxruntime
import pytest
import torch

from small_models import make_images, make_model
from vitrail.errors import UnsupportedCheckpointError
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.modeling.modeling_vit_dense import ViTForDepthEstimation
from vitrail.runtime.graph import to_openvino, trace, write_onnx
from vitrail.runtime.outputs import named_outputs
from vitrail.utils.optional import import_without_telemetry

pytestmark = pytest.mark.usefixtures("one_thread")
openvino = import_without_telemetry("openvino")
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Everything(torch.nn.Module):
    """Returns every output of a classifier."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        outputs = self.model.vit(pixel_values, output_hidden_states=True)
        logits = self.model.classifier(self.model.classifier_input(outputs))
        return outputs.last_hidden_state, outputs.pooler_output, logits


def make_module(name, **fields):
    return Everything(make_model(ViTForImageClassification, name, **{"num_hidden_layers": 1, **fields}))


def batches(module, grids):
    """Batches of 1 and 3 images of each grid of patches."""
    return [make_images(module.model.config, batch_size=number, grid=grid, seed=number) for grid in grids for number in (1, 3)]


@torch.no_grad()
def check(module, graph, path, inputs):
    """Run batches through both engines."""
    write_onnx(graph, path / "model.onnx")
    session = onnxruntime.InferenceSession(path / "model.onnx")
    compiled = openvino.Core().compile_model(to_openvino(graph), "CPU", F32)
    for images in inputs:
        expected = module(images)
        for engine, outputs in (
            ("onnxruntime", session.run(None, {"pixel_values": images.numpy()})),
            ("OpenVINO", list(compiled(images.numpy()).values())),
        ):
            outputs = tuple(map(torch.from_numpy, outputs))
            torch.testing.assert_close(outputs, expected, **TOLERANCE, msg=lambda text, engine=engine: f"{engine}: {text}")


# Every part of a classifier that has operations of its own: registers, the tanh form of GELU, a representation layer
REPRESENTATION = {"num_register_tokens": 3, "hidden_act": "gelu_pytorch_tanh", "representation_size": 20}


@pytest.mark.parametrize(
    ("name", "grid", "fields"),
    [
        ("several_cls_mean_patch", (3, 5), {"num_hidden_layers": 2}),
        ("google", None, REPRESENTATION),
        ("relative_table", (3, 5), {}),
        ("relative_mlp_shared", (3, 5), {}),
    ],
)
def test_graphs_of_one_size(name, grid, fields, tmp_path):
    module = make_module(name, **fields)
    graph = trace(module, (None, *make_images(module.model.config, grid=grid).shape[1:]))
    check(module, graph, tmp_path, batches(module, [grid]))


@pytest.mark.parametrize("name", ["offset", "relative_mlp"])  # the second without [CLS], with residual post-norm
def test_graphs_of_any_size(name, tmp_path):
    module = make_module(name)
    graph = trace(module, (None, 3, None, None))
    check(module, graph, tmp_path, batches(module, [None, (3, 5), (4, 7), (1, 1), (9, 6)]))


def test_dense_graphs_of_any_size_pad_images(tmp_path):
    """Rotary positions, and the levels of DPT, some of whose grids are odd."""
    fields = {"num_hidden_layers": 1, "dense_layers": [0] * 4, "depth_head": "dpt", "depth_fusion_size": 8, "depth_hidden_size": 4}
    model = make_model(ViTForDepthEstimation, "rotary", classifier_cls_layers=1, **fields)
    module = named_outputs(model, "predicted_depth")
    sizes = [(16, 24), (17, 23), (30, 9)]
    check(module, trace(module, (None, 3, None, None)), tmp_path, [torch.randn(2, 3, *size) for size in sizes])


def test_a_table_of_relative_positions_is_of_one_size():
    module = make_module("relative_table_shared")
    with pytest.raises(UnsupportedCheckpointError, match=r"leave out dynamic_size"):
        trace(module, (None, 3, None, None))


@pytest.fixture(scope="module")
def graph():
    return trace(make_module("absolute"), (None, 3, 16, 24), ("tokens", "pooled", "logits"))


def test_onnx_has_gelu_as_one_operation_and_no_mention_of_this_machine(graph, tmp_path):
    path = tmp_path / "model.onnx"
    write_onnx(graph, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node].count("Gelu") == 1
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"graph.py" not in path.read_bytes()
    tensors = [*model.graph.input, *model.graph.output]
    assert {tensor.name: [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim] for tensor in tensors} == {
        "pixel_values": ["batch", 3, 16, 24],
        "tokens": ["batch", 25, 32],
        "pooled": ["batch", 32],
        "logits": ["batch", 5],
    }


def test_openvino_has_gelu_and_attention_as_one_operation_each(graph):
    model = to_openvino(graph)
    node_types = [node.get_type_name() for node in model.get_ops()]
    assert (node_types.count("Gelu"), node_types.count("ScaledDotProductAttention")) == (1, 1)
    assert model.input("pixel_values").partial_shape.to_string() == "[?,3,16,24]"
    assert [model.output(name).partial_shape.to_string() for name in graph.output_names] == ["[?,25,32]", "[?,32]", "[?,5]"]


@pytest.mark.parametrize("name", ["google", "relative_table", "relative_mlp"])
def test_what_follows_from_the_size_is_a_constant(name):
    """No operation of interpolation, of the search of a table, or of the MLP of offsets is left; nor a second copy of the table."""
    module = make_module(name)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph = trace(module, (None, 3, 12, 20))
    called = {str(node.target) for node in graph.program.graph.nodes if node.op == "call_function"}
    assert not [target for target in called if any(part in target for part in ("upsample", "index_select", "relu", "searchsorted"))]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())  # the module is as it was


def test_tracing_leaves_the_module_as_it_was_and_shares_its_weights():
    module = make_module("absolute").train()
    graph = trace(module, (2, 3, 16, 24))
    own = {parameter.data_ptr() for parameter in module.parameters()}
    assert {parameter.data_ptr() for parameter in graph.program.state_dict.values()} <= own
    assert module.training
    module.to(torch.bfloat16)
    images = make_images(module.model.config)
    with torch.no_grad():
        outputs = trace(module, images.shape).program.module()(images)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(outputs, module.float().eval()(images), **TOLERANCE)


def test_large_weights_go_into_a_second_file(graph, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    write_onnx(graph, tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    onnxruntime.InferenceSession(tmp_path / "model.onnx")
