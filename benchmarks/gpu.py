"""On a GPU, in bfloat16, by us and by the peers. The suite has parts, so that a machine that is there for minutes can run some of them.

- forward: forward passes of several architectures and batch sizes, as they are and as CUDA graphs, which replay the same kernels without
  waiting for Python.
- compiled: one architecture by torch.compile, by torch.compile with CUDA graphs ("reduce-overhead") and by `vitrail.optimize`; and with
  weights and activations in float8 by torchao, if it is installed, the GPU has float8 and the outputs agree with the float32 model.
- kernels: a batch by each kernel of attention.
- preparation: photographs to `pixel_values`, on the CPU and on the GPU.
- extract: from files to features, as the suite of this name does, and with the other backend of the image processor.
- pretrain: updates of DINO's and DINOv2's training, as the suite of this name does.

Forward passes have the same random weights for all, and images of 224 pixels. `share_of_bound` is the time of the matrix products and
attention alone, a CUDA graph that runs in the same rounds, over the time of the row. `tflops` are the operations of our model in a second,
and `share_of_peak` is their share of the card's peak in bfloat16, for the cards in `peaks.py`.
"""

import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

import vitrail
from vitrail.features.job import default_num_workers
from vitrail.runtime.compiled import MIN_COSINE, agreement_of

from . import extract, pretrain
from .forward import PIXELS, make_model, rows_of
from .peaks import PEAKS, flops_of
from .peers import Forward, as_graph, in_float8, matrix_products, peers_of
from .preprocess import LEVEL
from .timing import interleaved

Row = dict[str, Any]
Runs = dict[str, Callable[[], object]]

ARCHITECTURES = (
    "facebook/dino-vits16",
    "facebook/dino-vitb16",
    "google/vit-large-patch16-224",
    "timm/vit_relpos_base_patch16_clsgap_224.sw_in1k",
    "facebook/dinov2-small",
    "facebook/dinov3-vitb16-pretrain-lvd1689m",
)
DEVICE = torch.device("cuda")
BATCH_SIZES = (1, 8, 64, 256)
COMPILED_ARCHITECTURE, COMPILED_BATCH_SIZES = ARCHITECTURES[1], (1, 64)  # few, because torch.compile takes up to a minute
KERNELS_ARCHITECTURES, KERNELS_BATCH_SIZE = (ARCHITECTURES[1], ARCHITECTURES[3]), 64
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
LEAST = MIN_COSINE["bfloat16"]  # cosine of peers to ours, and of float8 to float32, for each image
EXTRACT = {"batch_size": 64, "copies": 32, "alone": 2, "auto": 32}  # of `extract.Setup`


def finished(run: Callable[[], object]) -> Callable[[], None]:
    """The same, which returns when the GPU has done it."""

    def until_done() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return until_done


def tried(runs: Runs, way: str, make: Callable[[], Callable[[], object]]) -> None:
    """Add a way to the runs, or print why torch cannot run it."""
    try:
        run = finished(make())
        run()
    except (RuntimeError, vitrail.VitrailError) as error:
        print(f"{way} is left out: {error}", file=sys.stderr)
    else:
        runs[way] = run


def random_images(batch_size: int) -> torch.Tensor:
    """Noise in place of prepared images."""
    return torch.randn(batch_size, 3, PIXELS, PIXELS, device=DEVICE, dtype=torch.bfloat16)


@contextlib.contextmanager
def models_of(name: str) -> Iterator[tuple[vitrail.ViTModel, dict[str, Forward], Path]]:
    """The model of an architecture in bfloat16 on the GPU, the forward passes of it and of its peers, and its folder."""
    model, image_processor = make_model(name)
    model = model.to(DEVICE, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        forwards = {"vitrail": lambda images: model(images).last_hidden_state} | peers_of(model, image_processor, Path(folder))
        images, agreeing = random_images(2), {}
        for way, one in forwards.items():
            cosine = agreement_of(one(images), forwards["vitrail"](images)).cosine
            if cosine >= LEAST:
                agreeing[way] = one
            else:
                print(f"{way} is left out, its outputs for {name} differ: a cosine of {cosine:.4f}", file=sys.stderr)
        yield model, agreeing, Path(folder, "vitrail")


def measured(model: vitrail.ViTModel, work: str, pixel_values: torch.Tensor, runs: Runs, **more: dict[str, Any]) -> list[Row]:
    """Measure; one row for each way, with its share of the bound and of the peak."""
    products = matrix_products(model.config, len(pixel_values), pixel_values)
    runs["matrix products"] = finished(as_graph(products) if DEVICE.type == "cuda" else products)
    rows = rows_of(work, len(pixel_values), runs, dict.fromkeys(runs, "matrix products"), **more)
    flops, peak = flops_of(model.config), PEAKS.get(device_name())
    for row in rows:
        tflops = row["images_per_second"] * flops / 1e12
        row |= {"tflops": float(f"{tflops:.3g}"), "share_of_peak": round(tflops / peak, 3) if peak else ""}
    return rows


def device_name() -> str:
    """The name of the card."""
    return torch.cuda.get_device_name() if DEVICE.type == "cuda" else DEVICE.type


@torch.no_grad()
def forward() -> Iterator[Row]:
    """Every architecture in every batch size, as it is and as a CUDA graph."""
    for name in ARCHITECTURES:
        with models_of(name) as (model, forwards, _):
            for batch_size in BATCH_SIZES:
                pixel_values = random_images(batch_size)
                runs: Runs = {way: finished(partial(one, pixel_values)) for way, one in forwards.items()}
                if DEVICE.type == "cuda":
                    for way, one in forwards.items():
                        tried(runs, f"{way}, CUDA graph", partial(as_graph, partial(one, pixel_values)))
                yield from measured(model, name, pixel_values, runs)


@torch.no_grad()
def compiled() -> Iterator[Row]:
    """One architecture, compiled by torch and by us, and in float8."""
    with models_of(COMPILED_ARCHITECTURE) as (model, forwards, folder):
        quantized = in_float8(folder, DEVICE)
        for batch_size in COMPILED_BATCH_SIZES:
            torch.compiler.reset()
            yield from compiled_rows(model, forwards, quantized, random_images(batch_size))


def compiled_rows(
    model: vitrail.ViTModel, forwards: dict[str, Forward], quantized: Forward | None, pixel_values: torch.Tensor
) -> list[Row]:
    """The rows of a batch."""
    runs: Runs = {way: finished(partial(one, pixel_values)) for way, one in forwards.items()}
    cosines: dict[str, float] = {}

    def optimize() -> Callable[[], object]:
        fast = vitrail.optimize(model, engine="compile", examples=pixel_values, batch_size=len(pixel_values))
        cosines["vitrail.optimize, compile"] = round(fast.report.cosine, 5)
        return partial(fast, pixel_values)

    for way, one in forwards.items():
        tried(runs, f"{way}, torch.compile", lambda one=one: partial(torch.compile(one), pixel_values))
        graphs = f"{way}, torch.compile, CUDA graphs"
        tried(runs, graphs, lambda one=one: partial(torch.compile(one, mode="reduce-overhead"), pixel_values))
    tried(runs, "vitrail.optimize, compile", optimize)
    if quantized is not None:
        float32, _ = make_model(COMPILED_ARCHITECTURE)
        cosine = agreement_of(quantized(pixel_values), float32.to(DEVICE)(pixel_values.float()).last_hidden_state).cosine
        if cosine >= LEAST:
            cosines["vitrail, float8, torch.compile"] = round(cosine, 5)
            tried(runs, "vitrail, float8, torch.compile", lambda: partial(torch.compile(quantized), pixel_values))
        else:
            print(f"float8 is left out: its cosine to float32 is {cosine:.4f}, below {LEAST}", file=sys.stderr)
    return measured(model, f"{COMPILED_ARCHITECTURE}, compiled", pixel_values, runs, cosine=cosines)


@torch.no_grad()
def kernels() -> Iterator[Row]:
    """Two architectures by each kernel of attention that takes them; relative positions need one that takes a bias."""
    for name in KERNELS_ARCHITECTURES:
        model, _ = make_model(name)
        model = model.to(DEVICE, torch.bfloat16)
        pixel_values = random_images(KERNELS_BATCH_SIZE)

        def by(backend: SDPBackend, model: vitrail.ViTModel = model, pixel_values: torch.Tensor = pixel_values) -> None:
            with sdpa_kernel(backend):
                model(pixel_values)

        runs: Runs = {"vitrail": finished(partial(model, pixel_values))}
        for kernel, backend in KERNELS.items():
            tried(runs, f"vitrail, {kernel}", lambda backend=backend, by=by: partial(by, backend))
        yield from measured(model, f"{name}, kernels of attention", pixel_values, runs)


def preparation() -> Iterator[Row]:
    """Photographs of one size to pixel_values on the GPU, by our backends and by transformers."""
    with Image.open(extract.PHOTOS[0]) as photo:
        images = [np.array(photo.convert("RGB").resize((640, 480)))] * KERNELS_BATCH_SIZE
    ours = {f"vitrail, {backend}": vitrail.make_image_processor("google-hub", backend=backend) for backend in ("pil", "torch")}
    ways = [("vitrail, pil", "cpu"), ("vitrail, torch", "cpu"), ("vitrail, torch", DEVICE.type)]
    theirs: dict[str, Any] = {}
    if importlib.util.find_spec("torchvision"):
        from transformers.models.vit.image_processing_vit import ViTImageProcessor

        theirs["transformers, torchvision"] = ViTImageProcessor()
        ways += [("transformers, torchvision", "cpu"), ("transformers, torchvision", DEVICE.type)]

    def prepare(way: str, device: str) -> torch.Tensor:
        return (ours | theirs)[way](images, device=device, return_tensors="pt")["pixel_values"].to(DEVICE)

    runs: Runs = {}
    for way in ways:
        difference = ((prepare(*way) - prepare(*ways[0])).abs() / LEVEL).max().item()
        if difference < 2.001:
            runs[" on ".join(way)] = finished(partial(prepare, *way))
        else:
            print(f"{' on '.join(way)} is left out, its pixels differ by {difference:.1f} levels", file=sys.stderr)
    for way, median in interleaved(runs, repeats=11).items():
        rate = round(len(images) / median, 1)
        yield {"work": "preparation of 640x480", "batch": len(images), "way": way, "images_per_second": rate}


def extraction() -> Iterator[Row]:
    """From files to features."""
    yield from extract.measure(extract.Setup(DEVICE.type, workers=default_num_workers(DEVICE), **EXTRACT))


def pretraining() -> Iterator[Row]:
    """Updates of each method."""
    for method in pretrain.METHODS:
        with tempfile.TemporaryDirectory() as folder:
            yield from pretrain.measure(method, folder, on_gpu=DEVICE.type == "cuda")


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "forward": forward,
    "compiled": compiled,
    "kernels": kernels,
    "preparation": preparation,
    "extract": extraction,
    "pretrain": pretraining,
}


def run(parts: Sequence[str] = tuple(PARTS)) -> Iterator[Row]:
    """The rows of some parts, on one GPU, as they are measured."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise SystemExit(f"found the parts {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this suite needs a GPU that torch can use")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for part in parts:
        for row in PARTS[part]():
            yield {"part": part, "device": device_name()} | row
