"""A family is one file in convert/families, and four tables: everything else uses the Family object and never names a family.

The five places: the file with its line in registry.py, a row of processing/presets.py, the rows of catalog.json, the lineage and the
family's card in model_cards/lineages.py, and the golden cases.
"""

import ast
from pathlib import Path

import pytest

import vitrail
from vitrail.convert.families.registry import EXPORT_FORMATS, FAMILIES, family_of_rows
from vitrail.convert.sources.catalog import checkpoints
from vitrail.model_cards.lineages import FAMILY_CARDS
from vitrail.processing.presets import PRESETS

ROOT = Path(vitrail.__file__).parent
PUBLISHED = [family for family in FAMILIES if family.catalog_format is not None]
NAMES = {family.name for family in PUBLISHED} | {family.catalog_format for family in PUBLISHED}
PLACES = {"processing/presets.py", "model_cards/lineages.py"}
# A family's name is also the name of something else: a package, a preset, a recipe or a method of training
OTHER_MEANINGS = {
    "convert/report.py": {"transformers"},  # a package, among the versions
    "evaluation/results.py": {"transformers"},
    "utils/versions.py": {"transformers"},
    "model_cards/card.py": {"transformers"},  # the library of vitrail's own classes
}
ROOMS_OF_RECIPES = ("evaluation", "pretraining", "cli")


def named_families(file: Path) -> set[str]:
    """The names of families and formats that a file of the product has as a whole string, or imports from a family's file."""
    found: set[str] = set()
    modules = {family.name for family in FAMILIES}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & NAMES
        elif isinstance(node, ast.ImportFrom) and node.level and (node.module or "").split(".")[-2:-1] == ["families"]:
            found |= {f"import of {node.module}"} if node.module.split(".")[-1] in modules - {"vitrail"} else set()
    return found


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[:2] != ("convert", "families")]


@pytest.mark.parametrize("file", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_names_a_family(file):
    name = file.relative_to(ROOT).as_posix()
    allowed = OTHER_MEANINGS.get(name, set())
    if name in PLACES:
        return
    if name.split("/")[0] in ROOMS_OF_RECIPES:
        allowed = allowed | {"dino", "dinov2", "dinov3"}
    assert named_families(file) <= allowed, "ask the Family object (convert/families/family.py) instead"


def test_the_search_finds_a_family_that_is_named(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('from ..convert.families.dino import DINO\nis_timm = checkpoint.format == "timm-hub"\n')
    assert named_families(file) == {"import of convert.families.dino", "timm-hub"}


def test_every_place_knows_every_family():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert {family.name for family in PUBLISHED} == FAMILY_CARDS.keys() >= EXPORT_FORMATS.keys()
    assert {(row.family, row.format) for row in checkpoints()} == {(family.name, family.catalog_format) for family in PUBLISHED}
    assert all(family_of_rows(row.format).name == row.family for row in checkpoints())
    without_own_preset = {"transformers", "timm"}  # their folders name their preprocessing
    assert {family.name for family in PUBLISHED} - without_own_preset <= PRESETS.keys()


def test_every_family_has_a_file_of_its_own():
    files = {path.stem for path in (ROOT / "convert" / "families").glob("*.py")}
    assert files == {family.name for family in FAMILIES} | {
        "__init__",
        "dense_heads",
        "family",
        "formats",
        "plain_vit",
        "registry",
        "rules",
    } | {
        "timm_dinov3",
        "transformers_dinov3",
    }
