"""Files in stores that fsspec reaches (https, S3, the Hub, …), with retries when a store does not respond.

A missing or forbidden object is an OSError of that object. An unreachable store is a StoreUnreachableError, because every other object
would seem to be missing too.
"""

import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from ..errors import StoreUnreachableError, VitrailError

Result = TypeVar("Result")

WAITS = (1, 4)  # seconds before the second and third try
SILENCE, READ_TIMEOUT = 30, 300  # seconds of a request to a web server: until it connects and between its bytes, in all
QUIET = 60  # seconds for which a host that has not responded is not asked again
URL = re.compile(r"([A-Za-z0-9]+::)*[A-Za-z][A-Za-z0-9+.-]+://")

# What stores raise, in addition to OSError, when they cannot be reached, by the library that they use
STORE_ERRORS = {"aiohttp": "ClientError", "botocore.exceptions": "BotoCoreError", "httpx": "HTTPError", "httpx2": "HTTPError"}

# HTTP: missing; not logged in, which concerns all objects; retry later
MISSING, NOT_LOGGED_IN, LATER = {404, 410}, 401, {408, 425, 429}
ANSWERS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_url(location: str) -> bool:
    """Whether a location is a URL, such as s3://bucket/name, and not a local path."""
    return URL.match(location) is not None


def is_http(location: str) -> bool:
    """Whether a location is the URL of a web server, which cannot list its files."""
    return location.startswith(("http://", "https://"))


def open_store(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the store of a URL, and the path there. Raises VitrailError if no installed package reaches it."""
    options = {}
    if is_http(location):
        import aiohttp  # which fsspec reads from web servers with

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=READ_TIMEOUT, sock_connect=SILENCE, sock_read=SILENCE)}
    try:
        return fsspec.core.url_to_fs(location, **options)
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3"; "Protocol not known: x"
        raise VitrailError(f"cannot open {location}: {error}") from error


def fetch(location: str) -> bytes:
    """Return the content at a URL. Raises the errors of `persist`."""
    store, path = open_store(location)
    return persist(lambda: store.cat_file(path), location)


class Hosts:
    """Read from many hosts. After a host has not responded, its other locations fail without a request for QUIET seconds."""

    def __init__(self) -> None:
        self._silent: dict[str, float] = {}  # since when, by host

    def fetch(self, location: str) -> bytes:
        """Return the content at a URL. Raises the errors of `persist`."""
        host = urlsplit(location.rpartition("::")[2]).netloc  # of the last link, such as zip://a.png::https://host/a.zip
        since = self._silent.get(host)
        if since is not None and time.monotonic() - since < QUIET:
            raise StoreUnreachableError(
                f"cannot reach {location}: {host} has not responded before; repeat the command when it does"
            )
        try:
            content = fetch(location)
        except StoreUnreachableError as error:
            if _status(error.__cause__) is None:  # the host has not responded at all
                self._silent[host] = time.monotonic()
            raise
        self._silent.pop(host, None)
        return content


def persist(action: Callable[[], Result], location: str) -> Result:
    """Return the result of an action that reads from the store of a location, after at most three tries.

    Raises FileNotFoundError, PermissionError or another OSError of the store, StoreUnreachableError if the store cannot be reached.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except _store_errors() as raised:
            error = _cause(raised)
            answer = _answer(error)
            if answer is not None:
                raise answer from (None if answer is error else error)
            if wait is None or _status(error) == NOT_LOGGED_IN:
                reason = str(error) or type(error).__name__
                raise StoreUnreachableError(
                    f"cannot reach {location}: {reason}; repeat the command when the store responds"
                ) from error
        time.sleep(wait)
    raise AssertionError


class RemoteFile:
    """The bytes at a URL, read in order, in pieces of any size; reading resumes where a connection broke."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.store, self.path = open_store(location)
        self.offset = 0
        self.file: Any = None
        self.ranges = True  # until a web server turns out to ignore ranges: then one request reads everything

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end. Raises the errors of `persist`."""
        return persist(lambda: self._read(size), self.location)

    def close(self) -> None:
        """Closes the connection."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def _read(self, size: int) -> bytes:
        try:
            if self.file is None:
                self._open()
            content = self.file.read(size)
        except ValueError:  # of fsspec, for a server that ignores ranges
            self.close()
            if not (self.ranges and is_http(self.location)):
                raise
            self.ranges = False
            return self._read(size)
        except _store_errors():
            self.close()
            raise
        self.offset += len(content)
        return content

    def _open(self) -> None:
        if self.ranges:
            self.file = self.store.open(self.path, "rb")
            self.file.seek(self.offset)
            return
        import aiohttp  # which fsspec reads from web servers with

        # A response lasts as long as its images take to be processed: only silence has a limit
        store = fsspec.filesystem("http", client_kwargs={"timeout": aiohttp.ClientTimeout(total=None, sock_read=60)})
        self.file = store.open(self.path, "rb", block_size=0)
        skipped = 0
        while skipped < self.offset:
            skipped += len(self.file.read(min(self.offset - skipped, 1 << 20)))


def _store_errors() -> tuple[type[BaseException], ...]:
    """Return the errors of libraries that are imported already, so that none is imported for its errors."""
    return OSError, *(getattr(sys.modules[name], error) for name, error in STORE_ERRORS.items() if name in sys.modules)


def _cause(error: BaseException) -> BaseException:
    """Return the error, or its cause if fsspec has reported it as a missing file, as it does when a web server gives no size."""
    cause = error.__cause__
    return cause if cause is not None and isinstance(error, FileNotFoundError) and isinstance(cause, _store_errors()) else error


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of an error."""
    response = getattr(error, "response", None)
    return getattr(error, "status", None) or getattr(response, "status_code", None)


def _answer(error: BaseException) -> OSError | None:
    """Return the error of the object that the store reports, or None if it has not responded."""
    status = _status(error)
    if status is not None:
        if status in MISSING:
            return FileNotFoundError("the file does not exist")
        refused = 400 <= status < 500 and status not in LATER and status != NOT_LOGGED_IN
        return PermissionError(f"its server refuses it ({status})") if refused else None
    return error if isinstance(error, ANSWERS) else None
