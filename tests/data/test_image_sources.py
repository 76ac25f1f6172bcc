import io
import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfFileSystem
from PIL import Image
from sklearn.datasets import load_digits

import forked
from hub_server import HubServer
from vitrail.data import ImageEntry, read_images, row_id, tables
from vitrail.data.decoding import open_entry
from vitrail.data.labeled import load_labeled_images
from vitrail.errors import SourceNotFoundError, UnreadableImageError, VitrailError

pytestmark = pytest.mark.usefixtures("cache_of_datasets")


def png(level):
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def write(folder, names):
    """An image of each name, of the gray levels 1, 2, …"""
    for level, name in enumerate(names, start=1):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(level))
    return folder


def content(collection):
    """(path, gray level, label) of every image; checks what holds for any collection."""
    collection = pickle.loads(pickle.dumps(collection))  # noqa: S301 - as it travels to workers
    assert json.loads(json.dumps(collection.settings)) == collection.settings
    if collection.random_access:
        assert collection.num_partitions == 1
    found, ids = [], {}
    for partition in range(collection.num_partitions):
        entries = list(collection.read(partition))
        assert [entry.row for entry in entries] == list(range(len(entries)))
        for start in range(len(entries) + 2):
            assert list(collection.read(partition, start)) == entries[start:]
        found += [(entry.path, open_entry(entry).getpixel((0, 0)), entry.label) for entry in entries]
        ids |= {row_id(partition, entry.row): entry for entry in entries}
    assert collection.find([*reversed(ids), -1, row_id(0, 10**6), row_id(collection.num_partitions, 0)]) == ids
    for start in (0, 1):
        assert collection.find(list(ids)[start::2]) == dict(list(ids.items())[start::2])
    assert collection.num_rows in (None, len(found))
    label_types = {type(label) for _, _, label in found if label is not None}
    assert label_types <= {{"string": str, "int64": int, None: None}[collection.label_type]}
    return found


def test_numbers_of_rows():
    assert [row_id(partition, row) for partition, row in ((0, 0), (0, 7), (1, 0), (3, 2**32 - 1))] == [0, 7, 2**32, 2**34 - 1]
    assert np.int64(row_id(2**31 - 1, 2**32 - 1)) == 2**63 - 1


# Folders


def test_a_folder(tmp_path):
    """Images are sorted by path, over all folders. Hidden files and other files are skipped. An image at the top has no label."""
    names = ["b.png", "a/ü.JPG", "a/b/c.webp", "a/日本.png", "B.bmp", "c::d.png"]
    write(tmp_path, names)
    write(tmp_path, [".hidden.png", ".git/a.png", "a/.b/c.png"])
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    collection = read_images(tmp_path)
    assert (collection.num_partitions, collection.num_rows, collection.random_access, collection.label_type) == (
        1,
        6,
        True,
        "string",
    )
    assert (collection.source, collection.settings["source"]) == (str(tmp_path), str(tmp_path))
    expected = [
        ("B.bmp", 5, None),
        ("a/b/c.webp", 3, "a"),
        ("a/ü.JPG", 2, "a"),
        ("a/日本.png", 4, "a"),
        ("b.png", 1, None),
        ("c::d.png", 6, None),
    ]
    assert content(collection) == expected
    assert next(collection.read()) == ImageEntry(0, "B.bmp", location=str(tmp_path / "B.bmp"))
    assert content(read_images(**collection.settings)) == expected


def test_a_folder_of_folders_has_labels(tmp_path):
    write(tmp_path, ["dog/1.png", "cat/deep/2.png", "cat/3.png"])
    collection = read_images(f"{tmp_path}/")
    assert collection.label_type == "string"
    assert content(collection) == [("cat/3.png", 3, "cat"), ("cat/deep/2.png", 2, "cat"), ("dog/1.png", 1, "dog")]
    assert content(read_images(tmp_path / "cat")) == [("3.png", 3, None), ("deep/2.png", 2, "deep")]


def test_images_are_not_read(tmp_path, monkeypatch):
    write(tmp_path, ["a.png", "b.png"])
    monkeypatch.setattr("builtins.open", None)
    assert [entry.content for entry in read_images(tmp_path).read()] == [None, None]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere", ["1.png", "inner/2.png"])
    write(tmp_path / "photos", ["cat/1.png"])
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "cat" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "elsewhere" / "inner" / "here").symlink_to(".")
    assert [row[0] for row in content(read_images(tmp_path / "photos"))] == ["cat/1.png", "dog/1.png", "dog/inner/2.png"]


def test_names_that_are_not_text(tmp_path):
    """Linux lets a name be any bytes; results are UTF-8, which these are not."""
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "a.png").write_bytes(png(3))
    collection = read_images(tmp_path)
    assert content(collection) == [("\\xff/a.png", 3, "\\xff")]
    content(collection)[0][0].encode()


def test_folders_without_images(tmp_path):
    with pytest.raises(VitrailError, match="holds no images: found 0 files"):
        read_images(tmp_path)
    (tmp_path / "a.doc").write_text("no image")
    with pytest.raises(VitrailError, match=r"holds no images: found 1 files, none of them .*; give files .* in a list"):
        read_images(tmp_path)
    with pytest.raises(VitrailError, match=r"a\.doc holds no images"):
        read_images(tmp_path / "a.doc")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write(tmp_path, ["a/b.png"])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VitrailError, match=r"cannot list the folder .*/a: Permission denied"):
        read_images(tmp_path)


def test_files_that_have_gone_fail_when_they_are_opened(tmp_path):
    write(tmp_path, ["a.png", "b.png"])
    collection = read_images(tmp_path)
    (tmp_path / "a.png").unlink()
    first, second = collection.read()
    assert open_entry(second).size == (4, 4)
    with pytest.raises(UnreadableImageError, match=r"a\.png: the file does not exist"):
        open_entry(first)


def test_any_of_many_files_is_at_hand(tmp_path):
    """Starting late costs nothing; entries are made as they are read."""
    (tmp_path / "list.txt").write_text("".join(f"{n}.jpg\n" for n in range(200_000)))
    collection = read_images(tmp_path / "list.txt")
    assert next(collection.read(0, 199_998)).path == "199998.jpg"
    assert set(collection.find([5, 199_999])) == {5, 199_999}


# Patterns


def test_patterns(tmp_path, monkeypatch):
    write(tmp_path, ["a/1.png", "a/2.jpg", "b/3.png", "b/c/4.png", ".h/5.png"])
    (tmp_path / "a" / "6.txt").write_text("")
    assert [row[0] for row in content(read_images(tmp_path / "*" / "*.png"))] == ["a/1.png", "b/3.png"]
    assert content(read_images(tmp_path / "**" / "*.png")) == [("a/1.png", 1, "a"), ("b/3.png", 3, "b"), ("b/c/4.png", 4, "b")]
    assert [row[0] for row in content(read_images(tmp_path / "a" / "*"))] == ["1.png", "2.jpg"]
    assert [row[0] for row in content(read_images(tmp_path / "{a,b}" / "[13].png"))] == ["a/1.png", "b/3.png"]
    assert content(read_images(tmp_path / "a" / "2.jpg")) == [("2.jpg", 2, None)]
    monkeypatch.chdir(tmp_path)
    collection = read_images("*/?.png")
    assert (collection.source, collection.settings["source"]) == ("*/?.png", f"{tmp_path}/*/?.png")
    assert collection.fingerprint == read_images(tmp_path / "*" / "?.png").fingerprint
    with pytest.raises(SourceNotFoundError, match=r"found no file at .*/\*\.gif"):
        read_images("*.gif")


def test_names_that_look_like_patterns(tmp_path):
    write(tmp_path / "a[1]{2}", ["*.png", "b?.png"])
    assert [row[0] for row in content(read_images(tmp_path / "a[1]{2}"))] == ["*.png", "b?.png"]
    assert [row[0] for row in content(read_images(tmp_path / "a[1]{2}" / "*.png"))] == ["*.png"]


# Lists


def test_a_list(tmp_path):
    write(tmp_path, ["a.png", "b/c d.png", "ü.png", "x#1.png"])
    lines = ["# the list", "ü.png", "", "  b/c d.png  ", str(tmp_path / "a.png"), "x#1.png"]
    (tmp_path / "b" / "list.txt").write_text("\r\n".join(line.replace("b/c", "c").replace("ü", "../ü") for line in lines))
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    collection = read_images(tmp_path / "list.txt")
    assert (collection.num_rows, collection.label_type, collection.random_access) == (4, None, True)
    assert content(collection) == [
        ("ü.png", 3, None),
        ("b/c d.png", 2, None),
        (str(tmp_path / "a.png"), 1, None),
        ("x#1.png", 4, None),
    ]
    assert next(read_images(tmp_path / "b" / "list.txt").read()).location == f"{tmp_path}/b/../ü.png"


@pytest.mark.parametrize(
    ("given", "kind", "expected"),
    [
        (["3", "-1", "3"], "int64", [3, -1, 3]),
        (["3", "dog", "3"], "string", ["3", "dog", "3"]),
        (["a b", "", None], "string", ["a b", None, None]),
        ([None, "7", None], "int64", [None, 7, None]),
    ],
)
def test_labels_of_a_list(tmp_path, given, kind, expected):
    names = ["a.png", "b.png", "c.png"]
    write(tmp_path, names)
    (tmp_path / "list.txt").write_text(
        "\n".join(n if label is None else f"{n}\t{label}" for n, label in zip(names, given, strict=True))
    )
    collection = read_images(tmp_path / "list.txt")
    assert collection.label_type == kind
    assert [label for _, _, label in content(collection)] == expected


def test_a_list_with_what_is_not_there(tmp_path):
    (tmp_path / "list.txt").write_text("gone.png\n/nowhere/b.jpg\n")
    entries = list(read_images(tmp_path / "list.txt").read())
    assert [(entry.path, entry.problem) for entry in entries] == [("gone.png", None), ("/nowhere/b.jpg", None)]
    for entry in entries:
        with pytest.raises(UnreadableImageError, match=f"{entry.path}: the file does not exist"):
            open_entry(entry)


def test_a_list_of_urls(tmp_path, no_network, http_server, page, memory):
    http_server.pages["/x/a.png"] = page(png(5), ranges=False)
    memory.pipe("/bucket/b.png", png(6))
    urls = [f"{http_server.url}/x/a.png", f"{http_server.url}/x/a.png?size=4", "memory://bucket/b.png"]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    assert content(read_images(tmp_path / "list.txt")) == [(url, level, None) for url, level in zip(urls, [5, 5, 6], strict=True)]
    http_server.pages["/x/list.txt"] = page(b"a.png\t4\n", ranges=False)
    assert content(read_images(f"{http_server.url}/x/list.txt")) == [("a.png", 5, 4)]


def test_lists_that_are_none(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"found no file .*/list\.txt"):
        read_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n# nothing\n")
    with pytest.raises(VitrailError, match="lists no images; write a path or URL on each line"):
        read_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(png(1))
    with pytest.raises(VitrailError, match=r"is not a list of images: .*in UTF-8"):
        read_images(tmp_path / "list.txt")


# Stores


def test_a_folder_in_a_store(memory, tmp_path):
    names = ["dog/ü.png", "cat/b c.png", "cat/inner/d.png"]
    write(tmp_path, names)
    for level, name in enumerate(names, start=1):
        memory.pipe(f"/bucket/photos/{name}", png(level))
    memory.pipe("/bucket/photos/.hidden/a.png", png(9))
    memory.pipe("/bucket/photos/notes.md", b"no image")
    memory.pipe("/bucket/other.png", png(9))
    expected = content(read_images(tmp_path))
    for source in ("memory://bucket/photos/", "memory://bucket/photos", "memory://bucket/photos/**/*.png"):
        assert content(read_images(source)) == expected
        assert read_images(source).label_type == "string"
    assert [row[0] for row in content(read_images("memory://bucket/photos/cat/*.png"))] == ["b c.png"]
    assert content(read_images("memory://bucket/other.png")) == [("other.png", 9, None)]
    assert len(content(read_images("memory://"))) == 4
    before = read_images("memory://bucket/photos/").fingerprint
    memory.pipe("/bucket/photos/dog/ü.png", png(1) + b"more")
    assert read_images("memory://bucket/photos/").fingerprint != before


def test_stores_that_have_nothing(memory):
    with pytest.raises(VitrailError, match="memory://nothing"):
        read_images("memory://nothing/")
    with pytest.raises(VitrailError, match=r"memory://.*nothing/\*\.jpg"):
        read_images("memory://nothing/*.jpg")
    with pytest.raises(VitrailError, match="cannot open nowhere://bucket/: "):
        read_images("nowhere://bucket/")
    with pytest.raises(VitrailError, match="a chain of URLs"):
        read_images("zip://*.png::memory://a.zip")


def test_a_web_server_is_not_listed():
    with pytest.raises(VitrailError, match="web servers do not list files; give a list file"):
        read_images("https://example.com/photos/")


# Data sets


def table(levels, **columns):
    return pa.table({"image": [{"bytes": png(level), "path": None} for level in levels], **columns})


def write_dataset(folder):
    """Parquet files of two splits as the Hub has them, train in two of them."""
    features = datasets.Features(
        {"id": datasets.Value("int64"), "picture": datasets.Image(), "animal": datasets.ClassLabel(names=["dog", "cat"])}
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, levels in (("train-00000-of-00002", [1, 2, 3]), ("train-00001-of-00002", [4, 5]), ("test-00000-of-00001", [6])):
        rows = {"id": levels, "picture": [png(n) for n in levels], "animal": [n % 2 - (n == 5) * 2 for n in levels]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
    return folder


TRAIN = [("train/0/0", 1, "cat"), ("train/0/1", 2, "dog"), ("train/0/2", 3, "cat"), ("train/1/0", 4, "dog"), ("train/1/1", 5, None)]


@pytest.mark.parametrize("inner", ["", "data"])
def test_a_folder_of_parquet_files_is_streamed(tmp_path, inner):
    write_dataset(tmp_path / inner)
    collection = read_images(tmp_path)
    assert (collection.num_partitions, collection.random_access, collection.label_type) == (2, False, "string")
    assert content(collection) == TRAIN
    assert content(read_images(**collection.settings)) == TRAIN
    assert content(read_images(tmp_path, split="test")) == [("test/0", 6, "dog")]
    with pytest.raises(VitrailError, match=r"has no split 'val'; found .*: choose one with split"):
        read_images(tmp_path, split="val")


def test_parquet_files(tmp_path, memory):
    """The bytes are not declared to be images."""
    for name, levels in (("a", [1, 2]), ("b", [3])):
        pq.write_table(table(levels, label=[n * 10 for n in levels]), tmp_path / f"{name}.parquet")
        with memory.open(f"/bucket/{name}.parquet", "wb") as file:
            pq.write_table(table(levels, label=[n * 10 for n in levels]), file)
    expected = [("train/0/0", 1, 10), ("train/0/1", 2, 20), ("train/1/0", 3, 30)]
    for source in (tmp_path, tmp_path / "*.parquet", "memory://bucket/*.parquet"):
        collection = read_images(source)
        assert collection.label_type == "int64"
        assert content(collection) == expected
    assert content(read_images(tmp_path / "b.parquet")) == [("train/0", 3, 30)]
    pq.write_table(pa.table({"content": [png(7)], "kind": ["owl"], "score": [0.5]}), tmp_path / "c.parquet")
    assert content(read_images(tmp_path / "c.parquet")) == [("train/0", 7, None)]
    assert content(read_images(tmp_path / "c.parquet", label_column="kind")) == [("train/0", 7, "owl")]
    with pytest.raises(VitrailError, match="'score' holds no strings or integers"):
        read_images(tmp_path / "c.parquet", label_column="score")


def test_rows_of_workers(tmp_path):
    """datasets gives each worker of a DataLoader only some of the rows of a stream; these are read whole, wherever they are."""
    collection = read_images(write_dataset(tmp_path))

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return [entry.path for entry in collection.read(index % 2)]

    loader = torch.utils.data.DataLoader(Rows(), batch_size=None, num_workers=2, collate_fn=list)
    assert [len(paths) for paths in loader] == [3, 2, 3, 2]


def test_what_save_to_disk_has_written(tmp_path):
    write_dataset(tmp_path / "parquet")
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path / "parquet"))
    rows.save_to_disk(tmp_path / "all")
    rows["test"].save_to_disk(tmp_path / "test")
    collection = read_images(tmp_path / "all")
    assert (collection.num_partitions, collection.num_rows, collection.random_access) == (1, 5, True)
    expected = [(f"train/{row}", level, label) for row, (_, level, label) in enumerate(TRAIN)]
    assert content(collection) == expected
    assert content(read_images(**collection.settings)) == expected
    assert content(read_images(tmp_path / "test")) == [("test/0", 6, "dog")]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 64])
def test_shards_are_found_without_dividing_all_of_them_each_time(number, monkeypatch):
    def rows(names):
        yield from ({"image": {"bytes": b"", "path": name}} for name in names)

    names = [f"{index}.jpg" for index in range(number)]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    collection = read_images(datasets.IterableDataset.from_generator(rows, gen_kwargs={"names": names}, features=features))
    divided, shard = [], datasets.IterableDataset.shard

    def count(stream, **options):
        divided.append(stream.num_shards)
        return shard(stream, **options)

    monkeypatch.setattr(datasets.IterableDataset, "shard", count)
    assert collection.num_partitions == number
    assert [entry.path for partition in range(number) for entry in collection.read(partition)] == names
    assert sum(divided) <= 2 * number * np.ceil(np.log2(number))  # number**2 if each divides all
    for partition in (number - 1, 0, number // 2):
        assert [entry.path for entry in collection.read(partition)] == names[partition : partition + 1]


def test_objects_of_datasets(tmp_path):
    folder = write_dataset(tmp_path)
    expected = [(f"train/{row}", level, label) for row, (_, level, label) in enumerate(TRAIN)]
    kept = datasets.load_dataset("parquet", data_dir=str(folder))
    assert content(read_images(kept)) == content(read_images(kept["train"])) == expected
    assert content(read_images(kept["train"].select([3, 1]))) == [("train/0", 4, "dog"), ("train/1", 2, "dog")]
    assert content(read_images(kept, split="test")) == [("test/0", 6, "dog")]
    streamed = datasets.load_dataset("parquet", data_dir=str(folder), streaming=True)
    assert content(read_images(streamed)) == content(read_images(streamed["train"])) == TRAIN
    assert content(read_images(streamed["test"])) == [("test/0", 6, "dog")]
    fingerprints = {read_images(one).fingerprint for one in (kept["train"], kept["test"], streamed["train"], streamed["test"])}
    assert len(fingerprints) == 4
    with pytest.raises(SourceNotFoundError, match="found no file"):
        read_images(**read_images(kept).settings)  # it cannot be made again from its name
    with pytest.raises(VitrailError, match="found list; give a path, "):
        read_images([])
    with pytest.raises(VitrailError, match="has no split 'test'; found train"):
        read_images(kept["train"], split="test")


def test_images_of_rows(tmp_path):
    """Files, bytes with a name, and nothing."""
    write(tmp_path, ["a.png"])
    rows = [{"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": png(2), "path": "b.png"}, None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("bool")})
    dataset = datasets.Dataset.from_dict({"image": rows, "label": [True, False, None]}, features=features)
    first, second, third = entries = list(read_images(dataset).read())
    assert first == ImageEntry(0, str(tmp_path / "a.png"), location=str(tmp_path / "a.png"), label=1)
    assert (second.path, second.location, second.content) == ("b.png", None, png(2))
    assert third == ImageEntry(2, "train/2", problem="the row holds no image")
    assert [entry.label for entry in entries] == [1, 0, None]


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        ({"label": [1], "target": [1]}, {}, "2 columns that could hold the label: label, target"),
        ({"label": [1]}, {"label_column": "kind"}, "no column 'kind'; found image .*, label"),
        ({"label": [1]}, {"image_column": "picture"}, "no column 'picture'"),
        ({"label": [1]}, {"image_column": "label"}, "'label' holds no images"),
        ({"mask": [{"bytes": b"", "path": None}]}, {}, "2 columns that could hold the image: image, mask"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, given, message):
    pq.write_table(table([1], **columns), tmp_path / "a.parquet")
    with pytest.raises(VitrailError, match=message):
        read_images(tmp_path / "a.parquet", **given)


def test_damaged_parquet_files(tmp_path):
    for name in "ab":
        pq.write_table(table([1, 2]), tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:-100])
    collection = read_images(tmp_path)
    assert len(list(collection.read(0))) == 2
    (entry,) = collection.read(1)
    assert (entry.row, entry.path) == (0, "train/1/0")
    assert entry.problem.startswith("the file ends early, or is damaged: ")
    with pytest.raises(VitrailError, match=r"from row 1 of partition 1 on: .*Parquet magic bytes not found"):
        list(collection.read(1, 1))  # rows that were there before
    (tmp_path / "b.parquet").unlink()
    with pytest.raises(VitrailError, match="from row 0 of partition 1 on"):
        list(collection.read(1))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(VitrailError, match=r"datasets cannot load .*a\.parquet"):
        read_images(tmp_path / "a.parquet")


def test_a_parquet_file_that_is_damaged_within(tmp_path):
    """The damage ends the reading, because the rows before it are not the same each time."""
    rows = {"image": [{"bytes": bytes(2000) + png(n), "path": None} for n in range(60)]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=20, compression="zstd", use_dictionary=False)
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    for position in range(column.data_page_offset + 40, column.data_page_offset + column.total_compressed_size):
        whole[position] ^= 255
    (tmp_path / "a.parquet").write_bytes(whole)
    collection = read_images(tmp_path)
    with pytest.raises(VitrailError, match=r"(?s)cannot read .* from row \d+ of partition 0 on: .*repair the file"):
        list(collection.read())


def test_parquet_files_that_expand_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_EXPANDED", 500_000)
    pq.write_table(pa.table({"image": [{"bytes": bytes(1_000_000), "path": None}]}), tmp_path / "a.parquet", compression="zstd")
    for read in (read_images, load_labeled_images):
        with pytest.raises(
            VitrailError, match=r"a\.parquet is a decompression bomb: \d+ bytes of its column image\.bytes become 1000\d+"
        ):
            read(tmp_path / "a.parquet")


def test_labels_that_do_not_fit(tmp_path):
    labels = pa.array([7, 2**64 - 1], pa.uint64())
    pq.write_table(table([1, 2], label=labels), tmp_path / "a.parquet")
    first, second = read_images(tmp_path / "a.parquet").read()
    assert (first.label, second.problem) == (7, "its label 18446744073709551615 does not fit into 64 bits with a sign")


def test_parquet_without_rows(tmp_path):
    pq.write_table(table([1])[:0], tmp_path / "a.parquet")
    assert list(read_images(tmp_path / "a.parquet").read()) == []


def test_digits():
    train, validation = read_images("digits"), read_images("digits", split="validation")
    assert train.num_rows + validation.num_rows == 1797
    assert train.fingerprint != validation.fingerprint
    assert train.label_type == "string"
    target = load_digits().target
    for entry in [*train.read(), *validation.read()]:
        assert entry.label == str(target[int(entry.path.removeprefix("digit-").removesuffix(".png"))])


# The Hub


@pytest.fixture
def hub(hub_server, monkeypatch):
    """The Hub of the tests, with data sets where it has models."""
    answer = HubServer.answer

    def answer_as_models(self, request):
        request.path = request.path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        return answer(self, request)

    monkeypatch.setattr(HubServer, "answer", answer_as_models)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_server.url)
    HfFileSystem.clear_instance_cache()
    yield hub_server
    HfFileSystem.clear_instance_cache()


def test_a_dataset_of_the_hub_is_streamed(hub, tmp_path):
    files = {f"data/{file.name}": file.read_bytes() for file in write_dataset(tmp_path).iterdir()}
    first = hub.put("user/animals", files)
    collection = read_images("user/animals")
    assert (collection.num_partitions, collection.random_access, collection.label_type) == (2, False, "string")
    assert content(collection) == TRAIN
    assert collection.settings == {
        "source": "user/animals",
        "split": "train",
        "image_column": "picture",
        "label_column": "animal",
        "revision": first,
    }
    hub.put("user/animals", {"data/train-00001-of-00002.parquet": files["data/test-00000-of-00001.parquet"]})
    changed = read_images("user/animals")
    assert [row[1] for row in content(changed)] == [1, 2, 3, 6]
    assert changed.fingerprint != collection.fingerprint
    again = read_images(**collection.settings)
    assert again.fingerprint == collection.fingerprint
    assert content(again) == TRAIN


def test_files_on_the_hub(hub, tmp_path):
    hub.put("user/animals", {"images/cat/b.png": png(2), "images/dog/a.png": png(1), "README.md": b"animals"})
    expected = [("cat/b.png", 2, "cat"), ("dog/a.png", 1, "dog")]
    for source in ("hf://datasets/user/animals/images", "hf://datasets/user/animals/images/**/*.png"):
        assert content(read_images(source)) == expected
    assert content(read_images("hf://datasets/user/animals@main/images/dog/")) == [("a.png", 1, None)]
    gone = ImageEntry(0, "c.png", location="hf://datasets/user/animals/images/c.png")
    with pytest.raises(UnreadableImageError, match="the file does not exist"):
        open_entry(gone)


def test_what_is_missing_on_the_hub(hub, impatient):
    with pytest.raises(SourceNotFoundError, match="neither a file or folder user/nothing nor such a dataset on the Hub"):
        read_images("user/nothing")
    hub.requests.clear()
    for name in ("photos/of/cats", "nothere", "./nothere", "../nothere"):  # none of them is asked for
        with pytest.raises(SourceNotFoundError, match=r"found no file .*/(photos/of/cats|nothere); give .*user/name"):
            read_images(name)
    assert hub.requests == []
    with pytest.raises(VitrailError, match="hf://datasets/user/nothing"):
        read_images("hf://datasets/user/nothing/")


def test_a_hub_that_is_down(no_network, impatient):
    with pytest.raises(VitrailError, match="user/animals"):
        read_images("user/animals")


# Behavior common to all sources, and refusals


def test_fingerprints(tmp_path):
    """Fingerprints depend on the content of the rows, not on their location."""
    names = ["a/1.png", "b/2.png"]
    (tmp_path / "list.txt").write_text("here/a/1.png\n")
    here, there = write(tmp_path / "here", names), write(tmp_path / "there", names)
    first = read_images(here).fingerprint
    assert read_images(there).fingerprint == read_images(here / "**" / "*.png").fingerprint == first
    (here / "b" / "2.png").rename(here / "b" / "3.png")
    assert read_images(here).fingerprint != first
    write(there, [*names, "c.png"])
    assert read_images(there).fingerprint != first
    listed = read_images(tmp_path / "list.txt").fingerprint
    (tmp_path / "list.txt").write_text("here/a/1.png\t1\n")
    assert read_images(tmp_path / "list.txt").fingerprint != listed
    write_dataset(tmp_path / "data")
    assert len({read_images(tmp_path / "data", label_column=column).fingerprint for column in ("id", "animal")}) == 2


def seen(source):
    collection = read_images(source)
    entries = [entry for partition in range(collection.num_partitions) for entry in collection.read(partition)]
    return [collection.fingerprint, [[entry.row, entry.path, entry.label] for entry in entries]]


def write_seen(file, cache, sources):
    datasets.config.HF_DATASETS_CACHE = cache
    file.write_text(json.dumps([seen(source) for source in sources]))


def test_fingerprints_and_rows_are_the_same_in_another_process(tmp_path):
    write(tmp_path / "folder", [f"{n % 7}/{n}.png" for n in range(50)])
    (tmp_path / "list.txt").write_text("b.png\t1\na.png\t2\n")
    write_dataset(tmp_path / "parquet")
    datasets.load_dataset("parquet", data_dir=str(tmp_path / "parquet"), split="train").save_to_disk(tmp_path / "saved")
    sources = [*(str(tmp_path / name) for name in ("folder", "list.txt", "parquet", "saved")), "digits"]
    assert forked.exit_code(__file__, "write_seen", tmp_path / "seen", str(tmp_path / "cache"), sources) == 0
    assert json.loads((tmp_path / "seen").read_text()) == [seen(source) for source in sources]


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("folder", {"split": "train"}),
        ("folder", {"label_column": "label"}),
        ("list.txt", {"image_column": "image"}),
        ("folder", {"revision": "main"}),
        ("digits", {"revision": "main"}),
    ],
)
def test_what_means_nothing_for_a_source(tmp_path, source, given):
    write(tmp_path / "folder", ["a.png"])
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(VitrailError, match=f"found {next(iter(given))}=.*, but .*{source} has no .*leave it out"):
        read_images(source if source == "digits" else tmp_path / source, **given)
