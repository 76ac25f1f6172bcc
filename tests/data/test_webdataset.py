import io
import pickle
import tarfile
import tracemalloc

import datasets
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile
from PIL import Image

from vitrail.data import read_images, row_id, webdataset
from vitrail.data.decoding import open_entry
from vitrail.errors import UnreadableImageError, VitrailError


def png(level):
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def tar(members, mode="w", form=tarfile.DEFAULT_FORMAT):
    """members: content by name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def samples(levels, extension="cls"):
    """An image of each gray level, with twice the level as its label."""
    return {
        name: content for n in levels for name, content in ((f"{n:03d}.png", png(n)), (f"{n:03d}.{extension}", b"%d" % (2 * n)))
    }


def content(collection):
    """(partition, row, path, gray level or problem, label) of every entry; checks what holds for any collection."""
    collection = pickle.loads(pickle.dumps(collection))  # noqa: S301 - as it travels to workers
    found = []
    for partition in range(collection.num_partitions):
        entries = list(collection.read(partition))
        assert [entry.row for entry in entries] == list(range(len(entries)))
        for start in range(len(entries) + 2):
            assert list(collection.read(partition, start)) == entries[start:]
        assert list(collection.find(row_id(partition, row) for row in range(1, 100)).values()) == entries[1:]
        for entry in entries:
            level = entry.problem or open_entry(entry).getpixel((0, 0))
            found.append((partition, entry.row, entry.path, level, entry.label))
    return found


def test_samples_of_shards(tmp_path):
    (tmp_path / "00.tar").write_bytes(tar(samples([1, 2])))
    (tmp_path / "01.tar").write_bytes(tar(samples([3])))
    collection = read_images(tmp_path)
    assert (collection.num_partitions, collection.num_rows, collection.random_access) == (2, None, False)
    assert collection.label_type == "int64"
    expected = [(0, 0, "00.tar/001.png", 1, 2), (0, 1, "00.tar/002.png", 2, 4), (1, 0, "01.tar/003.png", 3, 6)]
    assert content(collection) == expected
    for pattern in ("*.tar", "{00..01}.tar", "{00,01}.tar", "0?.tar"):
        same = read_images(str(tmp_path / pattern))
        assert content(same) == expected
        assert same.fingerprint == collection.fingerprint
    assert content(read_images(tmp_path / "01.tar")) == [(0, 0, "01.tar/003.png", 3, 6)]
    assert content(read_images(**collection.settings)) == expected


def test_samples_are_those_that_datasets_finds(tmp_path, monkeypatch):
    members = {f"a.b/{n}.{extension}": png(n) for n in range(5) for extension in ("jpg", "seg.png")}
    members |= samples(range(10, 15)) | {"./x/ü.jpg": png(20), "./x/ü.txt": b"a caption"}
    (tmp_path / "a.tar").write_bytes(tar(members))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.load_dataset("webdataset", data_files=str(tmp_path / "a.tar"), split="train", streaming=True)
    theirs = [
        (row["__key__"], Image.open(io.BytesIO((row.get("jpg") or row.get("png"))["bytes"])).getpixel((0, 0)))
        for row in rows.cast_column("jpg", datasets.Image(decode=False)).cast_column("png", datasets.Image(decode=False))
    ]
    ours = [(path.removeprefix("a.tar/").rpartition(".")[0], level) for _, _, path, level, _ in content(read_images(tmp_path))]
    assert ours == [(key.removeprefix("./"), level) for key, level in theirs]


def test_the_image_of_a_sample(tmp_path):
    """The file with fewer dots comes before a.seg.png. Hidden files and other files are skipped."""
    members = {"a.seg.png": png(1), "a.JPG": png(2), "a.txt": b"x", "b.txt": b"no image", "._c.png": b"", "c.left.png": png(3)}
    (tmp_path / "a.tar").write_bytes(tar({**members, "folder.d/.png": png(4), "folder.d/d.png": png(5)}))
    assert [row[2:4] for row in content(read_images(tmp_path))] == [
        ("a.tar/a.JPG", 2),
        ("a.tar/c.left.png", 3),
        ("a.tar/folder.d/d.png", 5),
    ]
    assert [row[2:4] for row in content(read_images(tmp_path, image_column="seg.png"))] == [("a.tar/a.seg.png", 1)]
    with pytest.raises(VitrailError, match=r"found no images in .*: no member has the extension mask\.png"):
        read_images(tmp_path, image_column="mask.png")


@pytest.mark.parametrize(("mode", "suffix"), [("w:gz", ".tar.gz"), ("w:gz", ".tgz"), ("w:bz2", ".tar.bz2"), ("w:xz", ".tar.xz")])
def test_compressed_archives(tmp_path, mode, suffix):
    (tmp_path / f"a{suffix}").write_bytes(tar(samples([1, 2]), mode))
    assert [row[2:] for row in content(read_images(tmp_path))] == [(f"a{suffix}/001.png", 1, 2), (f"a{suffix}/002.png", 2, 4)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path, form):
    names = ["ä/日本.png", "/".join(["folder" * 10] * (2 if form == tarfile.USTAR_FORMAT else 5)) + "/b.png"]
    (tmp_path / "a.tar").write_bytes(tar({name: png(1) for name in names}, form=form))
    assert [row[2] for row in content(read_images(tmp_path))] == [f"a.tar/{name}" for name in names]


def test_names_that_are_not_text(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"\udcff.png": png(1)}, form=tarfile.GNU_FORMAT))
    ((_, _, path, level, _),) = content(read_images(tmp_path))
    assert (path, level) == ("a.tar/\\xff.png", 1)


# Labels


def test_labels_that_are_text(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.cls": b"dog\n", "b.png": png(2), "b.cls": b"7", "c.png": png(3)}))
    collection = read_images(tmp_path)
    assert collection.label_type == "string"
    assert [row[4] for row in content(collection)] == ["dog", "7", None]


def test_labels_of_json(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.json": b'{"kind": 3}', "b.png": png(2), "b.json": b"{}"}))
    assert read_images(tmp_path).label_type is None
    collection = read_images(tmp_path, label_column="json.kind")
    assert collection.label_type == "int64"
    assert [row[4] for row in content(collection)] == [3, None]


def test_a_label_of_another_kind_than_the_first(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.cls": b"1", "b.png": png(2), "b.cls": b"dog", "c.png": png(3)}))
    (_, first), (path, second), (_, third) = [row[2:4] for row in content(read_images(tmp_path))]
    assert (first, path, third) == (1, "a.tar/b.png", 3)
    assert second == "its label is not an integer, unlike the first label: found 'dog'"


@pytest.mark.parametrize("label", [b"\xff\xfe", b"{", b"[1]", b"9" * 30])
def test_labels_that_cannot_be_read(tmp_path, label):
    """The first readable label determines the type of all labels."""
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.json": label, "b.png": png(2), "b.json": b'{"kind": 3}'}))
    collection = read_images(tmp_path, label_column="json.kind")
    labels = [(row[3], row[4]) for row in content(collection)]
    if label in (b"[1]", b"9" * 30):  # JSON, without that field
        assert (collection.label_type, labels) == (None, [(1, None), (2, None)])
    else:
        assert collection.label_type == "int64"
        assert labels[0][0].startswith("its label is not an integer, unlike the first label: ")
        assert labels[1] == (2, 3)


def test_labels_too_large_for_the_column(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.cls": b"1", "b.png": png(2), "b.cls": b"9" * 30}))
    assert [row[3] for row in content(read_images(tmp_path))] == [
        1,
        f"its label is not an integer, unlike the first label: found '{'9' * 30}'",
    ]


# Damage


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_archives_that_are_cut_short_anywhere(tmp_path, mode):
    """Whole entries are kept and the last entry names the reason for the end, in a header, in an image or between the two."""
    whole = tar(samples(range(4)), mode)
    (tmp_path / "0.tar").write_bytes(tar(samples([9])))
    numbers = set()
    for size in range(0, len(whole) if mode == "w:gz" else 16 * 512, 32 if mode == "w:gz" else 256):
        (tmp_path / "1.tar").write_bytes(whole[:size])
        *rest, (partition, row, path, problem, _) = content(read_images(tmp_path))
        assert (partition, path) == (1, "1.tar")
        assert problem.startswith("the archive ends early, or is damaged, after ")
        assert [entry[3:] for entry in rest] == [(9, 18), *((n, 2 * n) for n in range(row))]
        numbers.add(row)
    assert numbers >= ({0, 3} if mode == "w:gz" else {0, 1, 2, 3, 4})


def test_an_archive_that_is_damaged_within(tmp_path):
    whole = tar(samples([1, 2, 3]))
    (tmp_path / "a.tar").write_bytes(whole[: 4 * 512] + b"\x99" * 512 + whole[5 * 512 :])
    first, last = content(read_images(tmp_path))
    assert first[3] == 1
    assert last[3].startswith("the archive ends early, or is damaged, after 001.cls: ")


def test_an_image_that_is_damaged_is_not_the_end(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "b.png": b"", "c.png": png(3)}))
    first, second, third = read_images(tmp_path).read()
    assert [open_entry(entry).getpixel((0, 0)) for entry in (first, third)] == [1, 3]
    with pytest.raises(UnreadableImageError, match=r"a\.tar/b\.png: it is empty"):
        open_entry(second)


def test_archives_without_images(tmp_path):
    for whole, reason in (
        (b"no archive at all", "truncated header"),
        (b"", "empty header"),
        (tar({"a.txt": b"x"}), "no member is an image"),
    ):
        (tmp_path / "a.tar").write_bytes(whole)
        with pytest.raises(VitrailError, match=f"found no images in .*: .*{reason}"):
            read_images(tmp_path)


def test_archives_that_have_gone(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.tar").write_bytes(tar(samples([1])))
    collection = read_images(tmp_path)
    (tmp_path / "b.tar").unlink()
    with pytest.raises(VitrailError, match=r"cannot read .*b\.tar: No such file"):
        list(collection.read(1))
    with pytest.raises(VitrailError, match=r"found no file .*c\.tar"):
        read_images(f"{tmp_path}/{{a,c}}.tar")


def test_reading_does_not_hold_the_archive(tmp_path):
    """Memory holds one image of the archive at a time, and no list of its members."""
    noise = np.random.default_rng(0).bytes(1 << 18)
    (tmp_path / "a.tar").write_bytes(tar({f"{n}.png": noise for n in range(16)} | {f"{n}.txt": b"" for n in range(4000)}))
    collection = read_images(tmp_path)
    tracemalloc.start()
    assert sum(1 for _ in collection.read()) == 16
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


# Stores


def test_shards_in_a_store(memory, tmp_path):
    for name, levels in (("00.tar", [1, 2]), ("01.tar", [3])):
        memory.pipe(f"/bucket/shards/{name}", tar(samples(levels)))
        (tmp_path / name).write_bytes(tar(samples(levels)))
    here = read_images(tmp_path)
    for source in ("memory://bucket/shards/", "memory://bucket/shards", "memory://bucket/shards/*.tar"):
        collection = read_images(source)
        assert collection.source == source
        assert content(collection) == content(here)
        assert collection.fingerprint == here.fingerprint
    assert content(read_images("memory://bucket/shards/{00..01}.tar")) == content(here)
    assert [row[2] for row in content(read_images("memory://bucket/shards/01.tar"))] == ["01.tar/003.png"]
    memory.pipe("/bucket/shards/01.tar", tar(samples([3]))[:1000])
    assert [row[3] for row in content(read_images("memory://bucket/shards/01.tar"))][-1].startswith("the archive ends early")


def test_a_store_that_breaks_off(memory, monkeypatch, impatient):
    """Reading goes on at the byte where it ended; three failures at the same byte are the end."""
    memory.pipe("/a.tar", tar(samples(range(20))))
    collection = read_images("memory://a.tar")
    expected = content(collection)
    read, calls = MemoryFile.read, []

    def break_off(self, size):
        calls.append(size)
        if len(calls) % 3:
            raise ConnectionResetError("the line is cut")
        return read(self, size)

    monkeypatch.setattr(MemoryFile, "read", break_off)
    assert content(collection) == expected
    monkeypatch.setattr("vitrail.data.remote.WAITS", (1,))
    with pytest.raises(VitrailError, match=r"cannot reach memory://.*a\.tar: the line is cut; repeat"):
        list(collection.read())


def test_shards_on_a_web_server(no_network, http_server, page):
    for name, levels in (("/s/00.tar", [1, 2]), ("/s/01.tar", [3])):
        http_server.pages[name] = page(tar(samples(levels)), ranges=False)
    expected = ["00.tar/001.png", "00.tar/002.png", "01.tar/003.png"]
    assert [row[2] for row in content(read_images(f"{http_server.url}/s/{{00..01}}.tar"))] == expected
    assert [row[2] for row in content(read_images(f"{http_server.url}/s/00.tar?signature=a*b"))] == expected[:2]


def test_a_shard_that_is_larger_than_what_is_requested_together(no_network, http_server, page):
    """The server ignores ranges and returns the whole file."""
    noise = np.random.default_rng(0).bytes(6 << 20)
    http_server.pages["/a.tar"] = page(tar({"a.png": png(1), "b.bin": noise, "c.png": png(3)}), ranges=False)
    collection = read_images(f"{http_server.url}/a.tar")
    assert [(entry.row, entry.path) for entry in collection.read()] == [(0, "a.tar/a.png"), (1, "a.tar/c.png")]


def test_a_web_server_that_breaks_off(no_network, http_server, page, monkeypatch):
    """The request is repeated. A third failure does not count as the end of the archive."""
    whole = page(tar(samples(range(5))), ranges=False)
    http_server.pages["/a.tar"] = whole
    collection = read_images(f"{http_server.url}/a.tar")
    expected = content(collection)
    whole.cut = 3000
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        whole.cut = None

    monkeypatch.setattr("time.sleep", sleep)
    assert len(list(collection.read())) == len(expected) == 5
    assert waits == [1]
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    whole.cut = 3000
    with pytest.raises(VitrailError, match=r"cannot reach http://.*/a\.tar: .*repeat the command"):
        list(collection.read())


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "cannot read .*the file does not exist"), (500, "cannot reach .*500"), (403, "403")]
)
def test_a_web_server_that_does_not_give_a_shard(no_network, impatient, http_server, page, status, reason):
    http_server.pages["/a.tar"] = page(b"", status=status)
    with pytest.raises(VitrailError, match=reason):
        read_images(f"{http_server.url}/a.tar")


def test_a_web_server_that_is_down(no_network, impatient):
    with pytest.raises(VitrailError, match=r"cannot reach http://127\.0\.0\.1:9/a\.tar"):
        read_images("http://127.0.0.1:9/a.tar")


@pytest.mark.parametrize("sparse", [False, True])
def test_members_beyond_the_bound_are_not_read(tmp_path, monkeypatch, sparse):
    """A sparse member declares the size of its holes, which take no place in the archive."""
    monkeypatch.setattr(webdataset, "MAX_IMAGE", 2000)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar_file:
        for name, data in {"a.png": png(1), "b.png": png(2) if sparse else bytes(3000), "c.png": png(3)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if sparse and name == "b.png":
                member.pax_headers = {"GNU.sparse.size": "3000", "GNU.sparse.map": f"0,{len(data)}"}
            tar_file.addfile(member, io.BytesIO(data))
    (tmp_path / "a.tar").write_bytes(archive.getvalue())
    problem = "b.png has 3000 bytes, more than the limit of 2000"
    assert [row[3] for row in content(read_images(tmp_path))] == [1, problem, 3]


def test_labels_and_headers_beyond_the_bound_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_LABEL", 2000)
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.cls": b"7", "b.cls": bytes(3000), "b.png": png(2), "c.png": png(3)}))
    problem = "b.cls has 3000 bytes, more than the limit of 2000"
    assert [row[3] for row in content(read_images(tmp_path))] == [1, problem, 3]
    long = tar({"a.png": png(1), "n" * 3000 + ".png": png(2)}, form=tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(long)
    assert content(read_images(tmp_path))[-1][3].endswith("after a.png: a header of 3005 bytes")
