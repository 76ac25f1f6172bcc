"""Imports go one way, without a circle, and the three files that are uploaded with a model stand alone."""

import ast
from pathlib import Path

import pytest

import vitrail

ROOT = Path(vitrail.__file__).parent
# Each package may import from the packages before it; a file of the root counts as a package
ORDER = ["errors", "version", "utils", "configuration", "modeling", "processing", "runtime", "data", "convert", "features"]
ORDER += ["model_cards", "visualization", "hub", "evaluation", "pretraining", "auto", "__init__", "cli", "__main__"]
NOT_CODE = {"__pycache__", "py.typed"}
UPLOADED = {
    "configuration/configuration_vit.py": set(),
    "modeling/modeling_vit.py": {"configuration"},
    "modeling/modeling_vit_dense.py": {"configuration", "modeling"},
    "processing/image_processing_vit.py": set(),
}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def package_of(file: Path) -> str:
    return file.parts[0].removesuffix(".py")


def module_of(file: Path) -> str:
    """The name of a module inside the package; a package is called as its folder."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imported_modules(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    package = file.parent.parts
    modules = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level or not (node.module or "").startswith("vitrail"), f"{file}: imports inside the package are relative"
            if node.level:
                assert node.level <= len(file.parts), f"{file}: reaches out of the package"
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                for alias in node.names:
                    whole = ".".join(filter(None, [*base, alias.name]))
                    modules.add(whole if whole in MODULES else ".".join(filter(None, base)))
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "vitrail" for alias in node.names), file
    return modules


GRAPH = {module: imported_modules(file) for module, file in MODULES.items()}


def imported_packages(file: Path) -> set[str]:
    return {module.split(".")[0] or "__init__" for module in imported_modules(file)}


def test_every_name_at_the_top_has_its_place():
    found = {path.name.removesuffix(".py") for path in ROOT.iterdir()} - NOT_CODE
    assert found == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_one_way(file):
    own = package_of(file)
    for package in imported_packages(file) - {own}:
        assert ORDER.index(package) < ORDER.index(own), f"{file} imports from {package}"


def test_there_is_no_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for imported in sorted(GRAPH[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_no_package_holds_a_fifth_of_the_code():
    lines: dict[str, int] = {}
    for file in FILES:
        lines[package_of(file)] = lines.get(package_of(file), 0) + len((ROOT / file).read_text(encoding="utf-8").splitlines())
    largest = max(lines, key=lines.__getitem__)
    assert lines[largest] < sum(lines.values()) / 5, f"{largest}: {lines[largest]} of {sum(lines.values())} lines"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_module_is_named_like_a_function_in_it(file):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert file.stem not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("file", UPLOADED)
def test_uploaded_files_stand_alone(file):
    assert imported_packages(Path(file)) == UPLOADED[file]


def test_modeling_and_processing_do_not_know_each_other():
    for file in FILES:
        if package_of(file) in ("modeling", "processing"):
            assert not {"modeling", "processing"} - {package_of(file)} & imported_packages(file), file
