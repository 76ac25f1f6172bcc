"""What `load` did, as data: where the weights came from and what became of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import VitrailError
from ..utils.hashing import sha256
from ..utils.versions import versions

REPORT_NAME = "conversion.json"  # beside the weights that it reports on


@dataclass
class SourceFile:
    """Where a tensor file came from; of a sharded one, size and SHA-256 are of its shards one after the other.

    hash: computes the SHA-256, which takes longer than loading: it is called when `sha256` is first asked for.
    """

    name: str
    url: str | None
    hub_id: str | None
    bytes: int
    hash: Callable[[], str]

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of what was loaded, in hexadecimal.

        Raises:
            VitrailError: it has not been asked for yet, and the file is no longer what was loaded.
        """
        return self.hash()

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {"name": self.name, "url": self.url, "hub_id": self.hub_id, "bytes": self.bytes, "sha256": self.sha256}


def hash_later(files: Sequence[Path]) -> Callable[[], str]:
    """A function that computes the SHA-256 of files as they are now, and raises VitrailError where they have changed since."""
    found = [_state(file) for file in files]

    def hash_unchanged() -> str:
        try:
            digest, unchanged = sha256(*files), [_state(file) for file in files] == found
        except FileNotFoundError:
            unchanged = False
        if not unchanged:
            raise VitrailError(
                f"{files[0]} is no longer what was loaded, so that its SHA-256 cannot be told: load it again; a report that has to "
                "outlive its file should be asked for source.sha256 at once."
            )
        return digest

    return hash_unchanged


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@dataclass
class ConversionReport:
    """What `load` did; `convert_checkpoint` keeps it as conversion.json.

    format: the family that was recognised.
    source, head: the files, with their SHA-256.
    catalog_name: the name in the catalogue by which, or by whose URL or Hub id, the source was given.
    root: the key of the file under which the weights stood ("teacher", …).
    beside: the conversion.json that lies beside the weights, whether it is of them or of others.
    coverage: how many tensors were converted, and which were ignored.
    warnings: what a person should know.
    """

    format: str
    source: SourceFile
    catalog_name: str | None = None
    head: SourceFile | None = None
    root: str | None = None
    beside: dict[str, Any] | None = None
    coverage: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions(("torch", "transformers")))

    @property
    def origin(self) -> dict[str, Any] | None:
        """For a folder of ours, the report in it: what its weights, if they are still those, were converted from.

        Without what was verified of the folder. It needs `source.sha256`.
        """
        of_weights = (self.beside or {}).get("weights_sha256")
        if self.beside is None or of_weights is None or of_weights != self.source.sha256:  # another program's, or of other weights
            return None
        return {name: value for name, value in self.beside.items() if name != "verification"}

    @property
    def checkpoint(self) -> str | None:
        """The name in the catalogue, if it has one, or `origin` has."""
        return self.catalog_name or (self.origin or {}).get("checkpoint")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {
            "format": self.format,
            "source": self.source.to_dict(),
            "checkpoint": self.checkpoint,
            "head": self.head and self.head.to_dict(),
            "root": self.root,
            "origin": self.origin,
            "coverage": self.coverage,
            "warnings": self.warnings,
            "versions": self.versions,
        }
