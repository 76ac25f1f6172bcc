"""Commands for features of any number of images: `vitrail extract`, which stores them, and `similar` and `report`, which show them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..convert.loading import load
from ..errors import VitrailError
from ..processing.presets import keep_aspect as make_keep_aspect
from ..runtime.compiled import Runtime
from ..utils.atomic import write_text
from ..utils.optional import check_packages
from .checkpoints import Source
from .images import PICTURES, AspectOption, ModelArgument, check_output, save_picture
from .runtime import EngineOption, PrecisionOption, agreement_lines

PACKAGES = ("accelerate", "datasets", "filelock", "pyarrow")

FeaturesArgument = Annotated[Path, typer.Argument(help="A folder that `vitrail extract` wrote.")]


def extract(
    model: Source,
    source: Annotated[
        str,
        typer.Argument(
            help="Images: a folder, a .txt list of paths or URLs, .tar shards, Parquet, a Hub id, or an fsspec URL (s3://…)."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    features: Annotated[
        list[str], typer.Option(help="pooled, cls, mean, cls+mean, patches or layers=I,J,…; repeat it for several.")
    ] = ["pooled"],  # noqa: B006 - typer copies it
    dtype: Annotated[str, typer.Option(help="Of the features in the files: float32 or float16.")] = "float32",
    keep_aspect: AspectOption = False,
    split: Annotated[str | None, typer.Option(help="Split of a data set, where there are several.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of the images, where its type does not tell it.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels, where its type does not tell it.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a data set on the Hub.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images that the model takes at a time.", min=1)] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="Processes that decode images; 0 for none beside this one.", min=0)
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images whose features make one file.", min=1)] = 2048,
    max_errors: Annotated[int | None, typer.Option(help="Stop when more images than this cannot be read.", min=0)] = None,
    runner: Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")] = "local",
    concurrency: Annotated[int | None, typer.Option(help="Workers on the Ray cluster, at most.", min=1)] = None,
    precision: PrecisionOption = None,
    engine: EngineOption = "eager",
) -> None:
    """Write the features of any number of images as Parquet; after an interruption the same command goes on where it was.

    Under `accelerate launch` or `torchrun` the processes, on any number of machines, share the work.
    """
    check_packages(PACKAGES, extra="features")
    if runner == "ray":
        check_packages(("ray",), extra="ray")
    from ..data import read_images
    from ..features import extraction as job
    from ..utils.processes import start_processes

    runtime = Runtime(precision, engine)
    collection = read_images(source, split=split, image_column=image_column, label_column=label_column, revision=revision)
    if output.exists() and not output.is_dir():
        raise VitrailError(f"{output} is a file: give the name of a folder to write.")
    loaded, image_processor, _ = load(model)
    if keep_aspect:
        image_processor = make_keep_aspect(image_processor, loaded.config.patch_size)
    try:
        done = job.extract(
            loaded,
            image_processor,
            collection,
            output,
            features=features,
            dtype=dtype,
            batch_size=batch_size,
            num_workers=num_workers,
            shard_size=shard_size,
            max_errors=max_errors,
            runner=runner,
            concurrency=concurrency,
            model_name=str(Path(model).absolute()) if Path(model).exists() else model,
            runtime=runtime,
        )
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; what is finished stays, and the same command goes on from there")
        raise
    if not start_processes().is_main_process:
        return
    lines = [f"{output}: features of {done.rows} images"]
    if done.errors:
        lines.append(f"{done.errors} images could not be used: {output / 'errors.parquet'} says why")
    if done.images and done.seconds:
        rate = f"{done.images / done.seconds:.1f} images/s"
        lines.append(f"this process: {done.images} images, {rate}; the model waited for images {done.waiting:.0%} of the time")
    lines += agreement_lines(done.agreement)
    Console(highlight=False, soft_wrap=True).print("\n".join(lines), markup=False)


def similar(
    model: ModelArgument,
    folder: FeaturesArgument,
    query: Annotated[Path, typer.Argument(help="An image file.")],
    output: Annotated[Path, typer.Option(help="The contact sheet to write; its name ends in .png, .jpg or .webp.")] = Path(
        "similar.png"
    ),
    top: Annotated[int, typer.Option(help="How many images.", min=1)] = 15,
    column: Annotated[str | None, typer.Option(help="Column of the vectors to compare, where there are several.")] = None,
) -> None:
    """Find the images nearest to one that is given, by the cosine of their features."""
    check_packages(PACKAGES, extra="features")
    check_output(output, PICTURES)
    from ..features.store import StoredFeatures
    from ..visualization import similar as job

    stored = StoredFeatures(folder)
    loaded, _, _ = load(model)
    ids, cosines, sheet = job.find_similar(loaded, stored, query, top=top, column=column)
    save_picture(sheet, output)
    paths = dict(zip(stored.ids().tolist(), stored.paths(), strict=True))
    console = Console(highlight=False, soft_wrap=True)
    for rank, (number, cosine) in enumerate(zip(ids.tolist(), cosines.tolist(), strict=True), start=1):
        console.print(f"{rank:4d}  {cosine:6.3f}  {paths[number]}", markup=False)
    console.print(f"{output}: {query.name} and its {len(ids)} nearest images", markup=False)


def report(
    folder: FeaturesArgument,
    output: Annotated[Path, typer.Option(help="The page to write; its name ends in .html.")] = Path("report.html"),
    model: Annotated[str | None, typer.Option(help="The model, where it is no longer where the features say.")] = None,
    images: Annotated[int, typer.Option(help="Images that the map and the gallery show.", min=1)] = 400,
) -> None:
    """Write a page that shows the features: a map of the images, their nearest neighbours, and the norms of patch tokens."""
    check_packages((*PACKAGES, "sklearn"), extra="features")
    check_output(output, (".html", ".htm"))
    from ..visualization.report import page as job

    page = job.make_report(folder, model=model, num_images=images)
    write_text(output, page.html)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{output}: {page.num_images} images, {output.stat().st_size / 1e6:.1f} MB, opens without a network", markup=False
    )
    for warning in page.warnings:
        console.print(f"  {warning}", markup=False)
