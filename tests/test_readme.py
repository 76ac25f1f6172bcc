"""What README says of checkpoints is what the catalogue holds, and what it says of speed is what was measured."""

import re
import runpy
from collections import Counter

import paths
from vitrail.convert.sources.catalog import checkpoints

README = (paths.CHECKOUT / "README.md").read_text(encoding="utf-8")
OF_CHECKPOINTS = README.partition("## Proof")[0]


def group(checkpoint):
    """The row of README's table to which a checkpoint belongs."""
    architecture = checkpoint.architecture
    if checkpoint.family == "timm":
        if architecture["position"] != "absolute":
            return "timm, relative positions"
        return "timm, DINOv2" if "dinov2" in checkpoint.name else "timm, plain"
    if checkpoint.family == "transformers":
        return f"transformers, {architecture['model_type']}"
    if checkpoint.family == "google":
        return "Google, ImageNet-21k with pre_logits" if architecture["pre_logits"] else "Google, augreg and fine-tuned"
    return {"dino": "DINO", "dinov2": "DINOv2"}[checkpoint.family]


def test_the_table_counts_every_checkpoint():
    counts = {name: int(number) for name, number in re.findall(r"^\| ([^|]+?) \| (\d+) \|", OF_CHECKPOINTS, flags=re.MULTILINE)}
    assert counts == Counter(map(group, checkpoints()))
    assert f"All {len(checkpoints())}, by the names that load them" in README


def test_the_list_names_every_checkpoint_in_its_family():
    listed = {
        name: set(re.findall(r"`([^`]+)`", names)) for name, names in re.findall(r"^- \*\*(.+?)\*\*: (.+)$", README, flags=re.M)
    }
    expected = {}
    for checkpoint in checkpoints():
        expected.setdefault(group(checkpoint), set()).add(checkpoint.hub_id or checkpoint.name)
    assert listed == expected


def test_the_tables_of_speed_are_those_of_the_results():
    """If not: python benchmarks/readme.py."""
    script = runpy.run_path(str(paths.CHECKOUT / "benchmarks" / "readme.py"))
    assert script["replaced"](README) == README
    assert "| vitrail extract |" in script["section"]()
