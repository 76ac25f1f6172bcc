"""Where weights come from: a path, a URL, a name of the catalogue or a Hub repository becomes a local file or folder.

Downloads lie in `vitrail/` under the Hub's own cache folder (HF_HOME), each URL in a folder of its own, and Hub repositories in
the Hub's cache. HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT hold here as everywhere on the Hub.
"""

import contextlib
import difflib
import hashlib
import http.client
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants, is_offline_mode, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import WeakFileLock, are_progress_bars_disabled
from huggingface_hub.utils import tqdm as hub_tqdm
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..errors import DownloadError, SourceNotFoundError, UnsupportedCheckpointError
from ..version import __version__
from .catalog import Checkpoint, checkpoint_names, checkpoints, find_checkpoint

CHUNK = 1 << 20  # bytes

# A name that ends like this is a file that is not there, not a Hub repository: the Hub is not asked.
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".npz", ".safetensors", ".json", ".tar")

# What of a repository is fetched, in order of preference: the file, the index of a sharded one, its shards.
HUB_CONFIGS = ["config.json", "preprocessor_config.json"]
HUB_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"],
)


@dataclass(frozen=True)
class ResolvedSource:
    """A source on the local disk.

    path: a file, or a folder laid out as on the Hub; `name`: what to call it in front of people.
    url, hub_id: where it came from, if it was fetched; `checkpoint`: its row of the catalogue, if it has one.
    """

    path: Path
    name: str
    url: str | None = None
    hub_id: str | None = None
    checkpoint: Checkpoint | None = None


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ResolvedSource:
    """Finds a source and fetches it if it is not on the disk: an existing path, a URL, a catalogue name or a Hub id, in this order.

    `revision` is a branch, tag or commit of a Hub repository and says nothing about other sources. `cache_dir` replaces both
    cache folders. Raises SourceNotFoundError where there is nothing of that name, DownloadError where it cannot be fetched, and
    UnsupportedCheckpointError where a Hub repository holds no weights in the Hub's layout.
    """
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and os.path.exists(path):  # unlike Path.exists, false for what is too long to be a path
        return ResolvedSource(path=path, name=os.path.basename(os.path.abspath(path)))
    if isinstance(source, os.PathLike):
        raise SourceNotFoundError(f"there is no file or folder {text}.")

    hub_page = re.fullmatch(re.escape(constants.ENDPOINT) + r"/(\w[\w.-]*/\w[\w.-]*)/?", text)
    name = hub_page[1] if hub_page else text
    if "://" in name:
        url = _https(name)
        known = (row for row in checkpoints() if row.hub_id is None and url in (row.url, row.full_checkpoint_url))
        return _downloaded(url, next(known, None), cache_dir=cache_dir, progress=progress)

    checkpoint = find_checkpoint(name)
    if checkpoint is not None and checkpoint.hub_id is None:
        assert checkpoint.url is not None, f"{checkpoint.name} has neither"
        return _downloaded(checkpoint.url, checkpoint, cache_dir=cache_dir, progress=progress)
    hub_id = (checkpoint and checkpoint.hub_id) or name
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_id) or hub_id.endswith(FILE_SUFFIXES):
        raise SourceNotFoundError(
            f"{text!r} is no file or folder here, no URL, no name of the catalogue and no Hub id (user/name).{_close_names(text)}"
        )
    folder = _snapshot(hub_id, revision=revision, cache_dir=cache_dir, progress=progress)
    return ResolvedSource(path=folder, name=checkpoint.name if checkpoint else hub_id, hub_id=hub_id, checkpoint=checkpoint)


def download(url: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: bool = True) -> Path:
    """The file at an http(s) or gs URL, from the cache or fetched into it.

    A download that breaks off is kept and goes on where it stopped, unless the file has changed on the server. Beside the file
    lies NAME.json with its url, size in bytes, etag and SHA-256. Raises DownloadError where it cannot be fetched whole.
    """
    url = _https(url)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    folder = Path(cache_dir or Path(constants.HF_HOME, "vitrail")) / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / (name if name.strip(".") else "checkpoint")
    if _is_complete(path):
        return path
    if is_offline_mode():
        raise DownloadError(f"{url} is not in the cache ({folder}), and HF_HUB_OFFLINE is set: unset it to download the file.")
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / ".lock"):
        if not _is_complete(path):  # another process may have fetched it while this one waited
            _fetch(url, path, progress=progress)
    return path


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _downloaded(
    url: str, checkpoint: Checkpoint | None, *, cache_dir: str | os.PathLike[str] | None, progress: bool
) -> ResolvedSource:
    path = download(url, cache_dir=cache_dir, progress=progress)
    return ResolvedSource(path=path, name=checkpoint.name if checkpoint else path.name, url=url, checkpoint=checkpoint)


def _https(url: str) -> str:
    """The same URL over https where it is a Google Storage URI."""
    scheme, _, rest = url.partition("://")
    if scheme == "gs":
        return f"https://storage.googleapis.com/{rest}"
    if scheme not in ("http", "https"):
        raise SourceNotFoundError(
            f"{url} begins with {scheme}://, which is not fetched here; expected http, https or gs. "
            "Download the file and give its path."
        )
    return url


def _close_names(text: str) -> str:
    closest: dict[str, str] = {}  # of each checkpoint the closest name
    for name in difflib.get_close_matches(text, checkpoint_names(), n=12, cutoff=0.5):
        closest.setdefault(checkpoint_names()[name].name, name)
    return f" Close names: {', '.join(list(closest.values())[:5])}." if closest else ""


# A file over HTTP -----------------------------------------------------------------------------------------------------


def _read_record(path: Path) -> dict[str, Any]:
    """What is known of a download: url, size, etag, last_modified, and sha256 once it is complete."""
    try:
        return json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_record(path: Path, record: dict[str, Any]) -> None:
    path.with_name(f"{path.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _is_complete(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == _read_record(path).get("size")


def _fetch(url: str, path: Path, *, progress: bool) -> None:
    """Downloads into NAME.part, from where an earlier attempt stopped, and renames it when it is whole."""
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
        ):  # the file became another one, and the server does not know If-Range
            part.unlink()
            return _fetch(url, path, progress=progress)
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url} answers with an HTML page instead of a file; open it in a browser to see why.")
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
                digest = hashlib.file_digest(file, "sha256")  # of what is there already; leaves the file at its end
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
    """What tells the server which version of the file a part belongs to; None where it cannot be resumed."""
    if not known.get("size"):
        return None
    etag = known["etag"]
    return etag if etag and not etag.startswith("W/") else known["last_modified"]  # If-Range takes no weak tag


def _broken_off(part: Path, known: dict[str, Any], *, reason: str) -> DownloadError:
    outlook = f"What arrived is kept in {part}: run again to go on from there." if _validator(known) else "Run it again."
    return DownloadError(
        f"the download of {known['url']} broke off after {part.stat().st_size} of {known['size'] or 'unknown'} bytes "
        f"({reason}). {outlook}"
    )


def _open(url: str, headers: dict[str, str]) -> Any:
    """The response to a GET; a refused range (416) is a response too."""
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        meaning = {
            401: "it is not public: download it where you are logged in and give its path",
            403: "the server does not hand it out: open it in a browser to see why, or give the path of a copy",
            404: "there is no such file: check the address",
        }.get(error.code, "try again later, or give the path of a copy")
        raise DownloadError(f"{url} was refused with {error.code} {error.reason}; {meaning}.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url} cannot be reached ({reason}). Check the network, or download the file elsewhere and give its path."
        ) from error


@contextlib.contextmanager
def _progress_bar(name: str, *, total: int | None, completed: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal; yields the function that advances it by a number of bytes."""
    console = Console(stderr=True)
    shown = wanted and console.is_terminal and not are_progress_bars_disabled()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(name, total=total, completed=completed)
        yield lambda received: bar.advance(task, received)


# A repository of the Hub ----------------------------------------------------------------------------------------------


class _NoBar(hub_tqdm):
    """The Hub's progress bar, switched off for one call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def _snapshot(hub_id: str, *, revision: str | None, cache_dir: str | os.PathLike[str] | None, progress: bool) -> Path:
    """The folder of a repository's configuration and weights in the Hub's cache, fetched if need be."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    try:
        for weights in HUB_WEIGHTS:
            folder = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    library_name="vitrail",
                    library_version=__version__,
                    allow_patterns=[*HUB_CONFIGS, *weights],
                    tqdm_class=None if progress and sys.stderr.isatty() else _NoBar,
                )
            )
            if any((folder / name).is_file() for name in weights):
                return folder
    except hub_errors.GatedRepoError as error:
        raise DownloadError(
            f"{hub_id} is gated: accept its terms at {page}, then log in with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError) as error:
        raise SourceNotFoundError(
            f"{hub_id!r} is no file or folder here, no name of the catalogue, and no repository of the Hub that you may see; "
            f"if it is private, log in with `hf auth login` (or set HF_TOKEN).{_close_names(hub_id)}"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise SourceNotFoundError(f"{page} has no revision {revision!r}; its branches and tags are on that page.") from error
    except hub_errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{hub_id} is not complete in the cache, and "
            + (
                "HF_HUB_OFFLINE is set: unset it to download it."
                if is_offline_mode()
                else f"{page} cannot be reached ({_one_line(error.__cause__ or error)}). Check the network, or copy the "
                "repository here and give its path."
            )
        ) from error
    except (hub_errors.HTTPError, OSError) as error:
        raise DownloadError(
            f"{page} could not be fetched ({_one_line(error)}). Try again later; if it is your token that the Hub refuses, run "
            "`hf auth login`."
        ) from error
    raise UnsupportedCheckpointError(
        f"{page} holds neither model.safetensors nor pytorch_model.bin. If its weights are called otherwise, give the address of "
        f"the file: {page}/resolve/{revision or 'main'}/FILE."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
