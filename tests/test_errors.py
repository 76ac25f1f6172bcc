"""Text that may be shown: URLs without secrets."""

import pytest

from vitrail.errors import DownloadError, SourceNotFoundError, UnreadableImageError, public_text


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
