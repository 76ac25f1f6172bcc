"""Where files of the checkout lie, for tests in any folder."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
CHECKOUT = TESTS.parent
GOLDEN = TESTS / "golden"
IMAGES = TESTS / "images"
EXAMPLES = CHECKOUT / "examples"
