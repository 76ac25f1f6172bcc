"""Run a model in a given precision and engine, and check each compiled version against the float32 model.

Shape letters: B batch, C H W channels and pixels.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import OutputMismatchError, VitrailError
from ..modeling.fingerprint import weights_digest
from .graph_engines import ONNXRUNTIME_PACKAGES, OPENVINO_PACKAGES, build_onnxruntime, build_openvino
from .outputs import CompiledFunction
from .torch_engines import build_compiled, build_eager, in_precision


@dataclass(frozen=True)
class Engine:
    """An engine: builds a function that runs a module.

    build: compiles a module for inputs like an example.
    precisions: the supported precisions.
    fixed_size: whether a compiled function accepts one height and width of images only.
    devices: the supported device types.
    packages: the optional packages that it needs.
    build_seconds: typical time to build a function of a ViT-S on two cores, which decides whether `auto` tries the engine.
    """

    build: Callable[..., CompiledFunction]
    precisions: tuple[str, ...]
    fixed_size: bool
    devices: tuple[str, ...] = ("cpu", "cuda")
    packages: tuple[str, ...] = ()
    build_seconds: float = 0.0


AUTO = "auto"  # an engine or a precision that `select_runtime` selects
PRECISIONS = ("float32", "bfloat16", "float16", "int8", "float64")
TORCH_PRECISIONS = ("float32", "bfloat16", "float16", "float64")
OTHER_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp64": "float64", "double": "float64"}
ENGINES = {
    "eager": Engine(build_eager, TORCH_PRECISIONS, fixed_size=False),
    "compile": Engine(build_compiled, TORCH_PRECISIONS, fixed_size=True, build_seconds=30),
    "onnxruntime": Engine(
        build_onnxruntime, ("float32", "int8"), fixed_size=True, devices=("cpu",), packages=ONNXRUNTIME_PACKAGES, build_seconds=10
    ),
    "openvino": Engine(
        build_openvino,
        ("float32", "bfloat16", "float16", "int8"),
        fixed_size=True,
        devices=("cpu",),
        packages=OPENVINO_PACKAGES,
        build_seconds=5,
    ),
}
# The smallest acceptable cosine similarity between the outputs of a compiled function and the float32 model, per image
MIN_COSINE = {"float64": 0.9999, "float32": 0.9999, "bfloat16": 0.99, "float16": 0.999, "int8": 0.9}
MAX_SIZES = 8  # compiled functions kept at a time, one per image size; each holds a copy of the weights
NUM_CALIBRATION = 64  # largest number of images that int8 is calibrated on
NUM_CHECKED = 8  # largest number of images that a compiled function is checked on


@dataclass(frozen=True)
class Runtime:
    """A precision and an engine.

    precision: "float32", "bfloat16", "float16", "int8" or "float64"; None keeps the precision of the weights; "auto" takes the fastest
        of them whose outputs stay close to the float32 model.
    engine: "eager" is the model itself; "compile" is torch.compile with frozen weights; "onnxruntime" and "openvino" run a graph of the
        model on a CPU and are optional dependencies; "auto" takes the fastest of them, see `vitrail.runtime.selection`.

    Raises VitrailError for other names, and for a precision that the engine does not support.
    """

    precision: str | None = None
    engine: str = "eager"

    def __post_init__(self) -> None:
        if self.engine not in (*ENGINES, AUTO):
            raise VitrailError(f"found engine={self.engine!r}; write one of {', '.join(ENGINES)} or {AUTO}")
        if self.precision not in (None, *PRECISIONS, AUTO):
            known = OTHER_NAMES.get(self.precision) or f"one of {', '.join(PRECISIONS)} or {AUTO}"
            raise VitrailError(f"found precision={self.precision!r}; write {known}")
        if self.precision in (None, AUTO) or self.engine == AUTO or self.precision in ENGINES[self.engine].precisions:
            return
        able = " or ".join(name for name, engine in ENGINES.items() if self.precision in engine.precisions)
        raise VitrailError(
            f"engine {self.engine} does not support {self.precision}: choose one of "
            f"{', '.join(ENGINES[self.engine].precisions)}, or the engine {able}."
        )

    def __str__(self) -> str:
        return " ".join(filter(None, (self.engine, self.precision)))

    @property
    def is_auto(self) -> bool:
        """Whether the engine or the precision is still to be selected."""
        return AUTO in (self.engine, self.precision)


DEFAULT_RUNTIME = Runtime()  # the unchanged model


@dataclass(frozen=True)
class Agreement:
    """The agreement of an output with the output of the float32 model.

    cosine: the smallest cosine similarity of the output for an image.
    max_difference: the largest absolute difference.
    """

    cosine: float
    max_difference: float


class CompiledModel:
    """A module run by a runtime. It is called like the module, by up to `num_streams` threads at a time.

    Each compiled version is checked on the first images it receives: its outputs must agree with the float32 module. The unchanged module
    is not checked. Compiled versions keep the weights that the module had when the first of them was built; see `is_current`.

    Args:
        module: in evaluation mode; maps (B, C, H, W) to a tuple of tensors with B rows. It is compiled again for another image size.
        runtime: a selected one: neither its engine nor its precision is "auto".
        batch_size: the usual number of images per call; other numbers work, but are slower where the batch size is compiled in.
        calibration: (N, C, H, W), images that int8 is calibrated on.
        num_streams: number of threads that call at the same time; each call uses `torch.get_num_threads() // num_streams` threads.

    Raises:
        VitrailError: the engine does not support the device of the module, or int8 has no calibration images.
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
        assert not runtime.is_auto, "select_runtime comes first"
        self.module = module
        self.device = next(module.parameters()).device
        self.precision = runtime.precision or precision_of(module)
        self.engine = ENGINES[runtime.engine]
        if self.precision not in self.engine.precisions and runtime.precision is None:
            raise VitrailError(
                f"the weights are {self.precision}, which engine {runtime.engine} does not support: set the precision to "
                f"{' or '.join(self.engine.precisions)} (--precision at the command line)."
            )
        self.runtime = Runtime(self.precision, runtime.engine)
        self.is_module = self.runtime == Runtime(precision_of(module))
        self.batch_size = batch_size
        self.calibration = calibration
        self.num_streams = num_streams
        self.agreement: tuple[Agreement, ...] = ()  # per output, the worst so far; empty before any check
        self._weights: str | None = None  # the digest of those that the functions hold; the unchanged module holds its own
        self._functions: OrderedDict[tuple[int, int] | None, CompiledFunction] = OrderedDict()
        self._lock = threading.Lock()
        if self.device.type not in self.engine.devices:
            raise VitrailError(f"engine {runtime.engine} runs on a CPU, but the model is on {self.device}: move it to the CPU.")
        if self.precision == "int8" and calibration is None:
            raise VitrailError("int8 requires calibration images, but there are none: pass some dozens of preprocessed images.")

    @property
    def is_current(self) -> bool:
        """Whether the compiled versions have the weights of the module. It reads all weights, because no counter sees every change."""
        return self._weights is None or weights_digest(self.module) == self._weights

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in float32 for images (B, C, H, W) on any device.

        Raises VitrailError if the engine is not installed or not supported here, or if the weights have changed since the version for
        another image size was built; OutputMismatchError if its outputs do not agree with the module.
        """
        pixel_values = pixel_values.to(self.device, non_blocking=True)
        return self._run(self._function(pixel_values), pixel_values)

    def _run(self, function: CompiledFunction, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(output.float() for output in function(pixel_values))

    def _function(self, pixel_values: torch.Tensor) -> CompiledFunction:
        height, width = pixel_values.shape[-2:]
        size = (height, width) if self.engine.fixed_size else None
        with self._lock:  # other threads likely need the same function
            if size not in self._functions:
                if not self.is_current:
                    raise VitrailError(
                        "the weights of the model have changed since it was compiled: compile it again, for example with vitrail.optimize."
                    )
                function = self._build(pixel_values)
                if not self.is_module:
                    self._weights = self._weights or weights_digest(self.module)
                    self._check(function, pixel_values[:NUM_CHECKED])
                self._functions[size] = function
                if len(self._functions) > MAX_SIZES:
                    self._functions.popitem(last=False)
            self._functions.move_to_end(size)
            return self._functions[size]

    def _build(self, pixel_values: torch.Tensor) -> CompiledFunction:
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

    def _check(self, function: CompiledFunction, pixel_values: torch.Tensor) -> None:
        expected = self._run(in_precision(self.module, torch.float32), pixel_values)
        found = [agreement_of(output, wanted) for output, wanted in zip(self._run(function, pixel_values), expected, strict=True)]
        least = MIN_COSINE[self.precision]
        for agreement in found:
            if not agreement.cosine >= least:  # also true of NaN
                raise OutputMismatchError(
                    f"the outputs of {self.runtime.engine} in {self.precision} do not agree with the float32 model: their cosine "
                    f"similarity is {agreement.cosine:.4f}, expected {least} or more. Choose another precision or engine."
                )
        self.agreement = tuple(map(_worse, self.agreement, found)) if self.agreement else tuple(found)


def precision_of(module: nn.Module) -> str:
    """Return the name of the dtype of a module's weights."""
    return str(next(module.parameters()).dtype).removeprefix("torch.")


def agreement_of(output: torch.Tensor, expected: torch.Tensor) -> Agreement:
    """Compare two (B, …). Cosines are in float64, because float32 does not resolve those near 1."""
    cosine = F.cosine_similarity(output.double().flatten(1), expected.double().flatten(1)).min().item()
    return Agreement(cosine, (output - expected).abs().max().item())


def _worse(one: Agreement, other: Agreement) -> Agreement:
    return Agreement(min(one.cosine, other.cosine), max(one.max_difference, other.max_difference))
