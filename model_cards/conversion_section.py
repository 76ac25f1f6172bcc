"""The conversion report (conversion.json) as the tables of a model card."""

import html
from collections.abc import Mapping
from typing import Any

from .descriptions import markdown_table
from .provenance import HUB

RESULTS = {True: "passed", False: "**FAILED**", None: "for information"}


def code(text: str) -> str:
    """A name of someone else's, as code."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def plain(text: str) -> str:
    """A sentence in which names of someone else's may stand, without HTML."""
    return html.escape(" ".join(text.split()), quote=False)


def reports(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A report and those of the folders that the model was in before, the first conversion last."""
    chain = [report]
    while chain[-1].get("origin"):
        chain.append(chain[-1]["origin"])
    return chain


def converted_from(report: Mapping[str, Any]) -> str:
    """From what a model was first converted, and by which version; empty where it was not."""
    first = reports(report)[-1]
    if "source" not in first:
        return ""
    return f" (version {first['versions']['vitrail']}) from {code(first['source']['name'])}"


def _file(file: Mapping[str, Any]) -> str:
    name = code(file["name"])
    address = file["url"] or (f"{HUB}/{file['hub_id']}" if file["hub_id"] else None)
    return f"{f'[{name}]({address})' if address else name}, {file['bytes']:,} bytes, SHA-256 `{file['sha256']}`"


def _file_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    under = f', under "{report["root"]}" in the file' if report["root"] else ""
    return [
        ("File", _file(report["source"])),
        *([("File of the classifier", _file(report["head"]))] if report["head"] else []),
        ("Format", plain(f"{report['format']}{under}")),
    ]


def conversion_table(report: Mapping[str, Any]) -> str | None:
    """What was converted, and from what; None where the model was not converted."""
    if "source" not in report:
        return None
    rows = _file_rows(report)
    for earlier in reports(report)[1:]:
        rows += [(f"{name}, before", value) for name, value in _file_rows(earlier)]
    rows += [
        ("Tensors", f"{report['coverage']['converted']} converted; every parameter of the model is filled"),
        *(("Left out", code(name)) for name in report["coverage"]["ignored"]),
        *(("Note", plain(warning)) for warning in report["warnings"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items()))),
    ]
    return markdown_table(("What", "Value"), rows)


def verification(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checks of `vitrail verify`: how many there are, passed and failed, and the table; None where it has not been run."""
    checks = report.get("verification")
    if not checks:
        return None
    rows = [
        (
            plain(check["name"]),
            plain(check["against"]),
            "" if check["difference"] is None else f"{check['difference']:.1e}" if check["difference"] else "0",
            RESULTS[check["passed"]],
            plain(check["note"]),
        )
        for check in checks
    ]
    return {
        "all": len(checks),
        "passed": sum(check["passed"] is True for check in checks),
        "failed": sum(check["passed"] is False for check in checks),
        "table": markdown_table(("Check", "Against", "Largest difference", "Result", "Note"), rows),
    }
