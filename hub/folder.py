"""What the folder of a model holds, by name."""

import json
import re
from pathlib import Path
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..convert.load import REPORT_NAME

CONFIG_NAME = "config.json"
PREPROCESSOR_CONFIG_NAME = "preprocessor_config.json"
CARD_NAME = "README.md"
RESULTS_NAME = "results.json"
# What an evaluation leaves in the folder of the model that it has measured
RESULT_NAMES = (RESULTS_NAME, "curves.png", "heads.png", "confusion.png")

# Weights as transformers writes them, and the index of sharded ones
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a model that vitrail wrote."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("model_type") == ViTConfig.model_type


def write_text(path: Path, text: str) -> None:
    """Writes a file under a temporary name, then renames it into place."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def read_report(folder: Path) -> dict[str, Any] | None:
    """What a folder's conversion.json says, or None."""
    path = folder / REPORT_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_results(folder: Path) -> dict[str, Any] | None:
    """What a folder's results.json says, or None."""
    path = folder / RESULTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Writes a folder's conversion.json."""
    write_text(folder / REPORT_NAME, json.dumps(report, indent=2) + "\n")
