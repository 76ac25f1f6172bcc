"""Forward passes: the five architectures people come for against transformers and timm, and a ViT-S/16 by every engine.

The same random weights for all, images of 224 pixels, outputs compared before anything is measured. `share_of_bound` is the time of the
matrix products alone, run by torch in the same rounds, over the time of the forward pass. Engines that are not installed, and precisions
that the processor has no instructions for, are left out.
"""

import copy
import itertools
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging

import vitrail
from vitrail.convert.sources.catalog import find_checkpoint, official_config, official_image_processor

from .extract import PHOTOS
from .peers import matrix_products, peers_of
from .timing import interleaved

ARCHITECTURES = (
    "timm/vit_base_patch8_224.dino",
    "facebook/dino-vits8",
    "timm/vit_relpos_base_patch16_clsgap_224.sw_in1k",
    "google/vit-large-patch16-224",
    "facebook/dinov2-small",
    "facebook/dinov3-vits16-pretrain-lvd1689m",
    "facebook/dinov3-vitb16-pretrain-lvd1689m",
)
PIXELS = 224
BATCH_SIZES = (1, 8)
REPEATS, SECONDS = 31, 15.0  # most rounds of each case, and the seconds that they may take

ENGINES = ("eager", "compile", "onnxruntime", "openvino")
PRECISIONS = ("float32", "bfloat16", "int8")
ENGINE_ARCHITECTURE, ENGINE_BATCH_SIZE = "facebook/dino-vits16", 8
NUM_PHOTOS = 64  # crops by which int8 chooses its scales, the first 8 of which every engine is compared on


def make_model(name: str) -> tuple[vitrail.ViTModel, vitrail.VitrailImageProcessor]:
    """An official architecture with random weights, for images of 224 pixels, and with the epsilon that timm has."""
    checkpoint = find_checkpoint(name)
    official = official_config(checkpoint)
    epsilon = 1e-5 if official.position_embedding_type == "rotary" else 1e-6
    config = vitrail.ViTConfig(**official.to_dict() | {"image_size": PIXELS, "layer_norm_eps": epsilon})
    torch.manual_seed(0)
    return vitrail.ViTModel(config).eval(), official_image_processor(checkpoint)


def with_hooks(model: vitrail.ViTModel) -> vitrail.ViTModel:
    """Return a copy that shares the weights and has a hook on every `mlp.fc1`, for which GELU does not overwrite its input."""
    copied = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for layer in copied.layers:
        layer.mlp.fc1.register_forward_hook(lambda module, inputs, output: None)
    return copied


def rows_of(
    work: str, batch_size: int, runs: dict[str, Callable[[], object]], bounds: dict[str, str], **more: dict[str, Any]
) -> list[dict[str, Any]]:
    """Measures; one row for each way.

    bounds: of each way, the run that is its bound.
    more: columns, by way.
    """
    medians = interleaved(runs, repeats=REPEATS, seconds=SECONDS)
    peers = [name for name in ("transformers", "timm") if name in runs]
    return [
        {
            "work": work,
            "batch": batch_size,
            "way": way,
            "images_per_second": round(batch_size / median, 2),
            **{f"times_{peer}": round(medians[peer] / median, 2) for peer in peers},
            "share_of_bound": round(medians[bounds[way]] / median, 2) if way in bounds else "",
            **{name: values.get(way, "") for name, values in more.items()},
        }
        for way, median in medians.items()
    ]


@torch.inference_mode()
def eager(name: str, batch_size: int) -> list[dict[str, Any]]:
    """One architecture in float32."""
    model, image_processor = make_model(name)
    pixel_values = torch.randn(batch_size, 3, PIXELS, PIXELS)
    hooked = with_hooks(model)
    with tempfile.TemporaryDirectory() as folder:
        forwards = {"vitrail": lambda images: model(images).last_hidden_state} | peers_of(model, image_processor, Path(folder))
    forwards["vitrail, hooks on fc1 (GELU not in place)"] = lambda images: hooked(images).last_hidden_state
    expected = forwards["vitrail"](pixel_values)
    for way, forward in forwards.items():
        difference = (forward(pixel_values) - expected).abs().max().item()
        assert difference < 1e-3, f"{way} answers something else for {name}: {difference}"
    runs: dict[str, Callable[[], object]] = {
        way: lambda forward=forward: forward(pixel_values) for way, forward in forwards.items()
    }
    runs["matrix products"] = matrix_products(model.config, batch_size, pixel_values)
    return rows_of(name, batch_size, runs, dict.fromkeys(runs, "matrix products"))


def photos() -> torch.Tensor:
    """Crops of the photographs on board as a model of DINO's takes them, (NUM_PHOTOS, 3, H, W)."""
    chance = random.Random(0)
    image_processor = vitrail.make_image_processor("dino")
    crops = []
    for path in itertools.islice(itertools.cycle(PHOTOS), NUM_PHOTOS):
        with Image.open(path) as photo:
            side = round(min(photo.size) * chance.uniform(0.5, 1))
            left, top = chance.randrange(photo.width - side + 1), chance.randrange(photo.height - side + 1)
            crops.append(photo.convert("RGB").crop((left, top, left + side, top + side)))
    return image_processor(crops, return_tensors="pt")["pixel_values"]


@torch.inference_mode()
def engines() -> list[dict[str, Any]]:
    """One architecture by every engine in every precision."""
    model, image_processor = make_model(ENGINE_ARCHITECTURE)
    images = photos()
    pixel_values = images[:ENGINE_BATCH_SIZE]
    with tempfile.TemporaryDirectory() as folder:
        forwards = peers_of(model, image_processor, Path(folder))
    runs: dict[str, Callable[[], object]] = {
        way: lambda forward=forward: forward(pixel_values) for way, forward in forwards.items()
    }
    bounds, cosines, differences = dict.fromkeys(runs, "matrix products, float32"), {}, {}
    runs["matrix products, float32"] = matrix_products(model.config, ENGINE_BATCH_SIZE, pixel_values)
    runs["matrix products, bfloat16"] = matrix_products(model.config, ENGINE_BATCH_SIZE, pixel_values.bfloat16())
    for engine, precision in itertools.product(ENGINES, PRECISIONS):
        way = f"vitrail, {engine}, {precision}"
        try:
            with torch.inference_mode(False):
                fast = vitrail.optimize(
                    model, engine=engine, precision=precision, examples=images.clone(), batch_size=ENGINE_BATCH_SIZE
                )
        except vitrail.VitrailError as error:
            print(f"{way}: {error}", file=sys.stderr)
            continue
        runs[way] = lambda fast=fast: fast(pixel_values)
        cosines[way] = round(fast.report.cosine, 5)
        differences[way] = float(f"{fast.report.max_difference:.2g}")
        if f"matrix products, {precision}" in runs:
            bounds[way] = f"matrix products, {precision}"
    return rows_of(f"{ENGINE_ARCHITECTURE}, engines", ENGINE_BATCH_SIZE, runs, bounds, cosine=cosines, max_difference=differences)


def run() -> list[dict[str, Any]]:
    """The architectures one after the other, then the engines."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of weights that transformers' own format has and a peer does not read
    rows = [row for name, size in itertools.product(ARCHITECTURES, BATCH_SIZES) for row in eager(name, size)]
    rows += engines()
    columns = list(rows[-1])
    return [{column: row.get(column, "") for column in columns} for row in rows]
