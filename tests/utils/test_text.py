"""`vitrail.utils.text`."""

from vitrail.utils.text import public_name


def test_names_of_sources_do_not_reveal_their_location(tmp_path):
    assert public_name("digits") == "digits"
    assert public_name("ylecun/mnist") == "ylecun/mnist"
    assert public_name(str(tmp_path)) == tmp_path.name
    assert public_name(f"{tmp_path}/shards/*.tar") == "*.tar"
    assert public_name("https://me:SECRET@example.org/images.tar?signature=SECRET") == "https://example.org/images.tar"
