"""The catalog of official checkpoints: the location and properties of each, and the public document for every fact.

The rows are data, in catalog.json; every fact has an entry in `sources`. Facts that the publishers do not state are None.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...configuration.configuration_vit import ViTConfig
from ...errors import VitrailError
from ...processing.image_processing_vit import VitrailImageProcessor
from ..families.registry import family_of_rows


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint and its provenance.

    name: unique name in the catalog.
    aliases: names in the publisher's own code (`dino_vits8` in torch.hub, `imagenet21k/ViT-B_16` in Google's bucket, the model name in
        timm).
    family: the name of the family; `format`: the layout of its file.
    hub_id: the Hub repository. With a repository, `url` is not the file itself but the upstream file that the repository was converted
        from (timm) or the repository's page (transformers).
    url: the official file, where `hub_id` is None; `sha256`: its SHA-256, in hexadecimal, where public documents agree on it.
    access: the page where the publisher's terms are accepted, without which `url` and `head_urls` are refused.
    full_checkpoint_url: the full training state (student, teacher, optimizer) where it was published.
    head_urls: official heads for the backbone, by name; `head_recipe`: the input of each, or of the classifier in the file, and the "task"
        of a head that is not a classifier.
    hub_safetensors: whether the main branch of the Hub repository holds model.safetensors.
    same_weights_as: name of the row that holds the same weights in their first format.
    architecture: sizes and switches; `image_size` and `patch` in pixels, `embed_dim` and `mlp_dim` in features; `zero_head` where the
        publisher states that the head in the file is zeros; `class_position` false where [CLS] has no position;
        `register_positions` true where registers have positions, which loading adds to them; `key_bias` false where the file has biases
        of queries and values alone; `periods` of rotary positions are "published" in the file, or "computed" because the file has none;
        `original_pooling` where the model pools in another way than its original.
    params: number of parameters in the file, including mask token and classifier.
    preprocessing: of the publisher's evaluation; `size` and `crop_size` in pixels, `mean` and `std` per RGB channel in [0, 1].
    metrics: ImageNet-1k accuracies that the publisher reports, in percent.
    training_data, license, paper: data sets in order of training, SPDX-like identifier, arXiv numbers.
    sources: for each field, the public document or file that it comes from.
    """

    name: str
    aliases: tuple[str, ...]
    family: str
    format: str
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
    license: str | None
    paper: tuple[str, ...]
    sources: Mapping[str, str | None]
    notes: str | None
    sha256: str | None = None
    access: str | None = None

    @property
    def has_classifier(self) -> bool:
        """True where the file holds a classifier; a head that was published as zeros does not count."""
        return self.architecture["num_classes"] > 0 and not self.architecture.get("zero_head", False)


@functools.cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """Return every row of the catalog, in the order of the file."""
    rows: list[dict[str, Any]] = json.loads(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))
    for row in rows:
        row |= {field: tuple(row[field]) for field in ("aliases", "training_data", "paper")}
    return tuple(Checkpoint(**row) for row in rows)


@functools.cache
def checkpoint_names() -> Mapping[str, Checkpoint]:
    """Return the checkpoints by every name that `find_checkpoint` accepts: catalog names, Hub ids and aliases."""
    return {
        name: checkpoint
        for checkpoint in checkpoints()
        for name in (checkpoint.name, checkpoint.hub_id, *checkpoint.aliases)
        if name is not None
    }


def list_checkpoints(family: str | None = None) -> tuple[Checkpoint, ...]:
    """Return the official checkpoints, all or those of one family; raise VitrailError for an unknown family."""
    families = dict.fromkeys(checkpoint.family for checkpoint in checkpoints())
    if family is not None and family not in families:
        raise VitrailError(f"Unknown family {family!r}; expected one of {', '.join(families)}.")
    return tuple(checkpoint for checkpoint in checkpoints() if family in (None, checkpoint.family))


def find_checkpoint(name: str) -> Checkpoint | None:
    """Return the checkpoint with a catalog name, Hub id or alias, or None."""
    return checkpoint_names().get(name)


def official_config(checkpoint: Checkpoint) -> ViTConfig:
    """Return the config that `vitrail.load` gives an official checkpoint, without the names of its classes."""
    a = checkpoint.architecture
    position = a["position"]
    fields: dict[str, Any] = {
        "hidden_size": a["embed_dim"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a["heads"],
        "intermediate_size": a["mlp_dim"],
        "mlp_type": a["ffn"],
        "image_size": a["image_size"],
        "patch_size": a["patch"],
        "num_register_tokens": a["registers"],
        "use_cls_token": a["class_token"],
        "use_mask_token": a.get("mask_token", False),
        "use_cls_position": a.get("class_position", True),
        "hidden_act": a.get("hidden_act", "gelu"),
        "position_embedding_type": position if position in ("absolute", "rotary") else "relative_mlp",
        "share_relative_position": position.endswith("shared"),
        "norm_position": "residual_post" if a.get("block") == "residual post-norm" else "pre",
        "qkv_bias": a["qkv_bias"],
        "layer_scale_init_value": 1.0 if a["layer_scale"] else None,
        "layer_norm_eps": a["layer_norm_eps"],
        "pooling": "avg" if a["pooling"] == "avg" else "cls",
        "norm_before_pooling": not a.get("fc_norm", False),
        "representation_size": a["embed_dim"] if a["pre_logits"] else None,
        "classifier_mean_patch": a["pooling"] == "cls+avg",
    }
    if position == "absolute":
        fields["position_interpolation_offset"] = a["pos_interpolate_offset"] or 0.0
        fields["position_interpolation_antialias"] = bool(a["pos_interpolate_antialias"])
        fields["position_interpolation_mode"] = a.get("pos_interpolate_mode", "bicubic")
    elif "rel_pos_hidden" in a:
        fields["relative_position_hidden_size"] = a["rel_pos_hidden"]
    fields |= family_of_rows(checkpoint.format).official_fields(a)
    return ViTConfig(**fields | ({"num_labels": a["num_classes"]} if checkpoint.has_classifier else {}))


def official_image_processor(checkpoint: Checkpoint) -> VitrailImageProcessor:
    """Return the image processor of the publisher's evaluation of an official checkpoint."""
    p = checkpoint.preprocessing
    crops = p["resize_mode"] == "shortest_edge"
    return VitrailImageProcessor(
        size={"shortest_edge": p["size"]} if crops else {"height": p["size"], "width": p["size"]},
        do_center_crop=crops,
        crop_size={"height": p["crop_size"], "width": p["crop_size"]} if crops else None,
        resample=Image.Resampling[p["interpolation"].upper()],
        image_mean=p["mean"],
        image_std=p["std"],
    )
