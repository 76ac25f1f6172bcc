import hashlib

from vitrail.utils.hashing import digest, sha256


def test_files_count_as_one(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    assert sha256(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"onetwo").hexdigest()


def test_a_digest_depends_on_every_value_and_their_number():
    digests = {digest(values) for values in (["ab"], ["a", "b"], ["ab", None], [b"ab"], ["1"], [1], [])}
    assert len(digests) == 7
    assert digest(["a\udcff", 1, b"\x00"]) == digest(["a\udcff", 1, b"\x00"])
