"""Render the cards of all official checkpoints, and their index: `python -m vitrail.model_cards.render model_cards/official`."""

import sys
from pathlib import Path

from ..convert.sources.catalog import Checkpoint, checkpoints, list_checkpoints, official_config
from .card import official_card
from .descriptions import architecture_name, counts, markdown_table
from .lineages import FAMILY_CARDS, lineage_of
from .provenance import METRICS, load_name, published_metrics

INTRODUCTION = """\
# Model cards of the official checkpoints

One card for each of the {count} checkpoints that vitrail loads by name: description, training, usage, preprocessing, verification,
published results and license, with the source of each fact.

`vitrail.load` and `vitrail convert` accept the names. Image sizes are height and width in pixels. Parameters are those of the model, in
millions. GMACs are billions of multiply-accumulate operations for one image of that size, counted as in timm's model cards. Accuracies are
the publishers' own, on ImageNet-1k, in percent; a cell is empty where the publisher reports none for the file.

These files are rendered from the catalog by `python -m vitrail.model_cards.render model_cards/official`; a test fails when they are stale.
"""


def write_model_cards(folder: Path) -> None:
    """Write every card, and the index as README.md."""
    for checkpoint in checkpoints():
        _write(folder / f"{checkpoint.name}.md", str(official_card(checkpoint)))
    _write(folder / "README.md", index())


def index() -> str:
    """Return the index: a table for each family."""
    text = INTRODUCTION.format(count=len(checkpoints()))
    for family, card in FAMILY_CARDS.items():
        rows = [_row(checkpoint) for checkpoint in list_checkpoints(family)]
        header = ("Name", "Architecture", "Training", "Data", "Image", "Parameters", "GMACs", "Published accuracy")
        text += f"\n## {card.heading}\n\n{markdown_table(header, rows)}\n"
    return text


def _row(checkpoint: Checkpoint) -> tuple[str, ...]:
    config = official_config(checkpoint)
    count = counts(config, classifies=checkpoint.has_classifier, size=config.image_shape)
    return (
        f"[{load_name(checkpoint)}]({checkpoint.name}.md)",
        architecture_name(config),
        lineage_of(checkpoint).name,
        ", ".join(checkpoint.training_data),
        str(config.image_shape[0]),
        f"{count.parameters / 1e6:,.1f}",
        f"{count.macs / 1e9:,.1f}",
        "; ".join(f"{METRICS[name].name} {value}" for name, value in published_metrics(checkpoint).items()),
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_model_cards(Path(sys.argv[1]))
