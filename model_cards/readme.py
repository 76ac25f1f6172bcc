"""The card of any source, and the README.md of a folder, which is rendered again until someone edits it."""

import hashlib
import os
from pathlib import Path

from huggingface_hub import ModelCard

from ..convert.loading import load
from ..convert.sources.catalog import find_checkpoint
from ..convert.sources.resolver import FILE_SUFFIXES
from ..modeling.modeling_vit import ViTForImageClassification
from ..utils.atomic import write_text
from .card import folder_card, official_card, render_model_card
from .model_folder import CARD_NAME, is_model_folder

# The last line of a rendered card; its digest differs from the text once the card is edited
SIGNATURE = "<!-- Rendered by vitrail, which renders it again until it is edited. {} -->\n"


def model_card(source: str | os.PathLike) -> ModelCard:
    """Return the card of a folder, of an official checkpoint by its catalog name, which is not downloaded, or of any other source.

    Raises:
        VitrailError: there is no such source, or it is not a supported model.
    """
    path = Path(source)
    if path.is_dir() and is_model_folder(path):
        return folder_card(path)
    checkpoint = None if path.exists() else find_checkpoint(os.fspath(source))
    if checkpoint is not None:
        return official_card(checkpoint)
    model, image_processor, report = load(source)
    name = os.path.basename(os.fspath(source).rstrip("/"))
    if name.endswith(FILE_SUFFIXES):
        name = os.path.splitext(name)[0]  # the name of the folder it would be converted to
    classifies = isinstance(model, ViTForImageClassification)
    return render_model_card(model.config, image_processor, report.record(), classifies=classifies, name=name)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a card as a folder's README.md, with its signature."""
    text = str(card).rstrip("\n") + "\n"
    write_text(folder / CARD_NAME, text + SIGNATURE.format(_digest(text)))


def may_be_rendered(folder: Path) -> bool:
    """Return True where a folder's README.md is missing or unedited."""
    path = folder / CARD_NAME
    return not path.is_file() or is_rendered(path)


def is_rendered(path: Path) -> bool:
    """Return True for a rendered card that was not edited."""
    text, _, signature = path.read_bytes().decode("utf-8", errors="replace").rpartition("<!--")
    return f"<!--{signature}" == SIGNATURE.format(_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
