"""Writes a model as a folder that `AutoModel` and `AutoImageProcessor` load: complete, or not at all."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..convert.load import ConversionReport, load
from ..convert.verify import Check
from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor

REPORT_NAME = "conversion.json"


def save(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    output_dir: str | os.PathLike,
    *,
    report: ConversionReport | None = None,
) -> None:
    """Saves weights (safetensors), config, image processor and, where there is one, the conversion report.

    The files are written into a temporary folder beside `output_dir` first. A new folder is then renamed into place; in an existing
    one each file is replaced by a rename.

    Raises:
        VitrailError: `output_dir` is a file, or a folder that holds other things than a model.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise VitrailError(f"{output_dir} is a file: give the name of a folder to write the model into.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not _is_ours(output_dir):
        raise VitrailError(f"{output_dir} is a folder with other things in it than a model of ours: give the name of a new folder.")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", dir=output_dir.parent))
    try:
        model.save_pretrained(temporary)
        image_processor.save_pretrained(temporary)
        if report is not None:
            (temporary / REPORT_NAME).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp makes it private
        if not output_dir.exists():
            temporary.rename(output_dir)
            return
        written = [file.name for file in temporary.iterdir()]
        for name in written:
            (temporary / name).replace(output_dir / name)
        for stale in output_dir.iterdir():  # of the model that was here: its report, its shards
            if stale.name not in written and re.fullmatch(
                r"conversion\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", stale.name
            ):
                stale.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds a model that may be replaced: one that vitrail wrote."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("model_type") == ViTConfig.model_type


def keep_verification(folder: str | os.PathLike, checks: list[Check]) -> None:
    """Puts the table of `verify` into a folder's conversion.json."""
    path = Path(folder) / REPORT_NAME
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    report["verification"] = [check.to_dict() for check in checks]
    temporary = path.with_name(f".{REPORT_NAME}.part")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def convert_checkpoint(source: str | os.PathLike, output_dir: str | os.PathLike, **load_options: Any) -> ConversionReport:
    """Loads a checkpoint and saves it as a folder; takes the keywords of `vitrail.load`.

    Returns:
        The report, which is also kept as `output_dir/conversion.json`.
    """
    if Path(source).exists() and Path(source).resolve() == Path(output_dir).resolve():
        raise VitrailError(
            f"{source} is the folder to write into as well: give another name (a folder here goes before a name of the catalogue)."
        )
    model, image_processor, report = load(source, **load_options)
    save(model, image_processor, output_dir, report=report)
    return report
