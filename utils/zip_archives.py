"""Checks of zip archives (torch files and .npz) before anything in them is used: complete, and of bounded size once unpacked."""

import struct
import zipfile
from pathlib import Path

from ..errors import CorruptFileError
from .bounds import check_expansion

DESCRIPTOR_BYTES = 24  # the longest data descriptor, which may follow a member
LOCAL_HEADER_BYTES = 30  # without the name and the extra field, whose lengths are its last four bytes


def check_directory(path: Path) -> list[str]:
    """Return the names of the members of a zip archive, after a check that they fill the file and unpack to a bounded size.

    A damaged directory can lack members or point to other bytes, and a name can be in it twice.

    Raises:
        CorruptFileError: the directory does not describe the file.
        UnsupportedCheckpointError: the members unpack to much more than the file holds.
        zipfile.BadZipFile: the file has no directory.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        check_expansion(path, sum(member.file_size for member in members), len(members))
        end = 0
        for member in members:
            file.seek(member.header_offset + LOCAL_HEADER_BYTES - 4)
            name_and_extra = sum(struct.unpack("<HH", file.read(4)))
            if not 0 <= member.header_offset - end <= DESCRIPTOR_BYTES:
                break
            end = member.header_offset + LOCAL_HEADER_BYTES + name_and_extra + member.compress_size
        else:
            names = [member.filename for member in archive.infolist()]
            if 0 <= archive.start_dir - end <= DESCRIPTOR_BYTES and not archive.comment and len(set(names)) == len(names):
                return names
    raise CorruptFileError(f"{path} is damaged: its zip directory does not list what the file holds. Download it again.")


def check_checksums(path: Path) -> None:
    """Raise CorruptFileError unless the bytes of every member of a zip archive have their CRC-32; reads the whole file once."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise CorruptFileError(f"{path} is damaged: the checksum of {damaged} differs from its bytes. Download it again.")
