"""Imports go one way, and the three files that are uploaded with a model stand alone."""

import ast
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent
# Each part may import from those before it; the files of the root stand in for parts of their own
ORDER = ["errors", "version", "configuration", "modeling", "processing", "convert", "hub", "features", "evaluation", "pretraining"]
ORDER += ["auto", "cli", "__init__", "__main__"]
UPLOADED = {
    "configuration/configuration_vit.py": set(),
    "modeling/modeling_vit.py": {"configuration"},
    "processing/image_processing_vit.py": set(),
}
FILES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0].removesuffix(".py") in ORDER
)


def imported_parts(file):
    """The parts of the package from which a file imports."""
    parts = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("vitrail"), f"{file}: imports inside the package are relative"
            if node.level == len(file.parts):  # from the root of the package
                parts |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
            assert node.level <= len(file.parts), f"{file}: reaches out of the package"
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "vitrail" for alias in node.names), file
    return parts


def test_every_part_has_files():
    assert {file.parts[0].removesuffix(".py") for file in FILES} >= {
        "configuration",
        "modeling",
        "processing",
        "convert",
        "hub",
        "cli",
    }


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_one_way(file):
    own = file.parts[0].removesuffix(".py")
    for part in imported_parts(file) - {own}:
        assert ORDER.index(part) < ORDER.index(own), f"{file} imports from {part}"


@pytest.mark.parametrize("file", UPLOADED)
def test_uploaded_files_stand_alone(file):
    assert imported_parts(Path(file)) == UPLOADED[file]


def test_modeling_does_not_know_processing():
    for file in FILES:
        if file.parts[0] == "processing":
            assert "modeling" not in imported_parts(file)
