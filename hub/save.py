"""Writes a model as a folder that `AutoModel` and `AutoImageProcessor` load: complete, or not at all."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..convert.loading import load
from ..convert.model_folder import (
    CODE_NAMES,
    CONFIG_NAME,
    REPORT_NAME,
    WEIGHTS,
    hash_weights,
    is_model_folder,
    own_records,
    read_report,
    write_report,
)
from ..convert.report import ConversionReport
from ..convert.verification import Check
from ..errors import VitrailError
from ..model_cards.card import folder_card
from ..model_cards.readme import may_be_rendered, write_card
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import temporary_folder, write_text
from .remote_code import remove_code

MAX_SHARD_SIZE = "5GB"  # the Hub asks for files that are not larger


def save(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    output_dir: str | os.PathLike,
    *,
    report: ConversionReport | None = None,
    code: bool = True,
) -> None:
    """Saves weights (safetensors), config, image processor, code and model card for the Hub and, where there is one, the conversion report.

    With the code, transformers loads the folder where vitrail is not installed, by `trust_remote_code=True`; `code=False` leaves it out.

    The files are written into a temporary folder beside `output_dir` first. A new folder is then renamed into place. In an existing one
    each file is replaced by a rename, without a config.json meanwhile, so that nobody takes a mixture for a model; a card that someone
    has edited stays.

    Raises:
        VitrailError: `output_dir` is a file, or a folder that holds other things than a model.
    """
    output_dir = Path(output_dir).resolve()
    check_output_dir(output_dir)
    with temporary_folder(output_dir) as temporary:
        model.save_pretrained(temporary, max_shard_size=MAX_SHARD_SIZE)
        image_processor.save_pretrained(temporary)
        for file in temporary.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes them private, as mkdtemp does the folder
        if not code:
            remove_code(temporary)  # save_pretrained carries it
        weights_sha256 = None
        if report is not None:
            weights_sha256 = hash_weights(temporary)
            write_report(temporary, report.to_dict() | {"weights_sha256": weights_sha256})
        if may_be_rendered(output_dir):
            write_card(temporary, folder_card(temporary, name=output_dir.name, weights_sha256=weights_sha256))
        temporary.chmod(0o755)
        if output_dir.exists():
            _replace_files(temporary, output_dir)
        else:
            temporary.rename(output_dir)


def _replace_files(new: Path, folder: Path) -> None:
    """Moves files over those of a folder, and removes what else belonged to the model that was there."""
    written = sorted((file.name for file in new.iterdir()), key=lambda name: name == CONFIG_NAME)  # which comes last
    own = (REPORT_NAME, *CODE_NAMES, *own_records(folder))
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    for file in list(folder.iterdir()):
        if file.name not in written and (file.name in own or WEIGHTS.fullmatch(file.name)):
            file.unlink()
    for name in written:
        (new / name).replace(folder / name)


def check_output_dir(output_dir: Path) -> None:
    """Refuses, before any work, a folder that `save` would not write into."""
    if output_dir.exists() and not output_dir.is_dir():
        raise VitrailError(f"{output_dir} is a file: give the name of a folder to write the model into.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not is_model_folder(output_dir):
        raise VitrailError(f"{output_dir} is a folder with other things in it than a model of ours: give the name of a new folder.")


def keep_verification(folder: str | os.PathLike, checks: list[Check]) -> None:
    """Puts the table of `verify` into a folder's conversion.json, and into its card, unless someone has edited that."""
    folder = Path(folder)
    weights_sha256 = hash_weights(folder)
    report = read_report(folder, weights_sha256) or {"weights_sha256": weights_sha256}
    write_report(folder, report | {"verification": [check.to_dict() for check in checks]})
    _render_card(folder, weights_sha256)


def keep_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Puts what was measured or trained into a folder, with the hash of its weights, and into its card, unless someone has edited that.

    Args:
        folder: of the model.
        name: of the JSON file, as `hub.folder` has it.
        record: with "task"; numbers that are not finite become null.
    """
    weights_sha256 = hash_weights(folder)
    kept = _finite(record) | {"weights_sha256": weights_sha256}
    write_text(folder / name, json.dumps(kept, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    _render_card(folder, weights_sha256)


def _finite(value: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has not."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _render_card(folder: Path, weights_sha256: str) -> None:
    if may_be_rendered(folder):
        write_card(folder, folder_card(folder, weights_sha256=weights_sha256))


def convert_checkpoint(
    source: str | os.PathLike, output_dir: str | os.PathLike, *, code: bool = True, **load_options: Any
) -> ConversionReport:
    """Loads a checkpoint and saves it as a folder; takes the keywords of `vitrail.load`, and `code` of `vitrail.save`.

    Returns:
        The report, which is also kept as `output_dir/conversion.json`.
    """
    if Path(source).exists() and Path(source).resolve() == Path(output_dir).resolve():
        raise VitrailError(
            f"{source} is the folder to write into as well: give another name (a folder here goes before a name of the catalogue)."
        )
    model, image_processor, report = load(source, **load_options)
    save(model, image_processor, output_dir, report=report, code=code)
    return report
