"""Near-duplicates: pairs of images whose features have a large cosine, and the groups that the pairs form."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import VitrailError
from ..utils.atomic import replaced
from ..utils.progress import progress_bar
from .manifest import Shard
from .search import unit_chunks
from .store import StoredFeatures
from .vector_index import IndexRecord, VectorIndex, open_index

THRESHOLD = 0.96  # fastdup's for its groups of duplicates, in its documentation and examples (`ccthreshold=0.96`)
MAX_PAIRS = 10_000_000  # n equal images have n * (n - 1) / 2
BLOCK, OTHERS = 4096, 2048  # rows that are compared with each other at a time
LISTS = 65536  # rows of the lists of an index that are in memory at a time, about
FORMATS = (".csv", ".parquet")


@dataclass(frozen=True)
class Duplicates:
    """Pairs and groups of near-duplicates.

    pairs: ids of two images, (P, 2) int64, the smaller one first; ascending.
    cosines: of the pairs, (P,) float32.
    groups: for each group the ids of its images, ascending; by the smallest id. Each image of a group is in a pair with another one of it.
    threshold: the smallest cosine of a pair.
    index: the record of the index that was used, or None for exact search.
    warning: what a user should know about the index.
    """

    pairs: np.ndarray
    cosines: np.ndarray
    groups: list[np.ndarray]
    threshold: float
    index: IndexRecord | None
    warning: str | None

    def table(self, stored: StoredFeatures) -> pa.Table:
        """Return a row for each pair: the number of its group from 1 on, both ids and paths, and the cosine."""
        group_of = {number: index for index, group in enumerate(self.groups, start=1) for number in group.tolist()}
        paths = stored.paths_of(group_of) if group_of else {}
        first, second = self.pairs[:, 0].tolist(), self.pairs[:, 1].tolist()
        return pa.table(
            {
                "group": pa.array([group_of[number] for number in first], pa.int64()),
                "id": pa.array(first, pa.int64()),
                "path": pa.array([paths[number] for number in first], pa.string()),
                "other_id": pa.array(second, pa.int64()),
                "other_path": pa.array([paths[number] for number in second], pa.string()),
                "cosine": pa.array(self.cosines, pa.float32()),
            }
        )


def find_duplicates(
    stored: StoredFeatures,
    *,
    threshold: float = THRESHOLD,
    column: str | None = None,
    exact: bool = False,
    max_pairs: int = MAX_PAIRS,
    progress: bool = True,
) -> Duplicates:
    """Return the pairs of stored images whose features have at least a cosine, and the groups that the pairs form.

    With an index, each row is compared with the rows of those near lists that can hold such a pair; cosines are then those of vectors in
    float16, within 0.001. Without one, all rows are compared with each other, in blocks.

    Args:
        stored: the features.
        threshold: the smallest cosine of a pair.
        column: column of vectors to compare; by default the first one.
        exact: compare all rows, even if there is an index.
        max_pairs: the largest number of pairs.
        progress: show a progress bar.

    Raises VitrailError: there are more pairs than `max_pairs`; the column holds no vectors; the index belongs to other features, is
    damaged, or needs FAISS.
    """
    if not 0 < threshold < 1:
        raise VitrailError(f"found threshold={threshold}; expected a cosine above 0 and below 1, such as {THRESHOLD}.")
    column = stored.vector_column(column)
    index, warning = (None, None) if exact else open_index(stored, column)
    found = _Pairs(threshold, max_pairs)
    total = len(stored)
    with progress_bar("duplicates", total, unit="vectors", wanted=progress) as advance:
        if index is None:
            for block in _exact(stored, column, None, found):
                advance(block)
        else:
            for block in _by_index(index, found):
                advance(block)
            for block in _exact(stored, column, index.missing, found):
                advance(block)
    pairs, cosines = found.sorted()
    return Duplicates(pairs, cosines, _groups(pairs), threshold, None if index is None else index.record, warning)


def write_pairs(table: pa.Table, output: Path) -> None:
    """Write the table of pairs as .csv or .parquet."""
    with replaced(output) as temporary:
        if output.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)


class _Pairs:
    """Pairs as they are found. The same pair may be found twice."""

    def __init__(self, threshold: float, max_pairs: int) -> None:
        self.threshold, self.max_pairs, self.number = threshold, max_pairs, 0
        self.found: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, ids: np.ndarray, other_ids: np.ndarray, cosines: np.ndarray) -> None:
        """Add pairs of different rows. Raises VitrailError if there are too many."""
        different = ids != other_ids
        if not different.any():
            return
        if different.sum() > 2 * self.max_pairs:  # each pair is found at most twice
            raise self._too_many()
        pairs = np.sort(np.stack([ids[different], other_ids[different]], axis=1), axis=1)
        self.found.append((pairs, cosines[different]))
        self.number += len(pairs)
        if self.number > 2 * self.max_pairs:
            self.found = [self.sorted()]
            self.number = len(self.found[0][0])

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each pair once, ascending, and its cosine."""
        pairs = np.concatenate([np.empty((0, 2), np.int64), *(pairs for pairs, _ in self.found)])
        cosines = np.concatenate([np.empty(0, np.float32), *(cosines for _, cosines in self.found)])
        order = np.lexsort((-cosines, pairs[:, 1], pairs[:, 0]))
        pairs, cosines = pairs[order], cosines[order]
        new = np.ones(len(pairs), dtype=bool)
        new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        if new.sum() > self.max_pairs:
            raise self._too_many()
        return pairs[new], np.minimum(cosines[new], 1)

    def _too_many(self) -> VitrailError:
        return VitrailError(
            f"more than {self.max_pairs} pairs have a cosine of at least {self.threshold}: choose a larger threshold, such as "
            f"threshold={(1 + self.threshold) / 2:.3g}."
        )


def _groups(pairs: np.ndarray) -> list[np.ndarray]:
    """Return the connected components of the pairs."""
    ids, members = np.unique(pairs, return_inverse=True)
    members = members.reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), bool), (members[:, 0], members[:, 1])), shape=(len(ids), len(ids)))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(ids[order], np.flatnonzero(np.diff(labels[order])) + 1) if len(ids) else []
    return sorted(groups, key=lambda group: int(group[0]))


def _exact(stored: StoredFeatures, column: str, shards: list[Shard] | None, found: _Pairs) -> Iterator[int]:
    """Compare the rows of some files with all rows, or all rows with each other; yield the number of rows that are done.

    Of two rows that are both among these, the one with the smaller id is compared with the other one.
    """
    every = [shard for shard in stored.manifest.shards if shard.file]
    size = stored.manifest.settings["shard_size"]
    for ids, block in unit_chunks(stored, column, rows=BLOCK, shards=shards):
        first = (int(ids[0]) >> 32, (int(ids[0]) & 0xFFFFFFFF) // size)
        others = [shard for shard in every if shards is not None or (shard.partition, shard.number) >= first]
        for other_ids, other_vectors in unit_chunks(stored, column, rows=OTHERS, shards=others):
            _compare(ids, block, other_ids, other_vectors, found, once=shards is None)
        yield len(ids)


def _by_index(index: VectorIndex, found: _Pairs) -> Iterator[int]:
    """Compare the rows of some lists with the lists that may hold pairs of them; yield the number of rows that are done.

    One product for all rows that read a list takes a fraction of the time of a search for each of them.
    """
    sizes = index.list_sizes()
    filled = np.flatnonzero(sizes)
    groups = sizes[filled].cumsum() // LISTS
    for numbers in np.split(filled, np.flatnonzero(np.diff(groups)) + 1):
        ids, vectors = index.rows_of(numbers.tolist())
        for number, readers in index.readers(vectors, numbers.repeat(sizes[numbers]), found.threshold):
            other_ids, other_vectors = index.rows_of([number])
            for begin, start in itertools.product(range(0, len(readers), BLOCK), range(0, len(other_ids), OTHERS)):
                rows, others = readers[begin : begin + BLOCK], slice(start, start + OTHERS)
                _compare(ids[rows], vectors[rows], other_ids[others], other_vectors[others], found)
        yield len(ids)


def _compare(
    ids: np.ndarray, vectors: torch.Tensor, other_ids: np.ndarray, other_vectors: torch.Tensor, found: _Pairs, *, once: bool = False
) -> None:
    """Add the pairs of rows and other rows; once: only those whose other row has the larger id."""
    cosines = vectors @ other_vectors.T
    rows, columns = (index.numpy() for index in torch.nonzero(cosines >= found.threshold, as_tuple=True))
    if once:
        ascending = other_ids[columns] > ids[rows]
        rows, columns = rows[ascending], columns[ascending]
    found.add(ids[rows], other_ids[columns], cosines[rows, columns].numpy())
