"""Records survive a round trip through JSON, and a record of another version is one clear error."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vitrail.errors import CorruptFileError, VitrailError
from vitrail.utils.records import Record, check_format_version


@dataclass
class Part:
    name: str
    size: int | None = None


@dataclass(kw_only=True)
class Run(Record):
    first: Part
    others: tuple[Part, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    earlier: "Run | None" = None
    either: int | str | None = None


def test_a_record_survives_a_round_trip(tmp_path: Path) -> None:
    run = Run(
        first=Part("a", 3),
        others=(Part("b"), Part("ü")),
        scores={"top-1": 1, "top-5": 0.5},
        either="a",
        earlier=Run(first=Part("c")),
    )

    run.write(tmp_path / "run.json")

    assert Run.read(tmp_path / "run.json") == run
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["format_version"] == 1


def test_a_record_without_a_version_has_version_1_and_unknown_keys_are_ignored() -> None:
    assert Run.from_dict({"first": {"name": "a", "color": "red"}, "later": 1}, "run.json") == Run(first=Part("a"))


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_another_version_names_the_file_the_version_and_the_remedy(version: object) -> None:
    with pytest.raises(VitrailError, match=rf"run\.json has format version {version!r}.*[Uu]pgrade vitrail"):
        Run.from_dict({"format_version": version, "first": {"name": "a"}}, "run.json")
    with pytest.raises(VitrailError, match="format version"):
        check_format_version({"format_version": version}, "run.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "run.json has no first"),
        ({"first": {}}, "run.json: first has no name"),
        ({"first": 3}, "run.json: first is of type int; expected an object"),
        ({"first": {"name": "a"}, "others": "b"}, "run.json: others is of type str; expected a list"),
        ({"first": {"name": 1}}, "run.json: first: name is of type int; expected a string"),
        ({"first": {"name": None}}, "run.json: first: name is of type NoneType; expected a string"),
        ({"first": {"name": "a", "size": 1.5}}, "run.json: first: size is of type float; expected a whole number"),
        ({"first": {"name": "a", "size": True}}, "run.json: first: size is of type bool; expected a whole number"),
        ({"first": {"name": "a"}, "scores": {"top-1": "1"}}, "run.json: scores: top-1 is of type str; expected a number"),
        ({"first": {"name": "a"}, "either": 0.5}, "run.json: either is of type float; expected a whole number or a string"),
    ],
)
def test_a_damaged_record_names_the_place(content: dict, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        Run.from_dict(content, "run.json")
