"""What the folder of features reads and keeps, as its rows, files and unreadable images become many."""

from dataclasses import replace

import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from vector_folders import clustered, ids_of, write_vectors
from vitrail.data.entries import ImageEntry, row_id
from vitrail.data.reader import Chunk, UnreadableEntry
from vitrail.errors import CorruptFileError
from vitrail.features import store
from vitrail.features.manifest import MAX_FILES, Manifest
from vitrail.features.store import ERRORS, MANIFEST, ChunkWriter, Column, FeatureFolder, StoredFeatures, schema_of

PARTITIONS = [clustered(230, seed=1), clustered(70, seed=2)]
SHARD_SIZE = 20000
SCHEMA = schema_of([Column("pooled", 2)], dtype="float32", label_type=None)


@pytest.fixture
def opened(monkeypatch):
    """The files of each data set that is opened."""
    found, whole = [], pads.dataset

    def dataset(files, *arguments, **options):
        found.append(files)
        return whole(files, *arguments, **options)

    monkeypatch.setattr(store.pads, "dataset", dataset)
    return found


def begin(path):
    path.mkdir(exist_ok=True)
    folder = FeatureFolder(path)
    settings = {"vitrail": "", "model": "", "collection": {"source": ""}, "features": ["pooled"], "dtype": "float32"}
    folder.begin(settings | {"shard_size": SHARD_SIZE})
    return folder


def write(folder, partition, number, *, unreadable, retry=False):
    """Write a chunk with a vector, and then unreadable images."""
    first = number * SHARD_SIZE
    writer = ChunkWriter(folder, Chunk(partition, number), SCHEMA, first_row=first)
    for row in range(first + 1, first + 1 + unreadable):
        writer.add_unreadable(UnreadableEntry(ImageEntry(row, f"{partition}/{row}.jpg"), "it ends early", retry))
    writer.add([ImageEntry(first, f"{partition}/{first}.jpg")], {"pooled": np.ones((1, 2), np.float32)})
    writer.finish()


def test_unreadable_images_do_not_make_the_manifest_larger(tmp_path):
    sizes = []
    for number in (1, 10_000):
        folder = begin(tmp_path / str(number))
        write(folder, 0, 0, unreadable=number)
        assert folder.settle(finished=True).errors == number
        assert len(StoredFeatures(folder.path).errors()) == number
        sizes.append((folder.path / MANIFEST).stat().st_size)
    assert sizes[1] - sizes[0] < 20  # digits of their number


def test_errors_of_chunks_that_are_written_again_are_replaced(tmp_path):
    folder = begin(tmp_path)
    write(folder, 0, 0, unreadable=2)
    write(folder, 3, 1, unreadable=2, retry=True)
    write(folder, 3, 0, unreadable=1)
    folder.settle(finished=False)
    assert folder.finished_chunks(resumed=True) == {Chunk(0, 0), Chunk(3, 0)}
    write(folder, 3, 1, unreadable=1)
    write(folder, 1, 0, unreadable=0)
    settled = folder.settle(finished=False)
    expected = [row_id(0, 1), row_id(0, 2), row_id(3, 1), row_id(3, SHARD_SIZE + 1)]
    assert folder.errors()["id"].to_pylist() == expected
    assert (settled.errors, [shard.unreachable for shard in settled.shards]) == (4, [0, 0, 0, 0])

    pq.write_table(folder.errors().slice(1), tmp_path / ERRORS)
    with pytest.raises(CorruptFileError, match=r"errors\.parquet lists 3 unreadable images; expected 4\. Remove the folder"):
        folder.settle(finished=True)
    (tmp_path / ERRORS).unlink()
    with pytest.raises(CorruptFileError, match=r"errors\.parquet is missing or damaged .*: remove the folder"):
        folder.settle(finished=True)


def test_a_manifest_of_as_many_files_as_are_allowed_is_read(tmp_path):
    write_vectors(tmp_path, [PARTITIONS[0][:1]])
    manifest = StoredFeatures(tmp_path).manifest
    shard = replace(manifest.shards[0], partition=10**9, number=10**6, rows=10**6, bytes=10**12, errors=10**6, unreachable=10**6)
    manifest.shards = [replace(shard, file="data/part-1000000000-1000000.parquet")] * 100
    manifest.write(tmp_path / MANIFEST)
    assert MAX_FILES / 100 * (tmp_path / MANIFEST).stat().st_size < Manifest.max_bytes


def test_files_are_opened_some_at_a_time(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(store, "FILES_AT_A_TIME", 4)
    stored = write_vectors(tmp_path, PARTITIONS, shard_size=10)
    opened.clear()
    ids, vectors = map(np.concatenate, zip(*stored.chunks(rows=64), strict=True))
    np.testing.assert_array_equal(ids, ids_of(PARTITIONS))
    np.testing.assert_array_equal(vectors, np.concatenate(PARTITIONS))
    np.testing.assert_array_equal(stored.ids(), ids)
    assert stored.paths()[229:231] == ["0/229.jpg", "1/0.jpg"]
    assert [len(files) for files in opened] == [4, 4, 4, 4, 4, 4, 4, 2] * 3  # 23 + 7 files


def test_samples_read_the_files_that_hold_them(tmp_path, opened):
    stored = write_vectors(tmp_path, PARTITIONS, shard_size=10)
    opened.clear()
    rows = np.array([295, 3, 299, 234, 0, 9])
    ids, vectors = stored.sample(rows)
    np.testing.assert_array_equal(ids, ids_of(PARTITIONS)[rows])
    np.testing.assert_array_equal(vectors, np.concatenate(PARTITIONS)[rows])
    second = stored.manifest.shards[23:]  # of the second partition
    np.testing.assert_array_equal(stored.ids_at(rows[:2] % 70, second), ids_of(PARTITIONS)[230 + rows[:2] % 70])
    np.testing.assert_array_equal(stored.sample(rows[1:2], shards=second)[1], PARTITIONS[1][3:4])
    assert [len(files) for files in opened] == [3, 2, 1]
    assert stored.ids_at(rows[:0], second).tolist() == []
