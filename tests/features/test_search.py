"""Search in stored features: exact search chunk by chunk, and the index, built, completed, and refused."""

import json
import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch

from forked import exit_code
from vector_folders import brute_force, clustered, unit, write_vectors
from vitrail.errors import CorruptFileError, VitrailError
from vitrail.features import indexing, vector_index
from vitrail.features.duplicates import find_duplicates
from vitrail.features.indexing import build_index
from vitrail.features.search import find_neighbors
from vitrail.features.store import StoredFeatures

pytestmark = pytest.mark.usefixtures("one_thread")

PARTITIONS = [clustered(1730), clustered(870, seed=0)[400:]]  # of the same clusters
QUERIES = clustered(20, seed=1) + clustered(20, seed=2)
PART_BYTES = 500 * (2 * 32 + 8)  # five files of 100 rows


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Features with an index of several parts."""
    stored = write_vectors(tmp_path_factory.mktemp("original") / "features", PARTITIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "PART_BYTES", PART_BYTES)
        build_index(stored, progress=False)
    return stored


@pytest.fixture
def folder(original, tmp_path):
    """A copy of these features."""
    return shutil.copytree(original.folder, tmp_path / "features")


def query_of(vector):
    return torch.from_numpy(unit(vector)[None])


def results(stored, *, k=10, exact=False):
    """Return the ids and cosines that each query finds."""
    found = [find_neighbors(stored, query_of(query), k=k, exact=exact) for query in QUERIES]
    return np.stack([one.ids for one in found]), np.stack([one.cosines for one in found])


def index_files(folder):
    return {path.name: path for path in (folder / "index" / "pooled").iterdir() if path.name != ".lock"}


def test_chunks_are_all_rows_in_their_order(original):
    chunks = list(original.chunks(rows=130))
    assert [len(ids) for ids, _ in chunks] == [130] * 16 + [120]
    assert (np.concatenate([ids for ids, _ in chunks]) == original.ids()).all()
    assert (np.concatenate([vectors for _, vectors in chunks]) == np.concatenate(PARTITIONS)).all()
    assert (original.vectors() == np.concatenate(PARTITIONS)).all()


def test_a_sample_has_the_order_that_is_wanted(original):
    rows = np.array([2199, 0, 1730, 64, 1729])
    ids, vectors = original.sample(rows)
    assert (ids == original.ids()[rows]).all()
    assert (vectors == np.concatenate(PARTITIONS)[rows]).all()


def test_paths_of_some_rows(original):
    wanted = [3, 1729, (1 << 32) + 300]
    assert original.paths_of(wanted) == {3: "0/3.jpg", 1729: "0/1729.jpg", (1 << 32) + 300: "1/300.jpg"}
    with pytest.raises(CorruptFileError, match="holds 1 of 2 rows"):
        original.paths_of([5, 1730])


def test_exact_search_is_brute_force(original):
    ids, cosines = results(original, exact=True)
    for query, found, values in zip(QUERIES, ids, cosines, strict=True):
        expected, expected_cosines = brute_force(PARTITIONS, query, 10)
        assert found.tolist() == expected
        assert values == pytest.approx(expected_cosines, abs=1e-6)


def test_the_index_finds_what_brute_force_finds(original):
    record = vector_index.read_record(original, "pooled")
    assert (record.rows, len(record.parts), record.recall_queries) == (2200, 5, 256)
    assert record.recall >= indexing.MIN_RECALL
    assert record.probes < record.num_lists
    exact, (ids, cosines) = results(original, exact=True), results(original)
    assert np.mean([len(set(one) & set(other)) / 10 for one, other in zip(ids.tolist(), exact[0].tolist(), strict=True)]) > 0.95
    vectors = dict(zip(original.ids().tolist(), unit(original.vectors()), strict=True))
    for query, found, values in zip(QUERIES, ids.tolist(), cosines, strict=True):
        assert values == pytest.approx([vectors[number] @ unit(query) for number in found], abs=1e-3)
        assert (np.diff(values) <= 0).all()
    assert find_neighbors(original, query_of(QUERIES[0]), k=3).method == f"index, recall@10 {record.recall:.3f}"


def test_the_recall_is_measured_against_brute_force(original):
    record = vector_index.read_record(original, "pooled")
    rows = np.sort(np.random.default_rng(indexing.SEED).choice(2200, 256, replace=False))
    everything, ids = unit(np.concatenate(PARTITIONS)), original.ids()
    index = vector_index.VectorIndex(original, record, *vector_index.current_parts(original, record))
    found, _ = index.search(everything[rows], 11)
    cosines = everything[rows] @ everything.T
    cosines[np.arange(256), rows] = -2
    least = np.sort(cosines, axis=1)[:, -10] - 2**-9 / 32**0.5
    as_near = np.take_along_axis(cosines, np.searchsorted(ids, found), axis=1) >= least[:, None]
    assert record.recall == pytest.approx(np.minimum(as_near.sum(axis=1), 10).mean() / 10, abs=1e-3)


@pytest.mark.parametrize("vectors", [PARTITIONS[0][:1], np.repeat(PARTITIONS[0][:10], 20, axis=0), np.zeros((100, 32), np.float32)])
def test_vectors_that_are_as_near_count_as_found(tmp_path, vectors):
    stored = write_vectors(tmp_path / "features", [vectors])
    record = build_index(stored, progress=False).record
    assert (record.recall, record.probes) == (1.0, min(indexing.MIN_PROBES, record.num_lists))
    exact, found = (find_neighbors(stored, query_of(QUERIES[0]), k=500, exact=exact) for exact in (True, False))
    assert sorted(found.ids.tolist()) == stored.ids().tolist()
    assert found.cosines == pytest.approx(exact.cosines, abs=1e-3)


def test_vectors_with_nan_are_refused(tmp_path):
    vectors = PARTITIONS[0][:200].copy()
    vectors[107, 3] = np.nan
    stored = write_vectors(tmp_path / "features", [vectors])
    for use in (
        lambda: find_neighbors(stored, query_of(QUERIES[0]), k=3),
        lambda: build_index(stored, progress=False),
        lambda: find_duplicates(stored, progress=False),
    ):
        with pytest.raises(CorruptFileError, match="NaN or inf, such as that of the image with id 107: copy"):
            use()
    assert not any((tmp_path / "features" / "index").iterdir())


def test_as_many_as_wanted_are_found(original):
    found = find_neighbors(original, query_of(QUERIES[0]), k=5000)
    assert len(found.ids) == len(set(found.ids.tolist())) == 2200


def die_while_building(folder, killed_part):
    """Build the index, and die after a part is written and before it is recorded."""
    write_part, indexing.PART_BYTES = indexing._write_part, PART_BYTES
    written = []

    def write_and_die(*arguments):
        written.append(write_part(*arguments))
        if len(written) == killed_part:
            (folder / "index" / "pooled" / ".part-0.01234567.part.faiss").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return written[-1]

    indexing._write_part = write_and_die
    torch.set_num_threads(1)
    build_index(StoredFeatures(folder), progress=False)


@pytest.mark.parametrize("name", ["centroids", "part"])
def test_a_file_that_cannot_be_written_whole_is_written_by_the_next_run(original, folder, name, monkeypatch):
    monkeypatch.setattr(indexing, "PART_BYTES", PART_BYTES)
    whole = index_files(original.folder)
    sizes = [path.stat().st_size for file, path in whole.items() if file.startswith(name)]
    shutil.rmtree(folder / "index")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) - 1, before[1]))  # as a disk that is full then
    try:
        with pytest.raises(
            VitrailError, match=rf"cannot write .*{name}.*\.faiss: File too large. Finished files are kept: fix the"
        ):
            build_index(StoredFeatures(folder), progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    build_index(StoredFeatures(folder), progress=False)
    assert {file: path.read_bytes() for file, path in index_files(folder).items()} == {
        file: path.read_bytes() for file, path in whole.items()
    }


def test_a_killed_run_continues_to_the_same_neighbors(original, folder, monkeypatch):
    shutil.rmtree(folder / "index")
    assert exit_code(__file__, "die_while_building", folder, 3) == -signal.SIGKILL
    stored = StoredFeatures(folder)
    found = find_neighbors(stored, query_of(QUERIES[0]), k=10)
    assert found.index is None
    assert (
        found.warning == f"{folder}/index/pooled is not finished, and all vectors are searched: run `vitrail index` to finish it."
    )
    centroids = index_files(folder)["centroids.faiss"].read_bytes()
    monkeypatch.setattr(indexing, "PART_BYTES", PART_BYTES)
    assert build_index(stored, progress=False).added == 2200 - 1000
    assert centroids == index_files(folder)["centroids.faiss"].read_bytes()
    assert {name: path.read_bytes() for name, path in index_files(folder).items()} == {
        name: path.read_bytes() for name, path in index_files(original.folder).items()
    }
    assert (results(stored)[0] == results(original)[0]).all()


def test_rows_that_were_added_are_searched_exactly_until_the_index_has_them(folder):
    kept = {name: path.stat().st_mtime_ns for name, path in index_files(folder).items() if name.endswith(".faiss")}
    grown = [*PARTITIONS, QUERIES]
    stored = write_vectors(folder, grown)
    found = find_neighbors(stored, query_of(QUERIES[3]), k=1)
    assert found.ids.tolist() == [(2 << 32) + 3]
    assert (
        found.warning
        == f"{folder}/index/pooled is stale: it lacks 20 rows, which are searched exactly. Run `vitrail index` to add them."
    )
    built = build_index(stored, progress=False)
    assert (built.added, built.record.rows) == (20, 2220)
    files = index_files(folder)
    assert {name: files[name].stat().st_mtime_ns for name in kept} == kept
    found = find_neighbors(stored, query_of(QUERIES[3]), k=1)
    assert (found.ids.tolist(), found.warning) == ([(2 << 32) + 3], None)
    assert build_index(stored, progress=False).added == 0


def test_rows_that_were_written_again_are_found(folder):
    stored = StoredFeatures(folder)
    (folder / stored.manifest.shards[2].file).unlink()
    changed = PARTITIONS[0].copy()
    changed[207] = QUERIES[0]
    stored = write_vectors(folder, [changed, PARTITIONS[1]])
    found = find_neighbors(stored, query_of(QUERIES[0]), k=3)
    assert found.ids.tolist()[0] == 207
    assert "it lacks 500 rows" in found.warning
    assert build_index(stored, progress=False).added == 500
    assert len([name for name in index_files(folder) if name.startswith("part-")]) == 5
    assert find_neighbors(stored, query_of(QUERIES[0]), k=3).ids.tolist()[0] == 207


def test_rows_that_were_all_written_again_are_searched_exactly(folder):
    shutil.rmtree(folder / "data")
    stored = write_vectors(folder, [2 * vectors for vectors in PARTITIONS])
    found = find_neighbors(stored, query_of(QUERIES[0]), k=3)
    assert (found.index, found.ids.tolist()) == (None, brute_force(PARTITIONS, QUERIES[0], 3)[0])
    assert "it lacks 2200 rows" in found.warning
    assert "it lacks 2200 rows" in find_duplicates(stored, threshold=0.999, progress=False).warning
    assert build_index(stored, progress=False).added == 2200


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda parts: [*parts, parts[0]], 0),  # a part twice
        (lambda parts: [parts[0] | {"feature_files": 2 * parts[0]["feature_files"]}, *parts[1:]], 0),
        (lambda parts: [parts[0] | {"feature_files": parts[0]["feature_files"][:1]}, *parts[1:]], 500),
        (lambda parts: [parts[0] | {"rows": -3}, *parts[1:]], 500),
        (lambda parts: [], 2200),
    ],
)
def test_a_row_is_found_once_whatever_the_record_says(folder, change, missing):
    record = index_files(folder)["index.json"]
    rewrite(parts=change(json.loads(record.read_text())["parts"]))(record)
    stored = StoredFeatures(folder)
    for _ in range(2):
        found = find_neighbors(stored, query_of(QUERIES[0]), k=5000)
        assert sorted(found.ids.tolist()) == stored.ids().tolist()
        assert (found.warning is not None) == (missing > 0)
        built = build_index(stored, progress=False)
        assert (built.added, built.record.rows) == (missing, 2200)
        missing = 0


def test_the_index_of_other_features_is_refused(folder, tmp_path):
    other = write_vectors(tmp_path / "other", [PARTITIONS[0][:300]], images="others")
    shutil.copytree(folder / "index", tmp_path / "other" / "index")
    for use in (
        lambda: find_neighbors(other, query_of(QUERIES[0]), k=3),
        lambda: build_index(other),
        lambda: find_duplicates(other),
    ):
        with pytest.raises(VitrailError, match=r"index/pooled is the index of other features .*remove the folder and run"):
            use()
    assert len(find_neighbors(other, query_of(QUERIES[0]), k=3, exact=True).ids) == 3


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def rewrite(**fields):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "message", "mended"),
    [
        ("part", cut, r"part-\w+\.faiss has \d+ bytes; expected \d+: run `vitrail index` to write it again", True),
        ("part", lambda path: path.unlink(), r"part-\w+\.faiss is missing: run `vitrail index`", True),
        ("part", lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read by FAISS: run `vitrail index`", True),
        ("centroids", cut, "centroids.faiss is missing or damaged: run `vitrail index`", True),
        ("index.json", cut, r"index.json is not valid JSON .*: remove its folder and run `vitrail index`, or search all", False),
        ("index.json", rewrite(format_version=2), "index.json has format version 2; this vitrail reads", False),
        (
            "index.json",
            rewrite(library="other"),
            "is an index by other for the cosine of pooled, 32 numbers; expected faiss",
            False,
        ),
        ("index.json", rewrite(probes="many"), "index.json: probes is of type str; expected a whole number", False),
        ("index.json", rewrite(probes=-1), "has probes -1 of 94 lists and recall .*, which do not go together: remove", False),
        ("index.json", rewrite(recall=7.5), "and recall 7.5, which do not go together: remove", False),
        ("index.json", rewrite(num_lists=10**9), "has 1000000000 lists of 32 numbers; centroids.faiss has 94 of 32: remove", False),
        ("index.json", rewrite(recall=None), "and recall None, which do not go together: remove the folder", False),
    ],
)
def test_damaged_files_are_named_and_mended(original, folder, file, damage, message, mended):
    files = index_files(folder)
    damage(files[min(name for name in files if name.startswith(file))])
    stored = StoredFeatures(folder)
    with pytest.raises(VitrailError, match=message):
        find_neighbors(stored, query_of(QUERIES[0]), k=3)
    assert find_neighbors(stored, query_of(QUERIES[0]), k=3, exact=True).index is None
    if mended:
        build_index(stored, progress=False)
        assert (results(stored)[0] == results(original)[0]).mean() > 0.95


def test_without_faiss_the_remedy_is_named(original, monkeypatch):
    monkeypatch.setattr(vector_index, "find_spec", lambda name: None)
    with pytest.raises(
        VitrailError, match=r'not installed \(faiss\): pip install "\.\[search\]" .*, or search all vectors with exact=True'
    ):
        find_neighbors(original, query_of(QUERIES[0]), k=3)
    assert len(find_neighbors(original, query_of(QUERIES[0]), k=3, exact=True).ids) == 3
