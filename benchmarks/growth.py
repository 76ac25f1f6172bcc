"""How time and memory grow with the number of rows and files: each step at a hundredth, a tenth, and all of a million rows.

Each step runs in a new process, at each size. `seconds` is its time without imports; `peak_mb` is the peak of resident memory of its
process, with libraries and the pages of memory-mapped files. The ratios divide by the size before, ten times as small: time that is linear
in the rows has a ratio of at most 10, and memory that does not grow has 1. `above` names what grows faster: "time" if the last ratio of
times is above 11, "memory" if the last ratio of peaks is above 1.1.

extract, report: images of 32 pixels in Parquet files of 4,096 rows, 64 different ones over and over, by a model of one block of 384
dimensions. index, similar, duplicates, k-NN: vectors of 384 numbers in clusters, of `benchmarks.search`. files: records of files with one
row each, a twentieth of the number of rows, so that a million rows stand for the files of a hundred million rows. Every hundredth file has
an image that could not be used.
"""

import io
import itertools
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .convert import peak_memory
from .extract import PHOTOS
from .search import ROWS, SIZE, clustered, write_features

Work = Callable[[Path, int], float | None]
STEPS_OF_TEN = 3
IMAGES, PIXELS, SOURCE_ROWS = 64, 32, 4096
ROWS_PER_FILE = 20  # rows of the suite for each file of the steps about files
ONE_UNREADABLE_IN = 100  # files
IMPORTED = (
    "torch",
    "faiss",
    "sklearn.manifold",
    "vitrail.evaluation.knn",
    "vitrail.features.indexing",
    "vitrail.visualization.report.page",
)
QUERIES, TOP, CLASSES = 21, 15, 1000
BATCH_SIZE = 32  # so small a model is slower with the batches that suit a ViT-S
MAX_TIME, MAX_MEMORY = 11.0, 1.1  # ratios that are not above linear, and flat


# Steps: each takes the folder of its size and the number of rows, and returns seconds, if not all of its time counts


def make_images(folder: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    chance, images = random.Random(0), []
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    for number in range(IMAGES):
        photo = photos[number % len(photos)]
        left, top = chance.uniform(0, photo.width / 2), chance.uniform(0, photo.height / 2)
        crop = photo.resize((PIXELS, PIXELS), box=(left, top, left + photo.width / 2, top + photo.height / 2))
        crop.save(buffer := io.BytesIO(), "JPEG")
        images.append(buffer.getvalue())
    (folder / "images").mkdir(parents=True)
    for start in range(0, rows, SOURCE_ROWS):
        numbers = range(start, min(start + SOURCE_ROWS, rows))
        table = pa.table({"image": [{"bytes": images[number % IMAGES], "path": f"{number:09d}.jpg"} for number in numbers]})
        pq.write_table(table, folder / "images" / f"{start // SOURCE_ROWS:05d}.parquet")


def extract(folder: Path, rows: int) -> None:
    import torch

    import vitrail

    torch.manual_seed(0)
    config = vitrail.ViTConfig(
        hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=6, intermediate_size=4 * SIZE, image_size=PIXELS, patch_size=16
    )
    model, image_processor = vitrail.ViTModel(config).eval(), vitrail.make_image_processor("google-hub", image_size=PIXELS)
    vitrail.save(model, image_processor, folder / "model", code=False)
    model, image_processor, _ = vitrail.load(folder / "model")
    images = vitrail.read_images(folder / "images")
    done = vitrail.extract(
        model,
        image_processor,
        images,
        folder / "extracted",
        batch_size=BATCH_SIZE,
        model_name=str(folder / "model"),
        progress=False,
    )
    assert done.rows == rows


def report(folder: Path, rows: int) -> None:
    import vitrail

    assert vitrail.make_report(folder / "extracted").num_images == min(rows, 400)


def write(folder: Path, rows: int) -> None:
    (folder / "features").mkdir(parents=True)
    write_features(folder / "features", rows)


def build_index(folder: Path, rows: int) -> None:
    import vitrail

    vitrail.build_index(vitrail.StoredFeatures(folder / "features"), progress=False)


def similar(folder: Path, *, exact: bool) -> tuple[float, float]:
    """Seconds of the first search, in which the features are opened, and the median of the following ones."""
    import torch
    import torch.nn.functional as F

    import vitrail
    from vitrail.features.search import find_neighbors

    queries, times = F.normalize(torch.from_numpy(clustered(QUERIES, 1)), dim=1), []
    start = time.perf_counter()
    stored = vitrail.StoredFeatures(folder / "features")
    for query in queries[: 4 if exact else QUERIES]:
        stored.paths_of(find_neighbors(stored, query[None], k=TOP, exact=exact).ids)
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    return times[0], statistics.median(times[1:])


def similar_exact(folder: Path, rows: int) -> float:
    return similar(folder, exact=True)[1]


def similar_first(folder: Path, rows: int) -> float:
    return similar(folder, exact=False)[0]


def similar_next(folder: Path, rows: int) -> float:
    return similar(folder, exact=False)[1]


def duplicates(folder: Path, rows: int, *, exact: bool = False) -> None:
    import vitrail

    vitrail.find_duplicates(vitrail.StoredFeatures(folder / "features"), exact=exact, progress=False)


def duplicates_exact(folder: Path, rows: int) -> None:
    duplicates(folder, rows, exact=True)


def knn(folder: Path, rows: int) -> float:
    import numpy as np

    import vitrail
    from vitrail.evaluation.knn import knn_classify

    tokens = np.lib.format.open_memmap(
        folder / "tokens.npy", "w+", np.float32, (rows, SIZE)
    )  # as the cache of evaluations keeps them
    start = 0
    for ids, vectors in vitrail.StoredFeatures(folder / "features").chunks():
        tokens[start : start + len(ids)] = vectors
        start += len(ids)
    del tokens
    labels = np.random.default_rng(0).integers(CLASSES, size=rows)
    begin = time.perf_counter()
    knn_classify(np.load(folder / "tokens.npy", mmap_mode="r"), labels, clustered(1000, 1), num_classes=CLASSES)
    return time.perf_counter() - begin


def num_files(rows: int) -> int:
    return max(1, rows // ROWS_PER_FILE)


def write_files(folder: Path, rows: int) -> None:
    """Write files and records as an extraction that is about to end leaves them, without waiting for the disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vitrail.data.entries import row_id
    from vitrail.features.manifest import FinishedChunk, Shard, UnreadableRow
    from vitrail.features.store import Column, FeatureFolder, schema_of
    from vitrail.utils.hashing import sha256

    path = folder / "files"
    path.mkdir(parents=True)
    target = FeatureFolder(path)
    target.begin(
        {"vitrail": "", "model": "", "collection": {"source": ""}, "features": ["pooled"], "dtype": "float32", "shard_size": 2}
    )
    schema = schema_of([Column("pooled", 4)], dtype="float32", label_type=None)
    for number in range(num_files(rows)):
        shard, unreadable = Shard(partition=0, number=number, file=f"data/part-000000-{number:06d}.parquet", rows=1), []
        table = pa.table([[2 * number], [f"{number:09d}.jpg"], [[float(number), 1.0, 2.0, 3.0]]], schema=schema)
        pq.write_table(table, path / shard.file)
        shard.bytes, shard.sha256 = (path / shard.file).stat().st_size, sha256(path / shard.file)
        if number % ONE_UNREADABLE_IN == 0:
            shard.errors = 1
            unreadable = [UnreadableRow(id=row_id(0, 2 * number + 1), path=f"{number:09d}.jpg", reason="it ends early")]
        record = FinishedChunk(shard=shard, unreadable=unreadable)
        (target.progress / f"chunk-000000-{number:06d}.json").write_text(json.dumps(record.to_dict()), encoding="utf-8")
    target.end_partition(0, 2 * num_files(rows))


def settle(folder: Path, rows: int) -> None:
    from vitrail.features.store import FeatureFolder

    FeatureFolder(folder / "files").settle(finished=False)


def resume(folder: Path, rows: int) -> None:
    from vitrail.features.store import FeatureFolder

    assert len(FeatureFolder(folder / "files").finished_chunks(resumed=True)) == num_files(rows)


def finish(folder: Path, rows: int) -> None:
    from vitrail.features.store import FeatureFolder

    FeatureFolder(folder / "files").settle(finished=True)


def open_files(folder: Path, rows: int) -> None:
    import vitrail

    vitrail.StoredFeatures(folder / "files")


def read_files(folder: Path, rows: int) -> None:
    import vitrail

    stored = vitrail.StoredFeatures(folder / "files")
    assert sum(len(ids) for ids, _ in stored.chunks()) == len(stored)


def find_rows(folder: Path, rows: int) -> None:
    import vitrail

    ids = range(0, 2 * num_files(rows), 2)[:TOP]
    assert len(vitrail.StoredFeatures(folder / "files").paths_of(ids)) == len(ids)


@dataclass(frozen=True)
class Step:
    """A step: its name, its work, and the largest number of rows that it runs with, with the reason; `shown`: whether it has a row."""

    name: str
    work: Work
    most: int | None = None
    why: str = ""
    shown: bool = True


STEPS = (
    Step("make images", make_images, shown=False),
    Step("extract", extract),
    Step("report", report),
    Step("write features", write),
    Step("index", build_index),
    Step("similar, index, first search", similar_first),
    Step("similar, index, following searches", similar_next),
    Step("similar, exact", similar_exact),
    Step("duplicates, index", duplicates),
    Step("duplicates, exact", duplicates_exact, 20_000, "compares all pairs"),
    Step("k-NN of 1,000 images", knn),
    Step("make files", write_files, shown=False),
    Step("files: settle records", settle),
    Step("files: compare when resumed", resume),
    Step("files: finish", finish),
    Step("files: open", open_files),
    Step("files: read all", read_files),
    Step("files: find 15 rows", find_rows),
)


def measure(work: Work, folder: Path, rows: int) -> tuple[float, float]:
    """Run a step in this process; return seconds and the peak of memory in MB."""
    start = time.perf_counter()
    counted = work(folder, rows)
    return time.perf_counter() - start if counted is None else counted, peak_memory() / 1e6


def row_of(step: Step, sizes: list[int], measured: list[tuple[float, float]]) -> dict[str, Any]:
    """The row of a step: what it measured at each size, and the ratios of following sizes."""
    times, peaks = zip(*measured, strict=True)
    time_ratios, memory_ratios = ratios(times), ratios(peaks)
    above = [
        name
        for name, found, most in (("time", time_ratios, MAX_TIME), ("memory", memory_ratios, MAX_MEMORY))
        if found and found[-1] > most
    ]
    return {
        "step": step.name,
        "rows": ", ".join(f"{rows:,}".replace(",", " ") for rows in sizes),
        "seconds": ", ".join(f"{taken:.3g}" for taken in times),
        "time_ratio": ", ".join(f"{ratio:.1f}" for ratio in time_ratios),
        "peak_mb": ", ".join(f"{peak:.0f}" for peak in peaks),
        "memory_ratio": ", ".join(f"{ratio:.2f}" for ratio in memory_ratios),
        "above": " and ".join(above),
        "stops_early": step.why,
    }


def ratios(values: Iterable[float]) -> list[float]:
    return [later / before for before, later in itertools.pairwise(values)]


def run(rows: int = ROWS) -> list[dict[str, Any]]:
    """One row for each step."""
    sizes = [rows // 10**power for power in reversed(range(STEPS_OF_TEN))]
    processes = multiprocessing.get_context("forkserver")  # imports once; the peak of each process is its own
    processes.set_forkserver_preload(list(IMPORTED))
    measured: dict[Step, list[tuple[float, float]]] = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            folder = Path(temporary, str(size))
            for step in STEPS:
                if step.most is None or size <= step.most:
                    start = time.perf_counter()
                    with ProcessPoolExecutor(1, mp_context=processes) as process:
                        seconds, peak = process.submit(measure, step.work, folder, size).result()
                    measured[step].append((seconds, peak))
                    text = f"{step.name}, {size} rows: {seconds:.3g} s, {peak:.0f} MB"
                    print(f"{text}; with its process {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return [row_of(step, sizes[: len(found)], found) for step, found in measured.items() if step.shown and found]
