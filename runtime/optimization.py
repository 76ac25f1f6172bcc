"""`vitrail.optimize`: run a model faster, and measure how its outputs change."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers.modeling_outputs import DepthEstimatorOutput, ImageClassifierOutput, ModelOutput, SemanticSegmenterOutput

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTForImageClassification, ViTModelOutput, ViTPreTrainedModel
from ..modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation
from .compiled import AUTO, NUM_CHECKED, Agreement, CompiledModel, Runtime
from .graph_export import OUTPUT_NAMES
from .outputs import named_outputs
from .selection import Selection, find_candidates, select_runtime
from .trials import Workload

# What a model with a head returns; an encoder returns a ViTModelOutput
OUTPUT_CLASSES: dict[type[ViTPreTrainedModel], type[ModelOutput]] = {
    ViTForImageClassification: ImageClassifierOutput,
    ViTForSemanticSegmentation: SemanticSegmenterOutput,
    ViTForDepthEstimation: DepthEstimatorOutput,
}
EXACT = Agreement(cosine=1.0, max_difference=0.0)  # the unchanged model


@dataclass(frozen=True)
class OptimizationReport:
    """How an optimized model runs, and how well it agrees with the float32 model.

    image_size: (height, width) of the images it was compared on.
    num_images: the number of these images.
    agreement: the agreement of each output, by name.
    selection: the speeds that "auto" has measured; empty if it has measured none.
    """

    precision: str
    engine: str
    image_size: tuple[int, int]
    num_images: int
    agreement: dict[str, Agreement]
    selection: str = ""

    @property
    def cosine(self) -> float:
        """The smallest cosine similarity of all outputs."""
        return min(agreement.cosine for agreement in self.agreement.values())

    @property
    def max_difference(self) -> float:
        """The largest difference of all outputs."""
        return max(agreement.max_difference for agreement in self.agreement.values())

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.engine}, {self.precision}: cosine {self.cosine:.5f} to float32, largest difference {self.max_difference:.2g}, on "
            f"{self.num_images} images of {self.image_size[0]}x{self.image_size[1]}"
        )


class OptimizedModel:
    """The result of `optimize`, called like the model: for inference only, from one thread at a time.

    model: the model that was optimized.
    config, device: the config and device of the model.
    report: how well it agrees with the float32 model.
    """

    def __init__(self, model: ViTPreTrainedModel, compiled: CompiledModel, report: OptimizationReport) -> None:
        self.model = model
        self.config: ViTConfig = model.config
        self.device = compiled.device
        self.report = report
        self._output_class = OUTPUT_CLASSES.get(type(model))
        self._compiled = compiled

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        """Return the outputs of the model in float32: ViTModelOutput, or the class of its head, such as ImageClassifierOutput.

        pixel_values: (B, C, H, W). For a new height or width, some engines first compile the model again.
        """
        outputs = self._compiled(pixel_values)
        if self._output_class is not None:
            return self._output_class(**dict(zip(self.report.agreement, outputs, strict=True)))
        height, width = pixel_values.shape[-2:]
        patch_height, patch_width = self.config.patch_shape
        return ViTModelOutput(*outputs, patch_grid=(height // patch_height, width // patch_width))


def optimize(
    model: ViTPreTrainedModel,
    *,
    precision: str | None = None,
    engine: str = "eager",
    example_size: int | Sequence[int] | None = None,
    examples: torch.Tensor | None = None,
    batch_size: int = 8,
    num_images: int | None = None,
) -> OptimizedModel:
    """Make a model faster, and compare it with the float32 model.

        fast = vitrail.optimize(model, precision="bfloat16", engine="compile", example_size=224)
        outputs = fast(**image_processor("photo.jpg", return_tensors="pt"))
        print(fast.report)

    Args:
        model: a ViTModel, or a model with a head for classification, segmentation or depth. Its weights stay unchanged. After you change
            them, optimize it again.
        precision: "float32", "bfloat16", "float16", "float64" ("eager" and "compile") or "int8" (weights and activations); the
            precision of the weights by default. "auto": the fastest of them that stays close to float32; int8 only with `examples`.
        engine: "eager", "compile" (torch.compile with frozen weights), "onnxruntime" (`pip install ".[onnx]"`) or "openvino"
            (`pip install ".[openvino]"`); int8 requires one of the last two. "auto": the fastest of those that are installed.
        example_size: height and width, in pixels, of the images to expect; the config's image_size by default.
        examples: (N, C, H, W), preprocessed images, which also set the size. The models are compared on the first 8 of them, or on noise
            without any. int8 is calibrated on them and requires some dozens.
        batch_size: the usual number of images per call, which "compile" compiles for.
        num_images: the number of images that will be run, as far as it is known: "auto" builds no engine that takes longer than it saves.

    Raises:
        VitrailError: the engine or precision is unknown or not installed; the model is not supported; int8 has no images; or the outputs
            do not agree with the float32 model.
    """
    runtime = Runtime(precision, engine)
    if type(model) not in OUTPUT_NAMES:
        raise VitrailError(
            f"found a {type(model).__name__}; pass a {' or a '.join(kind.__name__ for kind in OUTPUT_NAMES)}, as vitrail.load returns them."
        )
    if batch_size < 1 or (examples is not None and not len(examples)):
        found = "" if examples is None else f" and {len(examples)} examples"
        raise VitrailError(f"found batch_size={batch_size}{found}; expected 1 or more")
    outputs = named_outputs(model.eval(), *OUTPUT_NAMES[type(model)])
    images = _noise(model.config, example_size) if examples is None else examples
    selection = Selection(runtime)
    if runtime.is_auto:
        selection = select_runtime(
            outputs,
            find_candidates(outputs, runtime, calibrates=examples is not None),
            Workload(batch_size, num_images=num_images),
            lambda number: images[:number],
            calibration=lambda: examples,
            is_strict=precision == AUTO,
        )
    if (compiled := selection.compiled) is None:
        calibration = examples if selection.runtime.precision == "int8" else None
        compiled = CompiledModel(outputs, selection.runtime, batch_size=batch_size, calibration=calibration)
        compiled(images[:NUM_CHECKED])
    agreement = compiled.agreement or (EXACT,) * len(outputs.names)
    height, width = images.shape[-2:]
    report = OptimizationReport(
        compiled.precision,
        selection.runtime.engine,
        image_size=(height, width),
        num_images=len(images[:NUM_CHECKED]),
        agreement=dict(zip(outputs.names, agreement, strict=True)),
        selection=selection.report,
    )
    return OptimizedModel(model, compiled, report)


def _noise(config: ViTConfig, size: int | Sequence[int] | None) -> torch.Tensor:
    """Return two images of noise, always the same."""
    if size is None:
        size = config.image_shape
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))
