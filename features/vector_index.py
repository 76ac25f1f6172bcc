"""The index of a column of vectors, for approximate search by cosine similarity: FAISS's inverted lists, beside the Parquet files.

    index/COLUMN/index.json       what the index belongs to, how it is searched, and its files
    index/COLUMN/centroids.faiss  the centroids, which k-means has found in a sample: an empty IndexIVFScalarQuantizer
    index/COLUMN/part-*.faiss     the rows of some feature files, each in the list of its nearest centroid: normalized vectors in float16

A part belongs to feature files by their SHA-256, so that rows which are added or written again make parts stale, not the index. Parts are
memory-mapped. Their files are trusted as the features are: a part is compared with its size when it is opened, and with its SHA-256 when
`vitrail index` runs.
"""

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import CorruptFileError, VitrailError
from ..utils.hashing import sha256
from ..utils.optional import install_command
from ..utils.records import Record
from ..utils.text import count
from .manifest import Shard
from .store import StoredFeatures

INDEX, RECORD, CENTROIDS = "index", "index.json", "centroids.faiss"
LIBRARY, METRIC = "faiss", "cosine"
ROUNDING = 1e-3  # of products with vectors in float16
PAIR_LISTS = 64  # lists in which the pairs of a row are searched, at most
OR_EXACT = "or search all vectors with exact=True"


@dataclass(kw_only=True)
class IndexPart:
    """A file of the index, and the SHA-256 of the feature files whose rows it holds."""

    file: str
    rows: int
    bytes: int
    sha256: str
    feature_files: list[str]


@dataclass(kw_only=True)
class IndexRecord(Record):
    """The content of index.json.

    library, library_version: the library that has written the index.
    metric: "cosine".
    features: the fingerprint of the features; see `vitrail.StoredFeatures.fingerprint`.
    column, vector_size: the vectors.
    num_lists: number of inverted lists, and of centroids.
    centroids: the SHA-256 of their file.
    finished: whether all rows of the features were added; the following fields are set then.
    probes: number of lists that a search reads, which are those of the nearest centroids.
    recall: share of the 10 nearest neighbors that a search finds, or vectors as near as them, measured for `recall_queries` rows against
        exact search.
    """

    remedy: ClassVar[str] = f"remove its folder and run `vitrail index`, {OR_EXACT}"

    library: str = LIBRARY
    library_version: str
    metric: str = METRIC
    features: str
    column: str
    vector_size: int
    num_lists: int
    centroids: str
    finished: bool = False
    probes: int = 0
    recall: float | None = None
    recall_queries: int = 0
    parts: list[IndexPart] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """The number of vectors in the index."""
        return sum(part.rows for part in self.parts)


def index_folder(stored: StoredFeatures, column: str) -> Path:
    """Return the folder of the index of a column. Raises VitrailError if the name of the column is not a plain name."""
    if not column.isidentifier():  # a file from elsewhere could name a path
        raise VitrailError(f"found a column {column!r}; expected a name of letters, digits and underscores.")
    return stored.folder / INDEX / column


def read_record(stored: StoredFeatures, column: str) -> IndexRecord | None:
    """Return the record of the index of a column, or None if there is none.

    Raises VitrailError if the index belongs to other features, or another library has written it.
    """
    folder = index_folder(stored, column)
    if not (folder / RECORD).is_file():
        return None
    record = IndexRecord.read(folder / RECORD)
    found = f"{record.library} for the {record.metric} of {record.column}, {record.vector_size} numbers"
    expected = f"{LIBRARY} for the {METRIC} of {column}, {stored.vector_size(column)} numbers"
    if found != expected:
        raise VitrailError(
            f"{folder} is an index by {found}; expected {expected}: remove the folder and run `vitrail index`, {OR_EXACT}."
        )
    if record.features != stored.fingerprint:
        raise VitrailError(
            f"{folder} is the index of other features (fingerprint {record.features[:12]}…; these have {stored.fingerprint[:12]}…): remove "
            f"the folder and run `vitrail index`, {OR_EXACT}."
        )
    is_searched = record.probes > 0
    if (
        not 0 <= record.probes <= record.num_lists
        or (record.recall is not None) != is_searched
        or not 0 <= (record.recall or 0) <= 1
        or (record.finished and not is_searched)
    ):
        raise CorruptFileError(
            f"{folder / RECORD} has probes {record.probes} of {record.num_lists} lists and recall {record.recall}, which do not go "
            f"together: remove the folder and run `vitrail index`, {OR_EXACT}."
        )
    return record


def current_parts(stored: StoredFeatures, record: IndexRecord) -> tuple[list[IndexPart], list[Shard]]:
    """Return the parts whose feature files are unchanged and in no part before, and the feature files that are in none of these parts."""
    missing = {shard.sha256: shard for shard in stored.manifest.shards if shard.sha256 is not None}
    parts = []
    for part in record.parts:
        names = set(part.feature_files)
        if missing.keys() >= names and part.rows == sum(missing[name].rows for name in names):
            parts.append(part)
            for name in names:
                del missing[name]
    return parts, list(missing.values())


def import_faiss(folder: Path) -> ModuleType:
    """Return FAISS; `folder` is the index that needs it. Raises VitrailError if it is not installed."""
    if find_spec("faiss") is None:
        raise VitrailError(f"{folder} needs a package that is not installed (faiss): {install_command('search')}, {OR_EXACT}.")
    import faiss

    return faiss


class VectorIndex:
    """The index of a column, opened for searching.

    parts, missing: of `current_parts`; at least one part.

    Raises:
        VitrailError: FAISS is not installed.
        CorruptFileError: a file is missing, or damaged.
    """

    def __init__(self, stored: StoredFeatures, record: IndexRecord, parts: list[IndexPart], missing: list[Shard]) -> None:
        self.folder = index_folder(stored, record.column)
        self.record, self.parts, self.missing = record, parts, missing
        self._faiss = faiss = import_faiss(self.folder)
        file = self.folder / CENTROIDS
        if not file.is_file() or sha256(file) != record.centroids:
            raise CorruptFileError(f"{file} is missing or damaged: run `vitrail index` to write the index again, {OR_EXACT}.")
        self.ivf = read_faiss(file, faiss.read_index)
        if (self.ivf.nlist, self.ivf.d) != (record.num_lists, record.vector_size):
            raise CorruptFileError(
                f"{self.folder / RECORD} has {count(record.num_lists, 'list')} of {count(record.vector_size, 'number')}; {CENTROIDS} has "
                f"{self.ivf.nlist} of {self.ivf.d}: remove the folder and run `vitrail index`, {OR_EXACT}."
            )
        flags = 0 if os.name == "nt" else faiss.IO_FLAG_MMAP  # FAISS does not map files on Windows
        self._parts = [self._open(part, faiss, flags) for part in self.parts]
        pointers = faiss.InvertedListsPtrVector()
        for lists in self._parts:
            pointers.push_back(lists)
        self._stacked = faiss.HStackInvertedLists(pointers.size(), pointers.data())  # FAISS owns neither these nor the parts
        self.ivf.replace_invlists(self._stacked, False)
        self.ivf.ntotal = len(self)
        self.ivf.nprobe = record.probes

    def _open(self, part: IndexPart, faiss: ModuleType, flags: int) -> Any:
        file = self.folder / part.file
        size = file.stat().st_size if file.is_file() else None
        if size != part.bytes:
            found = "is missing" if size is None else f"has {count(size, 'byte')}; expected {part.bytes}"
            raise CorruptFileError(f"{file} {found}: run `vitrail index` to write it again, {OR_EXACT}.")
        lists = read_faiss(file, lambda name: faiss.read_InvertedLists(faiss.FileIOReader(name), flags))
        if (lists.nlist, lists.code_size, lists.compute_ntotal()) != (self.ivf.nlist, self.ivf.code_size, part.rows):
            raise CorruptFileError(f"{file} does not fit {CENTROIDS}: run `vitrail index` to write it again, {OR_EXACT}.")
        return lists

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids, int64, and cosines of the k nearest vectors of each query, both (Q, k), or of all vectors if there are fewer.

        More lists are read until k vectors are found.

        queries: normalized, (Q, D) float32.
        """
        k, probes = min(k, len(self)), self.record.probes
        while True:
            self.ivf.nprobe = probes
            cosines, ids = self.ivf.search(queries, k)
            if probes >= self.ivf.nlist or (ids >= 0).all():
                return ids, cosines
            probes = min(2 * probes, self.ivf.nlist)

    def list_sizes(self) -> np.ndarray:
        """Return the number of rows of each list, (num_lists,) int64."""
        return np.array([self._stacked.list_size(number) for number in range(self.ivf.nlist)])

    def rows_of(self, numbers: Iterable[int]) -> tuple[np.ndarray, torch.Tensor]:
        """Return the ids, (n,) int64, and the vectors, (n, D) float32, of lists, one after the other."""
        ids, vectors = [np.empty(0, np.int64)], [np.empty((0, self.ivf.d), np.float16)]
        for number, lists in itertools.product(numbers, self._parts):
            if size := lists.list_size(number):  # an empty list has no memory
                ids.append(self._faiss.rev_swig_ptr(lists.get_ids(number), size))
                codes = self._faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
                vectors.append(codes.view(np.float16).reshape(size, -1))
        return np.concatenate(ids), torch.from_numpy(np.concatenate(vectors)).float()

    def readers(self, vectors: torch.Tensor, lists: np.ndarray, cosine: float) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each list, and the rows of `vectors` that find their pairs with at least this cosine in it.

        Let x and y be a pair, in the lists of the centroids b and c. A plane of equal products with b and c separates the lists, and x or y
        is within |x - y| / 2 of it: x (b - c) <= |x - y| |b - c| / 2, or the same of y. Such rows read the list of the other one. Only the
        lists of the `PAIR_LISTS` centroids nearest to b are read, or of more if a search reads more.

        vectors: normalized, (n, D) float32.
        lists: the numbers of their lists, (n,).
        """
        centroids = torch.from_numpy(self.ivf.quantizer.reconstruct_n(0, self.ivf.nlist))
        all_rows, all_numbers = [], []
        for own in np.unique(lists).tolist():
            members = np.flatnonzero(lists == own)
            products = centroids @ centroids[own]
            products[own] = torch.inf  # there may be many equal centroids
            near = products.topk(min(max(PAIR_LISTS, self.record.probes), len(centroids))).indices
            away = centroids[own] - centroids[near]
            reads = vectors[members] @ away.T <= math.sqrt(2 - 2 * cosine) / 2 * away.norm(dim=1) + ROUNDING
            found, columns = torch.nonzero(reads, as_tuple=True)
            all_rows.append(members[found.numpy()])
            all_numbers.append(near[columns].numpy())
        rows, numbers = np.concatenate(all_rows), np.concatenate(all_numbers)
        order = np.argsort(numbers, kind="stable")
        read, starts = np.unique(numbers[order], return_index=True)
        yield from zip(read.tolist(), np.split(rows[order], starts[1:]), strict=True)


def read_faiss(file: Path, read: Any) -> Any:
    """Return what a function of FAISS reads from a file. Raises CorruptFileError instead of its RuntimeError."""
    try:
        return read(str(file))
    except RuntimeError as error:
        raise CorruptFileError(f"{file} cannot be read by FAISS: run `vitrail index` to write it again, {OR_EXACT}.") from error


def open_index(stored: StoredFeatures, column: str) -> tuple[VectorIndex | None, str | None]:
    """Return the index of a column, and a warning; None if there is none, it was never finished, or all its rows were written again.

    Raises VitrailError if the index belongs to other features, is damaged, or needs FAISS.
    """
    record = read_record(stored, column)
    if record is None:
        return None, None
    folder = index_folder(stored, column)
    if not record.finished and not record.probes:
        return None, f"{folder} is not finished, and all vectors are searched: run `vitrail index` to finish it."
    parts, missing = current_parts(stored, record)
    rows = count(sum(shard.rows for shard in missing), "row")
    warning = (
        f"{folder} is stale: it lacks {rows}, which are searched exactly. Run `vitrail index` to add them." if missing else None
    )
    return VectorIndex(stored, record, parts, missing) if parts else None, warning
