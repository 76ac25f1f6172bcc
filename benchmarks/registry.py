"""Every Vision Transformer that the installed timm can make: saved as a Hub folder with random weights, loaded, and run against timm.

Depth is cut to two blocks, and images of more than MAX_TOKENS patches are made smaller; widths, heads and everything else are those of the
architecture. All parameters are random, also those that timm initializes with zeros and ones. Each model is loaded with and without a
classifier, and is run at the size of its config and at another size, for which timm loads the same folder with `img_size`.
"""

import os
import re
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import vitrail

MODULES = (
    *("vision_transformer", "vision_transformer_relpos", "vision_transformer_hybrid", "vision_transformer_sam", "naflexvit"),
    *("deit", "eva", "beit", "vitamin"),
)
TOLERANCE = 2e-5  # of the largest value of an output
KINDS = ("with", "without")  # a classifier
NUM_CLASSES = 10
SMALL = 0.02
MAX_TOKENS = 400
# Arguments to try, each with the largest number of parameters; Sapiens2 has another number of key heads in some of its blocks
ATTEMPTS: tuple[tuple[dict[str, int], int], ...] = (
    ({"depth": 2}, 60_000_000),
    ({"depth": 1}, 10**9),
    ({"depth": 1, "num_kv_heads": 8}, 10**9),
    ({}, 250_000_000),
)
# What timm raises where a class does not take an argument, or cannot make the model
UNABLE = (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError, NotImplementedError)

Outputs = dict[str, torch.Tensor]
Finding = tuple[str, str]  # the outcome, and the feature or the difference


def randomize(model: torch.nn.Module, name: str) -> None:
    """Give every parameter random values that follow from the model's name.

    Tokens, positions and patches are small, so that the epsilon of the first norm matters.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for key, parameter in model.named_parameters():
        scaled = re.search(r"(gamma|gamma_\d|scale\d?|weight)$", key) is not None
        if parameter.ndim == 1:
            values = (SMALL if key.startswith("patch_embed") else 0.2) * torch.randn(parameter.shape, generator=generator)
            values += float(scaled)
        elif "token" in key or "pos_embed" in key:
            values = SMALL * torch.randn(parameter.shape, generator=generator)
        else:
            scale = SMALL if key.startswith("patch_embed") else 1.0
            values = scale * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
        parameter.data.copy_(values)


def make(name: str) -> Any:
    """Return timm's model with few blocks and random weights; raise one of UNABLE where none of ATTEMPTS makes it."""
    import timm

    for few_blocks, most in ATTEMPTS:
        arguments: dict[str, Any] = {"num_classes": NUM_CLASSES} | few_blocks
        try:
            with torch.device("meta"):  # without timm's initialization, which takes longer than all the rest
                model = timm.create_model(name, **arguments).eval()
                if (size := small_size(model)) is not None:
                    model = timm.create_model(name, **arguments, img_size=size).eval()
        except UNABLE:
            if not few_blocks:
                raise
            continue
        if sum(parameter.numel() for parameter in model.parameters()) <= most:
            break
    else:
        raise ValueError(f"more than {most} parameters")
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():  # the statistics of batch norms, which are no parameters
        tensor.fill_(1)
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    randomize(model, name)
    return model


def small_size(model: Any) -> int | None:
    """Return an image size of at most MAX_TOKENS patches for a model that takes more; None where its own size is small."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None or grid[0] * grid[1] <= MAX_TOKENS:
        return None
    return int(MAX_TOKENS**0.5) // 2 * model.patch_embed.patch_size[0]


def sizes(model: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the native image size of timm's model and another one that is not square."""
    height, width = model.patch_embed.img_size
    patch_height, patch_width = model.patch_embed.patch_size
    return (height, width), (height // patch_height // 2 * patch_height + patch_height, width // patch_width * patch_width)


@torch.inference_mode()
def outputs_of(model: Any, pixel_values: torch.Tensor, classifies: bool) -> Outputs:
    """Return tokens, the pooled vector and logits; timm's methods have the same names in Vitrail."""
    features = model.forward_features(pixel_values)
    outputs = {"features": features}
    if getattr(model, "global_pool", None) != "":  # else timm returns the tokens again
        outputs["pooled"] = model.forward_head(features, pre_logits=True)
    return outputs | ({"logits": model(pixel_values)} if classifies else {})


def difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Return the largest difference of any output, relative to the output's largest value; infinity for another shape, or NaN."""
    largest = 0.0
    for name, array in expected.items():
        other = getattr(found[name], "logits", found[name])
        if other.shape != array.shape:
            return float("inf")
        ratio = ((other - array).abs().max() / array.abs().max()).item()
        largest = max(largest, ratio) if ratio == ratio else float("inf")
    return largest


def outcome(native: float, other: float) -> Finding:
    """Return the outcome for the differences at both sizes."""
    if native > TOLERANCE:
        return "wrong", f"{native:.0e} of the scale at the native size"
    return ("agrees", "") if other <= TOLERANCE else ("agrees at the native size", f"{other:.0e} of the scale at another size")


def feature_of(error: vitrail.VitrailError) -> str:
    """Return the sentence that names what is not supported, without the names and numbers of one model."""
    sentence = re.split(r"(?<=\w|\)|\")[.:] ", str(error).rpartition(" cannot be converted: ")[2])[0]
    sentence = re.sub(r"\b\d+ (registers|unexpected)", r"some \1", sentence)
    return re.sub(r" \([^()]*[._][^()]*\)|, which is not supported|^The checkpoint has ", "", sentence)


def examine(model: Any, folder: Path) -> Finding:
    """Return what becomes of timm's model as a Hub folder."""
    import timm
    from timm.models import save_for_hf

    save_for_hf(model, str(folder), safe_serialization=True)
    try:
        ours = vitrail.load(folder)[0]
    except vitrail.VitrailError as error:
        return "refused", feature_of(error)
    differences = []
    patch_height, patch_width = model.patch_embed.patch_size
    native, other = sizes(model)
    for size in (native, other):
        theirs = model if size == native else timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
        pixel_values = torch.randn(1, ours.config.num_channels, *size, generator=torch.Generator().manual_seed(0))
        # timm drops what patches do not cover
        covered = pixel_values[..., : size[0] // patch_height * patch_height, : size[1] // patch_width * patch_width]
        expected = outputs_of(theirs, pixel_values, model.num_classes > 0)
        differences.append(difference(expected, outputs_of(ours, covered, model.num_classes > 0)))
    return outcome(*differences)


def names() -> list[str]:
    """Return the models of MODULES in timm's registry."""
    import timm

    return [name for module in MODULES for name in timm.list_models(module=module)]


def findings(name: str) -> dict[str, Finding]:
    """Return the outcome of one model with a classifier, and without."""
    try:
        model = make(name)
    except UNABLE as error:
        return dict.fromkeys(KINDS, ("cannot be made", f"{type(error).__name__}: {str(error).splitlines()[0]}"))
    found = {}
    for kind in KINDS:
        if kind == "without":
            model.reset_classifier(0)
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = examine(model, Path(folder))
    return found


def grouped(found: Mapping[str, Mapping[str, Finding]]) -> list[dict[str, Any]]:
    """Return one row for each outcome and reason, with the models that it was found for, from the findings of each model."""
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, of_name in found.items():
        for finding in dict.fromkeys(of_name.values()):
            kinds = " and ".join(kind for kind in KINDS if of_name[kind] == finding)
            groups[(*finding, kinds)].append(name)
    return [
        {"outcome": result, "why": why, "classifier": kinds, "count": len(models), "models": " ".join(models)}
        for (result, why, kinds), models in sorted(groups.items())
    ]


def run() -> list[dict[str, Any]]:
    """Return the outcomes of all models, see `grouped`."""
    everything = names()
    found: dict[str, dict[str, Finding]] = {}
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for name, of_name in zip(everything, pool.map(findings, everything), strict=True):
            print(f"{name}: {'; '.join(dict.fromkeys(': '.join(finding) for finding in of_name.values()))}", file=sys.stderr)
            found[name] = of_name
    return grouped(found)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without the names of models."""
    return [{name: value for name, value in row.items() if name != "models"} for row in rows]
