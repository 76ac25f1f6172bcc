"""The pages of the documentation and their code blocks, for the tests in tests/docs/."""

import importlib.util
import re

import paths

PAGES = [paths.CHECKOUT / "README.md", *sorted((paths.CHECKOUT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def load_generator():
    """Return docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("vitrail_docs_generate", paths.CHECKOUT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page_id(path):
    return str(path.relative_to(paths.CHECKOUT))


def blocks(path, language):
    """Return the code blocks of a page in one language."""
    return [code for found, code in BLOCK.findall(path.read_text(encoding="utf-8")) if found == language]
