"""From the disk to the first output: ViT-L/16 with 1000 classes and one image of 224 pixels, against transformers and timm.

The same random float32 weights in three formats, 1.2 GB of .safetensors each, lie in the system's temporary folder, and in the page cache:
what a disk takes is the same for all. Each measurement is a new process, in which the libraries are imported before the clock starts.
`peak_mb` is by how much its peak of resident memory grew, pages of memory-mapped files included; `ratio` is `seconds` over those of
transformers and of timm.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .convert import FILES, in_new_process, peak_memory, write
from .processes import Numbers, medians

REPEATS = 5
TOLERANCE = 1e-3  # of logits of two implementations, absolute

# What loads, from which format
WAYS = {
    "vitrail.load, our folder": "vitrail",
    "AutoModelForImageClassification, our folder": "vitrail",
    "vitrail.load, transformers' folder": "transformers",
    "vitrail.load, timm's folder": "timm",
    "transformers, its folder": "transformers",
    "timm, its folder": "timm",
}
PEERS = {"transformers": "transformers, its folder", "timm": "timm, its folder"}


def prepare(folder: Path) -> None:
    """Writes the three folders; what they are made from is removed."""
    import vitrail

    name, shapes, _ = FILES["timm"]
    write(folder / name, shapes)
    vitrail.convert_checkpoint(folder / name, folder / "vitrail", code=False)
    (folder / name).unlink()
    for format in ("transformers", "timm"):
        vitrail.export_model(folder / "vitrail", folder / format, to=format)


def loader(way: str) -> Callable[[Path], Any]:
    """What is measured, with its libraries imported."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if way.startswith("timm"):
        import timm

        return lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if way.startswith("transformers"):
        return transformers.ViTForImageClassification.from_pretrained
    import vitrail

    if way.startswith("vitrail"):
        return lambda folder: vitrail.load(folder)[0]
    return transformers.AutoModelForImageClassification.from_pretrained


def first_output(way: str, folder: Path) -> tuple[Numbers, list[float]]:
    """Loads and runs once, in a process in which nothing was loaded before; the numbers, and a few logits."""
    import torch

    load = loader(way)
    pixel_values = torch.linspace(-1, 1, 3 * 224 * 224).view(1, 3, 224, 224)
    baseline, start, processor = peak_memory(), time.perf_counter(), time.process_time()
    with torch.inference_mode():
        model = load(folder)
        loaded = time.perf_counter()
        logits = model(pixel_values)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    numbers = {
        "load_s": loaded - start,
        "seconds": seconds,
        "processor_s": processor,
        "peak_mb": (peak_memory() - baseline) / 1e6,
    }
    return numbers, getattr(logits, "logits", logits)[0, :10].tolist()


def run() -> list[dict[str, Any]]:
    """One row for each way; the processor's seconds are those of all its cores."""
    ways = [way for way in WAYS if not way.startswith("timm") or importlib.util.find_spec("timm")]
    with tempfile.TemporaryDirectory() as name:
        in_new_process(prepare, Path(name))
        answers: dict[str, list[float]] = {}

        def measure(way: str) -> Numbers:
            numbers, answers[way] = in_new_process(first_output, way, Path(name, WAYS[way]))
            return numbers

        measured = medians(ways, measure, repeats=REPEATS)
    for way, logits in answers.items():
        difference = max(abs(ours - other) for ours, other in zip(answers[ways[0]], logits, strict=True))
        assert difference < TOLERANCE, f"{way} answers otherwise, by {difference}"
    return [
        {"way": way}
        | {key: round(value, 3 if key != "peak_mb" else None) for key, value in measured[way].items()}
        | {
            f"ratio_{peer}": round(measured[way]["seconds"] / measured[peers]["seconds"], 3)
            for peer, peers in PEERS.items()
            if peers in measured
        }
        for way in ways
    ]
