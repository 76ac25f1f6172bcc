"""Tables of the measurements in `benchmarks/results/`, for the documentation: `docs/generate.py` inserts them."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
# For each suite: its title and explanation, the column that must start with "vitrail" for a row to be shown (None shows all rows), and the
# columns with their names in the table (empty: all columns, under their own names)
TABLES: dict[str, tuple[str, str, str | None, dict[str, str]]] = {
    "forward": (
        "Forward pass",
        "Images of 224 pixels, in float32 unless the row names another precision. `x transformers` and `x timm` are the speed relative to "
        "the same weights there; `share of bound` is the share of the rate that the matrix products alone reach.",
        "way",
        {
            "work": "architecture",
            "batch": "batch",
            "way": "run by",
            "images_per_second": "images/s",
            "times_transformers": "x transformers",
            "times_timm": "x timm",
            "share_of_bound": "share of bound",
            "cosine": "cosine to float32",
        },
    ),
    "preprocess": (
        "Preprocessing",
        "From an image to `pixel_values` of 224 pixels. The last two columns divide the time of the row by that of the two backends.",
        None,
        {
            "images": "images",
            "plan": "plan",
            "way": "way",
            "ms_per_image": "ms per image",
            "vitrail_torch_is_faster_by": "time / vitrail torch",
            "vitrail_pil_is_faster_by": "time / vitrail pil",
        },
    ),
    "extract": (
        "Feature extraction",
        "From JPEG files to stored [CLS] tokens, ViT-S/16, in float32 unless the row names another precision. The first of the runs "
        "with `auto` also measures the engines.",
        None,
        {
            "way": "way",
            "engine": "engine",
            "images_per_second": "images/s",
            "of_runs": "of the runs",
            "vitrail_is_faster_by": "time / vitrail extract",
        },
    ),
    "overhead": (
        "Around the model",
        "From JPEG files of 640 x 480 pixels to stored [CLS] tokens, with a model of one block that costs nearly nothing, against a plain "
        "loop over a DataLoader with torchvision's transforms and 2 workers. `processor ms` is for an image, of all processes.",
        None,
        {
            "way": "way",
            "images_per_second": "images/s",
            "times_plain": "x plain loop",
            "processor_ms": "processor ms",
            "share_of_waiting": "share of waiting",
        },
    ),
    "evaluation": (
        "Evaluation on cached features",
        "`ratio` is to the first row of the same work; `excess` is the largest difference of the loss per image from the lowest loss "
        "found; `memory gib` is the peak beyond the libraries and the features.",
        None,
        {},
    ),
    "search": (
        "Search",
        "The nearest 15 among a million vectors of 384 numbers, each way in a new process. `first ms` is the first search, in which files "
        "are opened. Ours also read the paths of what they find. FAISS itself holds all vectors in memory. The recall is that of the 10 "
        "nearest.",
        None,
        {},
    ),
    "augment": (
        "Augmentation",
        "From a JPEG file of 500 x 375 pixels to the ten views of DINO's augmentation, in one thread.",
        None,
        {
            "way": "way",
            "ms_per_image": "ms per image",
            "images_per_second": "images/s",
            "vitrail_is_faster_by": "time / vitrail",
        },
    ),
    "pretrain": (
        "Pretraining",
        "Training of ViT-S/16 in float32 on prepared crops of 224 and 96 pixels; the last row only makes the crops.",
        None,
        {
            "method": "method",
            "way": "way",
            "batch": "batch",
            "images_per_second": "images/s",
            "vitrail_is_faster_by": "time / vitrail",
        },
    ),
    "growth": (
        "Growth",
        "Seconds and peak memory, in MB, of each step at a hundredth, a tenth and all of the rows; linear time has a ratio of at most 10. "
        "Peaks contain the libraries, 0.4 GB, and pages of memory-mapped files. [Scale](../explanation/scale.md) computes what follows.",
        None,
        {
            "step": "step",
            "rows": "rows",
            "seconds": "seconds",
            "time_ratio": "ratios",
            "peak_mb": "peak MB",
            "memory_ratio": "ratios",
            "above": "above linear",
            "stops_early": "stops early: it",
        },
    ),
    "load": ("Loading", "ViT-L/16 from disk (in the page cache) to the first output.", None, {}),
    "import": (
        "Import",
        "Fresh processes; `beyond parts s` is the time beyond the parts of transformers that vitrail needs.",
        None,
        {},
    ),
}


# README's table: these rows of the forward suite
SPEED_WORK = "facebook/dino-vits16, engines"
SPEED_WAYS = {
    "transformers": "transformers, float32",
    "timm": "timm, float32",
    "vitrail, eager, float32": "vitrail, float32",
    "vitrail, eager, bfloat16": "vitrail, bfloat16",
    "vitrail, openvino, float32": "vitrail, OpenVINO, float32",
    "vitrail, openvino, bfloat16": "vitrail, OpenVINO, bfloat16",
    "vitrail, openvino, int8": "vitrail, OpenVINO, int8",
}


def read(suite: str) -> dict[str, Any]:
    """Return the results of a suite."""
    return json.loads((RESULTS / f"{suite}.json").read_text(encoding="utf-8"))


def machine(result: dict[str, Any]) -> str:
    """Return the processor that a result was measured on."""
    return f"{result['machine']['cpu']}, {result['machine']['cores']} cores"


def table(rows: list[dict[str, Any]], names: dict[str, str]) -> str:
    """Return the named columns of rows, or all columns, as Markdown."""
    names = names or {column: column.replace("_", " ") for column in rows[0]}
    lines = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[column]) for column in names) + " |" for row in rows]
    return "\n".join(lines)


def section() -> str:
    """Return all tables, each with its command and machine."""
    parts = []
    for suite, (title, explanation, shown, names) in TABLES.items():
        result = read(suite)
        rows = [row for row in result["rows"] if shown is None or row[shown].startswith("vitrail")]
        command = f"`python -m benchmarks {suite}`, {machine(result)}"
        parts.append(f"### {title}\n\n{explanation} ({command})\n\n{table(rows, names)}\n")
    return "\n".join(parts)


def speed() -> str:
    """Return README's table: ViT-S/16 run by different engines."""
    result = read("forward")
    rows = [
        row | {"way": SPEED_WAYS[row["way"]]} for row in result["rows"] if row["work"] == SPEED_WORK and row["way"] in SPEED_WAYS
    ]
    names = {
        "way": "run by",
        "images_per_second": "images/s",
        "times_transformers": "x transformers",
        "cosine": "cosine to float32",
    }
    title = f"ViT-S/16, 224 pixels, batches of 8 (`python -m benchmarks forward`, {machine(result)}):"
    return f"{title}\n\n{table(rows, names)}\n"
