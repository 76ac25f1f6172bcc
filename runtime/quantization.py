"""Quantization of graphs to 8 bits: weights and activations of matrix products and convolutions, calibrated on images.

Both engines use 7 of the 8 bits of a weight. CPUs without 8-bit dot products (VNNI, AMX) add pairs of products in 16 bits, which overflow
with 8-bit weights: the features of a ViT-S/16 then have a cosine similarity to float32 of 0.96 (onnxruntime) or 0.98 (OpenVINO) instead of
0.999. With 7 bits, a graph that is quantized on one CPU is as accurate on another.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.optional import import_without_telemetry
from .graph import INPUT_NAME


def quantize_onnx(path: Path, quantized: Path, calibration: np.ndarray) -> None:
    """Quantize an ONNX file to 8 bits and write it; products inside attention stay in float32.

    calibration: `pixel_values` (images, C, H, W) of real images.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class OneByOne(CalibrationDataReader):
        def __init__(self) -> None:
            self.images: Iterator[np.ndarray] = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {INPUT_NAME: image[None]}

    with _without_advice():
        quantize_static(
            path,
            quantized,
            OneByOne(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=Path(f"{path}.data").exists(),
            extra_options={"MatMulConstBOnly": True},
        )


def quantize_openvino(model: Any, calibration: np.ndarray) -> Any:
    """Quantize a float32 `openvino.Model` to 8 bits by NNCF's recipe for transformers.

    calibration: `pixel_values` (images, C, H, W) of real images.
    """
    import rich  # imported here, because `import vitrail` does not need it

    nncf = import_without_telemetry("nncf")
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    console = rich.get_console()
    quiet = console.quiet
    console.quiet = True  # NNCF draws four progress bars
    nncf.set_log_level(logging.ERROR)
    try:
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in calibration]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
        )
    finally:
        console.quiet = quiet


@contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress onnxruntime's advice to prepare a file for quantization, which torch's exporter has already done."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)  # without a handler, logging to the root logger installs one
    root.addFilter(_is_no_advice)
    try:
        yield
    finally:
        root.removeFilter(_is_no_advice)
        root.removeHandler(nowhere)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Please consider")
