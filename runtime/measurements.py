"""Measurements of engines, remembered in a JSON file of this machine, which may be removed at any time.

The file is `HF_HOME/vitrail/engines.json`.
"""

import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import nn
from transformers.utils import logging

from ..errors import VitrailError
from ..modeling.fingerprint import config_fields
from ..utils.hashing import digest
from ..utils.records import Record
from ..utils.versions import installed_version
from ..version import __version__
from .compiled import Runtime, precision_of

PACKAGES = (
    "torch",
    "onnxruntime",
    "openvino",
)  # whose other version makes measurements invalid, as another version of vitrail does

logger = logging.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What an engine takes in a precision.

    build_seconds: to compile the model, and to compare it.
    image_seconds: for each image, while all threads run.
    refused: why the engine does not run this model; None if it does.
    """

    engine: str
    precision: str
    build_seconds: float = 0.0
    image_seconds: float = 0.0
    refused: str | None = None

    def __post_init__(self) -> None:
        Runtime(self.precision, self.engine)  # raises VitrailError for unknown names
        if not all(0 <= seconds < math.inf for seconds in (self.build_seconds, self.image_seconds)):
            raise VitrailError(f"found {self.build_seconds} and {self.image_seconds} seconds; expected positive, finite times")


@dataclass(kw_only=True)
class MeasuredModel:
    """The measurements of a model.

    subject: everything that they depend on, see `subject_of`.
    batch_size: that they were made with.
    """

    subject: dict[str, Any]
    measurements: list[Measurement]
    batch_size: int | None = None


@dataclass(kw_only=True)
class MeasurementFile(Record):
    """The content of the file: the versions that it belongs to, and models by the digest of their subject."""

    versions: dict[str, str | None]
    models: dict[str, MeasuredModel] = field(default_factory=dict)


def measurement_file() -> Path:
    """Return the path of the file."""
    return Path(constants.HF_HOME) / "vitrail" / "engines.json"


def subject_of(module: nn.Module, pixel_values: torch.Size, *, batch_size: int | None, num_streams: int) -> dict[str, Any]:
    """Return what measurements depend on: the machine, the model without the values of its weights, and the shape of its inputs.

    Args:
        pixel_values: the shape of images, (…, C, H, W).
        batch_size: None if it is measured too.
    """
    device = next(module.parameters()).device
    model: Any = getattr(module, "model", module)  # of TupleOutputs
    config = "" if getattr(model, "config", None) is None else f"{config_fields(model)} {model.config._attn_implementation}"
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "streams": num_streams,
        "model": digest(
            [
                type(model).__name__,
                config,
                *(f"{name} {tuple(tensor.shape)}" for name, tensor in module.state_dict().items()),
            ]
        ),
        "dtype": precision_of(module),
        "outputs": list(getattr(module, "names", ())),
        "image_shape": list(pixel_values[-3:]),
        "batch_size": batch_size,
    }


def read_measurements(subject: dict[str, Any]) -> MeasuredModel | None:
    """Return the remembered measurements of a subject; None if a version has changed since, or the file is damaged."""
    return _read_file().models.get(_key(subject))


def write_measurements(subject: dict[str, Any], measurements: Iterable[Measurement], *, batch_size: int) -> None:
    """Remember the measurements of a subject. Of processes that write at the same time, the last one wins."""
    path, content = measurement_file(), _read_file(warns=False)
    content.models[_key(subject)] = MeasuredModel(subject=subject, measurements=list(measurements), batch_size=batch_size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content.write(path)
    except OSError as error:
        logger.info(f"measurements of engines are not remembered: {path} cannot be written ({error})")


def _read_file(*, warns: bool = True) -> MeasurementFile:
    """Return the content of the file, if it belongs to the installed versions, or an empty content."""
    versions = {"vitrail": __version__} | {package: installed_version(package) for package in PACKAGES}
    path = measurement_file()
    try:
        content = MeasurementFile.read(path)
    except OSError as error:
        logger.info(f"no measurements of engines are remembered: {error}")
    except VitrailError:
        if warns:
            logger.warning(f"{path} is damaged, or another vitrail has written it: its measurements are made again")
    else:
        if content.versions == versions:
            return content
    return MeasurementFile(versions=versions)


def _key(subject: dict[str, Any]) -> str:
    return digest(f"{name}={subject[name]}" for name in sorted(subject))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
