"""Render the cards of all official checkpoints, and their index: `python -m vitrail.model_cards.render model_cards/official`."""

import sys
from pathlib import Path

from ..convert.sources.catalog import Checkpoint, checkpoints, official_config
from .card import official_card
from .descriptions import architecture_name, counts, markdown_table
from .lineages import lineage_of
from .provenance import METRICS, load_name, published_metrics

# Headings of the index, by the format of the files
HEADINGS = {
    "dino-pth": "DINO, by Meta AI: `.pth` files",
    "dinov2-pth": "DINOv2, by Meta AI: `.pth` files",
    "google-npz": "Google: `.npz` files",
    "timm-hub": "timm, on the Hub",
    "transformers-hub": "transformers, on the Hub",
}
INTRODUCTION = """\
# Model cards of the official checkpoints

One card for each of the {count} checkpoints that vitrail loads by name: what it is, how it was trained, how to use it, what it needs of an
image, what was verified, what its publisher reports, its licence, and the source of each of these facts.

The name is what `vitrail.load` and `vitrail convert` take. Image sizes are height and width in pixels. Parameters are those of the model,
in millions; GMACs are billions of multiply-accumulate operations for one image of that size, as timm's model cards count them. Accuracies
are the publishers' own, on ImageNet-1k, in percent; where there is none, the publisher reports none for this file.

These files are rendered from the catalogue: `python -m vitrail.model_cards.render model_cards/official` renders them
again, and a test says when they are out of date.
"""


def write_model_cards(folder: Path) -> None:
    """Writes every card, and the index as README.md."""
    for checkpoint in checkpoints():
        _write(folder / f"{checkpoint.name}.md", str(official_card(checkpoint)))
    _write(folder / "README.md", index())


def index() -> str:
    """The index: a table for each format."""
    text = INTRODUCTION.format(count=len(checkpoints()))
    for format, heading in HEADINGS.items():
        rows = [_row(checkpoint) for checkpoint in checkpoints() if checkpoint.format == format]
        header = ("Name", "Architecture", "Training", "Data", "Image", "Parameters", "GMACs", "Published accuracy")
        text += f"\n## {heading}\n\n{markdown_table(header, rows)}\n"
    return text


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    config = official_config(checkpoint)
    count = counts(config, classifies=checkpoint.has_classifier, size=config.image_size)
    return (
        f"[{load_name(checkpoint)}]({checkpoint.name}.md)",
        architecture_name(config),
        lineage_of(checkpoint).name,
        ", ".join(checkpoint.training_data),
        str(config.image_size[0]),
        f"{count.parameters / 1e6:,.1f}",
        f"{count.macs / 1e9:,.1f}",
        "; ".join(f"{METRICS[name].name} {value}" for name, value in published_metrics(checkpoint).items()),
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_model_cards(Path(sys.argv[1]))
