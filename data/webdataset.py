"""Images in .tar files of WebDataset: members with the same name up to the first dot are one sample."""

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
MAX_IMAGE = 2**29  # bytes of a member that is an image
MAX_LABEL = 2**24  # bytes of a member that is a label, or that describes another member
KINDS: dict[LabelType | None, str] = {"int64": "an integer", "string": "text"}

# The key of a sample, which is the folder and the name up to its first dot, and what follows the dot
NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


# Members that describe the next one: tarfile reads them whole
HEADER_TYPES = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}


@dataclass
class Sample:
    """The image and label among the members of one key, or their problems; or, at the end of an archive, the problem that ended it."""

    key: str = ""
    image: str | None = None  # the name of the member
    extension: str = ""
    content: bytes = b""
    label: bytes | None = None
    problem: str | None = None
    label_problem: str | None = None


class TarCollection(ImageCollection):
    """Archives, each of them a partition, read from the first member to the last.

    Columns in the settings are the names of members after the key and a dot, such as "jpg"; a field of a JSON member is "json.label".

    Raises VitrailError if no archive has an image.
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
        """Yield the images of an archive from the row `start`; the rows before are skipped."""
        for row, sample in enumerate(self._samples(partition, start)):
            if row < start:
                continue
            if sample.image is None:
                yield ImageEntry(row, self.names[partition], problem=sample.problem)
                continue
            path = f"{self.names[partition]}/{as_text(sample.image.removeprefix('./'))}"
            if problem := sample.problem or sample.label_problem:
                yield ImageEntry(row, path, problem=problem)
                continue
            try:
                yield ImageEntry(row, path, content=sample.content, label=self._label(sample))
            except ValueError as error:
                yield ImageEntry(row, path, problem=f"its label is not {KINDS[self.label_type]}, unlike the first label: {error}")

    def _samples(self, partition: int, start: int) -> Iterator[Sample]:
        """Yield the samples with an image; those before the row `start` have no content."""
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
                        sample.image, sample.extension, sample.problem = member.name, extension, _refusal(member, MAX_IMAGE)
                        sample.content = _content(archive, member) if number >= start and sample.problem is None else b""
                    elif extension == self.label_extension:
                        sample.label_problem = _refusal(member, MAX_LABEL)
                        sample.label = _content(archive, member) if sample.label_problem is None else None
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
        """Return the type of the first label that can be read."""
        problem: str | None = (
            "no member is an image" if self.image_extension is None else f"no member has the extension {self.image_extension}"
        )
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
        """Return the text of a label. Raises ValueError if it is not text, or not JSON where JSON is expected."""
        if sample.label is None:
            return None
        value: Any = sample.label.decode().strip()
        if self.label_field:
            fields = json.loads(value)
            value = fields.get(self.label_field) if isinstance(fields, dict) else None
        return None if value in (None, "") else str(value)


class _Member(tarfile.TarInfo):
    """Raises an error for a truncated, damaged or huge header; tarfile takes a damaged one for the end, and reads any size."""

    @classmethod
    def frombuf(cls, *args: Any, **kwargs: Any) -> "_Member":
        member = super().frombuf(*args, **kwargs)
        if member.type in HEADER_TYPES and member.size > MAX_LABEL:
            raise tarfile.InvalidHeaderError(f"a header of {member.size} bytes")  # type: ignore[attr-defined] # it exists
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # it exists
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _open_archive(file: BinaryIO | RemoteFile) -> tarfile.TarFile:
    # a stream of any compression, which cannot seek
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
        archive.members = []  # type: ignore[attr-defined] # or it would keep all of them


def _refusal(member: tarfile.TarInfo, limit: int) -> str | None:
    """Return why a member is not read, or None. Its declared size counts, also of holes that take no place in the archive."""
    return f"{as_text(member.name)} has {member.size} bytes, more than the limit of {limit}" if member.size > limit else None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # it is regular
    return file.read()
