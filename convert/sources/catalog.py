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

from PIL import Image

from ...configuration.configuration_vit import ViTConfig
from ...errors import VitrailError
from ...processing.image_processing_vit import VitrailImageProcessor


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
    architecture: sizes and switches; `image_size` and `patch` in pixels, `embed_dim` and `mlp_dim` in features; `zero_head` where the
        publisher says that the head in the file is zeros.
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

    @property
    def has_classifier(self) -> bool:
        """Whether the file holds a classifier; a head that was published as zeros is none."""
        return self.architecture["num_classes"] > 0 and not self.architecture.get("zero_head", False)


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


def list_checkpoints(family: str | None = None) -> tuple[Checkpoint, ...]:
    """Return the official checkpoints, all of them or those of one family: "dino", "dinov2", "google", "timm" or "transformers".

    Raises VitrailError if there is no such family.
    """
    families = dict.fromkeys(checkpoint.family for checkpoint in checkpoints())
    if family is not None and family not in families:
        raise VitrailError(f"found family={family!r}; expected one of {', '.join(families)}")
    return tuple(checkpoint for checkpoint in checkpoints() if family in (None, checkpoint.family))


def find_checkpoint(name: str) -> Checkpoint | None:
    """The checkpoint with this catalogue name, Hub id or alias, or None."""
    return checkpoint_names().get(name)


# How each format's own code resizes absolute positions; DINO's and DINOv2's rules stand in the rows
POSITION_INTERPOLATION: Mapping[str, Mapping[str, Any]] = {
    "dino-pth": {},
    "dinov2-pth": {},
    "google-npz": {"position_interpolation_mode": "bilinear", "position_interpolation_align_corners": True},
    "timm-hub": {"position_interpolation_antialias": True},
    "transformers-hub": {},
}


def official_config(checkpoint: Checkpoint) -> ViTConfig:
    """The config of the model that `vitrail.load` makes of an official checkpoint, but for the names of its classes."""
    a = checkpoint.architecture
    absolute = a["position"] == "absolute"
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
        # timm's files with registers have positions of patches only
        "use_cls_position": not (checkpoint.format == "timm-hub" and a["registers"]),
        "position_embedding_type": "absolute" if absolute else "relative_mlp",
        "share_relative_position": a["position"].endswith("shared"),
        "norm_position": "residual_post" if a.get("block") == "residual post-norm" else "pre",
        "qkv_bias": a["qkv_bias"],
        "hidden_act": "gelu_pytorch_tanh" if checkpoint.format == "google-npz" else "gelu",  # flax's GELU is the approximation
        "layer_scale_init_value": 1.0 if a["layer_scale"] else None,
        "layer_norm_eps": a["layer_norm_eps"],
        "pooling": "avg" if a["pooling"] == "avg" else "cls",
        "norm_before_pooling": not a.get("fc_norm", False),
        "representation_size": a["embed_dim"] if a["pre_logits"] else None,
        "classifier_mean_patch": a["pooling"] == "cls+avg",
    }
    if absolute:
        registers = checkpoint.format == "transformers-hub" and a["registers"] > 0
        fields |= {
            "position_interpolation_offset": a["pos_interpolate_offset"] or 0.0,
            "position_interpolation_antialias": bool(a["pos_interpolate_antialias"] or registers),
        } | dict(POSITION_INTERPOLATION[checkpoint.format])
    else:
        fields["relative_position_hidden_size"] = a["rel_pos_hidden"]
    return ViTConfig(**fields | ({"num_labels": a["num_classes"]} if checkpoint.has_classifier else {}))


def official_image_processor(checkpoint: Checkpoint) -> VitrailImageProcessor:
    """The image processor that prepares images as the publisher of an official checkpoint evaluates it."""
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
