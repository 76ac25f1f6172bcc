"""Engines other than torch: onnxruntime and OpenVINO on a CPU, each compiled for one image size.

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
from .outputs import CompiledFunction
from .quantization import quantize_onnx, quantize_openvino

ONNXRUNTIME_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPENVINO_PACKAGES = ("openvino", "nncf")
# OpenVINO's name of each precision (for int8, of the operations that are not quantized), and of the capability of a device
HINTS = {"float32": ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16"), "int8": ("f32", "INT8")}


def build_onnxruntime(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> CompiledFunction:
    """Compile a module for onnxruntime on a CPU.

    Args:
        module: maps `pixel_values` to a tuple of tensors.
        example: (B, C, H, W) of the size to compile for; its values do not matter.
        precision: "float32" or "int8"; onnxruntime has hardly any CPU kernels for half precision.
        calibration: `pixel_values` of real images of that size, for int8.
        num_streams: number of threads that call the function at the same time; they share the threads that torch uses now.

    Raises:
        VitrailError: packages are missing, or onnxruntime refuses the graph of the model.
    """
    check_packages(ONNXRUNTIME_PACKAGES, extra="onnx")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

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
        try:
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except (errors.Fail, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException) as error:
            raise VitrailError(f"onnxruntime does not run this model ({error}): choose another engine.") from error

    def function(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrays = session.run(None, {INPUT_NAME: _array(pixel_values)})
        return tuple(torch.from_numpy(array) for array in arrays)

    return function


def build_openvino(
    module: nn.Module, example: torch.Tensor, *, precision: str, calibration: torch.Tensor | None, num_streams: int
) -> CompiledFunction:
    """Compile a module for OpenVINO on a CPU; the arguments are those of `build_onnxruntime`.

    Raises:
        VitrailError: packages are missing, or this CPU does not support the precision.
    """
    check_packages(OPENVINO_PACKAGES, extra="openvino")
    openvino = import_without_telemetry("openvino")
    core = openvino.Core()
    hint, capability = HINTS[precision]
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capability not in capabilities:
        raise VitrailError(
            f"OpenVINO does not support {precision} on this CPU, which supports {', '.join(capabilities)}: choose float32 or int8."
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

    def function(pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        own.request.infer([openvino.Tensor(_array(pixel_values), shared_memory=True)])
        return tuple(torch.from_numpy(tensor.data.copy()) for tensor in own.request.output_tensors)

    return function


def threads_for_each(num_streams: int) -> int:
    """Return the share of torch's threads for each of `num_streams` callers."""
    return max(1, torch.get_num_threads() // num_streams)


def _array(pixel_values: torch.Tensor) -> np.ndarray:
    """Return a float32 array, which shares the memory of a contiguous float32 tensor."""
    return pixel_values.float().contiguous().numpy()
