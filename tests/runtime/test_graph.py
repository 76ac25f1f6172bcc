"""Graphs of every kind of model, run by onnxruntime and OpenVINO, against the model in torch."""

import onnx
import onnxruntime
import pytest
import torch

from small_models import make_images, make_model
from vitrail.errors import UnsupportedCheckpointError
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.runtime.graph import to_openvino, trace, write_onnx
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


def make_module(name, num_hidden_layers=1):
    return Everything(make_model(ViTForImageClassification, name, num_hidden_layers=num_hidden_layers))


@torch.no_grad()
def check(module, graph, path, grids):
    """Batches of 1 and 3 through both engines."""
    write_onnx(graph, path / "model.onnx")
    session = onnxruntime.InferenceSession(path / "model.onnx")
    compiled = openvino.Core().compile_model(to_openvino(graph), "CPU", F32)
    for grid in grids:
        for batch_size in (1, 3):
            images = make_images(module.model.config, batch_size=batch_size, grid=grid, seed=batch_size)
            expected = module(images)
            for engine, outputs in (
                ("onnxruntime", session.run(None, {"pixel_values": images.numpy()})),
                ("OpenVINO", list(compiled(images.numpy()).values())),
            ):
                outputs = tuple(map(torch.from_numpy, outputs))
                torch.testing.assert_close(outputs, expected, **TOLERANCE, msg=lambda text, engine=engine: f"{engine}: {text}")


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("registers", (3, 5)),
        ("google", None),
        ("several_cls_mean_patch", None),
        ("relative_table", (3, 5)),
        ("relative_mlp_shared", (3, 5)),
    ],
)
def test_graphs_of_one_size(name, grid, tmp_path):
    module = make_module(name, num_hidden_layers=2 if name == "several_cls_mean_patch" else 1)
    graph = trace(module, (None, *make_images(module.model.config, grid=grid).shape[1:]))
    check(module, graph, tmp_path, [grid])


@pytest.mark.parametrize("name", ["offset", "relative_mlp", "rotary"])  # the second without [CLS], with residual post-norm
def test_graphs_of_any_size(name, tmp_path):
    module = make_module(name)
    graph = trace(module, (None, 3, None, None))
    check(module, graph, tmp_path, [None, (3, 5), (4, 7), (1, 1), (9, 6)])


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
