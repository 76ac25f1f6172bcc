"""Commands about checkpoints: `vitrail convert`, `export`, `verify`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..convert.export import export_model
from ..convert.loading import load
from ..convert.model_folder import REPORT_NAME
from ..convert.verification import verify as run_checks
from ..hub.save import convert_checkpoint, keep_verification

Source = Annotated[
    str, typer.Argument(help="A checkpoint file or folder, a URL, a Hub id, or a name of the catalogue, such as dino-vits16.")
]
Branch = Annotated[str, typer.Option(help="Network of a full training checkpoint: teacher or student.")]


def convert(
    source: Source,
    output_dir: Annotated[Path, typer.Argument(help="The folder to write.")],
    head: Annotated[
        str | None, typer.Option(help="File, URL or published name of a classifier that goes with the backbone.")
    ] = None,
    head_name: Annotated[str | None, typer.Option(help="Which classifier of a head file that holds many.")] = None,
    branch: Branch = "teacher",
    format: Annotated[str, typer.Option(help="The family, where names and shapes should not decide it.")] = "auto",
    num_heads: Annotated[int | None, typer.Option(help="Number of attention heads, where the width does not tell it.")] = None,
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width to resize positions to.")] = None,
    num_channels: Annotated[int | None, typer.Option(help="Number of channels to adapt the patch projection to.")] = None,
    channel_rule: Annotated[str | None, typer.Option(help="How: sum, repeat or average.")] = None,
    num_labels: Annotated[int | None, typer.Option(help="Number of classes of a fresh, untrained classifier.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub repository.")] = None,
    code: Annotated[
        bool, typer.Option("--code/--no-code", help="Put in the code that loads it where vitrail is not installed.")
    ] = True,
) -> None:
    """Convert a checkpoint into a folder that AutoModel loads."""
    console = Console(highlight=False, soft_wrap=True)
    report = convert_checkpoint(
        source,
        output_dir,
        head=head,
        head_name=head_name,
        branch=branch,
        format=format,
        num_heads=num_heads,
        image_size=image_size,
        num_channels=num_channels,
        channel_rule=channel_rule,
        num_labels=num_labels,
        revision=revision,
        code=code,
    )
    under = f', under "{report.root}"' if report.root else ""
    console.print(f"{source}: {report.format}{under}, {report.coverage['converted']} tensors converted", markup=False)
    for name in report.coverage["ignored"]:
        console.print(f"  ignored: {name}", markup=False)
    for warning in report.warnings:
        console.print(f"  {warning}", markup=False)
    console.print(f"written to {output_dir} (details in {output_dir / REPORT_NAME})", markup=False)


def export(
    model: Source,
    output: Annotated[
        Path, typer.Argument(help="The folder (transformers, timm, onnx, openvino) or file (dino, dinov2, google) to write.")
    ],
    to: Annotated[str, typer.Option(help="transformers, timm, dino, dinov2 or google; onnx or openvino.")],
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width to resize positions to.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Of onnx and openvino: the only number of images at a time; else any.", min=1)
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="Of onnx and openvino: any height and width that the patch size divides.")
    ] = False,
) -> None:
    """Write a model back in the format of a family, or as a graph for other engines."""
    console = Console(highlight=False, soft_wrap=True)
    warnings = export_model(model, output, to=to, image_size=image_size, batch_size=batch_size, dynamic_size=dynamic_size)
    for warning in warnings:
        console.print(f"  {warning}", markup=False)
    console.print(f"written to {output}", markup=False)


def verify(
    model: Source,
    against: Annotated[str | None, typer.Option(help="The checkpoint that the model was converted from.")] = None,
    head: Annotated[str | None, typer.Option(help="The file of its classifier, where that is a separate one.")] = None,
    branch: Branch = "teacher",
    image: Annotated[Path | None, typer.Option(help="A photograph to prepare with both image processors.")] = None,
) -> None:
    """Prove that a model is what its source was; exit code 1 when a check fails."""
    loaded, image_processor, report = load(model, branch=branch)
    converted = Path(model).is_dir() and report.format == "vitrail"
    source = against if against is not None or converted else model
    checks = run_checks(loaded, image_processor, against=source, head=head, branch=branch, image=image)
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = {True: "ok", False: "FAILED", None: "-"}[check.passed]
        difference = "" if check.difference is None else f"{check.difference:.1e}"
        console.print(f"{status:6}  {check.name:{width}}  {difference:7}  {check.against}", markup=False)
        if check.note:
            console.print(f"{'':8}{check.note}", markup=False)
    if converted:
        keep_verification(model, checks)
    if any(check.passed is False for check in checks):
        raise typer.Exit(1)
