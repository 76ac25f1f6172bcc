"""Uploads a model to the Hub: everything that belongs to it, and nothing else, in one commit."""

import itertools
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from ..convert.export import to_format, write_exported
from ..convert.loading import load
from ..convert.model_folder import (
    CARD_NAME,
    CODE_NAMES,
    CONFIG_NAME,
    INDEX_NAME,
    LICENSE_NAMES,
    PREPROCESSOR_CONFIG_NAME,
    PRETRAINING_NAMES,
    REPORT_NAME,
    RESULT_NAMES,
    WEIGHTS,
    is_model_folder,
    read_pretraining,
    read_report,
    read_results,
    weight_files,
    write_report,
)
from ..errors import UploadError, VitrailError
from ..model_cards.card import folder_card, render_model_card
from ..model_cards.readme import is_rendered, may_be_rendered, write_card
from ..modeling.modeling_vit import ViTForImageClassification
from ..version import __version__
from .remote_code import add_code, remove_code
from .save import save

LAYOUTS = ("vitrail", "transformers", "timm")
# What an evaluation or a training leaves beside the weights, which the card tells of
RECORD_NAMES = (*RESULT_NAMES, *PRETRAINING_NAMES)
# What a model's folder may hold beside its weights
MODEL_NAMES = (CONFIG_NAME, PREPROCESSOR_CONFIG_NAME, REPORT_NAME, CARD_NAME, *RECORD_NAMES, *CODE_NAMES, *LICENSE_NAMES)
# What a push may take away from a repository, with weights that are no more
REMOVABLE_NAMES = (PREPROCESSOR_CONFIG_NAME, REPORT_NAME, *CODE_NAMES)


@dataclass
class Upload:
    """What one commit brings: the path of each file, by its name in the repository; and what a person should know of it."""

    files: dict[str, Path]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sent:
    """A commit as the Hub has it; whether it is a new one; the files that it took away; whether the Hub's own card was left."""

    commit: CommitInfo
    is_new: bool
    removed: list[str]
    kept_card: bool


def push(
    source: str | os.PathLike,
    repo_id: str,
    *,
    to: str = "vitrail",
    code: bool = True,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> CommitInfo:
    """Uploads a model: weights (safetensors), config, image processor, code, card and conversion report, in one commit.

    Nothing is seen of it before all of it has arrived, and it may be repeated after it broke off: files that arrived are not sent again.
    Weights and code of a model that was there before are taken away. A card that somebody has edited on the Hub stays, unless the
    folder's own was edited too; every other file stays.

    Args:
        source: a folder that vitrail wrote, or anything else that `vitrail.load` takes, which is converted first.
        repo_id: "user/name"; made if it does not exist.
        to: the layout of the repository: "vitrail" (AutoModel with trust_remote_code=True, or `import vitrail`), "transformers" or
            "timm" (their own classes, no code of ours).
        code: whether the code goes with a model of the layout "vitrail".
        private: whether a new repository is private; for one that exists, True makes sure that it is.
        revision: the branch to commit to, made if it does not exist; without it, main.
        create_pr: open a pull request instead, on a repository that exists.
        token: of the Hub; without it, the one that you are logged in with.

    Returns:
        What huggingface_hub says of the commit: its `commit_url`, and `pr_url` of a pull request.

    Raises:
        VitrailError: the source is no sound model, its folder holds other things, or the layout cannot hold it. Nothing is uploaded.
        UploadError: the Hub refuses the upload, or cannot be reached.
    """
    check_target(repo_id, to=to, revision=revision, create_pr=create_pr)
    with tempfile.TemporaryDirectory() as folder:
        upload = stage(source, Path(folder) / "model", repo_id=repo_id, to=to, code=code, token=token)
        return send(upload, repo_id, private=private, revision=revision, create_pr=create_pr, token=token).commit


def check_target(repo_id: str, *, to: str, revision: str | None, create_pr: bool) -> None:
    """Refuses, before any work, what cannot become a repository."""
    try:
        validate_repo_id(repo_id)
    except hub_errors.HFValidationError as error:
        raise VitrailError(f"{repo_id!r} cannot be the name of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise VitrailError(f"{repo_id!r} does not say whose repository it is: write user/{repo_id}.")
    if to not in LAYOUTS:
        raise VitrailError(f"There is no layout {to!r} for a repository: choose {', '.join(LAYOUTS)}.")
    if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or re.fullmatch(r"[0-9a-f]{40}", revision)):
        raise VitrailError(f"{revision!r} cannot be the name of a branch: choose letters, digits, '.', '/' and '-'.")
    if create_pr and revision is not None:
        raise VitrailError("A pull request makes a branch of its own: leave revision out.")


def stage(
    source: str | os.PathLike,
    folder: Path,
    *,
    repo_id: str,
    to: str = "vitrail",
    code: bool = True,
    token: str | bool | None = None,
) -> Upload:
    """Makes the files of an upload in `folder`, which must not exist; the weights of a folder of ours are taken from where they lie."""
    path = Path(source)
    ours = path.is_dir() and is_model_folder(path)
    if ours:
        refuse_strays(path)
        if not (path / PREPROCESSOR_CONFIG_NAME).is_file():
            raise VitrailError(
                f"{path} has no {PREPROCESSOR_CONFIG_NAME}, without which nobody knows how to prepare images: save the model's image "
                "processor there too, with image_processor.save_pretrained."
            )
    model, image_processor, report = load(source, token=token)  # sound, complete and finite, or an error
    upload, weights_sha256 = Upload({}), report.source.sha256
    said: dict[str, Any] | None = report.to_dict()
    results, pretraining, stale = None, None, []
    if ours:
        said, results = read_report(path, weights_sha256), read_results(path, weights_sha256)
        pretraining = read_pretraining(path, weights_sha256)
        of_others = [REPORT_NAME] * (said is None) + list(RESULT_NAMES) * (results is None)
        of_others += list(PRETRAINING_NAMES) * (pretraining is None)
        stale = [name for name in of_others if (path / name).exists()]
        if stale:
            upload.warnings.append(f"left out, because it is not of these weights: {', '.join(stale)}")
    if to != "vitrail":
        exported = to_format(model, image_processor, to)
        write_exported(exported, folder)
        if said is not None:
            write_report(folder, said)
        upload.warnings += exported.warnings
        card = render_model_card(
            model.config,
            image_processor,
            said,
            classifies=isinstance(model, ViTForImageClassification),
            name=repo_id,
            format=to,
            warnings=exported.warnings,
            results=results,
            pretraining=pretraining,
        )
        write_card(folder, card)
        if ours and not may_be_rendered(path):
            upload.warnings.append(f"the folder's {CARD_NAME} was edited, and describes another layout: a new one is uploaded")
    elif ours:
        folder.mkdir()
        upload.files = {file.name: file for file in weight_files(path)}
        for name in (INDEX_NAME, *MODEL_NAMES):
            if (path / name).is_file() and name not in (*stale, *CODE_NAMES):
                shutil.copyfile(path / name, folder / name)
        (add_code if code else remove_code)(folder)
        if may_be_rendered(folder):
            write_card(folder, folder_card(folder, name=repo_id, weights_sha256=weights_sha256))
        else:
            upload.warnings.append(f"{CARD_NAME} was edited and goes up as it is: see that its code loads {repo_id}")
    else:
        save(model, image_processor, folder, report=report, code=code)
        write_card(folder, folder_card(folder, name=repo_id))
    upload.files |= {file.name: file for file in folder.iterdir()}
    upload.files = dict(sorted(upload.files.items()))
    return upload


def refuse_strays(folder: Path) -> None:
    """Raises where a folder holds what is no part of a model; names that begin with a dot are never uploaded, and may be there."""
    weights = weight_files(folder)
    known = {*MODEL_NAMES, *(file.name for file in weights), *([INDEX_NAME] if (folder / INDEX_NAME).is_file() else [])}
    strays = sorted(
        file.name + "/" * file.is_dir()
        for file in folder.iterdir()
        if not (file.name.startswith(".") or file.name == "__pycache__" or (file.is_file() and file.name in known))
    )
    if strays:
        raise VitrailError(
            f"{folder} also holds {', '.join(strays)}, which the layout of a model does not know (a pickle could even run code where it "
            "is read): move that elsewhere, and push again."
        )


def send(
    upload: Upload,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Sent:
    """Makes the repository, if need be, and the commit, which also takes away weights and code of the model that was there before."""
    api = HfApi(library_name="vitrail", library_version=__version__, token=token)
    try:
        if not create_pr:
            api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision)
        if private and not there.private:
            raise UploadError(f"{api.endpoint}/{repo_id} exists and is public: make it private there, or choose another name.")
        names = api.list_repo_files(repo_id, revision=there.sha)
        kept_card = (
            CARD_NAME in names
            and is_rendered(upload.files[CARD_NAME])
            and not is_rendered(Path(api.hf_hub_download(repo_id, CARD_NAME, revision=there.sha)))
        )
        removable = REMOVABLE_NAMES if kept_card else (*REMOVABLE_NAMES, *RECORD_NAMES)
        removed = [name for name in names if name not in upload.files and (name in removable or WEIGHTS.fullmatch(name))]
        added = {name: path for name, path in upload.files.items() if not (kept_card and name == CARD_NAME)}
        commit = api.create_commit(
            repo_id,
            [*itertools.starmap(CommitOperationAdd, added.items()), *map(CommitOperationDelete, removed)],
            commit_message=f"Upload model with vitrail {__version__}",
            revision=revision,
            create_pr=create_pr,
            parent_commit=there.sha,  # or another's commit could be mixed with this one
        )
        return Sent(commit, is_new=commit.oid != there.sha, removed=removed, kept_card=kept_card)
    except (hub_errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # the client's own, of files that did not arrive
        if isinstance(error, VitrailError):
            raise
        raise UploadError(_why(error, f"{api.endpoint}/{repo_id}", repo_id)) from error


def _why(error: Exception, page: str, repo_id: str) -> str:
    """What a person needs to know of a failed upload."""
    status = error.response.status_code if isinstance(error, hub_errors.HfHubHTTPError) else None
    if isinstance(error, RuntimeError | ConnectionError) and (refused := re.search(r"\b40[13]\b", str(error))):
        status = int(refused[0])  # the storage's client gives it in words only
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = " ".join(str(error).split())
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return f"{page} is not asked, because HF_HUB_OFFLINE is set: unset it to upload."
    if isinstance(error, hub_errors.GatedRepoError):
        return f"{page} is gated: accept its terms there first."
    if isinstance(error, hub_errors.LocalTokenNotFoundError) or (
        status == 401 and not isinstance(error, hub_errors.RepositoryNotFoundError)
    ):
        return f"The Hub does not know you, so {page} cannot be written: log in with `hf auth login`, or set HF_TOKEN to a valid token."
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return (
            f"{page} does not exist, or your token may not see it: check the name, and that you are logged in (`hf auth whoami`)."
        )
    if status == 403:
        owner = repo_id.split("/")[0]
        return f"You may not write to {page}: is {owner!r} you or an organisation of yours, and may your token write? ({reason})"
    if status == 412:
        return f"Somebody else has changed {page} meanwhile: look at it, then give the same command again."
    if isinstance(error, ValueError) and not isinstance(error, hub_errors.HTTPError):
        return f"The Hub does not accept what should be uploaded to {page}: {reason}"
    return f"The upload to {page} broke off ({reason}). No file of it can be seen there; the same command again goes on where it stopped."
