import os

from vitrail.data.folders import match, walk


def tree(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def found(*folders):
    return sorted(os.path.join(inner, file) for inner, files in walk(*map(str, folders)) for file in files)


def test_a_folder_is_read_once_under_its_own_name(tmp_path):
    photos = tree(tmp_path / "photos", "zoo/a.png", "zoo/inner/b.png")
    (photos / "a-link").symlink_to("zoo")
    (photos / "zoo" / "up").symlink_to("..")
    (photos / "zoo" / "above").symlink_to(tmp_path)
    assert found(photos) == [f"{photos}/zoo/a.png", f"{photos}/zoo/inner/b.png"]


def test_trees_that_link_to_each_other(tmp_path):
    """Walked link by link, six images would be 125, and twelve folders would never end."""
    one, two = tree(tmp_path / "one", "1.png", "x/2.png"), tree(tmp_path / "two", "3.png", "y/4.png")
    for here, there in ((one, two), (two, one)):
        for inner in here.iterdir():
            if inner.is_dir():
                (inner / "other").symlink_to(there)
    assert [path.rpartition("/")[2] for path in found(one)] == ["1.png", "2.png", "3.png", "4.png"]
    twelve = [tree(tmp_path / "twelve" / str(number), "a.png") for number in range(12)]
    for folder in twelve:
        for other in twelve:
            if folder != other:
                (folder / f"to{other.name}").symlink_to(other)
    expected = sorted(f"{folder}/a.png" for folder in twelve)
    assert found(tmp_path / "twelve") == expected
    assert sorted(match(f"{tmp_path}/twelve/**/*.png")) == expected
    assert sorted(map(os.path.realpath, match(f"{tmp_path}/twelve/**/1*/**/a.png"))) == expected  # by links from 1, 10 and 11
    assert sorted(match(f"{tmp_path}/twelve/**")) == expected
