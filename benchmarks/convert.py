"""How much memory and time it takes to convert ViT-L/16: .safetensors in timm's and transformers' layout, and Google's .npz.

The files hold random float32 weights, 1.2 GB each, and lie in the system's temporary folder. `vitrail.convert_checkpoint` runs in a
separate process, and the kernel reports the peak of its resident memory, in which pages of a memory-mapped file count too. The memory of
Python and the libraries is measured before: `ratio` is (peak - baseline) / size, `ratio_with_libraries` is peak / size.
"""

import json
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

DEPTH, WIDTH, MLP_WIDTH, HEADS, PATCH, TOKENS, CLASSES = 24, 1024, 4096, 16, 16, 197, 1000
HEAD_WIDTH = WIDTH // HEADS

Shapes = dict[str, tuple[int, ...]]  # `{}` in a name stands for the number of a block


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str) -> Shapes:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def flax(name: str, kernel: tuple[int, ...], bias: tuple[int, ...]) -> Shapes:
    return {f"{name}/kernel": kernel, f"{name}/bias": bias}


def flax_norm(name: str) -> Shapes:
    return {f"{name}/scale": (WIDTH,), f"{name}/bias": (WIDTH,)}


TIMM: Shapes = {
    "cls_token": (1, 1, WIDTH),
    "pos_embed": (1, TOKENS, WIDTH),
    "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
    "patch_embed.proj.bias": (WIDTH,),
    **norm("blocks.{}.norm1"),
    **linear("blocks.{}.attn.qkv", 3 * WIDTH, WIDTH),
    **linear("blocks.{}.attn.proj", WIDTH, WIDTH),
    **norm("blocks.{}.norm2"),
    **linear("blocks.{}.mlp.fc1", MLP_WIDTH, WIDTH),
    **linear("blocks.{}.mlp.fc2", WIDTH, MLP_WIDTH),
    **norm("norm"),
    **linear("head", CLASSES, WIDTH),
}
TRANSFORMERS: Shapes = {
    "vit.embeddings.cls_token": (1, 1, WIDTH),
    "vit.embeddings.position_embeddings": (1, TOKENS, WIDTH),
    "vit.embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
    "vit.embeddings.patch_embeddings.projection.bias": (WIDTH,),
    **norm("vit.encoder.layer.{}.layernorm_before"),
    **linear("vit.encoder.layer.{}.attention.attention.query", WIDTH, WIDTH),
    **linear("vit.encoder.layer.{}.attention.attention.key", WIDTH, WIDTH),
    **linear("vit.encoder.layer.{}.attention.attention.value", WIDTH, WIDTH),
    **linear("vit.encoder.layer.{}.attention.output.dense", WIDTH, WIDTH),
    **norm("vit.encoder.layer.{}.layernorm_after"),
    **linear("vit.encoder.layer.{}.intermediate.dense", MLP_WIDTH, WIDTH),
    **linear("vit.encoder.layer.{}.output.dense", WIDTH, MLP_WIDTH),
    **norm("vit.layernorm"),
    **linear("classifier", CLASSES, WIDTH),
}
TRANSFORMERS_CONFIG = {
    "model_type": "vit",
    "hidden_size": WIDTH,
    "intermediate_size": MLP_WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
}
BLOCK = "Transformer/encoderblock_{}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_1"
GOOGLE: Shapes = {
    "cls": (1, 1, WIDTH),
    "Transformer/posembed_input/pos_embedding": (1, TOKENS, WIDTH),
    **flax("embedding", (PATCH, PATCH, 3, WIDTH), (WIDTH,)),
    **flax_norm(f"{BLOCK}/LayerNorm_0"),
    **flax(f"{ATTENTION}/query", (WIDTH, HEADS, HEAD_WIDTH), (HEADS, HEAD_WIDTH)),
    **flax(f"{ATTENTION}/key", (WIDTH, HEADS, HEAD_WIDTH), (HEADS, HEAD_WIDTH)),
    **flax(f"{ATTENTION}/value", (WIDTH, HEADS, HEAD_WIDTH), (HEADS, HEAD_WIDTH)),
    **flax(f"{ATTENTION}/out", (HEADS, HEAD_WIDTH, WIDTH), (WIDTH,)),
    **flax_norm(f"{BLOCK}/LayerNorm_2"),
    **flax(f"{BLOCK}/MlpBlock_3/Dense_0", (WIDTH, MLP_WIDTH), (MLP_WIDTH,)),
    **flax(f"{BLOCK}/MlpBlock_3/Dense_1", (MLP_WIDTH, WIDTH), (WIDTH,)),
    **flax_norm("Transformer/encoder_norm"),
    **flax("head", (WIDTH, CLASSES), (CLASSES,)),
}
# The file that is converted, its tensors, and the config.json beside it
FILES: dict[str, tuple[str, Shapes, dict[str, Any] | None]] = {
    "timm": ("vit_large_patch16_224.safetensors", TIMM, None),
    "transformers": ("model.safetensors", TRANSFORMERS, TRANSFORMERS_CONFIG),
    "google": ("ViT-L_16.npz", GOOGLE, None),
}


def write(path: Path, shapes: Shapes) -> None:
    """Writes a checkpoint of random weights."""
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name.format(block): random.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(WIDTH))
        for name, shape in shapes.items()
        for block in range(DEPTH if "{}" in name else 1)
    }
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)


def peak_memory() -> int:
    """The most resident memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def convert(source: Path, output_dir: Path) -> dict[str, Any]:
    """Converts once, in a process in which nothing was converted before: a peak never falls."""
    import vitrail

    size, baseline, start = source.stat().st_size, peak_memory(), time.perf_counter()
    vitrail.convert_checkpoint(source, output_dir)
    seconds, peak = time.perf_counter() - start, peak_memory()
    return {
        "file": source.name,
        "size_mb": round(size / 1e6),
        "baseline_mb": round(baseline / 1e6),
        "peak_mb": round(peak / 1e6),
        "ratio": round((peak - baseline) / size, 2),
        "ratio_with_libraries": round(peak / size, 2),
        "seconds": round(seconds, 1),
    }


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Linux lets a process begin with the peak of the one that started it, so that this one has to stay small: no torch here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run() -> list[dict[str, Any]]:
    """One row for each layout."""
    rows = []
    for layout, (name, shapes, config) in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, name)
            in_new_process(write, source, shapes)
            if config is not None:
                source.with_name("config.json").write_text(json.dumps(config), encoding="utf-8")
            rows.append({"layout": layout} | in_new_process(convert, source, Path(folder, "out")))
    return rows
