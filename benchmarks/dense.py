"""Segmentation and depth of images of 512 pixels: whole inference, against the original's head code on timm's encoder.

The same random weights for both: DINOv2's ViT-S/14 with its linear segmentation head and its linear depth head on four blocks. The outputs
are compared before anything is measured.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import vitrail
from vitrail.configuration.published_heads import four_blocks
from vitrail.convert.sources.catalog import find_checkpoint, official_config, official_image_processor

from .peers import peers_of
from .timing import interleaved

ENCODER, PEER = "dinov2-vits14", "timm, original head"
PIXELS, BATCH_SIZES = 512, (1, 4)
REPEATS, SECONDS = 21, 20.0  # most rounds of each case, and the seconds that they may take
HEADS: dict[str, dict[str, Any]] = {
    "ade20k_linear": {"num_labels": 150},
    "nyu_linear4": {
        "dense_layers": four_blocks(12),
        "dense_norm": False,
        "depth_readout": "concatenate",
        "depth_upsampling": 4,
        "depth_clamp": True,
    },
}

Run = Callable[[torch.Tensor], torch.Tensor]


def make_model(head: str) -> vitrail.ViTPreTrainedModel:
    """An encoder and a head with random weights."""
    config = vitrail.ViTConfig(**official_config(find_checkpoint(ENCODER)).to_dict() | {"image_size": 518} | HEADS[head])
    torch.manual_seed(0)
    kind = vitrail.ViTForSemanticSegmentation if head == "ade20k_linear" else vitrail.ViTForDepthEstimation
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def segment(model: vitrail.ViTForSemanticSegmentation, images: torch.Tensor) -> torch.Tensor:
    """Logits at the size of the images, as `post_process_semantic_segmentation` resizes them."""
    return F.interpolate(model(images).logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def original(model: vitrail.ViTPreTrainedModel, timms: Any) -> Run:
    """The inference of DINOv2's code with timm's encoder: eval/segmentation/models, hub/depth/encoder_decoder.py, decode_heads.py."""
    config = model.config
    layers = list(config.dense_layer_indices)

    def tokens(images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        missing = [-length % 14 for length in images.shape[-2:]]
        padded = F.pad(images, (missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2))
        return padded, timms.get_intermediate_layers(
            padded, n=layers, reshape=True, return_prefix_tokens=True, norm=config.dense_norm
        )

    def segmentation(images: torch.Tensor) -> torch.Tensor:
        norm, classifier = model.segmentation_head.batch_norm, model.segmentation_head.classifier
        _, ((patches, _),) = tokens(images)
        maps = F.batch_norm(patches, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.interpolate(F.conv2d(maps, classifier.weight, classifier.bias), size=images.shape[-2:], mode="bilinear")

    def depth(images: torch.Tensor) -> torch.Tensor:
        projection = model.depth_head.projection
        _, found = tokens(images)
        joined = [torch.cat((patches, prefix[:, 0, :, None, None].expand_as(patches)), dim=1) for patches, prefix in found]
        maps = torch.cat([F.interpolate(one, scale_factor=4, mode="bilinear") for one in joined], dim=1)
        logits = F.relu(F.conv2d(maps, projection.weight, projection.bias)) + 0.1
        bins = torch.linspace(*config.depth_range, config.depth_num_bins)
        metres = torch.einsum("bkhw,k->bhw", logits / logits.sum(dim=1, keepdim=True), bins).clamp(*config.depth_range)
        return F.interpolate(metres[:, None], size=images.shape[-2:], mode="bilinear")[:, 0]

    return segmentation if isinstance(model, vitrail.ViTForSemanticSegmentation) else depth


@torch.inference_mode()
def run() -> list[dict[str, Any]]:
    """Both heads at both batch sizes; without timm there is nothing to compare with."""
    if importlib.util.find_spec("timm") is None:
        raise SystemExit("This suite compares with timm: install it.")
    import timm

    rows = []
    for head in HEADS:
        model = make_model(head)
        ours: Run = (lambda images, model=model: segment(model, images)) if head == "ade20k_linear" else (
            lambda images, model=model: model(images).predicted_depth
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            peers_of(model.vit, official_image_processor(find_checkpoint(ENCODER)), Path(folder))
            timms = timm.create_model(f"local-dir:{Path(folder) / 'timm'}", pretrained=True, img_size=518).eval()
        theirs = original(model, timms)
        for batch_size in BATCH_SIZES:
            images = torch.randn(batch_size, 3, PIXELS, PIXELS)
            difference = (ours(images) - theirs(images)).abs().max().item()
            assert difference < 1e-3, f"timm with the original's head answers something else for {head}: {difference}"
            runs = {"vitrail": partial(ours, images), PEER: partial(theirs, images)}
            medians = interleaved(runs, repeats=REPEATS, seconds=SECONDS)
            rows += [
                {
                    "head": head,
                    "batch": batch_size,
                    "way": way,
                    "images_per_second": round(batch_size / median, 2),
                    "times_timm": round(medians[PEER] / median, 2),
                }
                for way, median in medians.items()
            ]
    return rows
