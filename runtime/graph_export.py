"""Write a model as a graph for other engines: a folder with an ONNX or an OpenVINO model.

The exported graph is run and compared with the model before the folder is moved into place.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import OutputMismatchError, UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..modeling.modeling_vit_dense import ViTDensePreTrainedModel, ViTForDepthEstimation, ViTForSemanticSegmentation
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_size
from ..utils.atomic import check_new
from ..utils.folders import share, temporary_folder
from ..utils.optional import import_without_telemetry
from .graph import INPUT_NAME, Graph, trace, traceable, write_onnx, write_openvino
from .outputs import TupleOutputs, named_outputs

OUTPUT_NAMES: dict[type[ViTPreTrainedModel], tuple[str, ...]] = {
    ViTModel: ("last_hidden_state", "pooler_output"),
    ViTForImageClassification: ("logits",),
    ViTForSemanticSegmentation: ("logits",),
    ViTForDepthEstimation: ("predicted_depth",),
}
# The largest acceptable difference, in units of the root mean square of an output. onnxruntime and OpenVINO differ by 4e-6 with a ViT-S/16
# and by 1e-5 and 2e-5 with a ViT-g/14 of random weights; GELU by tanh in place of erf makes 1e-3 of a ViT-S/16.
TOLERANCE = 5e-4
BATCH_SIZES = (1, 3)  # compared if the batch size is dynamic

Engine = Callable[[np.ndarray], list[np.ndarray]]


def run_onnx(path: Path) -> Engine:
    """Load an ONNX model into onnxruntime; return a function of `pixel_values`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(None, {INPUT_NAME: pixel_values})


def run_openvino(path: Path) -> Engine:
    """Load a model into OpenVINO, computing in float32; return a function of `pixel_values`."""
    openvino = import_without_telemetry("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixel_values: list(compiled(pixel_values).values())


@dataclass(frozen=True)
class GraphFormat:
    """A format of graphs.

    file: the file name in the folder, as in Optimum.
    run: loads the graph into the engine called `engine`, for the comparison.
    packages: the packages that writing and running need, as imported; `extra` installs them.
    """

    file: str
    write: Callable[[Graph, Path], None]
    run: Callable[[Path], Engine]
    engine: str
    packages: tuple[str, ...]
    extra: str


GRAPH_FORMATS = {
    "onnx": GraphFormat("model.onnx", write_onnx, run_onnx, "onnxruntime", ("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": GraphFormat("openvino_model.xml", write_openvino, run_openvino, "OpenVINO", ("openvino",), "openvino"),
}


def export_graph(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    output: str | os.PathLike,
    *,
    to: str,
    batch_size: int | None = None,
    dynamic_size: bool = False,
) -> list[str]:
    """Write a model as a graph in float32: a folder with the graph, config.json and preprocessor_config.json.

    The input is `pixel_values`, of the size that the image processor produces, or of the config's image_size if that size varies. The
    outputs are `last_hidden_state` and `pooler_output`, the `logits` of a classifier or a segmentation, or `predicted_depth`.

    Args:
        output: the folder; it must not exist.
        to: "onnx" or "openvino"; the packages must be installed.
        batch_size: the fixed batch size of the graph; None for any.
        dynamic_size: accept images of any height and width that the patch size divides. The graph does not check that it does.

    Returns:
        Sentences: the largest difference between the engine's outputs and the model's, and what a user of the graph must know.

    Raises:
        UnsupportedCheckpointError: this model cannot be exported as such a graph.
        OutputMismatchError: the outputs of the engine differ from the model; nothing is written.
    """
    known = GRAPH_FORMATS[to]
    if type(model) not in OUTPUT_NAMES:
        raise UnsupportedCheckpointError(
            f"{type(model).__name__} cannot be exported as a graph: export its encoder, or a model of "
            f"{', '.join(c.__name__ for c in OUTPUT_NAMES)}."
        )
    output = Path(output)
    check_new(output)
    module = named_outputs(model, *OUTPUT_NAMES[type(model)])
    size = output_size(image_processor) or model.config.image_shape
    image: tuple[int | None, int | None] = (None, None) if dynamic_size else size
    with temporary_folder(output) as temporary:
        folder = temporary / output.name
        folder.mkdir()
        known.write(trace(module, (batch_size, model.config.num_channels, *image), module.names), folder / known.file)
        config = copy.deepcopy(model.config)
        config.image_size = size
        config.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        warning = compare(module, known.run(folder / known.file), known, shapes_to_compare(model, size, batch_size, dynamic_size))
        share(folder)
        folder.rename(output)
    warnings = [warning]
    if model.dtype != torch.float32:
        warnings.append(f"the graph computes in float32; the weights are {str(model.dtype).removeprefix('torch.')}")
    if dynamic_size and isinstance(model, ViTDensePreTrainedModel):
        warnings.append("the graph pads images to whole patches, as the model does; their sides must be longer than two patches")
    elif dynamic_size:
        warnings.append("the graph does not check image sizes: it cuts off rows and columns that do not fill a patch")
    return warnings


def shapes_to_compare(
    model: ViTPreTrainedModel, size: tuple[int, int], batch_size: int | None, dynamic_size: bool
) -> list[tuple[int, int, int, int]]:
    """Return shapes of `pixel_values`: of the size of the graph and, if the size is dynamic, of two others."""
    (height, width), (patch_height, patch_width) = model.config.image_shape, model.config.patch_shape
    sizes = {size: None}
    if dynamic_size and isinstance(model, ViTDensePreTrainedModel):
        sizes |= {(height, width): None, (height + patch_height + 1, width + 2 * patch_width - 1): None}
    elif dynamic_size:
        sizes |= {(height, width): None, (height + patch_height, max(width - patch_width, patch_width)): None}
    return [
        (number, model.config.num_channels, *some) for some in sizes for number in ((batch_size,) if batch_size else BATCH_SIZES)
    ]


@torch.no_grad()
def compare(module: TupleOutputs, engine: Engine, known: GraphFormat, shapes: list[tuple[int, int, int, int]]) -> str:
    """Compare an engine with a module on noise of these shapes; describe the difference, or raise OutputMismatchError."""
    reference = traceable(module)
    largest = 0.0
    for shape in shapes:
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, expected, output in zip(module.names, reference(pixel_values), engine(pixel_values.numpy()), strict=True):
            scale = (
                expected.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            )  # a classifier may still be all zeros
            difference = ((torch.from_numpy(output) - expected).abs().max() / scale).item()
            if not difference <= TOLERANCE:  # also for NaN
                raise OutputMismatchError(
                    f"The outputs of {known.engine} differ from the model: for images of shape {shape}, {name} differs by up to "
                    f"{difference:.1e} of its root mean square, expected at most {TOLERANCE:.0e}. Nothing is written; try another version "
                    f"of {' or '.join(known.packages)}."
                )
            largest = max(largest, difference)
    sizes = ", ".join(dict.fromkeys(f"{height}x{width}" for *_, height, width in shapes))
    return f"{known.engine} agrees with the model within {largest:.1e} of the root mean square of an output (images of {sizes})"
