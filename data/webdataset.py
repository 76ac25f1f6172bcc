"""Images in .tar files as WebDataset writes them: members of the same name up to the first dot are one sample."""

import contextlib
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from ..errors import VitrailError
from ..utils.hashing import digest
from .decoding import image_suffixes
from .entries import ImageCollection, ImageEntry, LabelType
from .files import INTEGER, Listing, as_text, suffix_of, without_query
from .remote import RemoteFile, is_url

TAR_SUFFIXES = frozenset({".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"})
LABEL = "cls"
KINDS: dict[LabelType | None, str] = {"int64": "an integer", "string": "text"}

# The key of a sample, which is the folder and the name up to its first dot, and what follows the dot
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


@dataclass
class Sample:
    """What is of interest among the members of one key; or, as the last of an archive, why there are no more."""

    key: str = ""
    image: str | None = None  # the name of the member
    extension: str = ""
    content: bytes = b""
    label: bytes | None = None
    problem: str | None = None


class TarCollection(ImageCollection):
    """Archives, each of them a partition, which are read from the first member to the last.

    Columns in the settings are what follows the key and a dot, as "jpg"; a field of a JSON member is written "json.label".

    Raises VitrailError where none of them has an image.
    """

    random_access = False

    def __init__(self, listing: Listing, *, source: str, settings: dict[str, Any]) -> None:
        self.source = source
        self.settings = settings
        self.num_rows = None
        self.num_partitions = len(listing.names)
        self.locations = [listing.root + name for name in listing.names]
        names = [without_query(location).removeprefix(listing.root) for location in self.locations]
        self.names = [as_text(name) for name in names]
        self.image_extension: str | None = settings["image_column"]
        label_column: str = settings["label_column"] or LABEL
        self.label_extension, _, self.label_field = label_column.partition(".")
        self.fingerprint = digest([*names, *listing.sizes, self.image_extension, self.label_extension, self.label_field])
        self.label_type = None
        self.label_type = self._first_label_type()

    def read(self, partition: int = 0, start: int = 0) -> Iterator[ImageEntry]:
        """The images of an archive, from the row `start`; what comes before is passed over."""
        for row, sample in enumerate(self._samples(partition, start)):
            if row < start:
                continue
            if sample.image is None:
                yield ImageEntry(row, self.names[partition], problem=sample.problem)
                continue
            path = f"{self.names[partition]}/{as_text(sample.image.removeprefix('./'))}"
            try:
                yield ImageEntry(row, path, content=sample.content, label=self._label(sample))
            except ValueError as error:
                yield ImageEntry(row, path, problem=f"its label is not {KINDS[self.label_type]} as the first one is: {error}")

    def _samples(self, partition: int, start: int) -> Iterator[Sample]:
        """The samples that have an image; without the content of those before the row `start`."""
        suffixes = image_suffixes()
        number, sample, last, problem = 0, Sample(), "nothing", None
        try:
            with contextlib.closing(self._open(partition)) as file, _open_archive(file) as archive:
                for member in _members(archive):
                    last = member.name
                    name = NAME.fullmatch(member.name)
                    if name is None or not member.isreg():
                        continue
                    key, extension = name[1], name[2].lower()
                    if key != sample.key:
                        if sample.image is not None:
                            yield sample
                            number += 1
                        sample = Sample(key)
                    is_image = (
                        extension == self.image_extension if self.image_extension else suffix_of(f"a.{extension}") in suffixes
                    )
                    # of jpg and seg.png, the image is jpg
                    if is_image and (sample.image is None or extension.count(".") < sample.extension.count(".")):
                        content = _content(archive, member) if number >= start else b""
                        sample.image, sample.extension, sample.content = member.name, extension, content
                    elif extension == self.label_extension:
                        sample.label = _content(archive, member)
        except OSError as error:
            raise VitrailError(f"cannot read {self.locations[partition]}: {error.strerror or error}") from error
        except tarfile.TarError as error:
            problem = f"the archive ends early, or is damaged, after {as_text(last)}: {error}"
        is_final = self.image_extension is not None or "." not in sample.extension
        whole = problem is None or (is_final and (self.label_type is None or sample.label is not None))
        if sample.image is not None and whole:
            yield sample
        if problem is not None:
            yield Sample(problem=problem)

    def _open(self, partition: int) -> BinaryIO | RemoteFile:
        location = self.locations[partition]
        return RemoteFile(location) if is_url(location) else open(location, "rb")

    def _first_label_type(self) -> LabelType | None:
        """That of the first image that can be read."""
        problem: str | None = f"none of the members is a {self.image_extension or 'image'}"
        for partition in range(self.num_partitions):
            for sample in self._samples(partition, 0):
                if sample.image is None:
                    problem = sample.problem
                    continue
                with contextlib.suppress(ValueError):  # a label that cannot be read
                    value = self._label_text(sample)
                    return None if value is None else "int64" if INTEGER.fullmatch(value) else "string"
                problem = f"the label of {sample.image} cannot be read"
        raise VitrailError(f"found no images in {self.source}: {problem}")

    def _label(self, sample: Sample) -> str | int | None:
        value = self._label_text(sample) if self.label_type else None
        if value is None or self.label_type == "string":
            return value
        if not INTEGER.fullmatch(value):
            raise ValueError(f"found {value[:50]!r}")
        return int(value)

    def _label_text(self, sample: Sample) -> str | None:
        """The text; raises ValueError if it is none, or no JSON where that is expected."""
        if sample.label is None:
            return None
        value: Any = sample.label.decode().strip()
        if self.label_field:
            fields = json.loads(value)
            value = fields.get(self.label_field) if isinstance(fields, dict) else None
        return None if value in (None, "") else str(value)


class _Member(tarfile.TarInfo):
    """tarfile takes a header that is cut off or damaged for the end of the archive; this tells them apart."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # as in fact it has
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _open_archive(file: BinaryIO | RemoteFile) -> tarfile.TarFile:
    # a stream of any compression, in which there is no way back
    return tarfile.open(fileobj=cast(BinaryIO, file), mode="r|*", tarinfo=_Member, encoding="utf-8")


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while True:
        try:
            member = archive.next()
        except VitrailError:  # of the store
            raise
        except (ValueError, EOFError) as error:  # of numbers and texts in headers
            raise tarfile.ReadError(str(error)) from error
        if member is None:
            return
        yield member
        archive.members = []  # type: ignore[attr-defined] # or it would remember all of them


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is regular
    return file.read()
