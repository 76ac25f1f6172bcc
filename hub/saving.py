"""Saving a model as a folder for `AutoModel` and `AutoImageProcessor`: complete, or not at all."""

import os
from collections.abc import Mapping
from dataclasses import replace
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
)
from ..convert.report import Check, ConversionRecord, ConversionReport
from ..errors import VitrailError
from ..model_cards.card import folder_card
from ..model_cards.readme import may_be_rendered, write_card
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import temporary_folder, to_json, write_text
from .remote_code import remove_code

MAX_SHARD_SIZE = "5GB"  # the Hub recommends no larger files


def save(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    output_dir: str | os.PathLike,
    *,
    report: ConversionReport | None = None,
    code: bool = True,
) -> None:
    """Save weights (safetensors), config, image processor, code, model card and conversion report as a folder.

    With the code, transformers loads the folder without vitrail, by `trust_remote_code=True`; `code=False` leaves the code out.

    The files are written into a temporary folder first. A new folder is then moved into place. In an existing folder, each file is
    replaced by renaming; config.json is removed first and written last, so that no process loads a mixture. An edited card stays.

    Raises:
        VitrailError: `output_dir` is a file, or a folder with files that do not belong to a model.
    """
    output_dir = Path(output_dir).resolve()
    check_output_dir(output_dir)
    with temporary_folder(output_dir) as temporary:
        model.save_pretrained(temporary, max_shard_size=MAX_SHARD_SIZE)
        image_processor.save_pretrained(temporary)
        for file in temporary.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors creates private files, and mkdtemp a private folder
        if not code:
            remove_code(temporary)  # save_pretrained wrote it
        weights_sha256 = None
        if report is not None:
            weights_sha256 = hash_weights(temporary)
            replace(report.record(), weights_sha256=weights_sha256).write(temporary / REPORT_NAME)
        if may_be_rendered(output_dir):
            write_card(temporary, folder_card(temporary, name=output_dir.name, weights_sha256=weights_sha256))
        temporary.chmod(0o755)
        if output_dir.exists():
            _replace_files(temporary, output_dir)
        else:
            temporary.rename(output_dir)


def _replace_files(new: Path, folder: Path) -> None:
    """Move files into a folder, and remove the other files of the model that was there."""
    written = sorted((file.name for file in new.iterdir()), key=lambda name: name == CONFIG_NAME)  # config.json last
    own = (REPORT_NAME, *CODE_NAMES, *own_records(folder))
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    for file in list(folder.iterdir()):
        if file.name not in written and (file.name in own or WEIGHTS.fullmatch(file.name)):
            file.unlink()
    for name in written:
        (new / name).replace(folder / name)


def check_output_dir(output_dir: Path) -> None:
    """Raise VitrailError for a folder that `save` does not write into."""
    if output_dir.exists() and not output_dir.is_dir():
        raise VitrailError(f"{output_dir} is a file; expected a folder for the model.")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not is_model_folder(output_dir):
        raise VitrailError(f"{output_dir} contains files that do not belong to a model of vitrail: choose a new folder.")


def keep_verification(folder: str | os.PathLike, checks: list[Check]) -> None:
    """Write the table of `verify` into a folder's conversion.json and, unless it was edited, into its card."""
    folder = Path(folder)
    weights_sha256 = hash_weights(folder)
    record = read_report(folder, weights_sha256) or ConversionRecord(weights_sha256=weights_sha256)
    replace(record, verification=checks).write(folder / REPORT_NAME)
    _render_card(folder, weights_sha256)


def keep_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write a record of an evaluation or a training, with the hash of the weights, and render the card, unless it was edited.

    Args:
        folder: the folder of the model.
        name: the name of the JSON file, from `convert.model_folder`.
        record: a dictionary with "task"; NaN and inf become null.
    """
    weights_sha256 = hash_weights(folder)
    write_text(folder / name, to_json({**record, "weights_sha256": weights_sha256}) + "\n")
    _render_card(folder, weights_sha256)


def _render_card(folder: Path, weights_sha256: str) -> None:
    if may_be_rendered(folder):
        write_card(folder, folder_card(folder, weights_sha256=weights_sha256))


def convert_checkpoint(
    source: str | os.PathLike, output_dir: str | os.PathLike, *, code: bool = True, **load_options: Any
) -> ConversionReport:
    """Load a checkpoint and save it as a folder; takes the keywords of `vitrail.load`, and `code` of `vitrail.save`.

    Returns:
        The report, which is also written to `output_dir/conversion.json`.
    """
    if Path(source).exists() and Path(source).resolve() == Path(output_dir).resolve():
        raise VitrailError(
            f"{source} is both source and output folder: choose another output folder (a local folder has priority over a catalog name)."
        )
    model, image_processor, report = load(source, **load_options)
    save(model, image_processor, output_dir, report=report, code=code)
    return report
