"""Names of the ImageNet classes, in the order of published classifiers.

`labels-imagenet-1k.tsv` (1 000 classes of ILSVRC 2012) and `labels-imagenet-21k.tsv` (the 21 843 of Google's ImageNet-21k) hold WordNet
identifiers and, as words, the lemmas of WordNet 3.0 (Princeton University, wordnet.princeton.edu), as timm lists them in timm/data/_info.
"""

from functools import cache
from pathlib import Path

FILES = {1000: "labels-imagenet-1k.tsv", 21843: "labels-imagenet-21k.tsv"}


@cache
def imagenet_labels(num_labels: int) -> tuple[str, ...] | None:
    """Return the name of each class of ImageNet-1k (1 000) or ImageNet-21k (21 843); None for any other number of classes."""
    if num_labels not in FILES:
        return None
    lines = (Path(__file__).parent / FILES[num_labels]).read_text(encoding="utf-8").splitlines()
    return tuple(line.split("\t")[1] for line in lines)
