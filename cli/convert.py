"""`vitrail convert`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..hub.save import REPORT_NAME, convert_checkpoint


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint file, a URL, or a name of the catalogue, such as dino-vits16.")],
    output_dir: Annotated[Path, typer.Argument(help="The folder to write.")],
    head: Annotated[str | None, typer.Option(help="File or URL of a linear classifier that goes with the backbone.")] = None,
    branch: Annotated[str, typer.Option(help="Network of a full training checkpoint: teacher or student.")] = "teacher",
    format: Annotated[str, typer.Option(help="The family, where names and shapes should not decide it.")] = "auto",
    num_heads: Annotated[int | None, typer.Option(help="Number of attention heads, where the width does not tell it.")] = None,
) -> None:
    """Convert a checkpoint into a folder that AutoModel loads."""
    console = Console(highlight=False, soft_wrap=True)
    report = convert_checkpoint(source, output_dir, head=head, branch=branch, format=format, num_heads=num_heads)
    under = f', under "{report.root}"' if report.root else ""
    console.print(f"{source}: {report.format}{under}, {report.coverage.get('converted', 'all')} tensors converted", markup=False)
    for name in report.coverage.get("ignored", []):
        console.print(f"  ignored: {name}", markup=False)
    for notice in report.notices:
        console.print(f"  {notice}", markup=False)
    console.print(f"written to {output_dir} (details in {output_dir / REPORT_NAME})", markup=False)
