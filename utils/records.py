"""Records: the JSON files that vitrail writes next to its outputs, as dataclasses with a `format_version`."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Self, Union, get_args, get_origin, get_type_hints

from ..errors import CorruptFileError, VitrailError
from .atomic import MAX_JSON_BYTES, read_json, write_json

SCALARS: dict[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(kw_only=True)
class Record:
    """Base class of a record: a dataclass of JSON values, of other dataclasses, and of lists, tuples and dictionaries of these.

    A new optional field keeps `format_version`; anything that an older vitrail would misread increases it.
    """

    format_version: ClassVar[int] = 1
    max_bytes: ClassVar[int] = MAX_JSON_BYTES
    remedy: ClassVar[str] = "download it again, or remove it"  # for a file that is not JSON

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, with its format version."""
        return {"format_version": self.format_version} | asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], path: str | Path) -> Self:
        """Return the record that a dictionary holds; `path` names its file in errors.

        Raises:
            VitrailError: another version of vitrail wrote the record.
            CorruptFileError: a required key is missing, or a value has the wrong type.
        """
        check_format_version(content, path, cls.format_version)
        return _read(cls, content, str(path))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the record in a JSON file."""
        return cls.from_dict(read_json(path, remedy=cls.remedy, max_bytes=cls.max_bytes), path)

    def write(self, path: Path) -> None:
        """Write the record as a JSON file."""
        write_json(path, self.to_dict())


def check_format_version(content: Mapping[str, Any], path: str | Path, supported: int = 1) -> None:
    """Raise VitrailError unless a record has a supported format version; a record without a version has version 1."""
    version = content.get("format_version", 1)
    if type(version) is not int or not 1 <= version <= supported:
        raise VitrailError(
            f"{path} has format version {version!r}; this vitrail reads versions up to {supported}. Upgrade vitrail, or remove the file."
        )


def _read(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value as the type of a field."""
    arguments = get_args(hint)
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        options = [option for option in arguments if option is not NoneType]
        if value is None and len(options) < len(arguments):
            return None
        if len(options) == 1:
            return _read(options[0], value, where)
        _check_type(value, tuple(get_origin(option) or option for option in options), where)
    elif is_dataclass(kind):
        _check_type(value, (Mapping,), where)
        hints = _hints(hint)
        if missing := [
            field.name
            for field in fields(kind)
            if field.name not in value and field.default is MISSING and field.default_factory is MISSING
        ]:
            raise CorruptFileError(f"{where} has no {', '.join(missing)}: write it again, or remove the file.")
        known = {field.name: value[field.name] for field in fields(kind) if field.name in value}
        return hint(**{name: _read(hints[name], item, f"{where}: {name}") for name, item in known.items()})
    elif kind in (list, tuple):
        _check_type(value, (list,), where)
        return kind(_read(arguments[0] if arguments else Any, item, where) for item in value)
    elif kind is dict:
        _check_type(value, (Mapping,), where)
        return {key: _read(arguments[1] if arguments else Any, item, f"{where}: {key}") for key, item in value.items()}
    elif kind in SCALARS:
        _check_type(value, (kind,), where)
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)  # as long as reading the values


def _check_type(value: Any, expected: tuple[type, ...], where: str) -> None:
    """Raise CorruptFileError unless a value has one of the types. A whole number is accepted as a float; True is not a number."""
    accepted = (*expected, int) if float in expected else expected
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in expected):
        wanted = " or ".join(SCALARS.get(kind, "a list" if kind is list else "an object") for kind in expected)
        raise CorruptFileError(f"{where} is of type {type(value).__name__}; expected {wanted}. Write it again, or remove the file.")
