import io
import json
import os
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import forked
from vitrail.data.decoding import open_image
from vitrail.data.digits import stratified_split
from vitrail.data.labeled import load_labeled_images
from vitrail.errors import SourceNotFoundError, VitrailError

pytestmark = pytest.mark.usefixtures("cache_of_datasets")


def png(level):
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder, classes):
    """classes: names to gray levels."""
    for name, levels in classes.items():
        for level in levels:
            file = folder / name / f"{level:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(level))
    return folder


def content(half, names):
    """(gray level, name of the class) of every row."""
    return [(open_image(row["image"]).getpixel((0, 0)), names[row["label"]]) for row in half]


def both(images):
    return content(images.train, images.label_names), content(images.validation, images.label_names)


# Where images come from


def test_digits_are_those_of_scikit_learn_in_two_balanced_splits():
    images = load_labeled_images("digits")
    digits = load_digits()
    assert images.label_names == tuple("0123456789")
    rows = []
    for half in (images.train, images.validation):
        for row in half:
            rows.append(int(row["image"]["path"].removeprefix("digit-").removesuffix(".png")))
            np.testing.assert_array_equal(np.asarray(open_image(row["image"])), np.round(digits.images[rows[-1]] * 255 / 16))
            assert row["label"] == digits.target[rows[-1]]
    assert sorted(rows) == list(range(1797))
    counts = [np.bincount(half["label"]) for half in (images.train, images.validation)]
    assert np.abs(counts[0] - counts[1]).max() <= 1
    assert load_labeled_images("digits", seed=1, validation_fraction=0.1).fingerprint == images.fingerprint


@pytest.mark.parametrize("validation", ["val", "validation", "test"])
def test_a_folder_of_split_folders(tmp_path, validation):
    write_images(tmp_path / "Train", {"dog": [1, 2], "cat": [3]})
    write_images(tmp_path / validation, {"dog": [4]})
    write_images(tmp_path / "testing", {"cat": [5]})  # the last choice
    images = load_labeled_images(tmp_path)
    assert images.label_names == ("cat", "dog")
    assert both(images) == ([(3, "cat"), (1, "dog"), (2, "dog")], [(4, "dog")])


def test_named_split_folders(tmp_path):
    write_images(tmp_path / "first", {"cat": [1]})
    write_images(tmp_path / "second", {"cat": [2]})
    images = load_labeled_images(tmp_path, train_split="second", validation_split="first")
    assert both(images) == ([(2, "cat")], [(1, "cat")])
    with pytest.raises(VitrailError, match="no split 'third'; found first, second"):
        load_labeled_images(tmp_path, train_split="third")


def test_a_folder_of_class_folders(tmp_path):
    """A class may be called train, for example among vehicles. Only images count, at any depth."""
    write_images(tmp_path, {"bus": range(10), "train": range(20, 40), "train/night": [50]})
    (tmp_path / "bus" / ".hidden.png").write_bytes(png(200))
    (tmp_path / "bus" / "notes.txt").write_text("not an image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "train" / "night" / "050.png").rename(tmp_path / "train" / "041.PNG")
    (tmp_path / "train" / "night").rmdir()
    train, validation = both(load_labeled_images(tmp_path))
    assert sorted(train + validation) == [(level, "bus") for level in range(10)] + [
        (level, "train") for level in [*range(20, 40), 50]
    ]
    assert [sum(name == kind for _, name in validation) for kind in ("bus", "train")] == [2, 4]


def test_images_in_inner_folders_belong_to_the_class(tmp_path):
    write_images(tmp_path, {"bus/day": [1, 2], "bus/night": [3], "car": [4, 5]})
    train, validation = both(load_labeled_images(tmp_path))
    assert sorted(train + validation) == [(1, "bus"), (2, "bus"), (3, "bus"), (4, "car"), (5, "car")]


def test_split_of_classes():
    labels = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    first, second = stratified_split(labels, fraction=0.2, seed=0)
    assert sorted([*first, *second]) == list(range(113))
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()
    assert np.bincount(labels[second], minlength=4).tolist() == [20, 2, 1, 0]
    again, other = (stratified_split(labels, fraction=0.2, seed=seed)[1].tolist() for seed in (0, 1))
    assert again == second.tolist() != other


def test_the_seed_chooses_the_validation_images(tmp_path):
    write_images(tmp_path, {"a": range(30), "b": range(30, 60)})
    validation = {seed: both(load_labeled_images(tmp_path, validation_fraction=0.5, seed=seed))[1] for seed in (0, 1)}
    assert len(validation[0]) == len(validation[1]) == 30
    assert validation[0] != validation[1]


def table(levels, **columns):
    images = [{"bytes": png(level), "path": None} for level in levels]
    return pa.table({"image": images, **columns})


def test_parquet_of_datasets_keeps_its_label_names(tmp_path):
    features = datasets.Features(
        {"id": datasets.Value("string"), "picture": datasets.Image(), "animal": datasets.ClassLabel(names=["dog", "cat", "owl"])}
    )
    for split, levels in (("train", [1, 2]), ("test", [3])):
        rows = {"id": ["x"] * len(levels), "picture": [png(level) for level in levels], "animal": [1] * len(levels)}
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    images = load_labeled_images(tmp_path)
    assert images.label_names == ("dog", "cat", "owl")
    assert both(images) == ([(1, "cat"), (2, "cat")], [(3, "cat")])
    assert images.train.column_names == ["image", "label"]


def test_plain_parquet(tmp_path):
    """The bytes are not declared to be images, and the integers do not begin at 0."""
    pq.write_table(table([1, 2], label=[7, 10]), tmp_path / "a.parquet")
    pq.write_table(table([3, 4], label=[10, 7]), tmp_path / "b.parquet")
    images = load_labeled_images(tmp_path / "*.parquet", validation_fraction=0.5)
    assert images.label_names == ("7", "10")
    train, validation = both(images)
    assert sorted(train + validation) == [(1, "7"), (2, "10"), (3, "10"), (4, "7")]
    pq.write_table(pa.table({"content": [png(5), png(6)], "kind": ["owl", "owl"]}), tmp_path / "c.parquet")
    train, validation = both(load_labeled_images(tmp_path / "c.parquet", label_column="kind"))
    assert sorted(train + validation) == [(5, "owl"), (6, "owl")]


def write_tar(file, samples):
    with tarfile.open(file, "w") as archive:
        for sample in samples:
            for name, body in sample.items():
                member = tarfile.TarInfo(name)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))


@pytest.mark.parametrize(("extension", "body"), [("cls", b"%d"), ("json", b'{"label": %d, "caption": "a"}')])
def test_webdataset(tmp_path, extension, body):
    for shard in (0, 1):
        samples = [{f"{n}.png": png(n), f"{n}.{extension}": body % (n % 2)} for n in range(shard * 10, shard * 10 + 10)]
        write_tar(tmp_path / f"{shard:05d}.tar", samples)
    train, validation = both(load_labeled_images(tmp_path / "*.tar"))
    assert sorted(train + validation) == [(level, str(level % 2)) for level in range(20)]
    assert len(validation) == 4
    assert both(load_labeled_images(tmp_path)) == (train, validation)


def test_a_dataset_of_the_hub(monkeypatch):
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["a", "b"]), "n": datasets.Value("int8")}
    )
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        splits = {"train": [1, 2], "validation": [3], "test": [4]}
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict({"img": [png(n) for n in ns], "fine": [0] * len(ns), "n": ns}, features=features)
                for split, ns in splits.items()
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    images = load_labeled_images("someone/pictures", revision="v2")
    assert calls == [(("someone/pictures",), {"revision": "v2"})]
    assert both(images) == ([(1, "a"), (2, "a")], [(3, "a")])
    assert both(load_labeled_images("someone/pictures", validation_split="test"))[1] == [(4, "a")]


def test_hidden_folders_and_links_that_lead_back_are_left_out(tmp_path):
    write_images(tmp_path, {"bus": [1, 2], "car": [3, 4], ".trash": [5, 6], "car/.thumbnails": [7]})
    (tmp_path / "bus" / "again").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path)
    train, validation = both(load_labeled_images(tmp_path))
    assert sorted(train + validation) == [(1, "bus"), (2, "bus"), (3, "car"), (4, "car")]


def test_a_pattern_of_images(tmp_path):
    write_images(tmp_path, {"bus": [1, 2], "car": [3, 4], "car/night": [5]})
    train, validation = both(load_labeled_images(f"{tmp_path}/*/*.png"))
    assert sorted(train + validation) == [(1, "bus"), (2, "bus"), (3, "car"), (4, "car")]


@pytest.mark.parametrize("labels", [("cat", "dog"), (7, 10)])
def test_a_list_of_images(tmp_path, labels):
    write_images(tmp_path, {"images": [1, 2, 3, 4]})
    lines = [f"images/{level:03d}.png\t{labels[level % 2]}" for level in (1, 2, 3, 4)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    images = load_labeled_images(tmp_path / "list.txt", validation_fraction=0.5)
    assert images.label_names == tuple(map(str, labels))
    train, validation = both(images)
    assert sorted(train + validation) == [(level, str(labels[level % 2])) for level in (1, 2, 3, 4)]
    (tmp_path / "list.txt").write_text("\n".join([*lines[:3], "images/004.png"]))
    with pytest.raises(VitrailError, match="1 of 4 images of train have no label, the first of them in row 3: label them"):
        load_labeled_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("images/001.png")
    with pytest.raises(VitrailError, match=r"list\.txt has no labels; write a tab and the label"):
        load_labeled_images(tmp_path / "list.txt")


def test_images_in_a_store(tmp_path, memory):
    """Their URLs stand in the place of paths."""
    for split, levels in (("train", (1, 2)), ("test", (3, 4))):
        for level in levels:
            memory.pipe(f"/store/{split}/{'odd' if level % 2 else 'even'}/{level}.png", png(level))
    images = load_labeled_images("memory://store")
    assert both(images) == ([(2, "even"), (1, "odd")], [(4, "even"), (3, "odd")])
    assert images.train[0]["image"]["path"] == "memory:///store/train/even/2.png"


def animals(levels):
    features = datasets.Features({"picture": datasets.Image(), "animal": datasets.ClassLabel(names=["dog", "cat"])})
    return datasets.Dataset.from_dict(
        {"picture": [png(level) for level in levels], "animal": [level % 2 for level in levels]}, features=features
    )


def test_datasets_in_memory_and_on_disk(tmp_path):
    splits = datasets.DatasetDict({"train": animals([1, 2]), "test": animals([3])})
    expected = [(1, "cat"), (2, "dog")], [(3, "cat")]
    assert both(load_labeled_images(splits)) == expected
    splits.save_to_disk(tmp_path / "saved")
    assert both(load_labeled_images(tmp_path / "saved")) == expected
    train, validation = both(load_labeled_images(animals(range(10))))
    assert (len(train), len(validation)) == (8, 2)
    with pytest.raises(VitrailError, match="no random access"):
        load_labeled_images(animals([1, 2]).to_iterable_dataset())


def test_an_image_folder_with_a_table_of_labels(tmp_path):
    """`datasets` reads the table."""
    write_images(tmp_path, {"": [1, 2, 3, 4]})
    rows = [{"file_name": f"{level:03d}.png", "label": "odd" if level % 2 else "even"} for level in (1, 2, 3, 4)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, validation = both(load_labeled_images(tmp_path, validation_fraction=0.5))
    assert sorted(train + validation) == [(1, "odd"), (2, "even"), (3, "odd"), (4, "even")]


# Refusals


def test_what_is_not_there(tmp_path, monkeypatch):
    def load_dataset(name, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub or cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(SourceNotFoundError, match=r"no file at .*shards-"):
        load_labeled_images(tmp_path / "shards-*.tar")
    with pytest.raises(SourceNotFoundError, match="neither a file or folder someone/nothing nor"):
        load_labeled_images("someone/nothing")


def test_what_cannot_be_reached(monkeypatch):
    def load_dataset(name, **kwargs):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(VitrailError, match="cannot load someone/pictures: Couldn't reach it"):
        load_labeled_images("someone/pictures")


def test_damaged_files(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(VitrailError, match=r"cannot load .*a\.tar: truncated header"):
        load_labeled_images(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", [])
    with pytest.raises(VitrailError, match=r"cannot load .*b\.tar"):
        load_labeled_images(tmp_path / "b.tar")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(VitrailError, match=r"cannot load .*a\.parquet: Parquet magic bytes not found"):
        load_labeled_images(tmp_path / "a.parquet")


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(VitrailError, match=r"images\.zip holds no images: .*\.tar or \.parquet"):
        load_labeled_images(tmp_path / "images.zip")


def test_folders_that_are_not_a_collection(tmp_path):
    write_images(tmp_path, {"": [1, 2]})
    with pytest.raises(VitrailError, match="holds no folders"):
        load_labeled_images(tmp_path)
    write_images(tmp_path / "train", {"cat": [1, 2], "dog": [3]})
    write_images(tmp_path / "val", {"cat": [4], "bird": [5], "cow": [6]})
    with pytest.raises(VitrailError, match="validation has labels that train does not have: bird, cow"):
        load_labeled_images(tmp_path)


def test_an_empty_class_folder_is_left_out(tmp_path, caplog):
    write_images(tmp_path, {"cat": [1, 2], "dog": [3, 4]})
    (tmp_path / "empty").mkdir()
    assert load_labeled_images(tmp_path).label_names == ("cat", "dog")
    assert "empty holds no images: the class is left out" in caplog.text


def test_training_images_do_not_validate(tmp_path):
    write_images(tmp_path / "train", {"cat": [1, 2], "dog": [3, 4]})
    with pytest.raises(VitrailError, match="same images for train and for validation"):
        load_labeled_images(tmp_path, validation_split="train")


def test_too_few_images(tmp_path):
    write_images(tmp_path, {"cat": [1], "dog": [2]})
    with pytest.raises(VitrailError, match="no images for validation"):
        load_labeled_images(tmp_path)


@pytest.mark.parametrize("fraction", [0, 1, -0.1])
def test_fraction(fraction):
    with pytest.raises(VitrailError, match="between 0 and 1"):
        load_labeled_images("digits", validation_fraction=fraction)


def test_a_revision_of_what_is_not_on_the_hub():
    with pytest.raises(VitrailError, match="revision='main', but digits has no revision"):
        load_labeled_images("digits", revision="main")


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({}, {}, "no columns that could hold the labels; choose it with label_column"),
        ({"label": [1, 2], "target": [1, 2]}, {}, "2 columns that could hold the label: label, target"),
        ({"label": [1, 2]}, {"label_column": "kind"}, "no column 'kind'; found image .*, label"),
        ({"label": [1, 2]}, {"image_column": "picture"}, "no column 'picture'"),
        ({"label": [1, 2]}, {"image_column": "label"}, "'label' holds no images"),
        ({"label": [0.5, 1.5]}, {}, r"type float \(row 0: 0\.5\); expected one integer or string"),
        ({"label": [1, None]}, {}, "1 of 2 images of train have no label, the first of them in row 1"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, given, message):
    pq.write_table(table([1, 2], **columns), tmp_path / "a.parquet")
    with pytest.raises(VitrailError, match=message):
        load_labeled_images(tmp_path / "a.parquet", **given)


def test_a_split_without_labels(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    for split, label in (("train", 0), ("test", -1)):
        rows = datasets.Dataset.from_dict({"image": [png(1)], "label": [label]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(
        VitrailError, match=r"1 of 1 images of validation have no label, .* choose another split with validation_split"
    ):
        load_labeled_images(tmp_path)


# Fingerprints


def test_fingerprint_of_a_folder(tmp_path):
    write_images(tmp_path, {"a": range(4), "b": range(10, 14)})
    first = load_labeled_images(tmp_path)
    assert load_labeled_images(tmp_path).fingerprint == first.fingerprint
    assert len({first.fingerprint, first.train._fingerprint, first.validation._fingerprint}) == 3
    seen = {first.fingerprint}

    def changed():
        fingerprint = load_labeled_images(tmp_path).fingerprint
        new = fingerprint not in seen
        seen.add(fingerprint)
        return new

    file = tmp_path / "a" / "000.png"
    os.utime(file, ns=(1, 1))
    assert changed(), "time"
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(1, 1))
    assert changed(), "size"
    file.rename(tmp_path / "a" / "000-renamed.png")  # in the same place of the order
    assert changed(), "path"
    (tmp_path / "a" / "001.png").rename(tmp_path / "b" / "001.png")
    assert changed(), "label"
    (tmp_path / "b").rename(tmp_path / "c")
    assert changed(), "name"
    write_images(tmp_path, {"a": [50]})
    assert changed(), "row"
    assert load_labeled_images(tmp_path, seed=1).fingerprint not in seen, "split"


def test_fingerprint_of_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    fingerprints = []
    for time, levels, labels in ((1, [1, 2], [0, 0]), (1, [1, 2], [0, 0]), (2, [1, 3], [0, 0]), (3, [1, 3], [1, 1])):
        pq.write_table(table(levels, label=labels), file)
        os.utime(file, (time, time))
        images = load_labeled_images(file)
        fingerprints.append((images.fingerprint, images.train._fingerprint, images.validation._fingerprint))
    assert fingerprints[0] == fingerprints[1]
    assert all(len(set(values)) == 3 for values in zip(*fingerprints, strict=True))


def test_fingerprint_of_what_is_in_memory(monkeypatch):
    def fingerprints(level, label, names):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        rows = {"image": [png(0), png(level), png(level)], "label": [0, label, label]}
        train = datasets.Dataset.from_dict(rows, features=features)
        splits = datasets.DatasetDict({"train": train, "test": train.select([0, 1])})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
        images = load_labeled_images("someone/pictures")
        return images.fingerprint, images.train._fingerprint

    first = fingerprints(1, 0, ["a", "b"])
    assert fingerprints(1, 0, ["a", "b"]) == first
    for other in (fingerprints(2, 0, ["a", "b"]), fingerprints(1, 1, ["a", "b"])):
        assert other[0] != first[0]
        assert other[1] != first[1]
    assert fingerprints(1, 0, ["a", "c"])[0] != first[0]


def write_fingerprints(file, cache, sources):
    datasets.config.HF_DATASETS_CACHE = cache
    file.write_text(json.dumps([load_labeled_images(source).fingerprint for source in sources]))


def test_fingerprints_are_the_same_in_another_process(tmp_path):
    folder, file = write_images(tmp_path / "folder", {"a": range(4)}), tmp_path / "a.parquet"
    pq.write_table(table([1, 2], label=[0, 0]), file)
    sources = ["digits", str(folder), str(file)]
    assert forked.exit_code(__file__, "write_fingerprints", tmp_path / "fingerprints", str(tmp_path / "cache"), sources) == 0
    assert json.loads((tmp_path / "fingerprints").read_text()) == [load_labeled_images(source).fingerprint for source in sources]
