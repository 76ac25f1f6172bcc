"""Contents of the Hub of the tests: repositories, their commits, the files in them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.npz", "*.onnx")
REGULAR_SIZE = 10_000_000  # bytes; a larger file goes to LFS whatever it is
FIRST_FILES = {".gitattributes": "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()}


def is_lfs(path: str, size: int) -> bool:
    return size > REGULAR_SIZE or any(fnmatch(path, pattern) for pattern in LFS_PATTERNS)


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0%b" % (len(blob), blob)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id

    def entry(self, path: str) -> dict[str, Any]:
        """The file in a list of files; the two kinds of lists use different names for some fields."""
        size = {"size": len(self.content)}
        lfs = {"lfs": {"oid": self.sha256, "sha256": self.sha256, "pointerSize": len(self.pointer), **size}} if self.lfs else {}
        return {"type": "file", "path": path, "rfilename": path, "oid": self.blob_id, "blobId": self.blob_id, **size, **lfs}


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files. The sha follows from what is in it and from what was before, as in Git."""

    files: dict[str, File]
    title: str
    message: str = ""
    author: str = "system"
    parent: "Commit | None" = None

    @cached_property
    def sha(self) -> str:
        files = sorted((path, file.blob_id) for path, file in self.files.items())
        identity = [files, self.title, self.message, self.author, self.parent.sha if self.parent else None]
        return hashlib.sha1(json.dumps(identity).encode()).hexdigest()

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repository:
    """`gated`: files are for the owner and for those in `granted`. `refs`: refs/heads/…, refs/tags/… and refs/pr/….

    objects: what LFS has received, by SHA-256; `parts`: what it has received of an object that is sent in parts.
    """

    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files = {path: File(content, lfs=False) for path, content in FIRST_FILES.items()}
        self.add("refs/heads/main", Commit(files, "initial commit"))

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    def add(self, ref: str, commit: Commit) -> Commit:
        self.refs[ref] = self.commits[commit.sha] = commit
        return commit

    def ref(self, revision: str) -> str | None:
        return next((ref for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}") if ref in self.refs), None)

    def commit(self, revision: str = "main") -> Commit:
        ref = self.ref(revision)
        if ref is None and revision not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.commits[revision] if ref is None else self.refs[ref]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file but those that a new repository has."""
        return {path: file.content for path, file in self.commit(revision).files.items() if path not in FIRST_FILES}
