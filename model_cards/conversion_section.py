"""The sections of a card about conversion and verification, from conversion.json."""

import re
from typing import Any

from ..convert.report import ConversionRecord, FileRecord
from .descriptions import Markdown, as_code, escape, markdown_table
from .provenance import HUB

RESULTS = {True: "passed", False: "**FAILED**", None: "for information"}


def converted_from(record: ConversionRecord) -> Markdown:
    """Return the file of the first conversion and the version that converted it; empty for a model that was not converted."""
    first = record.chain[-1]
    if first.source is None:
        return Markdown()
    version = f" (version {escape(first.versions['vitrail'])})" if "vitrail" in first.versions else ""
    return Markdown(f"{version} from {as_code(first.source.name)}")


def _file(file: FileRecord) -> str:
    name = as_code(file.name)
    address = file.url or (f"{HUB}/{file.hub_id}" if file.hub_id else None)
    is_linked = address is not None and re.fullmatch(r"https?://[^\s()<>]+", address)
    return f"{f'[{name}]({address})' if is_linked else name}, {file.bytes:,} bytes, SHA-256 {as_code(file.sha256)}"


def _file_rows(record: ConversionRecord) -> list[tuple[str, str]]:
    under = f', under "{record.root}" in the file' if record.root else ""
    return [
        *([("File", _file(record.source))] if record.source else []),
        *([("File of the classifier", _file(record.head))] if record.head else []),
        *([("Format", escape(f"{record.format}{under}"))] if record.format else []),
    ]


def conversion_table(record: ConversionRecord) -> str | None:
    """Return the table of the conversion; None for a model that was not converted."""
    if record.source is None:
        return None
    rows = _file_rows(record)
    for earlier in record.chain[1:]:
        rows += [(f"{name}, before", value) for name, value in _file_rows(earlier)]
    rows += [
        ("Tensors", f"{record.coverage.converted} converted; every parameter of the model is filled"),
        *(("Ignored", as_code(name)) for name in record.coverage.ignored),
        *(("Note", escape(warning)) for warning in record.warnings),
        ("Versions", escape(", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())))),
    ]
    return markdown_table(("Property", "Value"), rows)


def verification(record: ConversionRecord) -> dict[str, Any] | None:
    """Return the table of `vitrail verify` and the number of checks, passed and failed; None where it has not been run."""
    if not record.verification:
        return None
    rows = [
        (
            escape(check.name),
            escape(check.against),
            "" if check.difference is None else f"{check.difference:.1e}" if check.difference else "0",
            RESULTS[check.passed],
            escape(check.note),
        )
        for check in record.verification
    ]
    return {
        "all": len(rows),
        "passed": sum(check.passed is True for check in record.verification),
        "failed": sum(check.passed is False for check in record.verification),
        "table": markdown_table(("Check", "Against", "Largest difference", "Result", "Note"), rows),
    }
