"""The options that say how a model is run, of the commands that run one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, NUM_CALIBRATION, Agreement, Runtime
from ..runtime.optimization import OptimizedModel, optimize

PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="In which the model computes: float32, bfloat16, float16 or int8.", show_default="that of its weights", metavar="P"
    ),
]
EngineOption = Annotated[str, typer.Option(help="What runs the model: eager, compile, onnxruntime or openvino.", metavar="E")]


def run_by(
    runtime: Runtime,
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    images: Sequence[Path],
    *,
    batch_size: int,
) -> ViTPreTrainedModel | OptimizedModel:
    """The model as it is, or optimised for these images."""
    if runtime == DEFAULT_RUNTIME:
        return model
    few = NUM_CALIBRATION if runtime.precision == "int8" else batch_size
    examples = image_processor(list(images[:few]), return_tensors="pt")["pixel_values"]
    return optimize(
        model, precision=runtime.precision, engine=runtime.engine, examples=examples, batch_size=min(batch_size, len(images))
    )


def agreement_lines(agreement: Mapping[str, Agreement]) -> list[str]:
    """How near each output comes to that of the model in float32."""
    return [
        f"{name}: cosine {found.cosine:.5f} to float32, largest difference {found.max_difference:.2g}"
        for name, found in agreement.items()
    ]
