"""Search in stored features: the index, exact search, and FAISS used directly, each in a new process.

Vectors in 1,000 clusters of 32 dimensions with noise, as features of 2,048 rows a file. A process imports vitrail, opens the features, and
searches for the nearest 15; `first_ms` is the first search, in which files are opened, and `ms` the median of the following ones. `peak_mb`
is the peak of resident memory, pages of memory-mapped files and the libraries included; `recall` is that of the 10 nearest. FAISS used
directly holds all vectors in float32 in one IndexIVFFlat with as many lists, and reads as many of them; its vectors are read before.
The queries are new vectors of the same clusters.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .convert import peak_memory

if TYPE_CHECKING:
    import numpy as np

    from vitrail.features.store import StoredFeatures

ROWS, SIZE, SHARD = 1_000_000, 384, 2048
CLUSTERS, DIMENSIONS = 1000, 32
QUERIES, TOP, NEIGHBORS = 20, 15, 10
EXACT_QUERIES = 5  # whose neighbors exact search measures; one takes seconds


def clustered(number: int, seed: int) -> "np.ndarray":
    """Vectors of the clusters, which are the same for every seed."""
    import numpy as np

    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centers = fixed.standard_normal((CLUSTERS, DIMENSIONS), np.float32)
    directions = fixed.standard_normal((DIMENSIONS, SIZE), np.float32)
    latent = centers[rng.integers(CLUSTERS, size=number)] + 0.5 * rng.standard_normal((number, DIMENSIONS), np.float32)
    return latent @ directions + 0.5 * rng.standard_normal((number, SIZE), np.float32)


def write_features(folder: Path, rows: int) -> "StoredFeatures":
    """Write features of `rows` images that do not exist."""
    from vitrail.data.entries import ImageEntry
    from vitrail.data.reader import Chunk
    from vitrail.features.store import ChunkWriter, Column, FeatureFolder, StoredFeatures, schema_of

    target = FeatureFolder(folder)
    target.begin(
        {"vitrail": "", "model": "", "collection": {"source": ""}, "features": ["pooled"], "dtype": "float32", "shard_size": SHARD}
    )
    schema = schema_of([Column("pooled", SIZE)], dtype="float32", label_type=None)
    for number, start in enumerate(range(0, rows, SHARD)):
        entries = [ImageEntry(row, f"{row:09d}.jpg") for row in range(start, min(start + SHARD, rows))]
        writer = ChunkWriter(target, Chunk(0, number), schema, first_row=start)
        writer.add(entries, {"pooled": clustered(len(entries), number + 2)})
        writer.finish()
    target.end_partition(0, rows)
    target.settle(finished=True)
    return StoredFeatures(folder)


def measure(way: str, folder: Path) -> dict[str, Any]:
    """Search in this process."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    import vitrail
    from vitrail.features.search import find_neighbors
    from vitrail.features.vector_index import read_record

    queries = F.normalize(torch.from_numpy(clustered(QUERIES, 1)), dim=1)
    start = time.perf_counter()
    stored = vitrail.StoredFeatures(folder)
    if way == "FAISS":
        import faiss

        record = read_record(stored, "pooled")
        assert record is not None
        vectors = stored.vectors()
        faiss.normalize_L2(vectors)
        sample = vectors[np.random.default_rng(0).choice(len(vectors), min(64 * record.num_lists, len(vectors)), replace=False)]
        start = time.perf_counter()
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(SIZE), SIZE, record.num_lists, faiss.METRIC_INNER_PRODUCT)
        ivf.train(sample)
        ivf.add(vectors)
        built = time.perf_counter() - start
        ivf.nprobe = record.probes
        start = time.perf_counter()

    times, found = [], []
    for query in queries[: EXACT_QUERIES if way == "exact" else QUERIES]:
        if way == "FAISS":
            ids = ivf.search(query[None].numpy(), TOP)[1][0]
        else:
            ids = find_neighbors(stored, query[None], k=TOP, exact=way == "exact").ids
            stored.paths_of(ids)
        times.append(time.perf_counter() - start)
        found.append(ids.tolist())
        start = time.perf_counter()
    return {
        "build_s": round(built, 1) if way == "FAISS" else None,
        "first_ms": round(1000 * times[0], 1),
        "ms": round(1000 * statistics.median(times[1:]), 1),
        "peak_mb": round(peak_memory() / 1e6),
        "found": found,
    }


def build(folder: Path) -> dict[str, Any]:
    """Build the index in this process."""
    import vitrail

    stored, start = vitrail.StoredFeatures(folder), time.perf_counter()
    record = vitrail.build_index(stored, progress=False).record
    return {
        "build_s": round(time.perf_counter() - start, 1),
        "peak_mb": round(peak_memory() / 1e6),
        "recall": record.recall,
        "lists": record.num_lists,
        "probes": record.probes,
        "mb": round(sum(file.stat().st_size for file in (folder / "index").rglob("*.faiss")) / 1e6),
    }


def in_new_process(function: str, *arguments: Any) -> dict[str, Any]:
    """Call a function of this module in a process that has imported nothing."""
    program = f"import json, sys; from benchmarks.search import *; print(json.dumps({function}(*map(eval, sys.argv[1:]))))"
    command = [sys.executable, "-c", program, *(f"Path({str(one)!r})" if isinstance(one, Path) else repr(one) for one in arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return json.loads(ended.stdout.splitlines()[-1])


def write(rows: int, folder: Path) -> dict[str, Any]:
    """Write the features in this process."""
    folder.mkdir()
    return {"rows": len(write_features(folder, rows))}


def run(rows: int = ROWS) -> list[dict[str, Any]]:
    """One row for building, and one for each way to search."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "features")
        in_new_process("write", rows, folder)
        built = in_new_process("build", folder)
        measured = {way: in_new_process("measure", way, folder) for way in ("exact", "index", "FAISS")}
    exact = [set(ids[:NEIGHBORS]) for ids in measured["exact"]["found"]]
    names = {"exact": "vitrail, exact", "index": "vitrail, index", "FAISS": "FAISS, IndexIVFFlat in memory"}
    results = [
        {
            "way": names[way],
            "rows": rows,
            "first_ms": row["first_ms"],
            "ms": row["ms"],
            "peak_mb": row["peak_mb"],
            "recall": round(
                statistics.mean(len(one & set(ids)) / NEIGHBORS for one, ids in zip(exact, row["found"], strict=False)), 3
            ),
            "build_s": {"exact": "", "index": built["build_s"], "FAISS": row["build_s"]}[way],
        }
        for way, row in measured.items()
    ]
    building = f"vitrail index: {built['lists']} lists, {built['probes']} read, {built['mb']} MB"
    empty = {"first_ms": "", "ms": ""}
    return [
        *results,
        {"way": building, "rows": rows} | empty | {key: built[key] for key in ("peak_mb", "recall", "build_s")},
    ]
