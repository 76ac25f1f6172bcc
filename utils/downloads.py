"""Downloads over HTTP: resumed after an interruption, checked, and cached in `vitrail/` in the Hub's folder (HF_HOME)."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.utils import WeakFileLock, are_progress_bars_disabled

from ..errors import CorruptFileError, DownloadError, SourceNotFoundError, VitrailError, public_text
from ..version import __version__
from .records import Record

CHUNK = 1 << 20  # bytes
# A download may take PATIENCE and a second for each MIN_SPEED bytes. Then it ends with an error, and can be resumed
PATIENCE = 60.0  # seconds
MIN_SPEED = 20_000  # bytes per second


@dataclass(kw_only=True)
class DownloadRecord(Record):
    """The content of NAME.json next to a download. `url` has no query; `sha256` follows when the download is complete."""

    url: str = ""
    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, path: Path) -> "DownloadRecord":
        """Return the record of a file; an empty one if there is none, or it is damaged, so that the file is downloaded again."""
        try:
            return cls.read(_record_path(path))
        except (FileNotFoundError, VitrailError):
            return cls()

    @property
    def validator(self) -> str | None:
        """The identifier of the version of a partial file; None where it cannot be resumed."""
        if not self.size:
            return None
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified  # If-Range takes no weak tag

    def describes(self, response: Any, offset: int) -> bool:
        """Return True if a partial response continues the same version of the file."""
        same = response.headers["ETag"] == self.etag if self.etag else response.headers["Last-Modified"] == self.last_modified
        return same and response.headers["Content-Range"] == f"bytes {offset}-{(self.size or 0) - 1}/{self.size}"


def download(
    url: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    sha256: str | None = None,
    access: str | None = None,
) -> Path:
    """Return the path of the file at an http(s) or gs URL, downloaded into the cache if needed.

    An interrupted download is resumed, unless the file has changed on the server. NAME.json next to the file records its url, size in
    bytes, etag and SHA-256.

    Args:
        url: the address; its query may hold a signature, which is neither written nor shown.
        cache_dir: folder for the file; `vitrail/` in the Hub's folder by default.
        progress: whether to show a progress bar on a terminal.
        sha256: the published SHA-256 of the file.
        access: the page where terms must be accepted, for the error of a server that refuses the file.

    Raises:
        DownloadError: the file cannot be downloaded completely.
        CorruptFileError: the file has another SHA-256 than the published one.
    """
    url = https_url(url)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    folder = Path(cache_dir or Path(constants.HF_HOME, "vitrail")) / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / (name if name.strip(".") else "checkpoint")
    if _is_complete(path, sha256):
        return path
    if is_offline_mode():
        raise DownloadError(f"{url} is not in the cache ({folder}), and HF_HUB_OFFLINE is set: unset it to download the file.")
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / ".lock"):
        if not _is_complete(path, sha256):  # another process may have downloaded it while this one waited
            _fetch(url, path, progress=progress, sha256=sha256, access=access)
    return path


def discard(path: Path) -> None:
    """Remove a download from the cache, so that it is downloaded again."""
    path.unlink(missing_ok=True)
    _record_path(path).unlink(missing_ok=True)


def https_url(url: str) -> str:
    """Return a URL with the scheme http(s); a Google Storage URI (gs://) becomes https."""
    scheme, _, rest = url.partition("://")
    if scheme == "gs":
        return f"https://storage.googleapis.com/{rest}"
    if scheme not in ("http", "https"):
        raise SourceNotFoundError(
            f"{url} has the unsupported scheme {scheme}://; expected http, https or gs. Download the file and pass its path."
        )
    if "@" in rest.partition("/")[0]:
        raise SourceNotFoundError(f"{url} was given with a user name, which is not supported. Download the file and pass its path.")
    return url


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _is_complete(path: Path, sha256: str | None) -> bool:
    record = DownloadRecord.of(path)
    return path.is_file() and path.stat().st_size == record.size and sha256 in (None, record.sha256)


def _fetch(url: str, path: Path, *, progress: bool, sha256: str | None, access: str | None) -> None:
    """Download into NAME.part, resuming an earlier attempt, and rename the file when it is complete."""
    part = path.with_name(f"{path.name}.part")
    known = DownloadRecord.of(path)
    offset = 0
    headers = {"User-Agent": f"vitrail/{__version__}"}
    if known.validator and part.is_file() and (offset := part.stat().st_size):
        headers |= {"Range": f"bytes={offset}-", "If-Range": known.validator}

    with _open(url, headers, access) as response:
        resumed = offset > 0 and response.status == 206
        if response.status == 416 or (resumed and not known.describes(response, offset)):
            part.unlink()  # the file has changed, and the server does not support If-Range
            return _fetch(url, path, progress=progress, sha256=sha256, access=access)
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url} returns an HTML page instead of a file; open it in a browser to see why.")
        if not resumed:
            length = response.headers["Content-Length"]
            size = int(length) if length and length.isdecimal() else None
            etag, last_modified = response.headers["ETag"], response.headers["Last-Modified"]
            known = DownloadRecord(url=public_text(url), size=size, etag=etag, last_modified=last_modified)
            known.write(_record_path(path))
        try:
            with part.open("r+b" if resumed else "w+b") as file:
                digest = hashlib.file_digest(file, "sha256")  # of the part that exists; leaves the file at its end
                with _progress_bar(path.name, total=known.size, completed=file.tell(), wanted=progress) as advance:
                    for chunk in _chunks(response):
                        file.write(chunk)
                        digest.update(chunk)
                        advance(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise _broken_off(part, known, reason=str(error) or type(error).__name__) from error

    size = part.stat().st_size
    if known.size not in (None, size):
        raise _broken_off(part, known, reason="the server closed the connection")
    if sha256 not in (None, digest.hexdigest()):
        part.unlink()
        raise CorruptFileError(
            f"{url} has the SHA-256 {digest.hexdigest()}; expected the published {sha256}. Something on the way changes the file, or its "
            "publisher has replaced it: download it elsewhere, and pass its path if you trust it."
        )
    replace(known, size=size, sha256=digest.hexdigest()).write(_record_path(path))
    part.replace(path)
    return None


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield the bytes of a response as they arrive; raise TimeoutError when they arrive too slowly.

    The timeout of the connection is for silence alone, so that a server which sends a byte a second would hold the process for ever.
    """
    begun, received = time.monotonic(), 0
    while chunk := response.read1(CHUNK):
        yield chunk
        received += len(chunk)
        if time.monotonic() - begun > PATIENCE + received / MIN_SPEED:
            raise TimeoutError(f"the server sends less than {MIN_SPEED} bytes per second")


def _broken_off(part: Path, known: DownloadRecord, *, reason: str) -> DownloadError:
    remedy = f"Run the command again to resume; the received bytes are in {part}." if known.validator else "Run the command again."
    return DownloadError(
        f"The download of {known.url} was interrupted after {part.stat().st_size} of {known.size or 'unknown'} bytes ({reason}). {remedy}"
    )


class _NoFTP(urllib.request.FTPHandler):
    """Refuses redirects to ftp, which urllib follows by default."""

    def ftp_open(self, req: urllib.request.Request) -> Any:
        raise urllib.error.URLError(f"it redirects to {req.full_url}, which is neither http nor https")


def _open(url: str, headers: dict[str, str], access: str | None) -> Any:
    """Return the response to a GET request; a refused range (416) is a response too."""
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.build_opener(_NoFTP).open(request, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        accept = access and f"accept the license at {access}, then pass the link that is mailed to you, or the path of the file"
        meaning = {
            401: accept or "it is not public: download it where you are logged in and pass its path",
            403: accept or "access is denied: open it in a browser to see why, or pass the path of a copy",
            404: "the file does not exist: check the address",
        }.get(error.code, "try again later, or pass the path of a copy")
        raise DownloadError(f"{url} returned HTTP {error.code} {error.reason}; {meaning}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url} cannot be reached ({reason}). Check the network, or download the file elsewhere and pass its path."
        ) from error


@contextlib.contextmanager
def _progress_bar(name: str, *, total: int | None, completed: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yield the function that advances it by a number of bytes."""
    # Imported here: `import vitrail` would load a tenth more modules
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    shown = wanted and console.is_terminal and not are_progress_bars_disabled()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(name, total=total, completed=completed)
        yield lambda received: bar.advance(task, received)
