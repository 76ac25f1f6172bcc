"""How a model is run: in which precision and by which engine; as programs that have shown that they answer as the model does.

Shape letters: B batch, C H W channels and pixels.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import VitrailError
from .graph_engines import onnxruntime_program, openvino_program
from .programs import Program
from .torch_engines import compiled_program, eager_program, in_precision


@dataclass(frozen=True)
class Engine:
    """What runs a module.

    build: makes a program of a module, from an example of what it will be given.
    precisions: in which it can compute.
    fixed_size: whether its programs hold for one height and width of images.
    devices: where it runs.
    """

    build: Callable[..., Program]
    precisions: tuple[str, ...]
    fixed_size: bool
    devices: tuple[str, ...] = ("cpu", "cuda")


PRECISIONS = ("float32", "bfloat16", "float16", "int8", "float64")
TORCH_PRECISIONS = ("float32", "bfloat16", "float16", "float64")
ENGINES = {
    "eager": Engine(eager_program, TORCH_PRECISIONS, fixed_size=False),
    "compile": Engine(compiled_program, TORCH_PRECISIONS, fixed_size=True),
    "onnxruntime": Engine(onnxruntime_program, ("float32", "int8"), fixed_size=True, devices=("cpu",)),
    "openvino": Engine(openvino_program, ("float32", "bfloat16", "float16", "int8"), fixed_size=True, devices=("cpu",)),
}
# The smallest cosine between what a program and the float32 model answer for an image; below, something is wrong
MIN_COSINE = {"float64": 0.9999, "float32": 0.9999, "bfloat16": 0.99, "float16": 0.999, "int8": 0.9}
MAX_SIZES = 8  # programs that are kept at a time, each of which has weights of its own
NUM_CALIBRATION = 64  # images by which int8 chooses its scales, at most
NUM_CHECKED = 8  # images on which a program is compared with its module, at most


@dataclass(frozen=True)
class Runtime:
    """A precision and an engine.

    precision: "float32", "bfloat16", "float16", "int8" or "float64"; None for that of the model's weights.
    engine: "eager" is the model itself; "compile" is torch.compile with weights that are frozen; "onnxruntime" and "openvino" run a graph
        of the model on a CPU, and are extras.

    Raises VitrailError for other names, and for what an engine cannot do.
    """

    precision: str | None = None
    engine: str = "eager"

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise VitrailError(f"found engine={self.engine!r}; write one of {', '.join(ENGINES)}")
        if self.precision is None or self.precision in ENGINES[self.engine].precisions:
            return
        if self.precision not in PRECISIONS:
            raise VitrailError(f"found precision={self.precision!r}; write one of {', '.join(PRECISIONS)}")
        able = " or ".join(name for name, engine in ENGINES.items() if self.precision in engine.precisions)
        raise VitrailError(
            f"the engine {self.engine} does not compute in {self.precision}: choose among "
            f"{', '.join(ENGINES[self.engine].precisions)}, or the engine {able}."
        )


DEFAULT_RUNTIME = Runtime()  # the model as it is


@dataclass(frozen=True)
class Agreement:
    """How near an output comes to that of the model in float32.

    cosine: the smallest, over images, between all numbers of the output for an image.
    max_difference: the largest, over all numbers.
    """

    cosine: float
    max_difference: float


class CompiledModel:
    """A module as a runtime runs it: called like the module, by `num_streams` threads at a time.

    Whenever it makes a program it compares what that answers to the images at hand with what the module answers in float32; where it
    runs the module as it is there is nothing to compare.

    Args:
        module: in evaluation mode; from (B, C, H, W) to a tuple of tensors with B rows. It is read again for images of another size.
        batch_size: images that come at a time; other numbers work, and are slower where a program is compiled for one.
        calibration: (N, C, H, W), images by which int8 chooses its scales.
        num_streams: each thread's calls run on `torch.get_num_threads() // num_streams` threads.

    Raises VitrailError: the engine does not run on the module's device; int8 has no images.
    """

    def __init__(
        self,
        module: nn.Module,
        runtime: Runtime,
        *,
        batch_size: int,
        calibration: torch.Tensor | None = None,
        num_streams: int = 1,
    ) -> None:
        self.module = module
        self.device = next(module.parameters()).device
        self.precision = runtime.precision or precision_of(module)
        self.runtime = Runtime(self.precision, runtime.engine)
        self.engine = ENGINES[runtime.engine]
        self.is_module = self.runtime == Runtime(precision_of(module))
        self.batch_size = batch_size
        self.calibration = calibration
        self.num_streams = num_streams
        self.agreement: tuple[Agreement, ...] = ()  # of each output, the worst so far; empty while nothing was compared
        self._programs: OrderedDict[tuple[int, int] | None, Program] = OrderedDict()
        self._lock = threading.Lock()
        if self.device.type not in self.engine.devices:
            raise VitrailError(f"the engine {runtime.engine} runs on a CPU, and the model is on {self.device}: move it to the CPU.")
        if self.precision == "int8" and calibration is None:
            raise VitrailError("int8 chooses its scales by images: give it some dozens, prepared as the model will see them.")

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs in float32 for images (B, C, H, W) on any device.

        Raises VitrailError: the engine is not installed, or lacks what it needs here; its outputs are far from those of the module.
        """
        pixel_values = pixel_values.to(self.device, non_blocking=True)
        return self._run(self._program(pixel_values), pixel_values)

    def _run(self, program: Program, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output.float() for output in program(pixel_values))

    def _program(self, pixel_values: torch.Tensor) -> Program:
        height, width = pixel_values.shape[-2:]
        size = (height, width) if self.engine.fixed_size else None
        with self._lock:  # the other threads are likely to wait for the same one
            if size not in self._programs:
                program = self._build(pixel_values)
                if not self.is_module:
                    self._check(program, pixel_values[:NUM_CHECKED])
                self._programs[size] = program
                if len(self._programs) > MAX_SIZES:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(size)
            return self._programs[size]

    def _build(self, pixel_values: torch.Tensor) -> Program:
        calibration = self.calibration
        if calibration is not None and calibration.shape[-2:] != pixel_values.shape[-2:]:
            calibration = F.interpolate(calibration, pixel_values.shape[-2:], mode="bilinear", antialias=True)
        return self.engine.build(
            self.module,
            pixel_values[:1].expand(self.batch_size, -1, -1, -1).contiguous(),
            precision=self.precision,
            calibration=calibration,
            num_streams=self.num_streams,
        )

    def _check(self, program: Program, pixel_values: torch.Tensor) -> None:
        expected = self._run(in_precision(self.module, torch.float32), pixel_values)
        found = [
            _compare(output.flatten(1), wanted.flatten(1))
            for output, wanted in zip(self._run(program, pixel_values), expected, strict=True)
        ]
        least = MIN_COSINE[self.precision]
        for agreement in found:
            if not agreement.cosine >= least:  # also true of NaN
                raise VitrailError(
                    f"what {self.runtime.engine} computes in {self.precision} is not what the model answers: the cosine between "
                    f"the two is {agreement.cosine:.4f}, expected {least} or more. Choose another precision or engine."
                )
        self.agreement = tuple(map(_worse, self.agreement, found)) if self.agreement else tuple(found)


def precision_of(module: nn.Module) -> str:
    """That of a module's weights, in words."""
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def _compare(output: torch.Tensor, expected: torch.Tensor) -> Agreement:
    """Of two (B, …), in float64: the difference of two cosines near 1 is smaller than float32 can tell."""
    cosine = F.cosine_similarity(output.double(), expected.double()).min().item()
    return Agreement(cosine, (output - expected).abs().max().item())


def _worse(one: Agreement, other: Agreement) -> Agreement:
    return Agreement(min(one.cosine, other.cosine), max(one.max_difference, other.max_difference))
