"""Saving a model as a folder for `AutoModel` and `AutoImageProcessor`: complete, or not at all."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..convert.loading import load
from ..convert.report import Check, ConversionRecord, ConversionReport
from ..convert.sources.resolver import resolve
from ..errors import VitrailError
from ..model_cards.card import folder_card
from ..model_cards.model_folder import (
    CODE_NAMES,
    PRETRAINING_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    TRAINER_STATE,
    WEIGHTS,
    hash_weights,
    is_model_folder,
    own_records,
    read_report,
)
from ..model_cards.readme import may_be_rendered, write_card
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import to_json, write_text
from ..utils.folders import check_writable, move_into_place, temporary_folder
from ..utils.hashing import sha256
from ..utils.run_folder import RunFolder
from ..utils.weight_files import find_weights, read_checkpoint
from .remote_code import remove_code

MAX_SHARD_SIZE = "5GB"  # the Hub recommends no larger files


def save(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    output_dir: str | os.PathLike,
    *,
    report: ConversionReport | None = None,
    code: bool = True,
    overwrite: bool = False,
) -> None:
    """Save weights (safetensors), config, image processor, code, model card and conversion report as a folder.

    With the code, transformers loads the folder without vitrail, by `trust_remote_code=True`; `code=False` leaves the code out.

    The folder is written under a hidden name and then renamed, so that it is complete or absent. A model that was there before is
    replaced as a whole; files of yours, and a card that you have edited, move into the new folder.

    Args:
        report: from `vitrail.load`.
        overwrite: replace a trained model, too: a folder with the results of an evaluation or a training, or of a Trainer.

    Raises:
        VitrailError: `output_dir` is a file, holds files that do not belong to a model, or holds a trained model; the model has PEFT
            adapters that are not merged.
    """
    output_dir = Path(output_dir).resolve()
    _check_model(model)
    check_output_dir(output_dir, overwrite=overwrite)
    with temporary_folder(output_dir) as temporary:
        check_output_dir(output_dir, overwrite=overwrite)  # again, as another process may have written it meanwhile
        model.save_pretrained(temporary, max_shard_size=MAX_SHARD_SIZE)
        image_processor.save_pretrained(temporary)
        if not code:
            remove_code(temporary)  # save_pretrained wrote it
        weights_sha256 = None
        if report is not None:
            weights_sha256 = hash_weights(temporary)
            replace(report.record(), weights_sha256=weights_sha256).write(temporary / REPORT_NAME)
        if may_be_rendered(output_dir):
            write_card(temporary, folder_card(temporary, name=output_dir.name, weights_sha256=weights_sha256))
        own = (REPORT_NAME, *CODE_NAMES, *own_records(output_dir))
        patterns = (WEIGHTS, TRAINER_STATE)
        move_into_place(
            temporary,
            output_dir,
            keeps=lambda name: name not in own and not any(pattern.fullmatch(name) for pattern in patterns),
        )


def _check_model(model: ViTPreTrainedModel) -> None:
    """Raise VitrailError for what `save_pretrained` would not save as a whole model."""
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise VitrailError(
            "The model has PEFT adapters that are not merged: save the model that merge_and_unload() of the PeftModel returns, or the "
            "adapters alone with save_pretrained."
        )
    if not isinstance(model, ViTPreTrainedModel):
        raise VitrailError(f"found a {type(model).__name__}; expected a model of vitrail, such as vitrail.load returns.")


def check_output_dir(output_dir: Path, *, overwrite: bool = False) -> None:
    """Raise VitrailError, before any work, for a folder that `save` does not write into."""
    check_writable(output_dir)
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not is_model_folder(output_dir):
        raise VitrailError(f"{output_dir} contains files that do not belong to a model of vitrail: choose a new folder.")
    trained = [name for name in (RESULTS_NAME, PRETRAINING_NAME) if name in own_records(output_dir)]
    trained += sorted(file.name for file in output_dir.iterdir() if TRAINER_STATE.fullmatch(file.name))
    if trained and not overwrite:
        raise VitrailError(
            f"{output_dir} holds a trained model ({', '.join(trained)}), which would be lost: choose another folder, or replace it with "
            "overwrite=True."
        )


def folder_of_run(output_dir: Path, *, overwrite: bool) -> RunFolder:
    """Return the folder of a run that ends with `save`.

    Raises:
        VitrailError: the model could not be saved at the end. A run that has begun may replace what it has saved.
    """
    run_folder = RunFolder(output_dir.with_name(f"{output_dir.name}.run"))
    check_output_dir(output_dir, overwrite=overwrite or run_folder.settings_file.is_file())
    return run_folder


def keep_verification(
    folder: str | os.PathLike,
    checks: list[Check],
    *,
    against: str | os.PathLike | None = None,
    head: str | os.PathLike | None = None,
) -> bool:
    """Write the table of `verify` into a folder's conversion.json and, unless it was edited, into its card.

    Args:
        against, head: the files that the model was compared with. If a check fails and the files are not the recorded ones, nothing
            is written.

    Returns:
        Whether the table was written.
    """
    folder = Path(folder)
    weights_sha256 = hash_weights(folder)
    record = read_report(folder, weights_sha256) or ConversionRecord(weights_sha256=weights_sha256)
    if any(check.passed is False for check in checks):
        recorded = {file.sha256 for entry in record.chain for file in (entry.source, entry.head) if file is not None}
        compared = [resolve(source).path for source in (against, head) if source is not None]
        if not all(sha256(*read_checkpoint(find_weights(path) if path.is_dir() else path).files) in recorded for path in compared):
            return False
    replace(record, verification=checks).write(folder / REPORT_NAME)
    _render_card(folder, weights_sha256)
    return True


def keep_record(folder: Path, name: str, record: Mapping[str, Any]) -> None:
    """Write a record of an evaluation or a training, with the hash of the weights, and render the card, unless it was edited.

    Args:
        folder: the folder of the model.
        name: the name of the JSON file, from `model_cards.model_folder`.
        record: a dictionary with "task"; NaN and inf become null.
    """
    weights_sha256 = hash_weights(folder)
    write_text(folder / name, to_json({**record, "weights_sha256": weights_sha256}) + "\n")
    _render_card(folder, weights_sha256)


def _render_card(folder: Path, weights_sha256: str) -> None:
    if may_be_rendered(folder):
        write_card(folder, folder_card(folder, weights_sha256=weights_sha256))


def convert_checkpoint(
    source: str | os.PathLike, output_dir: str | os.PathLike, *, code: bool = True, overwrite: bool = False, **load_options: Any
) -> ConversionReport:
    """Load a checkpoint and save it as a folder; takes the keywords of `vitrail.load`, and `code` and `overwrite` of `vitrail.save`.

    Returns:
        The report, which is also written to `output_dir/conversion.json`.
    """
    if Path(source).exists() and Path(source).resolve() == Path(output_dir).resolve():
        raise VitrailError(
            f"{source} is both source and output folder: choose another output folder (a local folder has priority over a catalog name)."
        )
    check_output_dir(Path(output_dir), overwrite=overwrite)
    model, image_processor, report = load(source, **load_options)
    save(model, image_processor, output_dir, report=report, code=code, overwrite=overwrite)
    return report
