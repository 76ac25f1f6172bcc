"""The files of a model's folder that a push may publish: those of the model, and no other."""

import re
from pathlib import Path

from huggingface_hub import constants

from ..errors import VitrailError
from ..model_cards.model_folder import (
    CARD_NAME,
    CODE_NAMES,
    CONFIG_NAME,
    INDEX_NAME,
    LICENSE_NAMES,
    PREPROCESSOR_CONFIG_NAME,
    PRETRAINING_NAMES,
    REPORT_NAME,
    RESULT_NAMES,
    TRAINER_STATE,
    weight_files,
)

# Records of an evaluation or a training, which the card describes
RECORD_NAMES = (*RESULT_NAMES, *PRETRAINING_NAMES)
# Files that a model's folder may hold in addition to its weights
MODEL_NAMES = (CONFIG_NAME, PREPROCESSOR_CONFIG_NAME, REPORT_NAME, CARD_NAME, *RECORD_NAMES, *CODE_NAMES, *LICENSE_NAMES)


def check_files(folder: Path) -> list[str]:
    """Check that a folder holds a model and nothing else, except hidden files and those of a Trainer, which are never uploaded.

    Returns:
        Warnings: the files of a Trainer.

    Raises:
        VitrailError: the folder holds other files, or a link that leads elsewhere than into the same repository of the Hub's cache.
    """
    weights = weight_files(folder)
    known = {*MODEL_NAMES, *(file.name for file in weights), *([INDEX_NAME] if (folder / INDEX_NAME).is_file() else [])}
    others = [
        file
        for file in sorted(folder.iterdir())
        if not (file.name.startswith(".") or file.name == "__pycache__" or (file.is_file() and file.name in known))
    ]
    of_trainer = [file for file in others if TRAINER_STATE.fullmatch(file.name) or re.fullmatch(r"checkpoint-\d+", file.name)]
    if strays := [file.name + "/" * file.is_dir() for file in others if file not in of_trainer]:
        raise VitrailError(
            f"{folder} also holds {', '.join(strays)}, which do not belong to a model (a pickle could execute code when it is loaded): "
            "move them elsewhere, and push again."
        )
    repository = _cached_repository(folder)
    for name in sorted(known):
        link = folder / name
        if link.is_symlink() and (repository is None or not link.resolve().is_relative_to(repository)):
            raise VitrailError(
                f"{link} is a link to {link.resolve()}, which is not in the same repository of the Hub's cache: replace it by the file, "
                "if it may be published."
            )
    return [f"left out, because a Trainer wrote them: {', '.join(file.name for file in of_trainer)}"] if of_trainer else []


def _cached_repository(folder: Path) -> Path | None:
    """Return the repository of the Hub's cache whose snapshot a folder is; its files are links to the blobs of the repository."""
    cache, folder = Path(constants.HF_HUB_CACHE).resolve(), folder.resolve()
    return cache / folder.relative_to(cache).parts[0] if folder != cache and folder.is_relative_to(cache) else None
