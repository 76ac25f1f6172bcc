"""Images to train on, from wherever they lie, with labels or without."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from image_folders import write_images
from vitrail.data.decoding import open_image
from vitrail.data.labeled import load_labeled_images, load_training_images
from vitrail.errors import SourceNotFoundError, VitrailError

pytestmark = pytest.mark.usefixtures("cache_of_datasets")


def paths(images):
    return [row["image"]["path"] for row in images]


def flat_folder(folder, number=6):
    """Images without folders of classes."""
    for path in write_images(folder / "photos", number):
        (folder / "photos" / path).rename(folder / f"{path.replace('/', '-')}")
    (folder / "photos").rename(folder / "empty")
    return sorted(str(path) for path in folder.glob("*.jpg"))


def test_a_folder_for_each_class_has_labels(tmp_path):
    """Some images are for validation only."""
    names = write_images(tmp_path, 30)
    images = load_training_images(tmp_path, validation_fraction=0.2, seed=3)
    expected = load_labeled_images(tmp_path, validation_fraction=0.2, seed=3)
    assert images.labeled.label_names == ("astronaut", "chelsea", "coffee")
    assert paths(images.train) == paths(images.labeled.train) == paths(expected.train)
    assert paths(images.labeled.validation) == paths(expected.validation)
    assert (len(images.train), len(images.labeled.validation)) == (24, 6)
    read = [*paths(images.train), *paths(images.labeled.validation)]
    assert sorted(read) == [str(tmp_path / name) for name in names]
    assert images.fingerprint == expected.fingerprint
    assert images.source == str(tmp_path)
    assert open_image(images.train[0]["image"]).size == (64, 48)


def test_split_folders_are_kept_apart(tmp_path):
    write_images(tmp_path / "train", 6)
    write_images(tmp_path / "val", 3, seed=1)
    images = load_training_images(tmp_path)
    assert (len(images.train), len(images.labeled.validation)) == (6, 3)
    assert all("/train/" in path for path in paths(images.train))


def test_a_folder_of_images_has_no_labels(tmp_path):
    """Images in subfolders are read too; hidden files and other files are not."""
    files = flat_folder(tmp_path)
    more = [str(tmp_path / "more" / name) for name in write_images(tmp_path / "more", 3)]
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    images = load_training_images(tmp_path)
    assert images.labeled is None
    assert sorted(paths(images.train)) == sorted(files + more)
    assert paths(images.train) == sorted(paths(images.train))
    assert images.train.column_names == ["image"]
    assert open_image(images.train[0]["image"]).size == (64, 48)


def test_a_hidden_file_does_not_take_the_labels_away(tmp_path):
    """Some systems leave such files next to the folders."""
    write_images(tmp_path, 30)
    (tmp_path / "._cover.jpg").write_bytes(b"of another system")
    (tmp_path / "folder.png").mkdir()
    write_images(tmp_path / "folder.png", 3)
    assert len(load_training_images(tmp_path).labeled.label_names) == 4


def test_one_folder_is_not_a_class(tmp_path):
    """All images of the folder are for training."""
    write_images(tmp_path, 12)
    for name in ("chelsea", "coffee"):
        for path in (tmp_path / name).iterdir():
            path.rename(tmp_path / "astronaut" / path.name)
        (tmp_path / name).rmdir()
    images = load_training_images(tmp_path)
    assert images.labeled is None
    assert sorted(paths(images.train)) == sorted(str(path) for path in tmp_path.glob("astronaut/*.jpg"))


def test_digits(tmp_path):
    images = load_training_images("digits")
    assert images.labeled.label_names == tuple("0123456789")
    assert images.fingerprint == load_labeled_images("digits").fingerprint
    assert 890 <= len(images.train) <= 910
    assert np.asarray(open_image(images.train[0]["image"])).shape == (8, 8)


def content(number):
    """The bytes of PNG images, each of one level."""
    found = []
    for level in range(number):
        stream = io.BytesIO()
        Image.new("L", (4, 4), level).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def levels(images):
    return sorted(open_image(row["image"]).getpixel((0, 0)) for row in images)


def write_parquet(path, number=10, **columns):
    pictures = [{"bytes": picture, "path": None} for picture in content(number)]
    pq.write_table(pa.table({"picture": pictures, **columns}), path)
    return path


def test_parquet_without_labels(tmp_path):
    path = write_parquet(tmp_path / "images.parquet", caption=[str(row) for row in range(10)])
    images = load_training_images(path)
    assert images.labeled is None
    assert images.train.column_names == ["image"]
    assert levels(images.train) == list(range(10))


def test_parquet_with_labels(tmp_path):
    path = write_parquet(tmp_path / "images.parquet", label=[row % 2 for row in range(10)], other=[row % 3 for row in range(10)])
    images = load_training_images(path)
    assert images.labeled.label_names == ("0", "1")
    assert len(images.train) == 8
    assert levels([*images.train, *images.labeled.validation]) == list(range(10))
    chosen = load_training_images(path, label_column="other")
    assert chosen.labeled.label_names == ("0", "1", "2")


def test_labels_that_are_ambiguous_are_none_unless_one_is_named(tmp_path):
    path = write_parquet(tmp_path / "images.parquet", label=[row % 2 for row in range(10)], target=[row % 3 for row in range(10)])
    assert load_training_images(path).labeled is None
    assert len(load_training_images(path).train) == 10
    assert load_training_images(path, label_column="target").labeled.label_names == ("0", "1", "2")
    with pytest.raises(VitrailError, match="no column 'color'"):
        load_training_images(path, label_column="color")


def test_a_column_of_images_can_be_named(tmp_path):
    twice = {name: content(4) if name == "first" else content(8)[4:] for name in ("first", "second")}
    features = datasets.Features(dict.fromkeys(twice, datasets.Image()))
    datasets.Dataset.from_dict(twice, features=features).to_parquet(tmp_path / "images.parquet")
    assert levels(load_training_images(tmp_path / "images.parquet", image_column="second").train) == [4, 5, 6, 7]
    with pytest.raises(VitrailError, match="image_column"):
        load_training_images(tmp_path / "images.parquet")


def test_the_fingerprint_distinguishes_collections(tmp_path):
    flat_folder(tmp_path)
    first, again = load_training_images(tmp_path), load_training_images(tmp_path)
    assert first.fingerprint == again.fingerprint
    (next(tmp_path.glob("*.jpg"))).unlink()
    assert load_training_images(tmp_path).fingerprint != first.fingerprint


def test_where_nothing_is(tmp_path, no_network):
    with pytest.raises(SourceNotFoundError, match="nothing-here"):
        load_training_images(tmp_path / "nothing-here.parquet")
    with pytest.raises(VitrailError, match="holds no images"):
        load_training_images(tmp_path)


@pytest.mark.parametrize("option", ["image_column", "label_column", "train_split", "revision"])
def test_a_folder_of_images_has_no_columns(option, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(VitrailError, match=f"consists of image files, which have no {option}: leave that out"):
        load_training_images(tmp_path, **{option: "x"})


def test_labels_may_be_left_alone(tmp_path):
    write_images(tmp_path, 6)
    assert load_training_images(tmp_path).labeled is not None
    images = load_training_images(tmp_path, labels=False)
    assert images.labeled is None
    assert len(images.train) == 6
    digits = load_training_images("digits", labels=False)
    assert digits.labeled is None
    assert len(digits.train) == 899


def test_a_folder_of_that_name_is_not_the_data_set(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "digits" / "one.png")
    monkeypatch.chdir(tmp_path)
    assert len(load_training_images("digits").train) == 899
