"""Other engines than torch that run a module on this processor: onnxruntime and OpenVINO, each built for one image size.

Shape letters: B batch, C channels, H W pixels.
"""

import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import VitrailError
from ..utils.optional import check_packages, import_without_telemetry
from .graph import INPUT_NAME, to_openvino, trace, write_onnx
from .programs import Program
from .quantization import quantize_onnx, quantize_openvino

# OpenVINO's name of a precision (in int8, of what is not quantized), and that under which a device lists it
HINTS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16"), "int8": ("f32", "INT8")}


def onnxruntime_program(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> Program:
    """A module in onnxruntime, on this processor.

    Args:
        module: takes `pixel_values` and returns a tuple of tensors.
        example: (B, C, H, W) of the size that is built for; its values do not matter.
        precision: "float32" or "int8"; of half precision it has hardly any kernels for processors.
        calibration: `pixel_values` of real images, of that size, for int8.
        num_streams: how many threads will call the program at the same time; they share the threads that torch uses now.

    Raises:
        VitrailError: packages are missing.
    """
    check_packages(("onnx", "onnxscript", "onnxruntime"), extra="onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads_for_each(num_streams)
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(trace(module, (None, *example.shape[1:])), path)
        if precision == "int8":
            assert calibration is not None
            quantized = Path(folder) / "int8.onnx"
            quantize_onnx(path, quantized, _array(calibration))
            path = quantized
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
    check_packages(("openvino", "nncf"), extra="openvino")
    openvino = import_without_telemetry("openvino")
    core = openvino.Core()
    hint, capability = HINTS[precision]
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capability not in capabilities:
        raise VitrailError(
            f"OpenVINO says that this processor computes in {', '.join(capabilities)}, and not in {precision}: choose float32 or int8."
        )
    model = to_openvino(trace(module, (None, *example.shape[1:])))
    if precision == "int8":
        assert calibration is not None
        model = quantize_openvino(model, _array(calibration))
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
