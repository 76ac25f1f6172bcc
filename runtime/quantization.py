"""Graphs in 8-bit integers: weights and activations of matrix products and convolutions, their ranges taken from images.

Both engines use 7 of the 8 bits of a weight. Processors without instructions for products of 8 bits (VNNI, AMX) add these products in
pairs in 16 bits, which else overflow: features of a ViT-S/16 then had a cosine of 0.96 (onnxruntime) or 0.98 (OpenVINO) to those of
float32, and so of 0.999. And a graph that is made on one processor is as good on another.
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
    """Writes an ONNX file that computes in 8 bits; products inside attention stay in float32.

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
    """An `openvino.Model` that computes in 8 bits, of one in float32, by NNCF's recipe for transformers.

    calibration: `pixel_values` (images, C, H, W) of real images.
    """
    import rich  # not above: `import vitrail` does without it

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
    """Without onnxruntime's advice to prepare a file for quantization, which torch's exporter has done."""
    root, nowhere = logging.getLogger(), logging.NullHandler()
    root.addHandler(nowhere)  # without any handler, what is logged to the root would install one
    root.addFilter(_is_no_advice)
    try:
        yield
    finally:
        root.removeFilter(_is_no_advice)
        root.removeHandler(nowhere)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Please consider")
