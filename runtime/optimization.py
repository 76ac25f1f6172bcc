"""`vitrail.optimize`: a model that answers as before, faster."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers.modeling_outputs import ImageClassifierOutput

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModelOutput, ViTPreTrainedModel
from .compiled import NUM_CHECKED, Agreement, CompiledModel, Runtime
from .graph_export import OUTPUT_NAMES, NamedOutputs

EXACT = Agreement(cosine=1.0, max_difference=0.0)  # of the model itself to itself


@dataclass(frozen=True)
class OptimizationReport:
    """What an optimised model is, and how near it comes to the model in float32.

    image_size: of the images it was compared on, (height, width).
    num_images: how many these were.
    agreement: of each output, by name.
    """

    precision: str
    engine: str
    image_size: tuple[int, int]
    num_images: int
    agreement: dict[str, Agreement]

    @property
    def cosine(self) -> float:
        """The smallest of all outputs."""
        return min(agreement.cosine for agreement in self.agreement.values())

    @property
    def max_difference(self) -> float:
        """The largest of all outputs."""
        return max(agreement.max_difference for agreement in self.agreement.values())

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.engine}, {self.precision}: cosine {self.cosine:.5f} to float32, largest difference {self.max_difference:.2g}, on "
            f"{self.num_images} images of {self.image_size[0]}x{self.image_size[1]}"
        )


class OptimizedModel:
    """What `optimize` returns: called like the model, for inference only, from one thread at a time.

    config, device: those of the model.
    report: how near it comes to the model.
    """

    def __init__(self, config: ViTConfig, programs: CompiledModel, report: OptimizationReport) -> None:
        self.config = config
        self.device = programs.device
        self.report = report
        self._programs = programs

    def __call__(self, pixel_values: torch.Tensor) -> ViTModelOutput | ImageClassifierOutput:
        """What the model returns, in float32: ViTModelOutput, or ImageClassifierOutput for a classifier.

        pixel_values: (B, C, H, W). For another height or width than before, some engines first make a new program.
        """
        outputs = self._programs(pixel_values)
        if len(outputs) == 1:
            return ImageClassifierOutput(logits=outputs[0])
        height, width = pixel_values.shape[-2:]
        patch_height, patch_width = self.config.patch_size
        return ViTModelOutput(*outputs, patch_grid=(height // patch_height, width // patch_width))


def optimize(
    model: ViTPreTrainedModel,
    *,
    precision: str | None = None,
    engine: str = "eager",
    example_size: int | Sequence[int] | None = None,
    examples: torch.Tensor | None = None,
    batch_size: int = 8,
) -> OptimizedModel:
    """Makes a model faster, and compares it on the spot with the model in float32.

        fast = vitrail.optimize(model, precision="bfloat16", engine="compile", example_size=224)
        outputs = fast(**image_processor("photo.jpg", return_tensors="pt"))
        print(fast.report)

    Args:
        model: in evaluation mode; a ViTModel or a ViTForImageClassification. It stays as it is.
        precision: in which it computes: "float32", "bfloat16", "float16", or "int8" (weights and activations); without it, that of
            its weights.
        engine: "eager", "compile" (torch.compile with frozen weights), "onnxruntime" (`pip install "vitrail[onnx]"`) or "openvino"
            (`pip install "vitrail[openvino]"`); int8 needs one of the last two.
        example_size: height and width, in pixels, of the images that will come; the config's image_size without it.
        examples: (N, C, H, W), images as the image processor prepares them. The two are compared on the first of these, or else on noise;
            int8 needs some dozens to choose its scales. They tell the size, too.
        batch_size: images that will come at a time, for which "compile" makes its program.

    Raises:
        VitrailError: an engine or a precision that does not exist or is not installed; a model that it cannot run; int8 without
            images; or the outputs are far from those of the model.
    """
    runtime = Runtime(precision, engine)
    if type(model) not in OUTPUT_NAMES:
        raise VitrailError(
            f"found a {type(model).__name__}; pass a ViTModel or a ViTForImageClassification, as vitrail.load gives them."
        )
    outputs = NamedOutputs(model.eval())
    images = _noise(model.config, example_size) if examples is None else examples
    programs = CompiledModel(outputs, runtime, batch_size=batch_size, calibration=examples if precision == "int8" else None)
    programs(images[:NUM_CHECKED])
    agreement = programs.agreement or (EXACT,) * len(outputs.names)
    height, width = images.shape[-2:]
    report = OptimizationReport(
        programs.precision,
        engine,
        image_size=(height, width),
        num_images=len(images[:NUM_CHECKED]),
        agreement=dict(zip(outputs.names, agreement, strict=True)),
    )
    return OptimizedModel(model.config, programs, report)


def _noise(config: ViTConfig, size: int | Sequence[int] | None) -> torch.Tensor:
    """Two images of noise, always the same."""
    if size is None:
        size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, config.num_channels, height, width, generator=torch.Generator().manual_seed(0))
