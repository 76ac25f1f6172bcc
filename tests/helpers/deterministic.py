"""The rule that gives the golden cases their weights, and the files in which the originals keep them.

The weights of a golden case are not stored: they follow from the names and shapes of the checkpoint, so that architectures of full size
fit in a few kilobytes. Run as a script it writes such a checkpoint:

    python tests/helpers/deterministic.py dino_vits16 dino_deitsmall16_pretrain.pth
"""

import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from paths import GOLDEN

CHUNK = 1 << 15  # numbers that are made together, in the processor's cache


def noise(seed: int, shape: list[int]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on the seed and the shape alone."""
    generator, values = np.random.PCG64(seed), np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        part[:] = generator.random_raw(len(part)) >> np.uint64(40)
        part /= np.float32(2**23)
        part -= np.float32(1)
    return values.reshape(shape)


def weight(name: str, spec: dict) -> torch.Tensor:
    """The tensor of a checkpoint, from its name and its {shape, offset, scale}, its values, or one value for each third of a vector."""
    if "values" in spec:
        return torch.tensor(spec["values"], dtype=getattr(torch, spec.get("dtype", "float32"))).reshape(spec["shape"])
    if "thirds" in spec:
        return torch.tensor(spec["thirds"], dtype=torch.float32).repeat_interleave(spec["shape"][0] // 3)
    values = noise(zlib.crc32(name.encode()), spec["shape"])
    values *= np.float32(spec["scale"])
    values += np.float32(spec["offset"])
    return torch.from_numpy(values)


def weights(specs: dict[str, dict]) -> dict[str, torch.Tensor]:
    return {name: weight(name, spec) for name, spec in specs.items()}


def pixel_values(spec: dict) -> torch.Tensor:
    return torch.from_numpy(np.float32(spec["scale"]) * noise(spec["seed"], spec["shape"]))


def case(name: str) -> dict:
    """Return the description of a golden case."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def write_checkpoint(case: dict, path: Path) -> None:
    """Writes a case's weights into the container in which the original keeps them."""
    tensors = {case["file"].get("prefix", "") + name: tensor for name, tensor in weights(case["checkpoint"]).items()}
    root = case["file"].get("root")
    if case["file"]["kind"] == "torch":
        torch.save({root: tensors} if root else tensors, path)
    elif case["file"]["kind"] == "npz":
        with path.open("wb") as file:  # given a name, np.savez would add .npz to it
            np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        save_file(tensors, path)


def dino_vits16() -> dict:
    """The names and shapes of DINO's ViT-S/16, with values drawn as in the golden cases."""
    hidden, patch, depth = 384, 16, 12

    def matrix(*shape: int) -> dict:
        return {"shape": list(shape), "offset": 0.0, "scale": round(1.5 / math.sqrt(math.prod(shape[1:])), 6)}

    def vector(length: int, offset: float, scale: float) -> dict:
        return {"shape": [length], "offset": offset, "scale": scale}

    def norm(name: str) -> dict:
        return {f"{name}.weight": vector(hidden, 1.0, 0.3), f"{name}.bias": vector(hidden, 0.0, 0.1)}

    def linear(name: str, outputs: int, inputs: int) -> dict:
        return {f"{name}.weight": matrix(outputs, inputs), f"{name}.bias": vector(outputs, 0.0, 0.1)}

    specs = {
        "cls_token": {"shape": [1, 1, hidden], "offset": 0.0, "scale": 0.5},
        "pos_embed": {"shape": [1, (224 // patch) ** 2 + 1, hidden], "offset": 0.0, "scale": 0.5},
        "patch_embed.proj.weight": matrix(hidden, 3, patch, patch),
        "patch_embed.proj.bias": vector(hidden, 0.0, 0.1),
    }
    for block in (f"blocks.{index}" for index in range(depth)):
        specs |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * hidden, hidden)
        specs |= linear(f"{block}.attn.proj", hidden, hidden) | norm(f"{block}.norm2")
        specs |= linear(f"{block}.mlp.fc1", 4 * hidden, hidden) | linear(f"{block}.mlp.fc2", hidden, 4 * hidden)
    return {"file": {"kind": "torch"}, "checkpoint": specs | norm("norm")}


if __name__ == "__main__":
    chosen, output = sys.argv[1:]
    write_checkpoint(dino_vits16() if chosen == "dino_vits16" else case(chosen), Path(output))
