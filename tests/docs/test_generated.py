"""The generated parts of README and docs/, and the size that README promises for itself."""

import re

import pytest

import paths
from documentation import PAGES, load_generator, page_id

GENERATOR = load_generator()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_generated_parts_are_current(page):
    """Run `make docs` if this fails."""
    text = page.read_text(encoding="utf-8")
    assert GENERATOR.generate(text) == text


def test_every_generated_part_is_on_a_page():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"<!-- generated: {name} -->" in text for name in GENERATOR.GENERATED)


def test_shown_outputs_are_current(no_network, one_thread):
    """Every command and Python block prints what the pages show, up to its numbers. Run `make docs` if this fails."""
    pages = [page.read_text(encoding="utf-8") for page in GENERATOR.RUN]
    assert GENERATOR.with_outputs(pages) == pages


def test_readme_is_short():
    lines = (paths.CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert len(" ".join(lines).split()) <= 1600


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    """`mkdocs build --strict` checks the links in docs/."""
    targets = re.findall(r"\]\(([^)#]+)", (paths.CHECKOUT / name).read_text(encoding="utf-8"))
    assert len(targets) > 2
    assert all((paths.CHECKOUT / target).exists() for target in targets if "://" not in target)


def test_a_stale_part_is_found():
    assert GENERATOR.generate("<!-- generated: families -->\nold\n<!-- end of generated -->") != "old"
    assert "| DINO | 4 |" in GENERATOR.families()
    assert GENERATOR.masked("1.5e-07 of 3, 4%") == GENERATOR.masked("2.0 of 3, 12%") != GENERATOR.masked("2.0 of 4, 12%")
