"""Sources of weights: a path, a URL, a catalog name or a Hub repository becomes a local file or folder.

Hub repositories are in the Hub's cache; HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply.
"""

import difflib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, is_offline_mode, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import tqdm as hub_tqdm

from ...errors import DownloadError, SourceNotFoundError, UnsupportedCheckpointError, VitrailError, public_text
from ...utils.downloads import download, https_url
from ...utils.folders import interrupted
from ...version import __version__
from .catalog import Checkpoint, checkpoint_names, checkpoints, find_checkpoint

# A name with one of these suffixes is a missing file, not a Hub repository: no request is made
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".npz", ".safetensors", ".json", ".tar")

# Files of a repository to download, in order of preference: the file, the index of a sharded one, its shards
HUB_CONFIGS = ["config.json", "preprocessor_config.json", "conversion.json"]
HUB_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"],
)


@dataclass(frozen=True)
class ResolvedSource:
    """A source on the local disk.

    path: a file, or a folder in the Hub's layout; `name`: its name in messages.
    url, hub_id: where it was downloaded from, without the query of the URL; `checkpoint`: its row of the catalog.
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
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ResolvedSource:
    """Find a source, and download it if needed: an existing path, a URL, a catalog name or a Hub id, in this order.

    Args:
        revision, token: a branch, tag or commit of a Hub repository, and the token for it; other sources ignore them.
        cache_dir: replaces both cache folders.
        progress: whether to show a progress bar on a terminal.

    Raises:
        SourceNotFoundError: there is no such source.
        DownloadError: it cannot be downloaded.
        UnsupportedCheckpointError: a Hub repository holds no weights in the Hub's layout.
    """
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))  # Path.expanduser raises for an unknown user
    if text and os.path.exists(path):  # unlike Path.exists, false for what is too long to be a path
        return ResolvedSource(path=path, name=os.path.basename(os.path.abspath(path)))
    if left := interrupted(path):
        raise SourceNotFoundError(
            f"{text} is missing, because a process died while it replaced the folder: rename {left} to {path}."
        )
    if isinstance(source, os.PathLike):
        raise SourceNotFoundError(f"There is no file or folder {text}.")

    hub_page = re.fullmatch(re.escape(constants.ENDPOINT) + r"/(\w[\w.-]*/\w[\w.-]*)/?", text)
    name = hub_page[1] if hub_page else text
    if "://" in name:
        url = https_url(name)
        # a link that was mailed has a query, which is no part of the row's
        known = (row for row in checkpoints() if row.hub_id is None and public_text(url) in (row.url, row.full_checkpoint_url))
        return _downloaded(url, next(known, None), cache_dir=cache_dir, progress=progress)

    checkpoint = find_checkpoint(name)
    if checkpoint is not None and checkpoint.hub_id is None:
        assert checkpoint.url is not None, f"{checkpoint.name} has neither"
        return _downloaded(checkpoint.url, checkpoint, cache_dir=cache_dir, progress=progress)
    hub_id = (checkpoint and checkpoint.hub_id) or name
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_id) or hub_id.endswith(FILE_SUFFIXES):
        raise SourceNotFoundError(
            f"{text!r} is not a file, a folder, a URL, a catalog name or a Hub id (user/name).{_close_names(text)}"
        )
    folder = _snapshot(hub_id, revision=revision, token=token, cache_dir=cache_dir, progress=progress)
    return ResolvedSource(path=folder, name=checkpoint.name if checkpoint else hub_id, hub_id=hub_id, checkpoint=checkpoint)


def _downloaded(
    url: str, checkpoint: Checkpoint | None, *, cache_dir: str | os.PathLike[str] | None, progress: bool
) -> ResolvedSource:
    public = public_text(url)
    published = checkpoint.sha256 if checkpoint and public == checkpoint.url else None
    pages = (row.access for row in checkpoints() if row.access and public in (row.url, *row.head_urls.values()))
    path = download(url, cache_dir=cache_dir, progress=progress, sha256=published, access=next(pages, None))
    name = checkpoint.name if checkpoint else path.name
    return ResolvedSource(path=path, name=name, url=public, checkpoint=checkpoint)


def _close_names(text: str) -> str:
    closest: dict[str, str] = {}  # by checkpoint
    for name in difflib.get_close_matches(text, checkpoint_names(), n=12, cutoff=0.5):
        closest.setdefault(checkpoint_names()[name].name, name)
    return f" Similar names: {', '.join(list(closest.values())[:5])}." if closest else ""


# A repository of the Hub ----------------------------------------------------------------------------------------------


class _NoBar(hub_tqdm):
    """The Hub's progress bar, disabled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def _snapshot(
    hub_id: str,
    *,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: bool,
) -> Path:
    """Return the folder of a repository's configuration and weights in the Hub's cache, downloaded if needed."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    try:
        for weights in HUB_WEIGHTS:
            folder = Path(
                snapshot_download(
                    hub_id,
                    revision=revision,
                    token=token,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    library_name="vitrail",
                    library_version=__version__,
                    allow_patterns=[*HUB_CONFIGS, *weights],
                    tqdm_class=None if progress and sys.stderr.isatty() else _NoBar,
                )
            )
            if any((folder / name).is_file() for name in weights):
                return folder
    except (hub_errors.HTTPError, hub_errors.HFValidationError, OSError) as error:
        raise _download_error(error, hub_id, revision) from error
    raise UnsupportedCheckpointError(
        f"{page} has neither model.safetensors nor pytorch_model.bin. If its weights have another name, pass the address of the "
        f"file: {page}/resolve/{revision or 'main'}/FILE."
    )


def _download_error(error: Exception, hub_id: str, revision: str | None) -> VitrailError:
    """Return the error for a repository that cannot be downloaded, with its cause and remedy."""
    page = f"{constants.ENDPOINT}/{hub_id}"
    if isinstance(error, hub_errors.LocalEntryNotFoundError) and isinstance(error.__cause__, hub_errors.HfHubHTTPError):
        error = error.__cause__  # the Hub was reached and refused the request
    if isinstance(error, hub_errors.GatedRepoError):
        return DownloadError(
            f"{hub_id} is gated: accept its terms at {page} with the account of your token (`hf auth login`, or HF_TOKEN)."
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError | hub_errors.HFValidationError):
        return SourceNotFoundError(
            f"{hub_id!r} is not a file, a folder, a catalog name, or a Hub repository that you can access. For a private repository, log "
            f"in with an account that has access: `hf auth login`, or HF_TOKEN.{_close_names(hub_id)}"
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return SourceNotFoundError(f"{page} has no revision {revision!r}; that page lists its branches and tags.")
    if isinstance(error, hub_errors.LocalEntryNotFoundError):
        target = hub_id if revision is None else f"Revision {revision!r} of {hub_id}"
        if is_offline_mode():
            return DownloadError(
                f"{target} is not complete in the cache, and HF_HUB_OFFLINE is set: unset it to download the files."
            )
        return DownloadError(
            f"{target} is not complete in the cache, and {page} cannot be reached ({error.__cause__ or error}). Check the "
            "network, or copy the repository and pass its path."
        )
    status = error.response.status_code if isinstance(error, hub_errors.HfHubHTTPError) else None
    remedy = {
        401: "Your token is not valid: log in again with `hf auth login --force`; token= and HF_TOKEN take precedence over the login",
        403: "Your token has no permission to read it",
    }.get(status or 0, "Try again later")
    return DownloadError(f"{page} could not be downloaded ({error}). {remedy}.")
