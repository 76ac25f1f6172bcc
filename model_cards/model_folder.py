"""The folder of a model: the names of its files, and its records, which count only for the weights in the folder."""

import re
from pathlib import Path
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..convert.report import REPORT_NAME, ConversionRecord
from ..errors import CorruptFileError
from ..utils.atomic import read_json
from ..utils.hashing import sha256

CONFIG_NAME = "config.json"
PREPROCESSOR_CONFIG_NAME = "preprocessor_config.json"
CARD_NAME = "README.md"
RESULTS_NAME = "results.json"
# Written by an evaluation into the folder of its model
RESULT_NAMES = (RESULTS_NAME, "curves.png", "heads.png", "confusion.png")
# Written by self-supervised training into the folder of its teacher
PRETRAINING_NAME = "pretraining.json"
PRETRAINING_NAMES = (PRETRAINING_NAME, "pretraining.png")

CODE_NAMES = ("configuration_vit.py", "modeling_vit.py", "modeling_vit_dense.py", "image_processing_vit.py")
LICENSE_NAMES = ("LICENSE", "LICENSE.md", "LICENSE.txt")

# Weights as transformers writes them, and the index of shards
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
INDEX_NAME = "model.safetensors.index.json"

# What a Trainer adds to the model in its output folder and its checkpoints
TRAINER_STATE = re.compile(r"trainer_state\.json|training_args\.bin|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth")


def is_model_folder(folder: Path) -> bool:
    """Return True for a folder with a model that vitrail wrote."""
    path = folder / CONFIG_NAME
    try:
        return path.is_file() and read_json(path).get("model_type") == ViTConfig.model_type
    except CorruptFileError:
        return False


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder, in the order in which they are read."""
    index = folder / INDEX_NAME
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    return [path for path in [folder / "model.safetensors"] if path.is_file()]


def hash_weights(folder: Path) -> str:
    """Return the SHA-256 of a folder's weights, equal to `source.sha256` of `vitrail.load`."""
    return sha256(*weight_files(folder))


def read_report(folder: Path, weights_sha256: str | None = None) -> ConversionRecord | None:
    """Return a folder's conversion.json; None where there is none, or it describes other weights.

    `weights_sha256` is the SHA-256 of the weights; by default, it is computed from the folder.
    """
    path = folder / REPORT_NAME
    if not path.is_file():
        return None
    record = ConversionRecord.read(path)
    return record if record.weights_sha256 == (weights_sha256 or hash_weights(folder)) else None


def own_records(folder: Path) -> tuple[str, ...]:
    """Return the names of files that an evaluation or a training by vitrail wrote into a folder."""
    groups = ((RESULTS_NAME, RESULT_NAMES), (PRETRAINING_NAME, PRETRAINING_NAMES))
    return tuple(name for record, names in groups if read_ours(folder / record) is not None for name in names)


def read_ours(path: Path) -> dict[str, Any] | None:
    """Return a record that vitrail wrote; None where there is none, or the file is of another program."""
    try:
        content = read_json(path)
    except (FileNotFoundError, CorruptFileError):
        return None
    return content if {"task", "weights_sha256"} <= content.keys() else None
