"""The code in a model's folder: flat files, with which transformers loads the model without vitrail.

transformers copies the file that `auto_map` names and the files that it imports by `from .name import`, and nothing else. So the
package's files are written into one folder, with the import between them rewritten.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..model_cards.model_folder import CONFIG_NAME, PREPROCESSOR_CONFIG_NAME
from ..processing.image_processing_vit import VitrailImageProcessor, VitrailImageProcessorTorch
from ..utils.atomic import read_json, write_text
from ..version import __version__

PACKAGE = Path(__file__).resolve().parent.parent

# For each JSON file of a folder: the files of the package that it needs, and its `auto_map`
SOURCES = {
    CONFIG_NAME: ("configuration/configuration_vit.py", "modeling/modeling_vit.py", "modeling/modeling_vit_dense.py"),
    PREPROCESSOR_CONFIG_NAME: ("processing/image_processing_vit.py",),
}
AUTO_MAPS: Mapping[str, Mapping[str, Any]] = {
    CONFIG_NAME: {
        "AutoConfig": "configuration_vit.ViTConfig",
        "AutoModel": "modeling_vit.ViTModel",
        "AutoModelForImageClassification": "modeling_vit.ViTForImageClassification",
        "AutoModelForMaskedImageModeling": "modeling_vit.ViTForMaskedImageModeling",
        "AutoModelForSemanticSegmentation": "modeling_vit_dense.ViTForSemanticSegmentation",
        "AutoModelForDepthEstimation": "modeling_vit_dense.ViTForDepthEstimation",
        "AutoBackbone": "modeling_vit.ViTBackbone",
    },
    PREPROCESSOR_CONFIG_NAME: {
        "AutoImageProcessor": {
            "pil": "image_processing_vit.VitrailImageProcessor",
            "torch": "image_processing_vit.VitrailImageProcessorTorch",
        }
    },
}
# The key and values that identify a file of vitrail: the folder may hold the config or image processor of another model
OURS = {
    CONFIG_NAME: ("model_type", (ViTConfig.model_type,)),
    PREPROCESSOR_CONFIG_NAME: ("image_processor_type", (VitrailImageProcessor.__name__, VitrailImageProcessorTorch.__name__)),
}


def flat_code(source: str) -> str:
    """Return the text of a file of the package for a model's folder."""
    text = (PACKAGE / source).read_text(encoding="utf-8")
    flat = re.sub(r"^from \.\.\w+\.(\w+) import ", r"from .\1 import ", text, flags=re.MULTILINE)
    return f"# {source} of vitrail {__version__} (Apache-2.0), made flat for transformers' remote code: change it there, not here.\n{flat}"


def add_code(folder: Path) -> None:
    """Write the code that a folder's JSON files need, and `auto_map` into them; files of other models are not changed."""
    for name, sources in SOURCES.items():
        if _is_ours(folder / name):
            for source in sources:
                write_text(folder / Path(source).name, flat_code(source))
            _set_auto_map(folder / name, AUTO_MAPS[name])


def remove_code(folder: Path) -> None:
    """Remove the code and `auto_map` that `add_code` wrote."""
    for name, sources in SOURCES.items():
        if _is_ours(folder / name):
            _set_auto_map(folder / name, None)
            for source in sources:
                (folder / Path(source).name).unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    key, names = OURS[path.name]
    return path.is_file() and read_json(path).get(key) in names


def _set_auto_map(path: Path, auto_map: Mapping[str, Any] | None) -> None:
    content = read_json(path)
    content.pop("auto_map", None)
    if auto_map is not None:
        content["auto_map"] = auto_map
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
