"""Puts what `benchmarks/results/` holds into README: `python benchmarks/readme.py`. A test says when README holds something else."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks: written by benchmarks/readme.py -->\n", "<!-- end of benchmarks -->\n"
# Of each suite: what stands before the table, the column that begins with "vitrail" in the rows that are shown (None for all rows), and
# the columns, with their names in README
TABLES: dict[str, tuple[str, str | None, dict[str, str]]] = {
    "forward": (
        "Forward passes of 224-pixel images, in images/s and in times what the peers reach (float32, but where an engine says otherwise; "
        "`share_of_bound` is that of the matrix products alone)",
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
        "Images to `pixel_values` of 224 pixels, and how many times longer the peers take",
        None,
        {
            "images": "images",
            "plan": "plan",
            "way": "way",
            "ms_per_image": "ms for each",
            "vitrail_torch_is_faster_by": "/ vitrail torch",
            "vitrail_pil_is_faster_by": "/ vitrail pil",
        },
    ),
    "extract": (
        "JPEGs to stored [CLS] tokens, ViT-S/16, float32 but where an engine says otherwise",
        None,
        {"way": "way", "images_per_second": "images/s", "vitrail_is_faster_by": "time / vitrail extract"},
    ),
    "augment": (
        "A JPEG of 500 x 375 pixels to the ten views of DINO's augmentation, in one thread",
        None,
        {
            "way": "way",
            "ms_per_image": "ms for each",
            "images_per_second": "images/s",
            "vitrail_is_faster_by": "vitrail is faster by",
        },
    ),
    "pretrain": (
        "DINO's training of ViT-S/16, float32, crops of 224 and 96 pixels that lie ready; and the making of crops",
        None,
        {
            "way": "way",
            "batch": "batch",
            "images_per_second": "images/s",
            "vitrail_is_faster_by": "vitrail is faster by",
        },
    ),
    "load": ("ViT-L/16 from disk (in the page cache) to the first output", None, {}),
    "import": ("Importing, in fresh processes", None, {}),
}


def table(rows: list[dict[str, Any]], names: dict[str, str]) -> str:
    """The chosen columns of rows, or all, in Markdown."""
    names = names or {column: column.replace("_", " ") for column in rows[0]}
    lines = ["| " + " | ".join(names.values()) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[column]) for column in names) + " |" for row in rows]
    return "\n".join(lines)


def section() -> str:
    """All tables, with the machine that each was measured on."""
    parts = []
    for suite, (title, shown, names) in TABLES.items():
        path = ROOT / "benchmarks" / "results" / f"{suite}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in result["rows"] if shown is None or row[shown].startswith("vitrail")]
        machine = f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
        parts.append(f"{title} (`python -m benchmarks {suite}`, {machine}):\n\n{table(rows, names)}\n")
    return "\n".join(parts)


def replaced(readme: str) -> str:
    """README with the tables of today's results."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{section()}{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(replaced(path.read_text(encoding="utf-8")), encoding="utf-8")
