"""The official checkpoints: where each one lies, what it is, and the public document that says so.

The rows are data, in catalog.json beside this file; nothing is known here that has no entry in `sources`. What the publishers
do not say stays None.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint and its provenance.

    name: the name in this catalogue, unique.
    aliases: what the publisher's own code calls it (`dino_vits8` in torch.hub, `imagenet21k/ViT-B_16` in Google's bucket,
        the model name in timm).
    family: who published it; `format`: how its file is laid out.
    hub_id: the Hub repository that holds it. Where there is one, `url` is not the file itself: it is the upstream file that
        the repository was converted from (timm) or the repository's page (transformers).
    url: the official file, where `hub_id` is None.
    full_checkpoint_url: the whole training state (student, teacher, optimizer) where it was published.
    head_urls: official linear classifiers that go with the backbone, by name; `head_recipe`: what each of them reads, or the
        one that is in the file itself.
    hub_safetensors: whether the Hub repository's main branch holds model.safetensors.
    same_weights_as: name of the row whose weights these are, in another format.
    architecture: sizes and switches; `image_size` and `patch` in pixels, `embed_dim` and `mlp_dim` in features.
    params: number of parameters that the file holds, its mask token and classifier included.
    preprocessing: what the publisher evaluates with; `size` and `crop_size` in pixels, `mean` and `std` per RGB channel in [0, 1].
    metrics: ImageNet-1k accuracies that the publisher reports, in percent.
    training_data, license, paper: data sets in order of training, SPDX-like identifier, arXiv numbers.
    sources: for each of the fields above, the public document or file that it comes from.
    """

    name: str
    aliases: tuple[str, ...]
    family: Literal["dino", "dinov2", "google", "timm", "transformers"]
    format: Literal["dino-pth", "dinov2-pth", "google-npz", "timm-hub", "transformers-hub"]
    hub_id: str | None
    url: str | None
    full_checkpoint_url: str | None
    head_urls: Mapping[str, str]
    head_recipe: Mapping[str, Mapping[str, Any]]
    hub_safetensors: bool | None
    same_weights_as: str | None
    architecture: Mapping[str, Any]
    params: int
    preprocessing: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    training_data: tuple[str, ...]
    license: str
    paper: tuple[str, ...]
    sources: Mapping[str, str | None]
    notes: str | None


@functools.cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """Every row of the catalogue, in the order of the file, which is read once."""
    rows: list[dict[str, Any]] = json.loads(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))
    for row in rows:
        row |= {field: tuple(row[field]) for field in ("aliases", "training_data", "paper")}
    return tuple(Checkpoint(**row) for row in rows)


@functools.cache
def checkpoint_names() -> Mapping[str, Checkpoint]:
    """Every name that `find_checkpoint` knows: catalogue names, Hub ids and aliases."""
    return {
        name: checkpoint
        for checkpoint in checkpoints()
        for name in (checkpoint.name, checkpoint.hub_id, *checkpoint.aliases)
        if name is not None
    }


def find_checkpoint(name: str) -> Checkpoint | None:
    """The checkpoint with this catalogue name, Hub id or alias, or None."""
    return checkpoint_names().get(name)
