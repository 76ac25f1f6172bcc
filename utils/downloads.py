"""Downloads over HTTP: resumed after an interruption, checked, and cached in `vitrail/` in the Hub's folder (HF_HOME)."""

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, is_offline_mode
from huggingface_hub.utils import WeakFileLock, are_progress_bars_disabled

from ..errors import DownloadError, SourceNotFoundError, VitrailError
from ..version import __version__
from .atomic import write_json
from .records import Record

CHUNK = 1 << 20  # bytes


def download(url: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Path:
    """Return the path of the file at an http(s) or gs URL, downloaded into the cache if needed.

    An interrupted download is resumed, unless the file has changed on the server. NAME.json next to the file records its url, size in
    bytes, etag and SHA-256. Raise DownloadError if the file cannot be downloaded completely.
    """
    url = https_url(url)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    folder = Path(cache_dir or Path(constants.HF_HOME, "vitrail")) / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / (name if name.strip(".") else "checkpoint")
    if _is_complete(path):
        return path
    if is_offline_mode():
        raise DownloadError(f"{url} is not in the cache ({folder}), and HF_HUB_OFFLINE is set: unset it to download the file.")
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / ".lock"):
        if not _is_complete(path):  # another process may have downloaded it while this one waited
            _fetch(url, path, progress=progress)
    return path


def https_url(url: str) -> str:
    """Return a URL with the scheme http(s); a Google Storage URI (gs://) becomes https."""
    scheme, _, rest = url.partition("://")
    if scheme == "gs":
        return f"https://storage.googleapis.com/{rest}"
    if scheme not in ("http", "https"):
        raise SourceNotFoundError(
            f"{url} has the unsupported scheme {scheme}://; expected http, https or gs. Download the file and pass its path."
        )
    return url


@dataclass(kw_only=True)
class DownloadRecord(Record):
    """The content of NAME.json; `sha256` once the download is complete."""

    url: str | None = None
    size: int | None = None
    etag: str | None = None
    last_modified: str | None = None
    sha256: str | None = None


def _read_record(path: Path) -> dict[str, Any]:
    """Return the record of a download; an empty one where it is damaged, so that the file is downloaded again."""
    try:
        return asdict(DownloadRecord.read(path.with_name(f"{path.name}.json")))
    except (FileNotFoundError, VitrailError):
        return asdict(DownloadRecord())


def _write_record(path: Path, record: dict[str, Any]) -> None:
    write_json(path.with_name(f"{path.name}.json"), record)


def _is_complete(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == _read_record(path).get("size")


def _fetch(url: str, path: Path, *, progress: bool) -> None:
    """Download into NAME.part, resuming an earlier attempt, and rename the file when it is complete."""
    part = path.with_name(f"{path.name}.part")
    known = _read_record(path)
    validator = _validator(known)
    offset = 0
    headers = {"User-Agent": f"vitrail/{__version__}"}
    if validator and part.is_file() and (offset := part.stat().st_size):
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}

    with _open(url, headers) as response:
        resumed = offset > 0 and response.status == 206
        if response.status == 416 or (
            resumed and response.headers["Content-Range"] != f"bytes {offset}-{known['size'] - 1}/{known['size']}"
        ):  # the file has changed, and the server does not support If-Range
            part.unlink()
            return _fetch(url, path, progress=progress)
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url} returns an HTML page instead of a file; open it in a browser to see why.")
        if not resumed:
            length = response.headers["Content-Length"]
            known = {
                "url": url,
                "size": int(length) if length else None,
                "etag": response.headers["ETag"],
                "last_modified": response.headers["Last-Modified"],
            }
            _write_record(path, known)

        try:
            with part.open("r+b" if resumed else "w+b") as file:
                digest = hashlib.file_digest(file, "sha256")  # of the part that exists; leaves the file at its end
                with _progress_bar(path.name, total=known["size"], completed=file.tell(), wanted=progress) as advance:
                    while chunk := response.read(CHUNK):
                        file.write(chunk)
                        digest.update(chunk)
                        advance(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise _broken_off(part, known, reason=str(error) or type(error).__name__) from error

    size = part.stat().st_size
    if known["size"] not in (None, size):
        raise _broken_off(part, known, reason="the server closed the connection")
    _write_record(path, known | {"size": size, "sha256": digest.hexdigest()})
    part.replace(path)
    return None


def _validator(known: dict[str, Any]) -> str | None:
    """Return the validator that identifies the version of a partial file; None where it cannot be resumed."""
    if not known.get("size"):
        return None
    etag = known["etag"]
    return etag if etag and not etag.startswith("W/") else known["last_modified"]  # If-Range takes no weak tag


def _broken_off(part: Path, known: dict[str, Any], *, reason: str) -> DownloadError:
    remedy = (
        f"Run the command again to resume; the received bytes are in {part}." if _validator(known) else "Run the command again."
    )
    return DownloadError(
        f"The download of {known['url']} was interrupted after {part.stat().st_size} of {known['size'] or 'unknown'} bytes "
        f"({reason}). {remedy}"
    )


def _open(url: str, headers: dict[str, str]) -> Any:
    """Return the response to a GET request; a refused range (416) is a response too."""
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        meaning = {
            401: "it is not public: download it where you are logged in and pass its path",
            403: "access is denied: open it in a browser to see why, or pass the path of a copy",
            404: "the file does not exist: check the address",
        }.get(error.code, "try again later, or pass the path of a copy")
        raise DownloadError(f"{url} returned HTTP {error.code} {error.reason}; {meaning}.") from error
    except (OSError, http.client.HTTPException) as error:
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
