"""What loading did, as data: the source of the weights, what became of them, and the record of it, conversion.json."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import VitrailError
from ..utils.hashing import sha256
from ..utils.records import Record
from ..utils.versions import installed_versions

REPORT_NAME = "conversion.json"  # in the folder of the weights


@dataclass(frozen=True)
class Check:
    """A row of the table of `vitrail verify`.

    name: what was compared; `against`: the reference.
    difference: the largest absolute difference; None where nothing was compared.
    passed: None where the row is for information, or nothing was compared; `note` gives the reason.
    """

    name: str
    against: str
    difference: float | None
    passed: bool | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FileRecord:
    """A weight file; size and SHA-256 of a sharded one are those of its shards, concatenated."""

    name: str
    url: str | None
    hub_id: str | None
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CoverageRecord:
    """The number of converted tensors, and the ignored names with their reasons."""

    converted: int = 0
    ignored: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ConversionRecord(Record):
    """The content of conversion.json. `source` is None for a model that was not converted.

    format: the family; `root`: the key of the file that held the weights.
    checkpoint: the name in the catalog.
    origin: the record of the folder that the model was loaded from.
    coverage: the number of converted tensors, and the ignored names.
    weights_sha256: the SHA-256 of the weights in the folder; the record is void for other weights.
    verification: the table of `vitrail verify`.
    """

    format: str | None = None
    source: FileRecord | None = None
    checkpoint: str | None = None
    head: FileRecord | None = None
    root: str | None = None
    origin: "ConversionRecord | None" = None
    coverage: CoverageRecord = field(default_factory=CoverageRecord)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    weights_sha256: str | None = None
    verification: list[Check] = field(default_factory=list)

    @property
    def chain(self) -> list["ConversionRecord"]:
        """This record and its origins, the first conversion last."""
        return [self, *(self.origin.chain if self.origin else [])]


@dataclass
class SourceFile:
    """Where a weight file came from; `hash` computes its SHA-256, which takes longer than loading, when `sha256` is first read."""

    name: str
    url: str | None
    hub_id: str | None
    bytes: int
    hash: Callable[[], str] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the loaded file, in hexadecimal.

        Raises:
            VitrailError: the file has changed since it was loaded.
        """
        return self.hash()

    def record(self) -> FileRecord:
        """Return the file for conversion.json."""
        return FileRecord(self.name, self.url, self.hub_id, self.bytes, self.sha256)


def hash_later(files: Sequence[Path]) -> Callable[[], str]:
    """Return a function that computes the SHA-256 of files, and raises VitrailError where they have changed since this call."""
    found = [_state(file) for file in files]

    def hash_unchanged() -> str:
        try:
            digest, unchanged = sha256(*files), [_state(file) for file in files] == found
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise VitrailError(
                f"{files[0]} has changed since it was loaded, so its SHA-256 is unknown. Load it again; if the report has to outlive "
                "the file, read report.source.sha256 right after loading."
            )
        return digest

    return hash_unchanged


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@dataclass
class ConversionReport:
    """What `load` did; `convert_checkpoint` writes it as conversion.json.

    format: the detected family.
    source, head: the files, with their SHA-256.
    catalog_name: the catalog name of the source, if its name, URL or Hub id is in the catalog.
    root: the key of the file that held the weights ("teacher", …).
    stored: the conversion.json in the folder of the weights; it may describe other weights.
    coverage: the number of converted tensors, and the ignored names.
    warnings: what was assumed, left out, adapted or interpolated.
    versions: of the software that did it.
    """

    format: str
    source: SourceFile
    catalog_name: str | None = None
    head: SourceFile | None = None
    root: str | None = None
    stored: ConversionRecord | None = None
    coverage: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: installed_versions(("torch", "transformers")))

    @property
    def origin(self) -> ConversionRecord | None:
        """The record of the folder that was loaded, without its verification; None where it describes other weights.

        Reading it computes `source.sha256`.
        """
        of_weights = self.stored and self.stored.weights_sha256
        if self.stored is None or of_weights is None or of_weights != self.source.sha256:
            return None
        return replace(self.stored, verification=[])

    @property
    def checkpoint(self) -> str | None:
        """The name in the catalog of this checkpoint, or of its origin."""
        return self.catalog_name or (self.origin.checkpoint if self.origin else None)

    def record(self) -> ConversionRecord:
        """Return the report for conversion.json."""
        return ConversionRecord(
            format=self.format,
            source=self.source.record(),
            checkpoint=self.checkpoint,
            head=self.head.record() if self.head else None,
            root=self.root,
            origin=self.origin,
            coverage=CoverageRecord(**self.coverage),
            warnings=self.warnings,
            versions=self.versions,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return self.record().to_dict()
