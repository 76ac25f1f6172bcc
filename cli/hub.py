"""Commands about the Hub: `vitrail push` and `card`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..hub.upload import LAYOUTS, check_target, send, stage
from ..model_cards.readme import model_card
from ..utils.atomic import write_text
from .options import Code, Model, Revision
from .output import Result, check_output, warn


def push(
    model: Model,
    repo_id: Annotated[str, typer.Argument(help="Repository, as user/name; created if it does not exist.")],
    to: Annotated[str, typer.Option("--as", help=f"Layout of the repository: {', '.join(LAYOUTS)}.")] = "vitrail",
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private; fail if it exists and is public.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request on an existing repository.")] = False,
    revision: Revision = None,
    code: Code = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded, without contacting the Hub.")] = False,
) -> Result:
    """Upload a model to the Hub: weights, config, image processor, code and card, in one commit."""
    check_target(repo_id, to=to, revision=revision, create_pr=create_pr)
    with tempfile.TemporaryDirectory() as folder:
        upload = stage(model, Path(folder) / "model", repo_id=repo_id, to=to, code=code)
        warn(*upload.warnings)
        sizes = {name: path.stat().st_size for name, path in upload.files.items()}
        sent = None if dry_run else send(upload, repo_id, private=private or None, revision=revision, create_pr=create_pr)
    lines = [f"{repo_id}, in the layout of {to}, bytes:", *(f"{size:15,}  {name}" for name, size in sizes.items())]
    record = {"repo_id": repo_id, "layout": to, "files": sizes, "warnings": list(upload.warnings)}
    if sent is None:
        return Result({**record, "uploaded": False, "url": None, "removed": []}, [*lines, "nothing was uploaded (--dry-run)"])
    if sent.kept_card:
        warn("README.md was edited on the Hub and is kept: to replace it, edit README.md in the folder.")
    url = sent.commit.pr_url or sent.commit.commit_url
    lines += [f"  removed: {name}" for name in sent.removed]
    lines.append(f"{'uploaded' if sent.is_new else 'nothing has changed'}: {url}")
    return Result({**record, "uploaded": sent.is_new, "url": url, "removed": list(sent.removed)}, lines)


def card(
    model: Model,
    output: Annotated[Path | None, typer.Option(help=".md file to write instead of printing the card.")] = None,
) -> Result:
    """Render the model card of a checkpoint; an official one is not downloaded."""
    if output is not None:
        check_output(output, (".md",))
    text = str(model_card(model)).rstrip("\n")
    if output is None:
        return Result({"output": None, "card": text}, [text])
    write_text(output, text + "\n")
    return Result({"output": str(output), "card": text}, [f"{output}: model card of {model}"])
