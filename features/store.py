"""Features on disk: Parquet files that any tool reads, a manifest of their settings, and the images that could not be used.

    README.md          a dataset card: `datasets.load_dataset(folder)` gives the features, and with the name "errors" those images
    data/*.parquet     id, path, label (if there are any), and a column for each type of features; rows ascend by id
    errors.parquet     id, path, reason; rows ascend by id
    manifest.json      the settings of the features, and the rows, errors, bytes and SHA-256 of each file

Vectors are fixed-size lists; tensors are lists, with a column of their shapes. During an extraction the folder .progress holds a record of
each finished file: a file is complete or absent. `settle` updates the manifest and the errors. A run locks the empty file .lock, which
stays.
"""

import contextlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from ..data.entries import ImageEntry, row_id
from ..data.reader import Chunk, UnreadableEntry
from ..errors import CorruptFileError, VitrailError
from ..utils.atomic import TEMPORARY_MARK, replaced, synchronize, write_json, write_text
from ..utils.hashing import digest, sha256
from ..utils.records import Record
from ..utils.run_folder import LOCK_NAME, RunFolder
from ..utils.text import count, public_name
from .manifest import FinishedChunk, Manifest, PartitionEnd, Shard, UnreadableRow

MANIFEST, DATA, ERRORS, CARD = "manifest.json", "data", "errors.parquet", "README.md"
PROGRESS = ".progress"
ROW_GROUP = 32 * 2**20  # bytes of features that are kept in memory before they are written
HASHING_THREADS = 8
FILES_AT_A_TIME = 64  # pyarrow keeps the metadata of every file of a data set that it has read
CHUNK_ROWS = 16384  # that are read at a time
NOT_COMPARED = ("vitrail", "model", "collection")  # settings that are places; other settings identify what is there

TENSORS = """
Tensors are flattened; the column with `_shape` after the name has the shape of each: `np.reshape(row["patches"], row["patches_shape"])`.
"""

ERRORS_SCHEMA = pa.schema([("id", pa.int64()), ("path", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Column:
    """A column of features: vectors of a length, or tensors of any shape if the length is None."""

    name: str
    length: int | None


def schema_of(columns: Sequence[Column], *, dtype: str, label_type: str | None) -> pa.Schema:
    """Return the columns of the files; dtype: "float32" or "float16"."""
    number = {"float32": pa.float32(), "float16": pa.float16()}[dtype]
    fields = [("id", pa.int64()), ("path", pa.string())]
    fields += [("label", {"string": pa.string(), "int64": pa.int64()}[label_type])] if label_type else []
    for column in columns:
        if column.length is not None:
            fields.append((column.name, pa.list_(number, column.length)))
        else:
            fields += [(column.name, pa.list_(number)), (f"{column.name}_shape", pa.list_(pa.int32()))]
    return pa.schema(fields)


class FeatureFolder:
    """The folder of features that are being extracted, as any of the processes that write into it sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = path / PROGRESS
        self.run = RunFolder(path, settings_name=MANIFEST, temporary_names=(PROGRESS,), ignored_settings=NOT_COMPARED)

    def begin(self, settings: dict[str, Any], *, batch_size: int | None = None) -> None:
        """Begin an extraction, or resume one with the same settings; remove files that an interruption has left incomplete.

        Raises VitrailError if other features, or other things, are in the folder.
        """
        manifest = self.begun()
        if manifest is None:
            manifest = Manifest(settings=settings)
            if (self.path / DATA).exists():  # of an extraction that has recorded none of its files
                shutil.rmtree(self.path / DATA)
        else:
            self.run.check_settings(settings, manifest.settings)
            manifest.settings = settings
        manifest.batch_size = batch_size
        self.progress.mkdir(exist_ok=True)
        for file in self.progress.glob(f"*{TEMPORARY_MARK}*"):
            file.unlink()
        for mark in self.progress.glob("ray-*"):  # of a run on Ray that was killed
            shutil.rmtree(mark)
        self._write_manifest(manifest)
        (self.path / DATA).mkdir(exist_ok=True)

    def begun(self) -> Manifest | None:
        """Return the manifest of the extraction that was begun here, or None if there is none, or none of its files is complete.

        Raises VitrailError if other things are in the folder.
        """
        if not (self.path / MANIFEST).is_file():
            if not set(os.listdir(self.path)) <= {PROGRESS, LOCK_NAME}:
                raise VitrailError(f"{self.path} holds other things: choose a new or empty output folder.")
            return None
        manifest = self.manifest()
        records = itertools.chain(self.progress.glob("chunk-*.json"), self.progress.glob("partition-*.json"))
        return manifest if manifest.shards or manifest.partitions or any(records) else None

    def manifest(self) -> Manifest:
        """Return the manifest, without what has finished since it was written."""
        return Manifest.read(self.path / MANIFEST)

    def partitions(self) -> dict[int, int]:
        """Return the number of rows of each partition that has been read to its end."""
        return self._partitions(self.manifest(), self.progress.glob("partition-*.json"))

    def finished_chunks(self, *, resumed: bool = False) -> frozenset[Chunk]:
        """Return the chunks whose files are complete. A file that is missing, or has another size, is written again.

        resumed: also compare the files with their digests, and try images again whose stores did not respond.
        """
        shards = _merge(self.manifest(), map(FinishedChunk.read, self.progress.glob("chunk-*.json")))
        if resumed:
            shards = [shard for shard in shards if not shard.unreachable]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:  # all features are read, perhaps from a store far away
            whole = pool.map(lambda shard: self._is_whole(shard, compare=resumed), shards)
            return frozenset(
                Chunk(shard.partition, shard.number) for shard, is_whole in zip(shards, whole, strict=True) if is_whole
            )

    def _partitions(self, manifest: Manifest, files: Iterable[Path]) -> dict[int, int]:
        if unknown := [name for name in manifest.partitions if not name.isdecimal()]:
            raise CorruptFileError(
                f"{self.path / MANIFEST} names a partition {unknown[0]!r}; expected a number. Remove the folder."
            )
        settled = {int(partition): rows for partition, rows in manifest.partitions.items()}
        return settled | {end.partition: end.rows for end in map(PartitionEnd.read, files)}

    def _is_whole(self, shard: Shard, *, compare: bool) -> bool:
        if shard.file is None:
            return True
        file = self.path / shard.file
        return file.is_file() and file.stat().st_size == shard.bytes and (not compare or sha256(file) == shard.sha256)

    def end_partition(self, partition: int, num_rows: int) -> None:
        """Record that a partition has been read to its end, and that all its chunks are complete."""
        self.write(self.progress / f"partition-{partition:06d}.json", PartitionEnd(partition=partition, rows=num_rows))

    def write(self, path: Path, record: Record) -> None:
        """Write a record; several processes may write the same."""
        write_json(path, record.to_dict(), temporary_dir=self.progress)

    def settle(self, *, finished: bool) -> Manifest:
        """Update the manifest and errors.parquet from the records; return the manifest."""
        chunk_files, partition_files = list(self.progress.glob("chunk-*.json")), list(self.progress.glob("partition-*.json"))
        manifest, records = self.manifest(), [FinishedChunk.read(file) for file in chunk_files]
        shards, partitions = _merge(manifest, records), self._partitions(manifest, partition_files)
        errors = self._merge_errors(manifest, records)
        manifest = Manifest(
            finished=finished,
            settings=manifest.settings,
            batch_size=manifest.batch_size,
            rows=sum(shard.rows for shard in shards),
            errors=sum(shard.errors for shard in shards),
            partitions={str(partition): partitions[partition] for partition in sorted(partitions)},
            shards=shards,
        )
        if len(errors) != manifest.errors:
            raise CorruptFileError(
                f"{self.path / ERRORS} lists {len(errors)} unreadable images; expected {manifest.errors}. Remove the folder."
            )
        with replaced(self.path / ERRORS, temporary_dir=self.progress) as temporary:
            pq.write_table(errors, temporary)
        if finished:
            write_text(self.path / CARD, _card(manifest), temporary_dir=self.progress)
        self._write_manifest(manifest)
        if finished:
            shutil.rmtree(self.progress)
        else:
            for file in chunk_files + partition_files:
                file.unlink()
        return manifest

    def errors(self) -> pa.Table:
        """Return the unreadable images, without those that were found since the manifest was written."""
        try:
            return pq.read_table(self.path / ERRORS, schema=ERRORS_SCHEMA)
        except (OSError, pa.ArrowException) as error:
            raise CorruptFileError(f"{self.path / ERRORS} is missing or damaged ({error}): remove the folder.") from error

    def _merge_errors(self, manifest: Manifest, records: Sequence[FinishedChunk]) -> pa.Table:
        """Return the unreadable images by id: those listed before, except of chunks that were written again, and those of the records."""
        found = pa.Table.from_pylist([asdict(row) for record in records for row in record.unreadable], ERRORS_SCHEMA)
        if manifest.errors:
            listed, size = self.errors(), manifest.settings["shard_size"]
            partitions, rows = np.divmod(listed["id"].to_numpy(), row_id(1, 0))
            chunks = row_id(1, 0) * partitions + rows // size
            again = np.isin(chunks, [row_id(record.shard.partition, record.shard.number) for record in records])
            found = pa.concat_tables([listed.filter(pa.array(~again)), found])
        return found.sort_by("id")

    def _write_manifest(self, manifest: Manifest) -> None:
        self.write(self.path / MANIFEST, manifest)


def _merge(manifest: Manifest, records: Iterable[FinishedChunk]) -> list[Shard]:
    """Return the files in order; those of the records replace those of the manifest."""
    shards = {(shard.partition, shard.number): shard for shard in [*manifest.shards, *(record.shard for record in records)]}
    return [shards[chunk] for chunk in sorted(shards)]


class ChunkWriter:
    """Writes the rows of one chunk in the order of their ids, in whatever order they are added. `finish` moves the file into place."""

    def __init__(self, folder: FeatureFolder, chunk: Chunk, schema: pa.Schema, *, first_row: int) -> None:
        self.folder = folder
        self.chunk = chunk
        self.schema = schema
        self.file = f"{DATA}/part-{chunk.partition:06d}-{chunk.number:06d}.parquet"
        self.temporary = folder.progress / f"{chunk.partition:06d}-{chunk.number:06d}.{uuid.uuid4().hex}{TEMPORARY_MARK}"
        self.next_row = first_row
        self.rows: dict[int, tuple[ImageEntry, dict[str, np.ndarray]] | None] = {}  # None without features
        self.unreadable: list[UnreadableRow] = []
        self.held = self.written = 0
        self.writer: pq.ParquetWriter | None = None

    def discard(self) -> None:
        """Remove an unfinished file."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # if the disk is full
                self.writer.close()
        self.temporary.unlink(missing_ok=True)

    def add(self, entries: Sequence[ImageEntry], features: Mapping[str, np.ndarray]) -> None:
        """Add features of images, by column: vectors (B, D), or tensors (B, …)."""
        for index, entry in enumerate(entries):
            self.rows[entry.row] = entry, {name: values[index] for name, values in features.items()}
        self.held += sum(values.nbytes for values in features.values())
        if self.held >= ROW_GROUP:
            self._write()

    def add_unreadable(self, unreadable: UnreadableEntry) -> None:
        """Add an image without features."""
        entry = unreadable.entry
        self.rows[entry.row] = None
        number = row_id(self.chunk.partition, entry.row)
        self.unreadable.append(UnreadableRow(id=number, path=entry.path, reason=unreadable.reason, retry=unreadable.retry))

    def finish(self) -> None:
        """Move the file into place, and then write its record; a chunk without images has neither."""
        self._write()
        if self.writer is None and not self.unreadable:
            return
        unreadable = sorted(self.unreadable, key=lambda row: row.id)
        shard = Shard(
            partition=self.chunk.partition,
            number=self.chunk.number,
            errors=len(unreadable),
            unreachable=sum(row.retry for row in unreadable),
        )
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            shard.file, shard.rows, shard.bytes = self.file, self.written, self.temporary.stat().st_size
            shard.sha256 = sha256(self.temporary)
            synchronize(self.temporary)
            self.temporary.replace(self.folder.path / self.file)
        else:  # of an earlier run, if the images have become unreadable since
            (self.folder.path / self.file).unlink(missing_ok=True)
        record = FinishedChunk(shard=shard, unreadable=unreadable)
        self.folder.write(self.folder.progress / f"chunk-{shard.partition:06d}-{shard.number:06d}.json", record)

    def _write(self) -> None:
        """Write the rows before the first missing row."""
        ready = []
        while self.next_row in self.rows:
            row = self.rows.pop(self.next_row)
            ready += [] if row is None else [row]
            self.next_row += 1
        if not ready:
            return
        table = self._table([entry for entry, _ in ready], [features for _, features in ready])
        if self.writer is None:
            compression = {"id": "zstd", "path": "zstd", "label": "zstd"}
            self.writer = pq.ParquetWriter(
                self.temporary,
                self.schema,
                use_dictionary=["label"],
                compression={name: compression.get(name, "none") for name in self.schema.names},
            )
        self.writer.write_table(table)
        self.written += len(ready)
        self.held = sum(values.nbytes for row in self.rows.values() if row is not None for values in row[1].values())

    def _table(self, entries: list[ImageEntry], features: list[dict[str, np.ndarray]]) -> pa.Table:
        columns: dict[str, Any] = {
            "id": [row_id(self.chunk.partition, entry.row) for entry in entries],
            "path": [entry.path for entry in entries],
            "label": [entry.label for entry in entries],
        }
        for name in features[0]:
            arrays = [row[name] for row in features]
            values = pa.array(np.concatenate([array.reshape(-1) for array in arrays]))
            if pa.types.is_fixed_size_list(self.schema.field(name).type):
                columns[name] = pa.FixedSizeListArray.from_arrays(values, self.schema.field(name).type.list_size)
            else:
                offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
                columns[name] = pa.ListArray.from_arrays(pa.array(offsets), values)
                columns[f"{name}_shape"] = [list(array.shape) for array in arrays]
        return pa.table([pa.array(columns[field.name], field.type) for field in self.schema], schema=self.schema)


class StoredFeatures:
    """Features that `vitrail extract` has written.

    manifest: the settings of the features, and the files.

    Raises VitrailError if the folder holds no features, or the extraction has not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise VitrailError(f"{folder} holds no features: give a folder that `vitrail extract` has written.")
        self.manifest = Manifest.read(self.folder / MANIFEST)
        if not self.manifest.finished:
            raise VitrailError(f"{folder} holds unfinished features: run the same `vitrail extract` command again, to its end.")
        rows = {self.folder / shard.file: shard.rows for shard in self.manifest.shards if shard.file is not None}
        if missing := [str(file) for file in rows if not file.is_file()]:
            raise CorruptFileError(f"{missing[0]} is missing: copy the whole folder again, or extract into a new one.")
        if sum(rows.values()) != self.manifest.rows:
            raise CorruptFileError(
                f"{self.folder / MANIFEST} counts {self.manifest.rows} rows, and {sum(rows.values())} in its files: copy the whole folder "
                "again, or extract into a new one."
            )
        self.dataset = pads.dataset([str(file) for file in rows], format="parquet")

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def has_labels(self) -> bool:
        """Whether the collection has labels."""
        return "label" in self.dataset.schema.names

    @property
    def vector_columns(self) -> tuple[str, ...]:
        """The names of the columns with one vector for each image."""
        return tuple(field.name for field in self.dataset.schema if pa.types.is_fixed_size_list(field.type))

    def vector_column(self, column: str | None = None) -> str:
        """Return the name of a column of vectors, by default the first one. Raises VitrailError if the column holds no vectors."""
        if not self.vector_columns or column not in (None, *self.vector_columns):
            raise VitrailError(
                f"{self.folder} has no vectors {column or ''}".rstrip()
                + f"; found {', '.join(self.vector_columns) or 'tensors only'}: "
                "extract pooled, cls, mean or cls+mean."
            )
        return column or self.vector_columns[0]

    def vector_size(self, column: str | None = None) -> int:
        """Return the length of the vectors of a column."""
        return self.dataset.schema.field(self.vector_column(column)).type.list_size

    def vectors(self, column: str | None = None) -> np.ndarray:
        """Return the vectors of a column, by default the first column of vectors, (N, D) float32; rows ascend by id.

        Raises VitrailError if the column holds no vectors.
        """
        vectors = np.empty((len(self), self.vector_size(column)), dtype=np.float32)
        start = 0
        for ids, chunk in self.chunks(column):
            vectors[start : start + len(ids)] = chunk
            start += len(ids)
        return vectors

    def chunks(
        self, column: str | None = None, *, rows: int = CHUNK_ROWS, shards: Sequence[Shard] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids, (n,) int64, and vectors, (n, D) float32, ascending by id: `rows` at a time, and the rest.

        shards: entries of the manifest whose files are read; None for all files.

        Raises VitrailError if the column holds no vectors.
        """
        column, length = self.vector_column(column), self.vector_size(column)
        ids, vectors, filled = np.empty(rows, np.int64), np.empty((rows, length), np.float32), 0
        for batch in self.batches(["id", column], rows=rows, shards=shards):
            batch_ids = batch.column("id").to_numpy()
            values = batch.column(column).flatten().to_numpy(zero_copy_only=False).reshape(-1, length)
            start = 0
            while start < len(batch):
                number = min(rows - filled, len(batch) - start)
                ids[filled : filled + number] = batch_ids[start : start + number]
                vectors[filled : filled + number] = values[start : start + number]
                start, filled = start + number, filled + number
                if filled == rows:
                    yield ids, vectors
                    ids, vectors, filled = np.empty(rows, np.int64), np.empty((rows, length), np.float32), 0
        if filled:
            yield ids[:filled], vectors[:filled]

    def batches(
        self, columns: Sequence[str], *, rows: int = CHUNK_ROWS, shards: Sequence[Shard] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns, ascending by id, at most `rows` at a time; shards: see `chunks`."""
        files = [str(self.folder / shard.file) for shard in (self.manifest.shards if shards is None else shards) if shard.file]
        for start in range(0, len(files), FILES_AT_A_TIME):
            dataset = pads.dataset(files[start : start + FILES_AT_A_TIME], schema=self.dataset.schema)
            # The defaults read ahead 16 batches of 4 files, which together may take gigabytes
            yield from dataset.to_batches(columns=columns, batch_size=rows, batch_readahead=2, fragment_readahead=1)

    def sample(
        self, rows: np.ndarray, column: str | None = None, *, shards: Sequence[Shard] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids, (n,) int64, and vectors, (n, D) float32, of some rows, by their positions in the order of the ids.

        Only the files that hold these rows are read. shards: the files in which positions count, in order; None for all files.
        """
        ids, vectors = np.empty(len(rows), np.int64), np.empty((len(rows), self.vector_size(column)), np.float32)
        shards, rows = self._holders(rows, self.manifest.shards if shards is None else shards)
        order = np.argsort(rows)
        start = 0
        for chunk_ids, chunk in self.chunks(column, shards=shards):
            here = order[slice(*np.searchsorted(rows, (start, start + len(chunk_ids)), sorter=order))]
            ids[here], vectors[here] = chunk_ids[rows[here] - start], chunk[rows[here] - start]
            start += len(chunk_ids)
        return ids, vectors

    def ids_at(self, rows: np.ndarray, shards: Sequence[Shard]) -> np.ndarray:
        """Return the ids, (n,) int64, of some rows, by their positions among the rows of these files."""
        shards, rows = self._holders(rows, shards)
        ids = [batch.column("id").to_numpy() for batch in self.batches(["id"], shards=shards)]
        return np.concatenate(ids)[rows] if ids else np.empty(0, np.int64)

    def _holders(self, rows: np.ndarray, shards: Sequence[Shard]) -> tuple[list[Shard], np.ndarray]:
        """Return the files that hold some rows, by their positions in these files, and the positions of the rows in the files returned."""
        ends = np.cumsum([shard.rows for shard in shards])
        holders, holder_of = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        found = [shards[holder] for holder in holders]
        left_out = ends[holders] - np.cumsum([shard.rows for shard in found])  # rows before the end of each file
        return found, rows - left_out[holder_of]

    def rows(self, ids: Iterable[int], columns: Sequence[str]) -> pa.Table:
        """Return columns of some rows, in the order of their ids. Only the files that hold these rows are read.

        Raises CorruptFileError if a row does not exist.
        """
        size = self.manifest.settings["shard_size"]
        files = {(shard.partition, shard.number): shard.file for shard in self.manifest.shards}
        wanted = sorted(set(map(int, ids)))
        chunks = {(number >> 32, (number & 0xFFFFFFFF) // size) for number in wanted}
        paths = [str(self.folder / file) for chunk in sorted(chunks) if (file := files.get(chunk)) is not None]
        dataset = pads.dataset(paths, schema=self.dataset.schema)
        table = dataset.to_table(columns=["id", *columns], filter=pads.field("id").isin(wanted))
        if len(table) != len(wanted):
            raise CorruptFileError(
                f"{self.folder} holds {len(table)} of {count(len(wanted), 'row')} that were found in it: copy the whole folder again, or "
                "extract into a new one."
            )
        return table

    def paths_of(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of some images by their ids."""
        table = self.rows(ids, ["path"])
        return dict(zip(table["id"].to_pylist(), table["path"].to_pylist(), strict=True))

    @property
    def fingerprint(self) -> str:
        """A digest of the settings that identify the features: the model, the images, and how they were prepared."""
        settings = {name: value for name, value in self.manifest.settings.items() if name not in NOT_COMPARED}
        return digest([json.dumps(settings, sort_keys=True)])

    def ids(self) -> np.ndarray:
        """Return the ids, (N,) int64, ascending."""
        return self._column("id").to_numpy()

    def paths(self) -> list[str]:
        """Return the path of each image in its collection."""
        return self._column("path").to_pylist()

    def labels(self) -> list[str] | list[int] | None:
        """Return the label of each image; None if the collection has no labels."""
        return self._column("label").to_pylist() if self.has_labels else None

    def _column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array((batch.column(name) for batch in self.batches([name])), self.dataset.schema.field(name).type)

    def errors(self) -> list[dict[str, Any]]:
        """Return the images that could not be used: "id", "path", "reason"."""
        return [error for errors in self.error_batches() for error in errors]

    def error_batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the images that could not be used, some at a time."""
        with pq.ParquetFile(self.folder / ERRORS) as file:
            for batch in file.iter_batches(CHUNK_ROWS):
                yield batch.to_pylist()


def _card(manifest: Manifest) -> str:
    settings = manifest.settings
    names = ", ".join(settings["features"])
    source, model = public_name(settings["collection"]["source"]), public_name(settings["model"]) or "(not named)"
    return f"""---
configs:
- config_name: features
  data_files: {DATA}/*.parquet
  default: true
- config_name: errors
  data_files: {ERRORS}
---

# Features of {count(manifest.rows, "image")}

{names} ({settings["dtype"]}) of `{source}`, by the model `{model}`.
{TENSORS if any(name.startswith(("patches", "layers")) for name in settings["features"]) else ""}
Extracted by vitrail {settings["vitrail"]}. {count(manifest.errors, "image")} could not be used; {ERRORS} lists the reasons. {MANIFEST}
contains all settings, and the digest of each file.
"""
