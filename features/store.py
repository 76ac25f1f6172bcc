"""Features on disk: Parquet files that any tool reads, a manifest that says what they are, and the images that could not be used.

    README.md          a dataset card: `datasets.load_dataset(folder)` gives the features, and with the name "errors" those images
    data/*.parquet     id, path, label (if there are any), and a column for each kind of features; rows ascend by id
    errors.parquet     id, path, reason
    manifest.json      what the features are of; each file with its rows, bytes and SHA-256

Vectors are fixed-size lists; tensors are lists beside a column of their shape. While features are extracted there is a folder .progress,
with a record of each file that is finished: a file is complete, or it is not there. `settle` brings manifest and errors up to date. Whoever
writes holds the empty file .lock, which stays.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from ..data.entries import ImageEntry, row_id
from ..data.reader import Chunk, UnreadableEntry
from ..errors import VitrailError
from ..utils.atomic import TEMPORARY_MARK, read_json, replaced, synchronize, write_text
from ..utils.hashing import sha256
from ..utils.run_folder import LOCK_NAME, RunFolder

FORMAT = 1
MANIFEST, DATA, ERRORS, CARD = "manifest.json", "data", "errors.parquet", "README.md"
PROGRESS = ".progress"
ROW_GROUP = 32 * 2**20  # bytes of features that are held before they are written
NOT_COMPARED = ("vitrail", "model", "collection")  # settings that say where things are; what matters of them is in others

ERRORS_SCHEMA = pa.schema([("id", pa.int64()), ("path", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class Column:
    """A column of features: of vectors of this length, or with None of tensors of any shape."""

    name: str
    length: int | None


def schema_of(columns: Sequence[Column], *, dtype: str, label_type: str | None) -> pa.Schema:
    """The columns of the files; dtype: "float32" or "float16"."""
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
    """The folder of features that are being extracted, seen by any of the processes that write into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.progress = path / PROGRESS
        self.run = RunFolder(path, settings_name=MANIFEST, temporary_names=(PROGRESS,), ignored_settings=NOT_COMPARED)

    def begin(self, settings: dict[str, Any]) -> None:
        """Starts, or goes on with what was begun with the same settings; removes what an interruption has left half-written.

        Raises VitrailError where other features, or other things, are in the folder.
        """
        settings = json.loads(json.dumps(settings))
        manifest: dict[str, Any] = {"format": FORMAT, "finished": False, "settings": settings, "shards": [], "partitions": {}}
        if (self.path / MANIFEST).is_file():
            manifest = read_json(self.path / MANIFEST)
            check_format(manifest, self.path)
            self.run.check_settings(settings, manifest["settings"])
        elif not set(os.listdir(self.path)) <= {PROGRESS, LOCK_NAME}:
            raise VitrailError(f"{self.path} holds other things: choose a new or empty output folder.")
        self.progress.mkdir(exist_ok=True)
        for file in self.progress.glob(f"*{TEMPORARY_MARK}*"):
            file.unlink()
        for mark in self.progress.glob("ray-*"):  # of a run on Ray that was killed
            shutil.rmtree(mark)
        self._write_manifest(manifest | {"settings": settings})
        (self.path / DATA).mkdir(exist_ok=True)

    def is_finished(self) -> bool:
        """Whether the manifest says that all is there."""
        return read_json(self.path / MANIFEST)["finished"]

    def records(self) -> list[dict[str, Any]]:
        """Of each finished chunk: "partition", "number", "file" (None without rows), "rows", "bytes", "sha256", "unreadable", in order."""
        return self._records(read_json(self.path / MANIFEST), self.progress.glob("chunk-*.json"))

    def _records(self, manifest: Mapping[str, Any], files: Iterable[Path]) -> list[dict[str, Any]]:
        records = manifest["shards"] + [read_json(file) for file in files]
        by_chunk = {(record["partition"], record["number"]): record for record in records}
        return [by_chunk[chunk] for chunk in sorted(by_chunk)]

    def partitions(self) -> dict[int, int]:
        """The number of rows of each partition that has been read to its end."""
        return self._partitions(read_json(self.path / MANIFEST), self.progress.glob("partition-*.json"))

    def _partitions(self, manifest: Mapping[str, Any], files: Iterable[Path]) -> dict[int, int]:
        settled = {int(partition): rows for partition, rows in manifest["partitions"].items()}
        return settled | {record["partition"]: record["rows"] for record in map(read_json, files)}

    def finished_chunks(self) -> frozenset[Chunk]:
        """The chunks whose files are there, whole; a file that has gone, or has another size, is made again."""
        return frozenset(Chunk(record["partition"], record["number"]) for record in self.records() if self._is_there(record))

    def _is_there(self, record: Mapping[str, Any]) -> bool:
        if record["file"] is None:
            return True
        file = self.path / record["file"]
        return file.is_file() and file.stat().st_size == record["bytes"]

    def end_partition(self, partition: int, num_rows: int) -> None:
        """Notes that a partition has been read to its end, and all its chunks are there."""
        self.write(self.progress / f"partition-{partition:06d}.json", json.dumps({"partition": partition, "rows": num_rows}))

    def write(self, path: Path, text: str) -> None:
        """Writes a file, which then is on the disk whole; several processes may write the same."""
        write_text(path, text, temporary_dir=self.progress)

    def settle(self, *, finished: bool) -> dict[str, Any]:
        """Brings the manifest and errors.parquet up to date, from the records; returns the manifest."""
        chunk_files, partition_files = list(self.progress.glob("chunk-*.json")), list(self.progress.glob("partition-*.json"))
        manifest = read_json(self.path / MANIFEST)
        records, partitions = self._records(manifest, chunk_files), self._partitions(manifest, partition_files)
        unreadable = [error for record in records for error in record["unreadable"]]
        manifest |= {
            "finished": finished,
            "rows": sum(record["rows"] for record in records),
            "errors": len(unreadable),
            "partitions": {str(partition): partitions[partition] for partition in sorted(partitions)},
            "shards": records,
        }
        errors = pa.Table.from_pylist(unreadable, ERRORS_SCHEMA)
        with replaced(self.path / ERRORS, temporary_dir=self.progress) as temporary:
            pq.write_table(errors, temporary)
        if finished:
            self.write(self.path / CARD, _card(manifest))
        self._write_manifest(manifest)
        if finished:
            shutil.rmtree(self.progress)
        else:
            for file in chunk_files + partition_files:
                file.unlink()
        return manifest

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        self.write(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")


class ChunkWriter:
    """Writes the rows of one chunk in the order of their ids, whatever the order in which they come; `finish` makes the file appear."""

    def __init__(self, folder: FeatureFolder, chunk: Chunk, schema: pa.Schema, *, first_row: int) -> None:
        self.folder = folder
        self.chunk = chunk
        self.schema = schema
        self.file = f"{DATA}/part-{chunk.partition:06d}-{chunk.number:06d}.parquet"
        self.temporary = folder.progress / f"{chunk.partition:06d}-{chunk.number:06d}.{uuid.uuid4().hex}{TEMPORARY_MARK}"
        self.next_row = first_row
        self.rows: dict[int, tuple[ImageEntry, dict[str, np.ndarray]] | None] = {}  # None for those that have no features
        self.unreadable: list[dict[str, Any]] = []
        self.held = self.written = 0
        self.writer: pq.ParquetWriter | None = None

    def discard(self) -> None:
        """Removes what has been written and is not finished."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # of a disk that is full
                self.writer.close()
        self.temporary.unlink(missing_ok=True)

    def add(self, entries: Sequence[ImageEntry], features: Mapping[str, np.ndarray]) -> None:
        """Features of images, by column: vectors (B, D), or tensors (B, …)."""
        for index, entry in enumerate(entries):
            self.rows[entry.row] = entry, {name: values[index] for name, values in features.items()}
        self.held += sum(values.nbytes for values in features.values())
        if self.held >= ROW_GROUP:
            self._write()

    def add_unreadable(self, unreadable: UnreadableEntry) -> None:
        """An image without features."""
        self.rows[unreadable.entry.row] = None
        self.unreadable.append(
            {"id": row_id(self.chunk.partition, unreadable.entry.row), "path": unreadable.entry.path, "reason": unreadable.reason}
        )

    def finish(self) -> None:
        """Puts the file in its place, and then its record; there is neither of a chunk without images."""
        self._write()
        if self.writer is None and not self.unreadable:
            return
        record: dict[str, Any] = {
            "partition": self.chunk.partition,
            "number": self.chunk.number,
            "file": None,
            "rows": 0,
            "bytes": 0,
        }
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            digest = sha256(self.temporary)
            synchronize(self.temporary)
            record |= {"file": self.file, "rows": self.written, "bytes": self.temporary.stat().st_size, "sha256": digest}
            self.temporary.replace(self.folder.path / self.file)
        else:  # what was there, if the images have become unreadable since
            (self.folder.path / self.file).unlink(missing_ok=True)
        unreadable = sorted(self.unreadable, key=lambda error: error["id"])
        name = f"chunk-{self.chunk.partition:06d}-{self.chunk.number:06d}.json"
        self.folder.write(self.folder.progress / name, json.dumps(record | {"unreadable": unreadable}))

    def _write(self) -> None:
        """Writes the rows that no missing one comes before."""
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
    """Features that `vitrail extract` has written, read back.

    manifest: what manifest.json says: "settings", "rows", "errors", "shards".

    Raises VitrailError where the folder is none of that kind, or extraction has not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise VitrailError(f"{folder} holds no features: give a folder that `vitrail extract` has written.")
        self.manifest = read_json(self.folder / MANIFEST)
        check_format(self.manifest, self.folder)
        if not self.manifest["finished"]:
            raise VitrailError(f"{folder} holds unfinished features: give the same `vitrail extract` command again, to the end.")
        files = [str(self.folder / shard["file"]) for shard in self.manifest["shards"] if shard["file"] is not None]
        self.dataset = pads.dataset(files, format="parquet")

    def __len__(self) -> int:
        return self.manifest["rows"]

    @property
    def vector_columns(self) -> tuple[str, ...]:
        """The columns that hold one vector for each image."""
        return tuple(field.name for field in self.dataset.schema if pa.types.is_fixed_size_list(field.type))

    def vectors(self, column: str | None = None) -> np.ndarray:
        """The vectors of a column, or of the first that holds any, (N, D) float32; rows ascend by id.

        Raises VitrailError if the column holds no vectors.
        """
        if not self.vector_columns or column not in (None, *self.vector_columns):
            raise VitrailError(
                f"{self.folder} has no vectors {column or ''}".rstrip()
                + f"; found {', '.join(self.vector_columns) or 'tensors only'}: "
                "extract pooled, cls, mean or cls+mean."
            )
        column = column or self.vector_columns[0]
        length = self.dataset.schema.field(column).type.list_size
        vectors = np.empty((len(self), length), dtype=np.float32)
        start = 0
        for batch in self.dataset.to_batches(columns=[column]):
            values = batch.column(0).flatten().to_numpy(zero_copy_only=False)
            vectors[start : start + len(batch)] = values.reshape(-1, length)
            start += len(batch)
        return vectors

    def ids(self) -> np.ndarray:
        """(N,) int64, ascending."""
        return self.dataset.to_table(columns=["id"])["id"].to_numpy()

    def paths(self) -> list[str]:
        """What each image is called in its collection."""
        return self.dataset.to_table(columns=["path"])["path"].to_pylist()

    def labels(self) -> list[str] | list[int] | None:
        """The label of each image; None where the collection has none."""
        return self.dataset.to_table(columns=["label"])["label"].to_pylist() if "label" in self.dataset.schema.names else None

    def errors(self) -> list[dict[str, Any]]:
        """The images that could not be used: "id", "path", "reason"."""
        return pq.read_table(self.folder / ERRORS).to_pylist()


def check_format(manifest: Mapping[str, Any], folder: Path) -> None:
    """Raises VitrailError if a manifest is of another kind than these."""
    if manifest.get("format") != FORMAT:
        raise VitrailError(f"{folder} holds features of format {manifest.get('format')}, expected {FORMAT}: extract them again.")


def _card(manifest: Mapping[str, Any]) -> str:
    settings = manifest["settings"]
    kinds = ", ".join(settings["features"])
    return f"""---
configs:
- config_name: features
  data_files: {DATA}/*.parquet
  default: true
- config_name: errors
  data_files: {ERRORS}
---

# Features of {manifest["rows"]} images

{kinds} ({settings["dtype"]}) of `{settings["collection"]["source"]}`, by the model `{settings["model"] or "(not named)"}`.

vitrail {settings["vitrail"]} took them. {manifest["errors"]} images could not be used; {ERRORS} says why. {MANIFEST} has all settings,
and the digest of each file.
"""
