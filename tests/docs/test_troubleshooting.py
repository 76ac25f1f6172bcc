"""Every message of the troubleshooting page is one that the code prints."""

import ast
import difflib
import re

import pytest

import paths

PAGE = (paths.CHECKOUT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)
PACKAGES = ("cli", "configuration", "convert", "data", "evaluation", "features", "hub", "modeling", "pretraining", "processing")
PACKAGES += ("runtime", "utils", "visualization")


def text_of(node):
    """Return a string of the code with … in the place of its values; None for other nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "…" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "…") + (text_of(node.right) or "…")
    return None


def messages_of_the_code():
    found = set()
    for package in PACKAGES:
        for path in (paths.CHECKOUT / package).rglob("*.py"):
            found |= {text_of(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))} - {None}
    return sorted(text for text in found if len(text) > 15)


CODE = messages_of_the_code()


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_exists(message):
    pattern = re.compile(".*".join(map(re.escape, message.split("…"))), flags=re.DOTALL)
    near = difflib.get_close_matches(message, CODE, n=2, cutoff=0.3)
    assert any(pattern.search(text) for text in CODE), f"not in the code; near: {near}"


def test_every_message_has_a_cause_and_a_cure():
    entries = PAGE.split("\n### ")[1:]
    assert len(entries) >= 20
    assert all("**Cause.**" in entry and "**Cure.**" in entry for entry in entries)
