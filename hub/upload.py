"""Uploading a model to the Hub: all of its files, and no other, in one commit."""

import itertools
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from ..configuration.configuration_vit import ViTConfig
from ..convert.export import to_format, write_exported
from ..convert.families.registry import EXPORT_FORMATS
from ..convert.loading import load
from ..convert.report import ConversionRecord
from ..convert.sources.catalog import find_checkpoint
from ..errors import UploadError, VitrailError
from ..model_cards.card import folder_card, render_model_card
from ..model_cards.licenses import license_of
from ..model_cards.model_folder import (
    CARD_NAME,
    CODE_NAMES,
    INDEX_NAME,
    LICENSE_NAMES,
    PREPROCESSOR_CONFIG_NAME,
    PRETRAINING_NAMES,
    REPORT_NAME,
    RESULT_NAMES,
    WEIGHTS,
    is_model_folder,
    read_report,
    weight_files,
)
from ..model_cards.readme import is_rendered, may_be_rendered, write_card
from ..model_cards.records import read_pretraining, read_results
from ..modeling.modeling_vit import ViTForImageClassification
from ..version import __version__
from .published_files import MODEL_NAMES, RECORD_NAMES, check_files
from .remote_code import add_code, remove_code
from .saving import save

LAYOUTS = (ViTConfig.model_type, *(name for name, export in EXPORT_FORMATS.items() if export.library is not None))
# Files that a push may delete from a repository, in addition to old weights
REMOVABLE_NAMES = (PREPROCESSOR_CONFIG_NAME, REPORT_NAME, *CODE_NAMES)


@dataclass
class Upload:
    """The content of a commit: the path of each file by its name in the repository, and warnings."""

    files: dict[str, Path]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sent:
    """A commit on the Hub; whether it is new; the files it deleted; whether the card on the Hub was kept."""

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
    """Upload a model: weights (safetensors), config, image processor, code, card and conversion report, in one commit.

    The files become visible only when all have arrived. After an interruption, a repeated call does not send files that arrived again.
    Weights and code of the previous model are deleted. A card that was edited on the Hub stays, unless the folder's card was edited
    too; all other files stay.

    Args:
        source: a folder that vitrail wrote, or anything else that `vitrail.load` accepts, which is converted first.
        repo_id: "user/name"; created if it does not exist.
        to: the layout of the repository: "vitrail" (AutoModel with trust_remote_code=True, or `import vitrail`), or the name of a family
            whose library loads a folder, for example "timm".
        code: whether to upload the code of the model, in the layout "vitrail".
        private: whether a new repository is private; True for an existing repository requires that it is private.
        revision: the branch to commit to, created if it does not exist; main by default.
        create_pr: open a pull request on an existing repository instead.
        token: the token of the Hub; the login's token by default.

    Returns:
        The commit of huggingface_hub, with its `commit_url`, or `pr_url` for a pull request.

    Raises:
        VitrailError: the model is not valid, its folder holds other files, or the layout cannot hold it; nothing is uploaded.
        UploadError: the Hub refuses the upload, or cannot be reached.
    """
    check_target(repo_id, to=to, revision=revision, create_pr=create_pr)
    with tempfile.TemporaryDirectory() as folder:
        upload = stage(source, Path(folder) / "model", repo_id=repo_id, to=to, code=code, token=token)
        return send(upload, repo_id, private=private, revision=revision, create_pr=create_pr, token=token).commit


def check_target(repo_id: str, *, to: str, revision: str | None, create_pr: bool) -> None:
    """Raise VitrailError for a target that cannot be a repository."""
    try:
        validate_repo_id(repo_id)
    except hub_errors.HFValidationError as error:
        raise VitrailError(f"{repo_id!r} is not a valid name of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise VitrailError(f"{repo_id!r} does not name the owner of the repository: write user/{repo_id}.")
    if to not in LAYOUTS:
        raise VitrailError(f"Unknown layout {to!r} of a repository; expected one of {', '.join(LAYOUTS)}.")
    if revision is not None and (not re.fullmatch(r"\w[\w./-]*", revision) or re.fullmatch(r"[0-9a-f]{40}", revision)):
        raise VitrailError(f"{revision!r} is not a valid name of a branch: use letters, digits, '.', '/' and '-'.")
    if create_pr and revision is not None:
        raise VitrailError("A pull request creates its own branch: leave revision out.")


def stage(
    source: str | os.PathLike,
    folder: Path,
    *,
    repo_id: str,
    to: str = "vitrail",
    code: bool = True,
    token: str | bool | None = None,
) -> Upload:
    """Write the files of an upload into `folder`, which must not exist; weights of a vitrail folder are not copied."""
    path = Path(source)
    ours = path.is_dir() and is_model_folder(path)
    upload = Upload({})
    if ours:
        upload.warnings += check_files(path)
        if not (path / PREPROCESSOR_CONFIG_NAME).is_file():
            raise VitrailError(
                f"{path} has no {PREPROCESSOR_CONFIG_NAME}, which users need to preprocess images: save the model's image processor "
                "there, with image_processor.save_pretrained, or give it to the Trainer as processing_class."
            )
    model, image_processor, report = load(source, token=token)  # complete and finite, or an error
    weights_sha256 = report.source.sha256
    record: ConversionRecord | None = report.record()
    results, pretraining, stale = None, None, []
    if ours:
        record, results = read_report(path, weights_sha256), read_results(path, weights_sha256)
        pretraining = read_pretraining(path, weights_sha256)
        of_others = [REPORT_NAME] * (record is None) + list(RESULT_NAMES) * (results is None)
        of_others += list(PRETRAINING_NAMES) * (pretraining is None)
        stale = [name for name in of_others if (path / name).exists()]
        if stale:
            upload.warnings.append(f"left out, because they describe other weights: {', '.join(stale)}")
    if to != "vitrail":
        exported = to_format(model, image_processor, to)
        write_exported(exported, folder)
        if record is not None:
            record.write(folder / REPORT_NAME)
        upload.warnings += exported.warnings
        card = render_model_card(
            model.config,
            image_processor,
            record,
            classifies=isinstance(model, ViTForImageClassification),
            name=repo_id,
            format=to,
            warnings=exported.warnings,
            results=results,
            pretraining=pretraining,
        )
        write_card(folder, card)
        for name in LICENSE_NAMES:
            if ours and (path / name).is_file():
                shutil.copyfile(path / name, folder / name)
        if ours and not may_be_rendered(path):
            upload.warnings.append(f"the folder's {CARD_NAME} was edited and describes another layout: a new card is uploaded")
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
            upload.warnings.append(f"{CARD_NAME} was edited and is uploaded unchanged: check that its code loads {repo_id}")
    else:
        save(model, image_processor, folder, report=report, code=code)
        write_card(folder, folder_card(folder, name=repo_id))
    upload.files |= {file.name: file for file in folder.iterdir()}
    upload.files = dict(sorted(upload.files.items()))
    license = license_of(find_checkpoint((record and record.checkpoint) or ""))
    if license is not None and upload.files.keys().isdisjoint(LICENSE_NAMES):
        upload.warnings.append(
            f"the weights are under the {license.name} ({license.link}), and the repository has no copy of it: add LICENSE.md. "
            f"{license.terms}"
        )
    return upload


def send(
    upload: Upload,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Sent:
    """Create the repository, if needed, and the commit, which also deletes weights and code of the previous model."""
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
            parent_commit=there.sha,  # otherwise another commit could be mixed with this one
        )
        return Sent(commit, is_new=commit.oid != there.sha, removed=removed, kept_card=kept_card)
    except (hub_errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # of the client, for files that did not arrive
        if isinstance(error, VitrailError):
            raise
        raise UploadError(_explain(error, f"{api.endpoint}/{repo_id}", repo_id)) from error


def _explain(error: Exception, page: str, repo_id: str) -> str:
    """Return cause and remedy of a failed upload."""
    status = error.response.status_code if isinstance(error, hub_errors.HfHubHTTPError) else None
    if isinstance(error, RuntimeError | ConnectionError) and (refused := re.search(r"\b40[13]\b", str(error))):
        status = int(refused[0])  # the client of the storage gives the code only in its message
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = str(error)
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set: unset it to upload to {page}."
    if isinstance(error, hub_errors.GatedRepoError):
        return f"{page} is gated: accept its terms there first."
    if isinstance(error, hub_errors.LocalTokenNotFoundError) or (
        status == 401 and not isinstance(error, hub_errors.RepositoryNotFoundError)
    ):
        return (
            f"You are not logged in to the Hub, so {page} cannot be written: run `hf auth login`, or set HF_TOKEN to a valid token."
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"{page} does not exist, or your token has no access: check the name, and that you are logged in (`hf auth whoami`)."
    if status == 403:
        owner = repo_id.split("/")[0]
        return (
            f"You have no write access to {page} ({reason}). Check that {owner!r} is you or your organization, and that your token can "
            "write."
        )
    if status == 412:
        return f"{page} was changed by another commit in the meantime: check it, then run the command again."
    if isinstance(error, ValueError) and not isinstance(error, hub_errors.HTTPError):
        return f"The Hub rejected the files for {page}: {reason}"
    return f"The upload to {page} was interrupted ({reason}). None of its files is visible there. Run the command again to resume."
