"""Near-duplicates: planted pairs are found with the index and without, and are grouped."""

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from vector_folders import clustered, unit, write_vectors
from vitrail.cli import search as commands
from vitrail.errors import VitrailError
from vitrail.features import duplicates as module
from vitrail.features.duplicates import THRESHOLD, find_duplicates, write_pairs
from vitrail.features.indexing import build_index
from vitrail.features.vector_index import RECORD, index_folder, open_index

pytestmark = pytest.mark.usefixtures("one_thread")

SECOND = 1 << 32


def planted():
    """Random vectors, far from each other, with near-duplicates: 5 ~ 400 ~ 250, 3 ~ 4, 17 ~ row 10 of the second partition."""
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((2, 800, 64)).astype(np.float32)
    second = second[:300]
    for row, original in ((400, 5), (250, 400), (4, 3)):
        first[row] = 2 * first[original] + 0.1 * rng.standard_normal(64)
    second[10] = first[17] + 0.1 * rng.standard_normal(64)
    return [first, second]


PARTITIONS = planted()
PAIRS = [(3, 4), (5, 250), (5, 400), (17, SECOND + 10), (250, 400)]
GROUPS = [[3, 4], [5, 250, 400], [17, SECOND + 10]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_vectors(tmp_path_factory.mktemp("duplicates") / "features", PARTITIONS)


@pytest.fixture(params=["exact", "index", "stale index"])
def searched(request, tmp_path):
    """Features without an index, with one, and with one that lacks the second partition."""
    folder = tmp_path / "features"
    if request.param == "stale index":
        build_index(write_vectors(folder, PARTITIONS[:1]), progress=False)
    stored = write_vectors(folder, PARTITIONS)
    if request.param == "index":
        build_index(stored, progress=False)
    return stored


def test_planted_pairs_and_groups_are_found(searched, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 150)
    monkeypatch.setattr(module, "OTHERS", 70)
    found = find_duplicates(searched, progress=False)
    assert [tuple(pair) for pair in found.pairs.tolist()] == PAIRS
    assert [group.tolist() for group in found.groups] == GROUPS
    vectors = dict(zip(searched.ids().tolist(), unit(searched.vectors()), strict=True))
    assert found.cosines == pytest.approx([vectors[one] @ vectors[other] for one, other in PAIRS], abs=1e-3)
    assert (found.index is None) == (not (searched.folder / "index").exists())
    assert (found.warning is not None) == (found.index is not None and found.index.rows == 800)


def test_exact_pairs_are_those_of_brute_force(tmp_path):
    vectors = clustered(700)
    stored = write_vectors(tmp_path / "features", [vectors])
    cosines = unit(vectors.astype(np.float64)) @ unit(vectors.astype(np.float64)).T
    expected = np.argwhere(np.triu(cosines >= 0.9, k=1))
    found = find_duplicates(stored, threshold=0.9, exact=True, progress=False)
    assert (found.pairs == expected).all()
    assert len(expected) > 1000
    assert found.cosines == pytest.approx(cosines[tuple(expected.T)], abs=1e-6)
    again = find_duplicates(stored, threshold=0.9, exact=True, progress=False)
    assert [group.tolist() for group in again.groups] == [group.tolist() for group in found.groups]
    for most in (1000, len(expected) - 1):
        with pytest.raises(VitrailError, match=rf"more than {most} pairs have a cosine of at least 0\.9: .* threshold=0\.95"):
            find_duplicates(stored, threshold=0.9, exact=True, max_pairs=most, progress=False)
    assert len(find_duplicates(stored, threshold=0.9, exact=True, max_pairs=len(expected), progress=False).pairs) == len(expected)


@pytest.mark.parametrize("threshold", [0.9, 0.99])
def test_lists_that_are_left_out_hold_no_pairs(tmp_path, threshold):
    """If no list is too far, pairs found with the index differ from exact ones only by the rounding of cosines."""
    stored = write_vectors(tmp_path / "features", [np.random.default_rng(0).standard_normal((1200, 3)).astype(np.float32)])
    record = build_index(stored, progress=False).record
    record.probes = record.num_lists
    record.write(index_folder(stored, "pooled") / RECORD)
    index, _ = open_index(stored, "pooled")
    _, vectors = index.rows_of([0])
    lists = np.zeros(len(vectors), np.int64)
    reads = [number for number, readers in index.readers(vectors, lists, threshold) for _ in readers]
    assert len(vectors) <= len(reads) < record.num_lists * len(vectors)
    exact = find_duplicates(stored, threshold=threshold - 0.001, exact=True, progress=False)
    pairs = {tuple(pair) for pair in find_duplicates(stored, threshold=threshold, progress=False).pairs.tolist()}
    assert pairs <= {tuple(pair) for pair in exact.pairs.tolist()}
    assert pairs >= {tuple(pair) for pair in exact.pairs[exact.cosines > threshold + 0.001].tolist()}


def test_there_may_be_none(stored):
    found = find_duplicates(stored, threshold=0.9999, progress=False)
    assert (len(found.pairs), found.groups, found.table(stored).num_rows) == (0, [], 0)


@pytest.mark.parametrize("threshold", [0, 1, 1.5, float("nan")])
def test_thresholds_are_cosines(stored, threshold):
    with pytest.raises(VitrailError, match=r"expected a cosine above 0 and below 1, such as 0\.96"):
        find_duplicates(stored, threshold=threshold)


@pytest.mark.parametrize("suffix", module.FORMATS)
def test_the_table_is_written(stored, tmp_path, suffix):
    output = tmp_path / f"pairs{suffix}"
    write_pairs(find_duplicates(stored, progress=False).table(stored), output)
    rows = (pyarrow.csv.read_csv(output) if suffix == ".csv" else pq.read_table(output)).to_pylist()
    assert [(row["id"], row["other_id"]) for row in rows] == PAIRS
    assert [row["group"] for row in rows] == [1, 2, 2, 3, 2]
    assert (rows[3]["path"], rows[3]["other_path"]) == ("0/17.jpg", "1/10.jpg")
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_the_command_has_the_same_threshold():
    assert commands.duplicates.__defaults__[0] == THRESHOLD
