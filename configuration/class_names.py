"""Names of classes: ImageNet's, in the order of published classifiers, and those in a file.

`labels-imagenet-1k.tsv` (1 000 classes of ILSVRC 2012) and `labels-imagenet-21k.tsv` (the 21 843 of Google's ImageNet-21k) hold WordNet
identifiers and, as words, the lemmas of WordNet 3.0 (Princeton University, wordnet.princeton.edu), as timm lists them in timm/data/_info.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import VitrailError

IMAGENET = {"imagenet-1k": 1000, "imagenet-21k": 21843}  # numbers of classes


@cache
def imagenet_labels(name: str) -> tuple[str, ...]:
    """Return the names of the classes of "imagenet-1k" or "imagenet-21k"."""
    lines = (Path(__file__).parent / f"labels-{name}.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(line.split("\t")[1] for line in lines)


def read_labels(source: str | os.PathLike | Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes.

    Args:
        source: "imagenet-1k", "imagenet-21k", the names themselves, or a file: one name per line, or JSON, a list of names or an object
            with a name for each number from 0, as `id2label` in transformers.

    Raises:
        VitrailError: there is no such file, or it holds something else.
    """
    if isinstance(source, str) and source in IMAGENET:
        return imagenet_labels(source)
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
