"""Names of classes: of datasets, in the order of the outputs of published heads, and those in a file.

`labels-imagenet-1k.tsv` (1 000 classes of ILSVRC 2012) and `labels-imagenet-21k.tsv` (the 21 843 of Google's ImageNet-21k) hold WordNet
identifiers and, as words, the lemmas of WordNet 3.0 (Princeton University, wordnet.princeton.edu), as timm lists them in timm/data/_info.
`labels-ade20k.tsv` (the 150 classes of SceneParsing, without background) and `labels-voc2012.tsv` (20 classes after the background) hold
names and red, green and blue, as in mmsegmentation 0.27.0, mmseg/datasets/ade.py and voc.py.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import VitrailError

# Numbers of classes
IMAGENET = {"imagenet-1k": 1000, "imagenet-21k": 21843}
SEGMENTATIONS = {"ade20k": 150, "voc2012": 21}


@cache
def dataset_labels(name: str) -> tuple[str, ...]:
    """Return the names of the classes of a dataset in IMAGENET or SEGMENTATIONS."""
    return tuple(row[1 if name in IMAGENET else 0] for row in _rows(name))


@cache
def segmentation_colors(name: str) -> tuple[tuple[int, int, int], ...]:
    """Return the color of each class of a dataset in SEGMENTATIONS, (red, green, blue)."""
    return tuple((int(red), int(green), int(blue)) for _, red, green, blue in _rows(name))


def _rows(name: str) -> list[list[str]]:
    lines = (Path(__file__).parent / f"labels-{name}.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


def read_labels(source: str | os.PathLike | Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes.

    Args:
        source: "imagenet-1k", "imagenet-21k", "ade20k", "voc2012", the names themselves, or a file: one name per line, or JSON, a list of
            names or an object with a name for each number from 0, as `id2label` in transformers.

    Raises:
        VitrailError: there is no such file, or it holds something else.
    """
    if isinstance(source, str) and source in IMAGENET | SEGMENTATIONS:
        return dataset_labels(source)
    names = _read_names(Path(source)) if isinstance(source, str | os.PathLike) else source
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(len(names))]
    if (
        not isinstance(names, Sequence)
        or isinstance(names, str)
        or not names
        or not all(isinstance(name, str) and name.strip() for name in names)
    ):
        where = source if isinstance(source, str | os.PathLike) else "labels="
        raise VitrailError(
            f"{where} does not hold a name for each class; expected one name per line, or in a .json file a list of names, or an object "
            'with the keys "0", "1", …'
        )
    return tuple(names)


def _read_names(path: Path) -> Any:
    if not path.is_file():
        raise VitrailError(f"labels={str(path)!r} is not a file; expected a file of names, {' or '.join(IMAGENET)}.")
    is_json = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if is_json else [line.strip() for line in text.strip().splitlines()]
    except (ValueError, RecursionError) as error:
        raise VitrailError(f"{path} is not {'JSON' if is_json else 'text'} in UTF-8: {error}. Correct the file.") from error
