"""The public list: what `vitrail` exports, what type checkers see, and what the documentation uses are the same."""

import ast
import re
import sys

import pytest

import paths
import vitrail
from documentation import PAGES, blocks, page_id
from vitrail.convert.export import FORMATS
from vitrail.processing.presets import PRESETS

SOURCE = ast.parse((paths.CHECKOUT / "__init__.py").read_text(encoding="utf-8"))
EXAMPLES = sorted(paths.EXAMPLES.glob("*.py"))


def imported_for_type_checkers():
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If)]
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)  # `X as X` exports it
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_type_checkers_see_the_public_names():
    assert imported_for_type_checkers() == vitrail.PUBLIC_NAMES


def test_dir_lists_the_public_names():
    assert set(vitrail.PUBLIC_NAMES) <= set(dir(vitrail))
    assert sorted(dir(vitrail)) == list(dir(vitrail))


def test_every_public_name_comes_from_its_module():
    for name, module in vitrail.PUBLIC_NAMES.items():
        assert getattr(vitrail, name) is getattr(sys.modules[f"vitrail.{module}"], name)


def test_the_guides_list_every_preset_and_format():
    for page, names in (("preprocessing", PRESETS), ("converting", FORMATS)):
        rows = [
            line
            for line in (paths.CHECKOUT / f"docs/guides/{page}.md").read_text(encoding="utf-8").splitlines()
            if line[:3] == "| `"
        ]
        assert set(names) <= {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lload'"):
        vitrail.lload  # noqa: B018


def test_public_names_are_imported_when_used():
    imports = [node.module for node in SOURCE.body if isinstance(node, ast.ImportFrom)]
    assert imports == ["typing", "auto", "version"]  # all other imports of the package stand under TYPE_CHECKING


def names_used(code):
    """Return the modules of vitrail that code imports from, and the attributes of `vitrail` that it uses."""
    modules, names = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "vitrail"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vitrail":
            modules.add(node.module)
            names |= {alias.name for alias in node.names} if node.module == "vitrail" else set()
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vitrail":
            names.add(node.attr)
    return modules, names


@pytest.mark.parametrize("path", [*PAGES, *EXAMPLES], ids=page_id)
def test_only_public_names_are_used(path):
    code = [path.read_text(encoding="utf-8")] if path.suffix == ".py" else blocks(path, "python")
    for block in code:
        modules, names = names_used(block)
        assert modules <= {"vitrail", "vitrail.errors"}
        assert names <= set(vitrail.__all__)


def test_every_public_name_is_documented():
    reference = (paths.CHECKOUT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    assert all(f"### `vitrail.{name}`" in reference for name in vitrail.PUBLIC_NAMES)
