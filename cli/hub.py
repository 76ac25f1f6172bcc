"""Commands about the Hub: `vitrail push`, `card`."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..hub.push import check_target, send, stage
from ..model_cards.readme import model_card
from ..utils.atomic import write_text
from .checkpoints import Source
from .images import check_output


def push(
    model: Source,
    repo_id: Annotated[str, typer.Argument(help="The repository, user/name; made if it does not exist.")],
    to: Annotated[str, typer.Option("--as", help="Layout of the repository: vitrail, transformers or timm.")] = "vitrail",
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private; fail if it exists and is public.")
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request on a repository that exists.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to, instead of main; made if it does not exist.")] = None,
    code: Annotated[
        bool, typer.Option("--code/--no-code", help="Put in the code that loads it where vitrail is not installed.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be uploaded; the Hub is not asked.")] = False,
) -> None:
    """Upload a model to the Hub: weights, config, image processor, code and card, in one commit."""
    console = Console(highlight=False, soft_wrap=True)
    check_target(repo_id, to=to, revision=revision, create_pr=create_pr)
    with tempfile.TemporaryDirectory() as folder:
        upload = stage(model, Path(folder) / "model", repo_id=repo_id, to=to, code=code)
        console.print(f"{repo_id}, in the layout of {to}, bytes:", markup=False)
        for name, path in upload.files.items():
            console.print(f"{path.stat().st_size:15,}  {name}", markup=False)
        for warning in upload.warnings:
            console.print(f"  {warning}", markup=False)
        if dry_run:
            console.print("nothing was uploaded (--dry-run)", markup=False)
            return
        sent = send(upload, repo_id, private=private or None, revision=revision, create_pr=create_pr)
    for name in sent.removed:
        console.print(f"  removed: {name}", markup=False)
    if sent.kept_card:
        console.print("  README.md was edited on the Hub and stays: edit the folder's own to replace it", markup=False)
    done = "uploaded" if sent.is_new else "nothing has changed"
    console.print(f"{done}: {sent.commit.pr_url or sent.commit.commit_url}", markup=False)


def card(
    model: Source,
    output: Annotated[Path | None, typer.Option(help="The .md file to write, instead of printing it.")] = None,
) -> None:
    """Render the model card of a folder, of any checkpoint, or of an official one by its name in the catalogue."""
    if output is not None:
        check_output(output, (".md",))
    text = str(model_card(model)).rstrip("\n") + "\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        Console(highlight=False, soft_wrap=True).print(f"{output}: model card of {model}", markup=False)
