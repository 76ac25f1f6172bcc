"""Messages of errors: one line that a terminal can show, whatever they quote."""

import pickle

import pytest

from vitrail.errors import SourceNotFoundError, UnreadableImageError, VitrailError


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("two\r\n  lines", "two lines"),
        ("\x1b[31mred\x9b", r"\u001b[31mred\u009b"),
        ("\u202egnp.\u2028x", r"\u202egnp. x"),
        ("photo-\udcff.jpg", r"photo-\udcff.jpg"),
        ("Ångström  🦊.jpg", "Ångström  🦊.jpg"),
    ],
)
def test_messages_are_one_printable_line(quoted, shown):
    assert str(VitrailError(f"found {quoted}")) == str(SourceNotFoundError(f"found {quoted}")) == f"found {shown}"
    unreadable = pickle.loads(pickle.dumps(UnreadableImageError(quoted, "is empty")))  # noqa: S301 - our own bytes
    assert str(unreadable) == f"cannot read the image {shown}: is empty"
    assert unreadable.path == quoted


@pytest.mark.parametrize("quoted", ["x" * 200_000, " " * 200_000, "https://x/?" + ".)" * 100_000])
def test_long_messages_are_cut(quoted):
    assert len(str(VitrailError(f"found {quoted}: remove it"))) < 5_000
