"""Other engines than torch that run a module on this processor: onnxruntime and OpenVINO, each built for one image size.

Shape letters: B batch, C channels, H W pixels.
"""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..convert.graph import INPUT_NAME, to_openvino, trace, write_onnx
from ..convert.packages import check_packages
from ..errors import VitrailError

Program = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""`pixel_values` (B, C, H, W), of the one H and W and of any B, to what the module returns, float32 on the CPU.

As many threads may call it at the same time as it was built for. Every result has memory of its own.
"""

# Which numbers each engine can compute with
PRECISIONS = {
    "onnxruntime": ("float32",),  # its processor kernels of half precision convert to float32 and back
    "openvino": ("float32", "bfloat16", "float16"),
}
# OpenVINO's name of a precision, and that under which a device lists it
HINTS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}


def check_precision(engine: str, precision: str) -> None:
    """Raises VitrailError where an engine has no such precision."""
    if precision not in PRECISIONS[engine]:
        having = " or ".join(name for name, precisions in PRECISIONS.items() if precision in precisions)
        raise VitrailError(
            f"{engine} does not compute in {precision} on a processor: choose {', '.join(PRECISIONS[engine])}"
            f"{f', or the engine {having}' if having else ''}."
        )


def onnxruntime_program(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> Program:
    """A module in onnxruntime, on this processor.

    Args:
        module: takes `pixel_values` and returns a tuple of tensors.
        example: (B, C, H, W) of the size that is built for; its values do not matter.
        precision: of `PRECISIONS`.
        calibration: `pixel_values` of real images, of that size, for int8.
        num_streams: how many threads will call the program at the same time; they share the threads that torch uses now.

    Raises:
        VitrailError: packages are missing, or the engine has no such precision.
    """
    check_packages(("onnx", "onnxscript", "onnxruntime"), extra="onnx")
    check_precision("onnxruntime", precision)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads_for_each(num_streams)
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(trace(module, (None, *example.shape[1:])), path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def program(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays = session.run(None, {INPUT_NAME: _array(pixel_values)})
        return tuple(torch.from_numpy(array) for array in arrays)

    return program


def openvino_program(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> Program:
    """A module in OpenVINO, on this processor; takes and raises what `onnxruntime_program` does.

    Raises:
        VitrailError: also where this processor has no instructions for the precision.
    """
    check_packages(("openvino",), extra="openvino")
    check_precision("openvino", precision)
    import openvino

    core = openvino.Core()
    hint, capability = HINTS[precision]
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capability not in capabilities:
        raise VitrailError(
            f"OpenVINO says that this processor computes in {', '.join(capabilities)}, and not in {precision}: choose float32."
        )
    model = to_openvino(trace(module, (None, *example.shape[1:])))
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "NUM_STREAMS": num_streams,
        "INFERENCE_NUM_THREADS": num_streams * threads_for_each(num_streams),
    }
    compiled = core.compile_model(model, "CPU", settings)
    own = threading.local()  # a request runs one batch at a time

    def program(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer([openvino.Tensor(_array(pixel_values), shared_memory=True)])
        return tuple(torch.from_numpy(tensor.data.copy()) for tensor in own.request.output_tensors)

    return program


def threads_for_each(num_streams: int) -> int:
    """How many of the threads that torch uses fall to each of so many callers."""
    return max(1, torch.get_num_threads() // num_streams)


def _array(pixel_values: torch.Tensor) -> np.ndarray:
    """The same memory, where it is float32 without gaps."""
    return pixel_values.float().contiguous().numpy()
