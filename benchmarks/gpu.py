"""On a GPU, in bfloat16: forward passes of several architectures and batch sizes, as they are and compiled, by us and by the peers.

The same random weights for all, images of 224 pixels. `share_of_bound` is the time of the matrix products and attention alone, run by
torch in the same rounds, over the time of the forward pass. Then, for one batch, the kernels of attention one by one, and the preparation
of photographs on the GPU.
"""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

import vitrail

from .extract import PHOTOS
from .forward import PIXELS, make_model, rows_of
from .peers import Forward, matrix_products, peers_of
from .timing import interleaved

ARCHITECTURES = (
    "facebook/dino-vits16",
    "facebook/dino-vitb16",
    "google/vit-large-patch16-224",
    "timm/vit_relpos_base_patch16_clsgap_224.sw_in1k",
    "facebook/dinov2-small",
)
DEVICE = torch.device("cuda")
BATCH_SIZES = (1, 8, 64, 256)
KERNELS_BATCH_SIZE = 64
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def finished(run: Callable[[], object]) -> Callable[[], None]:
    """The same, which returns when the GPU has done it."""

    def until_done() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return until_done


def on_images(forward: Forward, pixel_values: torch.Tensor) -> Callable[[], None]:
    """A forward pass of these images."""
    return finished(lambda: forward(pixel_values))


@contextlib.contextmanager
def forwards_of(name: str) -> Iterator[tuple[vitrail.ViTModel, dict[str, Forward]]]:
    """The model of an architecture and its peers, in bfloat16 on the GPU."""
    model, image_processor = make_model(name)
    model = model.to(DEVICE, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        yield model, {"vitrail": lambda images: model(images).last_hidden_state} | peers_of(model, image_processor, Path(folder))


@torch.no_grad()
def forward(name: str) -> list[dict[str, Any]]:
    """One architecture, all batch sizes."""
    rows = []
    with forwards_of(name) as (model, forwards):
        for batch_size in BATCH_SIZES:
            torch.compiler.reset()
            pixel_values = torch.randn(batch_size, 3, PIXELS, PIXELS, device=DEVICE, dtype=torch.bfloat16)
            runs = {way: on_images(theirs, pixel_values) for way, theirs in forwards.items()}
            for way, theirs in forwards.items():
                runs[f"{way}, compiled"] = on_images(torch.compile(theirs), pixel_values)
            fast = vitrail.optimize(model, engine="compile", examples=pixel_values, batch_size=batch_size)
            runs["vitrail.optimize, compile"] = finished(lambda fast=fast, images=pixel_values: fast(images))
            runs["matrix products"] = finished(matrix_products(model.config, batch_size, pixel_values))
            rows += rows_of(name, batch_size, runs, dict.fromkeys(runs, "matrix products"))
    return rows


@torch.no_grad()
def kernels(name: str) -> list[dict[str, Any]]:
    """One architecture by each kernel of attention that takes it; relative positions need one that takes a bias."""
    model, _ = make_model(name)
    model = model.to(DEVICE, torch.bfloat16)
    pixel_values = torch.randn(KERNELS_BATCH_SIZE, 3, PIXELS, PIXELS, device=DEVICE, dtype=torch.bfloat16)
    runs: dict[str, Callable[[], object]] = {"vitrail": on_images(model, pixel_values)}
    for kernel, backend in KERNELS.items():

        def run(backend: SDPBackend = backend) -> None:
            with sdpa_kernel(backend):
                model(pixel_values)

        try:
            run()
        except RuntimeError as error:  # what torch raises where no kernel is left
            print(f"{name}, {kernel}: {error}")
        else:
            runs[f"vitrail, {kernel}"] = finished(run)
    return rows_of(f"{name}, kernels of attention", KERNELS_BATCH_SIZE, runs, {})


def preparation() -> list[dict[str, Any]]:
    """Photographs of one size to pixel_values on the GPU, by each backend."""
    with Image.open(PHOTOS[0]) as photo:
        images = [np.asarray(photo.convert("RGB").resize((640, 480)))] * KERNELS_BATCH_SIZE
    runs: dict[str, Callable[[], object]] = {}
    for backend, device in (("pil", "cpu"), ("torch", "cpu"), ("torch", DEVICE.type)):
        image_processor = vitrail.VitrailImageProcessor(backend=backend)

        def run(image_processor: vitrail.VitrailImageProcessor = image_processor, device: str = device) -> None:
            image_processor(images, device=device, return_tensors="pt")["pixel_values"].to(DEVICE)

        runs[f"vitrail, {backend} on {device}"] = finished(run)
    medians = interleaved(runs, repeats=11)
    return [
        {"work": "preparation of 640x480", "batch": len(images), "way": way, "images_per_second": round(len(images) / median, 1)}
        for way, median in medians.items()
    ]


def run() -> list[dict[str, Any]]:
    """All of it, on one GPU."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this suite needs a GPU that torch can use")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rows = list(itertools.chain.from_iterable(map(forward, ARCHITECTURES)))
    rows += itertools.chain.from_iterable(map(kernels, (ARCHITECTURES[1], ARCHITECTURES[3])))
    rows += preparation()
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else DEVICE.type
    return [{"device": device} | {column: row.get(column, "") for column in columns} for row in rows]
