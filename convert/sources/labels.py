"""Names of the classes of published heads, in the order of their outputs, and colors of those of segmentations.

`labels-imagenet-1k.tsv` (1 000 classes of ILSVRC 2012) and `labels-imagenet-21k.tsv` (the 21 843 of Google's ImageNet-21k) hold WordNet
identifiers and, as words, the lemmas of WordNet 3.0 (Princeton University, wordnet.princeton.edu), as timm lists them in timm/data/_info.
`labels-ade20k.tsv` (the 150 classes of SceneParsing, without background) and `labels-voc2012.tsv` (20 classes after the background) hold
names and red, green and blue, as in mmsegmentation 0.27.0, mmseg/datasets/ade.py and voc.py.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

IMAGENET = {1000: ("ImageNet-1k", "labels-imagenet-1k.tsv"), 21843: ("ImageNet-21k", "labels-imagenet-21k.tsv")}
SEGMENTATIONS = {150: ("ADE20K", "labels-ade20k.tsv"), 21: ("VOC2012", "labels-voc2012.tsv")}


class Labels(NamedTuple):
    """The classes of a dataset: the name of each, and its color (red, green, blue), which those of ImageNet lack."""

    dataset: str
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()


@cache
def imagenet_labels(num_labels: int) -> Labels | None:
    """Return the classes of ImageNet-1k (1 000) or ImageNet-21k (21 843); None for any other number of classes."""
    if num_labels not in IMAGENET:
        return None
    dataset, file = IMAGENET[num_labels]
    return Labels(dataset, tuple(row[1] for row in _rows(file)))


@cache
def segmentation_labels(num_labels: int) -> Labels | None:
    """Return the classes of ADE20K (150) or VOC2012 (21, the first is the background); None for any other number of classes."""
    if num_labels not in SEGMENTATIONS:
        return None
    dataset, file = SEGMENTATIONS[num_labels]
    names, colors = zip(*((name, (int(red), int(green), int(blue))) for name, red, green, blue in _rows(file)), strict=True)
    return Labels(dataset, names, colors)


def _rows(file: str) -> list[list[str]]:
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]
