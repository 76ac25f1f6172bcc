"""Building the index of a column of vectors, in bounded memory: k-means on a sample, then one file for some hundred thousand rows.

A part is complete or absent, and recorded when it is complete. A repeated run adds the feature files that are in no part.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.atomic import is_temporary, replaced
from ..utils.hashing import digest, sha256
from ..utils.optional import check_packages
from ..utils.progress import progress_bar
from ..utils.run_folder import RunFolder, writing
from .manifest import Shard
from .neighbors import nearest_in_chunks
from .search import unit_chunks, unit_vectors
from .store import StoredFeatures
from .vector_index import (
    CENTROIDS,
    RECORD,
    IndexPart,
    IndexRecord,
    VectorIndex,
    current_parts,
    import_faiss,
    index_folder,
    read_faiss,
    read_record,
)

LISTS_PER_ROOT = 2  # times the root of the rows is the number of lists: as many centroids are read as vectors of some lists
SAMPLE_PER_LIST = 64  # vectors that k-means sees; FAISS asks for 39 to 256
SAMPLE_BYTES = 256 * 2**20  # of the vectors that k-means sees, at most
PART_BYTES = 256 * 2**20  # of vectors in one file
SEED = 0
NUM_QUERIES, NEIGHBORS = 256, 10  # of the measurement of recall
MIN_RECALL = 0.98  # probes are doubled until it is reached
MIN_PROBES = 8
# Cosines that differ by less are equal: 5 standard deviations of the rounding to float16, of vectors of 32 to 1,024 numbers
TIE = 2**-9  # divided by the root of the length of the vectors


@dataclass(frozen=True)
class IndexReport:
    """The outcome of `build_index`: the folder, the content of its record, and the number of rows that this call has added."""

    folder: Path
    record: IndexRecord
    added: int


def build_index(stored: StoredFeatures, *, column: str | None = None, progress: bool = True) -> IndexReport:
    """Build the index that `find_similar` and `find_duplicates` use, or add the rows that it lacks.

    After an interruption, the same call continues, and searches find the same neighbors as after an uninterrupted one. The index is in the
    folder of the features, in `index/COLUMN`; removing that folder removes the index.

    Args:
        stored: the features.
        column: column of vectors; by default the first one.
        progress: show progress bars.

    Raises VitrailError: FAISS is not installed; the column holds no vectors; the index belongs to other features, or another run writes it.
    """
    check_packages(("faiss",), extra="search")
    column = stored.vector_column(column)
    folder = index_folder(stored, column)
    with RunFolder(folder, settings_name=RECORD, temporary_names=(CENTROIDS,)).lock():
        record = read_record(stored, column)
        _remove_incomplete(folder)
        if record is None or not _is_whole(folder / CENTROIDS, record.centroids):
            record = _train(stored, column)
        before = len(record.parts)
        parts, _ = current_parts(stored, record)
        record.parts = [part for part in parts if _is_whole(folder / part.file, part.sha256)]
        _, missing = current_parts(stored, record)
        if missing or len(record.parts) != before or not record.finished:
            record.finished = False
            record.write(folder / RECORD)
        with progress_bar(
            "index", sum(shard.rows for shard in missing), unit="vectors", wanted=progress and bool(missing)
        ) as advance:
            for shards in _groups(missing, record):
                record.parts.append(_write_part(stored, record, shards))
                record.write(folder / RECORD)
                advance(record.parts[-1].rows)
        for file in {path.name for path in folder.glob("part-*.faiss")} - {part.file for part in record.parts}:
            (folder / file).unlink()
        if not record.finished:
            _measure(stored, record)
            record.write(folder / RECORD)
    return IndexReport(folder, record, sum(shard.rows for shard in missing))


def _remove_incomplete(folder: Path) -> None:
    """Remove the temporary files of a run that was killed."""
    for path in folder.iterdir():
        if is_temporary(path.name):
            path.unlink()


def _is_whole(file: Path, expected: str) -> bool:
    return file.is_file() and sha256(file) == expected


def _sample(stored: StoredFeatures, column: str, number: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return the ids and normalized vectors of random rows, or of all rows if there are fewer."""
    rows = np.random.default_rng(SEED).choice(len(stored), min(number, len(stored)), replace=False)
    ids, vectors = stored.sample(np.sort(rows), column)
    return ids, unit_vectors(stored, ids, vectors)


def _train(stored: StoredFeatures, column: str) -> IndexRecord:
    """Write the centroids; return the record of an index without rows."""
    folder, size = index_folder(stored, column), stored.vector_size(column)
    faiss = import_faiss(folder)
    num_lists = math.ceil(LISTS_PER_ROOT * math.sqrt(len(stored)))
    num_lists = max(1, min(num_lists, len(stored), SAMPLE_BYTES // (4 * size * SAMPLE_PER_LIST)))
    _, sample = _sample(stored, column, num_lists * SAMPLE_PER_LIST)
    ivf = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(size), size, num_lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    ivf.cp.seed, ivf.cp.min_points_per_centroid = SEED + 1, 1  # FAISS prints a warning if there are fewer points
    ivf.train(sample.numpy())
    _write_file(folder / CENTROIDS, lambda writer: faiss.write_index(ivf, writer))
    return IndexRecord(
        library_version=faiss.__version__,
        features=stored.fingerprint,
        column=column,
        vector_size=size,
        num_lists=num_lists,
        centroids=sha256(folder / CENTROIDS),
    )


def _groups(shards: list[Shard], record: IndexRecord) -> Iterator[list[Shard]]:
    """Yield the feature files of each part."""
    most = PART_BYTES // (2 * record.vector_size + 8)
    group: list[Shard] = []
    for shard in shards:
        if group and sum(one.rows for one in group) + shard.rows > most:
            yield group
            group = []
        group.append(shard)
    if group:
        yield group


def _write_part(stored: StoredFeatures, record: IndexRecord, shards: list[Shard]) -> IndexPart:
    folder = index_folder(stored, record.column)
    faiss = import_faiss(folder)
    ivf = read_faiss(folder / CENTROIDS, faiss.read_index)
    for ids, vectors in unit_chunks(stored, record.column, shards=shards):
        ivf.add_with_ids(vectors.numpy(), ids)
    feature_files = [shard.sha256 for shard in shards if shard.sha256 is not None]
    file = folder / f"part-{digest([record.centroids, *feature_files])[:16]}.faiss"
    _write_file(file, lambda writer: faiss.write_InvertedLists(ivf.invlists, writer))
    return IndexPart(file=file.name, rows=ivf.ntotal, bytes=file.stat().st_size, sha256=sha256(file), feature_files=feature_files)


def _write_file(file: Path, write: Callable[[Any], None]) -> None:
    """Write a file by a function of FAISS. Python opens it, because FAISS does not report errors of closing it, as on a full disk.

    Raises VitrailError if the file cannot be written.
    """
    with writing(str(file)), replaced(file) as temporary, open(temporary, "wb") as stream:
        write(import_faiss(file.parent).PyCallbackIOWriter(stream.write))


def _measure(stored: StoredFeatures, record: IndexRecord) -> None:
    """Set the number of probes that reaches MIN_RECALL, and the recall. A query is a stored row, and no neighbor of itself."""
    own, queries = _sample(stored, record.column, NUM_QUERIES)
    exact = _neighbors(own, *nearest_in_chunks(queries, unit_chunks(stored, record.column), k=NEIGHBORS + 1))
    record.finished, record.recall_queries, record.probes = True, len(own), min(MIN_PROBES, record.num_lists)
    index = VectorIndex(stored, record, *current_parts(stored, record))
    while True:
        ids, cosines = index.search(queries.numpy(), NEIGHBORS + 1)
        record.recall = _recall(exact, _neighbors(own, cosines, ids), TIE / math.sqrt(record.vector_size))
        if record.recall >= MIN_RECALL or record.probes >= record.num_lists:
            return
        record.probes = min(2 * record.probes, record.num_lists)


def _neighbors(own: np.ndarray, cosines: Any, ids: Any) -> list[np.ndarray]:
    """Return the cosines of the nearest neighbors of each row, descending, without the row itself."""
    found = zip(own, np.asarray(cosines), np.asarray(ids), strict=True)
    return [values[near != number][:NEIGHBORS] for number, values, near in found]


def _recall(exact: list[np.ndarray], found: list[np.ndarray], tolerance: float) -> float:
    """Return the share of the exact neighbors that were found. Vectors that are as near as the last of them, such as equal ones, count."""
    shares = [(near[-1] - tolerance <= other).mean() for near, other in zip(exact, found, strict=True) if len(near)]
    return round(float(np.mean(shares)), 4) if shares else 1.0
