"""What the folder of a model holds, by name; and what its JSON files say, as long as it is of the weights beside them."""

import json
import re
from pathlib import Path
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..errors import CorruptFileError
from ..utils.atomic import read_json, write_text
from ..utils.hashing import sha256
from .report import REPORT_NAME

CONFIG_NAME = "config.json"
PREPROCESSOR_CONFIG_NAME = "preprocessor_config.json"
CARD_NAME = "README.md"
RESULTS_NAME = "results.json"
# What an evaluation leaves in the folder of the model that it has measured
RESULT_NAMES = (RESULTS_NAME, "curves.png", "heads.png", "confusion.png")
# What self-supervised training leaves in the folder of its teacher
PRETRAINING_NAME = "pretraining.json"
PRETRAINING_NAMES = (PRETRAINING_NAME, "pretraining.png")

CODE_NAMES = ("configuration_vit.py", "modeling_vit.py", "image_processing_vit.py")
LICENSE_NAMES = ("LICENSE", "LICENSE.md", "LICENSE.txt")

# Weights as transformers writes them, and the index of sharded ones
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
INDEX_NAME = "model.safetensors.index.json"


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model that vitrail wrote."""
    path = folder / CONFIG_NAME
    try:
        return path.is_file() and read_json(path).get("model_type") == ViTConfig.model_type
    except CorruptFileError:
        return False


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold its weights, in the order in which they are read."""
    index = folder / INDEX_NAME
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return [path for path in [folder / "model.safetensors"] if path.is_file()]


def hash_weights(folder: Path) -> str:
    """SHA-256 of a folder's weights, as `vitrail.load` gives it."""
    return sha256(*weight_files(folder))


def read_report(folder: Path, weights_sha256: str | None = None) -> dict[str, Any] | None:
    """What a folder's conversion.json says; None where there is none, or it is of other weights than those that lie there now.

    `weights_sha256` is that of the weights, where they lie elsewhere or it is known.
    """
    path = folder / REPORT_NAME
    return _of_these_weights(read_json(path), folder, weights_sha256) if path.is_file() else None


def read_results(folder: Path, weights_sha256: str | None = None) -> dict[str, Any] | None:
    """What a folder's results.json says, as `read_report` reads; None also where it is somebody else's."""
    return _read_ours(folder, RESULTS_NAME, weights_sha256)


def read_pretraining(folder: Path, weights_sha256: str | None = None) -> dict[str, Any] | None:
    """What a folder's pretraining.json says, as `read_results` reads."""
    return _read_ours(folder, PRETRAINING_NAME, weights_sha256)


def own_records(folder: Path) -> tuple[str, ...]:
    """The names of what an evaluation or a training by vitrail may have left in a folder, as far as it is not somebody else's."""
    kinds = ((RESULTS_NAME, RESULT_NAMES), (PRETRAINING_NAME, PRETRAINING_NAMES))
    return tuple(name for record, names in kinds if _is_ours(folder / record) for name in names)


def _read_ours(folder: Path, name: str, weights_sha256: str | None) -> dict[str, Any] | None:
    return _of_these_weights(read_json(folder / name), folder, weights_sha256) if _is_ours(folder / name) else None


def _is_ours(path: Path) -> bool:
    """Whether a record is one that vitrail wrote."""
    try:
        return {"task", "weights_sha256"} <= read_json(path).keys()
    except (FileNotFoundError, CorruptFileError):
        return False


def _of_these_weights(content: dict[str, Any], folder: Path, weights_sha256: str | None) -> dict[str, Any] | None:
    return content if content.get("weights_sha256") == (weights_sha256 or hash_weights(folder)) else None


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes a folder's conversion.json."""
    write_text(folder / REPORT_NAME, json.dumps(report, indent=2) + "\n")
