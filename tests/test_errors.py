"""Text that may be shown: URLs without secrets, and messages of one printable line."""

import pytest

from vitrail.errors import DownloadError, SourceNotFoundError, UnreadableImageError, VitrailError, public_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h.org/a.pth?sig=1&b=2", "https://h.org/a.pth"),
        ("see https://h.org/a.pth?sig=1. Then", "see https://h.org/a.pth. Then"),
        ("(https://h.org/a?sig=1), 'https://h.org/b?sig=2': c", "(https://h.org/a), 'https://h.org/b': c"),
        ("s3://key:secret@bucket/a b", "s3://bucket/a b"),
        ("https://h.org/a@b/c#part", "https://h.org/a@b/c#part"),
        ("hf://datasets/user/name@main/a.tar", "hf://datasets/user/name@main/a.tar"),
        ("zip://a.jpg::https://me:pw@h.org/z.zip?sig=1", "zip://a.jpg::https://h.org/z.zip"),
        ("http://[::1]:80/a?sig=1", "http://[::1]:80/a"),
        ("what? a/b?c=d", "what? a/b?c=d"),
    ],
)
def test_urls_lose_user_password_and_query(text, expected):
    assert public_text(text) == expected
    assert str(DownloadError(text)) == str(SourceNotFoundError(text)) == expected
    error = UnreadableImageError("a.jpg", text)
    assert (str(error), error.reason) == (f"cannot read the image a.jpg: {expected}", expected)


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("two\r\n  lines\tand more", "two lines and more"),
        ("\x1b[31mred\x9b", r"\u001b[31mred\u009b"),
        ("\u202egnp.\u2028x", r"\u202egnp. x"),
        ("photo-\udcff.jpg", r"photo-\udcff.jpg"),
        ("Ångström  🦊.jpg", "Ångström  🦊.jpg"),
    ],
)
def test_messages_are_one_printable_line(quoted, shown):
    assert str(VitrailError(f"found {quoted}")) == str(SourceNotFoundError(f"found {quoted}")) == f"found {shown}"
    assert str(UnreadableImageError(quoted, quoted)) == f"cannot read the image {shown}: {shown}"


@pytest.mark.parametrize("quoted", ["x" * 200_000, " " * 200_000, "https://x/?" + ".)" * 100_000, "a://" * 50_000])
def test_long_messages_are_cut(quoted):
    assert len(str(VitrailError(f"found {quoted}: remove it"))) < 5_000
