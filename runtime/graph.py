"""Models as graphs for other engines: traced by torch.export, then written as ONNX or converted for OpenVINO.

Interpolated positions and relative biases depend on the image size alone. They become constants of the graph, unless the size is dynamic:
then the graph computes them (`any_size.py`).
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTEmbeddings, ViTPreTrainedModel, ViTRelativePosition, ViTRelativePositionTable
from ..modeling.modeling_vit_dense import ViTDensePreTrainedModel
from ..utils.optional import import_without_telemetry
from .any_size import take_any_size

if TYPE_CHECKING:
    import openvino

INPUT_NAME, AXES = "pixel_values", ("batch", "channels", "height", "width")
OPSET = 20  # of ONNX: the first with GELU as one operation, exact or tanh
DYNAMIC_BATCH = 2  # the batch size for tracing a dynamic one; torch.export specializes 1


Shape = tuple[int | None, int, int | None, int | None]
"""(B, C, H, W) of `pixel_values`; None for a dynamic dimension."""


@dataclass
class Graph:
    """A traced module.

    shape: the shape of its input.
    output_names: the names of its outputs, in order.
    """

    program: torch.export.ExportedProgram
    shape: Shape
    output_names: tuple[str, ...]


def fix_image_size(module: nn.Module, pixel_values: torch.Tensor) -> None:
    """Make constants of what follows from the image size alone: resized positions and relative biases, for images of this shape."""
    submodules = list(module.modules())
    height, width = pixel_values.shape[-2:]
    for embeddings in (submodule for submodule in submodules if isinstance(submodule, ViTEmbeddings)):
        patch_height, patch_width = embeddings.patch_embeddings.patch_size
        grid = -(-height // patch_height), -(-width // patch_width)  # models with a dense head pad images to whole patches
        if embeddings.position_embeddings is not None and grid != embeddings.config.patch_grid:
            _replace_by_constant(embeddings, "positions", embeddings.positions(grid))
        for submodule in submodules:
            if isinstance(submodule, ViTRelativePosition):
                _replace_by_constant(submodule, "forward", submodule(grid))


def _replace_by_constant(module: nn.Module, method: str, value: torch.Tensor) -> None:
    """Let a method that takes a patch grid return a constant: a buffer, which torch's compilers fold into the graph."""
    module.register_buffer("constant", value.detach())
    setattr(module, method, MethodType(_constant, module))


def _constant(module: nn.Module, grid: tuple[int, int]) -> torch.Tensor:
    assert isinstance(module.constant, torch.Tensor)
    return module.constant


def traceable(module: nn.Module) -> nn.Module:
    """Return a copy for tracing: in evaluation mode, in float32 on the CPU, with sdpa attention; it shares weights where it can."""
    shared = {id(tensor): tensor.detach().to("cpu", torch.float32) for tensor in (*module.parameters(), *module.buffers())}
    for parameter in module.parameters():
        shared[id(parameter)] = nn.Parameter(shared[id(parameter)], requires_grad=False)
    copied = copy.deepcopy(module, shared).eval()
    for part in copied.modules():
        if isinstance(part, ViTPreTrainedModel):
            part.config._attn_implementation = "sdpa"
    return copied


@torch.no_grad()
def trace(module: nn.Module, shape: Shape, output_names: Sequence[str] = ()) -> Graph:
    """Trace a module whose `forward(pixel_values)` returns a tuple of tensors; the module stays unchanged.

    Args:
        shape: (B, C, H, W) of the input, None for dynamic dimensions. H and W are dynamic together only, as multiples of the patch size;
            models with a dense head pad them.
        output_names: names of the outputs; numbered by default.

    Raises:
        UnsupportedCheckpointError: H and W are dynamic, but the model has a table of relative positions, whose resizing cannot be
            traced.
    """
    module = traceable(module)
    batch_size, num_channels, height, width = shape
    dynamic: dict[int, Any] = {} if batch_size else {0: torch.export.Dim("batch")}
    if height is None or width is None:
        (height, width), dynamic[2], dynamic[3] = _dynamic_size(module)
    else:
        fix_image_size(module, torch.empty(1, num_channels, height, width))
    pixel_values = torch.zeros(batch_size or DYNAMIC_BATCH, num_channels, height, width)
    number = len(module(pixel_values))
    # Only the math kernel of attention has the memory layout that the decompositions of the operation have
    with sdpa_kernel(SDPBackend.MATH):
        program = torch.export.export(module, (pixel_values,), dynamic_shapes=(dynamic,), strict=False)
    return Graph(program, shape, tuple(output_names) or tuple(f"output_{index}" for index in range(number)))


def _dynamic_size(module: nn.Module) -> tuple[tuple[int, int], Any, Any]:
    """Prepare a module for tracing with dynamic H and W; return a size to trace it with and the dimensions for torch.export."""
    parts = list(module.modules())
    if any(isinstance(part, ViTRelativePositionTable) for part in parts):
        raise UnsupportedCheckpointError(
            "This model has a table of relative positions, and its resizing to another image size cannot be part of a graph: "
            "leave out dynamic_size, and write a graph for each image size (image_size)."
        )
    embeddings = next(part for part in parts if isinstance(part, ViTEmbeddings))
    if embeddings.position_embeddings is not None:
        take_any_size(embeddings)
    (rows, columns), (height, width) = embeddings.config.patch_grid, embeddings.patch_embeddings.patch_size
    size = (rows + 1) * height, (columns + 2) * width  # different from the size of the positions
    if any(isinstance(part, ViTDensePreTrainedModel) for part in parts):  # pads images to whole patches
        return size, torch.export.Dim("height", min=2 * height + 1), torch.export.Dim("width", min=2 * width + 1)
    return size, height * torch.export.Dim("rows"), width * torch.export.Dim("columns")


def write_onnx(graph: Graph, path: Path) -> None:
    """Write a graph as ONNX. Weights above ONNX's limit of 2 GB are written into a second file, `path` followed by ".data"."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    dynamic = {index: name for index, name in enumerate(AXES) if graph.shape[index] is None}
    with _quiet(), sdpa_kernel(SDPBackend.MATH):
        onnx_program = torch.onnx.export(
            graph.program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(graph.output_names),
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    assert onnx_program is not None
    ClearMetadataAndDocStringPass()(onnx_program.model)  # each node names the lines of code it comes from, with local paths
    onnx_program.save(path)


def to_openvino(graph: Graph) -> "openvino.Model":
    """Convert a graph for OpenVINO."""
    openvino = import_without_telemetry("openvino")
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    decompositions = torch.export.default_decompositions()
    for operation in ops_to_not_decompose():  # attention among them, which stays one operation
        decompositions.pop(operation, None)
    with _quiet(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        decoder = TorchFXPythonDecoder(graph.program.run_decompositions(decompositions).module(), dynamic_shapes=True)
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    for output, name in zip(model.outputs, graph.output_names, strict=True):
        output.get_tensor().set_names({name})
    model.reshape(openvino.PartialShape([-1 if length is None else length for length in graph.shape]))
    return model


def write_openvino(graph: Graph, path: Path) -> None:
    """Write a graph for OpenVINO in float32: `path`, which ends in .xml, and the weights in a .bin file next to it."""
    openvino = import_without_telemetry("openvino")
    openvino.save_model(to_openvino(graph), path, compress_to_fp16=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages that torch's exporter addresses to its developers."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")  # that torchvision is not installed
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".isinstance\(treespec, LeafSpec\). is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
