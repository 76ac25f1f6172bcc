"""Writes a model as a graph that other engines run: a folder for onnxruntime and whatever reads ONNX, or for OpenVINO.

Before the folder gets its name, its engine runs what was written, and the answers are compared with the model's.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import OutputMismatchError, UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_size
from ..utils.atomic import check_new, temporary_folder
from ..utils.optional import import_without_telemetry
from .graph import INPUT_NAME, Graph, trace, traceable, write_onnx, write_openvino

OUTPUT_NAMES: dict[type[ViTPreTrainedModel], tuple[str, ...]] = {
    ViTModel: ("last_hidden_state", "pooler_output"),
    ViTForImageClassification: ("logits",),
}
# The largest difference that may be, in units of the root mean square of an output. onnxruntime and OpenVINO differ by 4e-6 with a ViT-S/16
# and by 1e-5 and 2e-5 with a ViT-g/14 of random weights; GELU by tanh in place of erf makes 1e-3 of a ViT-S/16.
TOLERANCE = 5e-4
BATCH_SIZES = (1, 3)  # that are compared, where the batch is open

Engine = Callable[[np.ndarray], list[np.ndarray]]


def run_onnx(path: Path) -> Engine:
    """What onnxruntime answers to `pixel_values`."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(None, {INPUT_NAME: pixel_values})


def run_openvino(path: Path) -> Engine:
    """What OpenVINO answers to `pixel_values`, computed in float32."""
    openvino = import_without_telemetry("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixel_values: list(compiled(pixel_values).values())


@dataclass(frozen=True)
class GraphFormat:
    """A kind of graph.

    file: its name in the folder, as Optimum has it.
    run: the engine that it is compared by, which is called `engine`.
    packages: that both need, as they are imported; `extra`, which brings them.
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


class NamedOutputs(nn.Module):
    """A model that returns what `OUTPUT_NAMES` says of it, as a tuple."""

    def __init__(self, model: ViTPreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.names = OUTPUT_NAMES[type(model)]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(pixel_values, return_dict=True)
        return tuple(outputs[name] for name in self.names)


def export_graph(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    output: str | os.PathLike,
    *,
    to: str,
    batch_size: int | None = None,
    dynamic_size: bool = False,
) -> list[str]:
    """Writes a model as a graph, in float32: a folder with the graph, config.json and what AutoImageProcessor reads.

    Its input is `pixel_values`, of the size that the image processor makes, or else of the model's own. Its outputs are
    `last_hidden_state` and `pooler_output`, or the `logits` of a classifier.

    Args:
        output: the folder; it must not exist.
        to: "onnx" or "openvino", whose packages are there.
        batch_size: the only one that the graph takes; without it, any.
        dynamic_size: let the graph take images of any height and width that the patch size divides.

    Returns:
        How far its engine's answers are from the model's, in words.

    Raises:
        UnsupportedCheckpointError: there is no such graph of this model.
        OutputMismatchError: the engine answers otherwise; nothing is written.
    """
    known = GRAPH_FORMATS[to]
    if type(model) not in OUTPUT_NAMES:
        raise UnsupportedCheckpointError(
            f"{type(model).__name__} has no graph: export its encoder, or a model of {', '.join(c.__name__ for c in OUTPUT_NAMES)}."
        )
    output = Path(output)
    check_new(output)
    module = NamedOutputs(model)
    size = output_size(image_processor) or model.config.image_size
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
        folder.rename(output)
    return [warning]


def shapes_to_compare(
    model: ViTPreTrainedModel, size: tuple[int, int], batch_size: int | None, dynamic_size: bool
) -> list[tuple[int, int, int, int]]:
    """Shapes of `pixel_values`: of the size that the graph is for and, where any will do, of two others, one the model's own."""
    (height, width), (patch_height, patch_width) = model.config.image_size, model.config.patch_size
    sizes = {size: None}
    if dynamic_size:
        sizes |= {(height, width): None, (height + patch_height, max(width - patch_width, patch_width)): None}
    return [
        (number, model.config.num_channels, *some) for some in sizes for number in ((batch_size,) if batch_size else BATCH_SIZES)
    ]


@torch.no_grad()
def compare(module: NamedOutputs, engine: Engine, known: GraphFormat, shapes: list[tuple[int, int, int, int]]) -> str:
    """Says how far an engine's answers are from a module's, to noise of these shapes; raises OutputMismatchError if too far."""
    reference = traceable(module)
    largest = 0.0
    for shape in shapes:
        pixel_values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for name, expected, answer in zip(module.names, reference(pixel_values), engine(pixel_values.numpy()), strict=True):
            scale = (
                expected.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            )  # a classifier may still be all zeros
            difference = ((torch.from_numpy(answer) - expected).abs().max() / scale).item()
            if not difference <= TOLERANCE:  # also where it is not a number
                raise OutputMismatchError(
                    f"{known.engine} answers otherwise than the model: to images of the shape {shape}, {name} differs by up to "
                    f"{difference:.1e} of its root mean square, where {TOLERANCE:.0e} may be; nothing is written. Another version of "
                    f"{' or '.join(known.packages)} may do."
                )
            largest = max(largest, difference)
    sizes = ", ".join(dict.fromkeys(f"{height}x{width}" for *_, height, width in shapes))
    return (
        f"{known.engine} answers as the model does, within {largest:.1e} of the root mean square of an output (images of {sizes})"
    )
