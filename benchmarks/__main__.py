"""`python -m benchmarks SUITE [--json FILE]`: runs one suite and prints what it measured, on which machine, with which versions."""

import argparse
import importlib
import importlib.metadata
import inspect
import itertools
import os
import platform
from pathlib import Path
from typing import Any

# Each is a module beside this one, imported when it is chosen, with `run() -> rows`, a list, or an iterator that yields them as they are
# measured; rows are dicts that JSON can hold. `run` takes the options that the suite has. A module whose rows are too long to print has
# `summary(rows)`
SUITES = {
    "augment": "ms from a JPEG to the ten views of DINO's augmentation, against torchvision (goal: 1.3 times as fast)",
    "convert": "peak memory and time of converting ViT-L/16, against the size of its file (goal: under 2.2 times)",
    "dense": "images/s of segmentation and depth at 512 pixels, against the original's heads on timm's encoder (goal: 1.0)",
    "evaluation": "seconds of logistic regression (goal: 20 for 45 values of C), of 52 heads against one, and of k-NN and logistic "
    "regression at ImageNet's size",
    "extract": "images/s from files to features, against transformers and timm (goal: 1.3 times; it waits less than 0.05 of the time)",
    "growth": "seconds and memory of each step as rows and files grow tenfold, up to a million rows (--rows); goal: none above linear",
    "forward": "images/s of forward passes, against transformers, timm and the matrix products alone; and of every engine",
    "gpu": "images/s in bfloat16 on a GPU, against transformers, timm, the matrix products alone and the card's peak (--parts: forward, "
    "compiled, kernels, preparation, extract, pretrain)",
    "preprocess": "ms from an image to pixel_values (goals: torch 3.5, 1.6 and 2.8 times as fast as transformers pil, torchvision and "
    "timm; pil 1.4 times as fast as transformers pil)",
    "import": "seconds and modules of importing, against transformers with the parts that AutoModel needs, and timm",
    "load": "seconds from disk to first output of ViT-L/16, against transformers and timm loading their own format (goal: 1.0)",
    "overhead": "images/s with a model of one block, against a DataLoader of 2 workers with torchvision's transforms (goal: 2.5 times)",
    "pretrain": "images/s of training ViT-S/16 by DINO and DINOv2, against plain loops over timm's backbone; and of making crops",
    "registry": "every Vision Transformer of timm's registry, with random weights: agrees with timm, refused or wrong (goal: 0 wrong)",
    "search": "ms and memory of finding neighbors among a million vectors (--rows), against exact search and FAISS used directly (goals: "
    "under 1 s after start, under 1 GB)",
    "probe": "seconds of a linear probe: features taken once or backbone in the loop (goal: 20 times less); 52 heads or one (2.5 times)",
}
MODULES = {"import": "imports"}  # where the module has another name than the suite, which is a keyword
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "numpy", "pillow", "timm", "torchvision", "faiss-cpu")


def machine() -> dict[str, str | int]:
    """The processor, how many of its cores this process may use, and the memory."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Of Python, vitrail and what the time goes into, as far as it is installed."""
    import vitrail  # not above: a suite that measures memory needs this process small while it runs

    installed = {distribution.name.lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return {"python": platform.python_version(), "vitrail": vitrail.__version__} | {
        name: installed[name] for name in LIBRARIES if name in installed
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; if the suite has parts, one table for each."""
    tables = [list(part) for _, part in itertools.groupby(rows, key=lambda row: row.get("part"))]
    return "\n\n".join(map(_table, tables))


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def write(file: Path, result: dict[str, Any]) -> None:
    """Write what has been measured."""
    from vitrail.utils.atomic import write_json  # not above, as in `versions`

    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, result)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", choices=SUITES, help="; ".join(f"{name}: {what}" for name, what in SUITES.items()))
    parser.add_argument("--rows", type=int, help="number of rows of the search and growth suites, instead of a million")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="parts of the gpu suite, instead of all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there, after each row that a suite yields")
    arguments = parser.parse_args()

    suite = importlib.import_module(f"{__package__}.{MODULES.get(arguments.suite, arguments.suite)}")
    options = {name: value for name in ("rows", "parts") if (value := getattr(arguments, name)) is not None}
    for name in options.keys() - inspect.signature(suite.run).parameters:
        parser.error(f"the suite {arguments.suite} has no --{name}")
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for row in suite.run(**options):
        about = about or {"machine": machine(), "versions": versions()}
        rows.append(row)
        if arguments.json:
            write(arguments.json, {"suite": arguments.suite, **about, "rows": rows})
    print(SUITES[arguments.suite] + "\n\n" + markdown(getattr(suite, "summary", list)(rows)) + "\n")
    for one in about.values():
        print(", ".join(f"{key} {value}" for key, value in one.items()))


if __name__ == "__main__":
    main()
