"""Commands about stored features: `vitrail extract` writes them, `report` shows them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..processing.resizing import keep_aspect as make_keep_aspect
from ..utils.atomic import write_text
from ..utils.optional import check_packages
from ..utils.text import count
from .options import (
    AllowExternal,
    Backend,
    BatchSize,
    DataRevision,
    Features,
    ImageColumn,
    Images,
    JpegDraft,
    KeepAspect,
    LabelColumn,
    Model,
    NumWorkers,
    ReadingOptions,
    RuntimeOptions,
    Split,
    given,
)
from .output import Result, agreement_lines, check_output, load_model, warn

PACKAGES = ("accelerate", "datasets", "filelock", "pyarrow")
DEFAULT_FEATURES = ["pooled"]


@dataclass(frozen=True)
class SourceOptions:
    """The part of a dataset to read."""

    split: Split = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    data_revision: DataRevision = None
    allow_external: AllowExternal = False


@dataclass(frozen=True)
class ExtractionOptions:
    """Options for computing and storing features."""

    dtype: Annotated[str, typer.Option(help="Type of the stored features: float32 or float16.")] = "float32"
    batch_size: BatchSize = None
    num_workers: NumWorkers = None
    shard_size: Annotated[int, typer.Option(help="Number of images per Parquet file.", min=1)] = 2048
    max_errors: Annotated[int | None, typer.Option(help="Stop after more unreadable images than this.", min=0)] = None
    runner: Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")] = "local"
    concurrency: Annotated[int | None, typer.Option(help="Maximum number of workers on the Ray cluster.", min=1)] = None


def extract(
    model: Model,
    source: Images,
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    reading_options: ReadingOptions,
    source_options: SourceOptions,
    options: ExtractionOptions,
    runtime_options: RuntimeOptions,
    features: Annotated[
        list[str], typer.Option(help="pooled, cls, mean, cls+mean, patches or layers=I,J,…; may be repeated.")
    ] = DEFAULT_FEATURES,
    keep_aspect: KeepAspect = False,
    backend: Backend = None,
    jpeg_draft: JpegDraft = False,
) -> Result | None:
    """Write the features of any number of images as Parquet.

    After an interruption, the same command resumes. Under `accelerate launch` or `torchrun`, the processes share the work, on one
    machine or several.
    """
    check_packages(PACKAGES, extra="features")
    if options.runner == "ray":
        check_packages(("ray",), extra="ray")
    from ..data import read_images
    from ..features import extraction as job
    from ..utils.processes import start_processes

    runtime = runtime_options.runtime()
    collection = read_images(
        source,
        split=source_options.split,
        image_column=source_options.image_column,
        label_column=source_options.label_column,
        revision=source_options.data_revision,
        allow_external=source_options.allow_external,
    )
    if start_processes().is_main_process:
        warn(*collection.warnings)
    loaded, image_processor, _ = load_model(model, **asdict(reading_options))
    if keep_aspect:
        image_processor = make_keep_aspect(image_processor, loaded.config.patch_shape)
    image_processor = type(image_processor).from_dict(
        image_processor.to_dict(), **given(backend=backend, jpeg_draft=jpeg_draft or None)
    )
    model_name = str(Path(model).absolute()) if Path(model).exists() else model
    done = job.extract(
        loaded,
        image_processor,
        collection,
        output,
        features=features,
        model_name=model_name,
        runtime=runtime,
        **asdict(options),
    )
    if not start_processes().is_main_process:
        return None
    lines = [f"{output}: features of {count(done.rows, 'image')}"]
    if done.errors:
        lines.append(f"{count(done.errors, 'image')} could not be used; the reasons are in {output / 'errors.parquet'}")
    if done.unreachable:
        lines.append(f"the stores of {count(done.unreachable, 'image')} did not respond; the same command tries them again")
    if done.images and done.seconds:
        rate = f"{done.images / done.seconds:.1f} images/s"
        lines.append(
            f"this process: {count(done.images, 'image')}, {rate}; the model waited for images {done.waiting:.0%} of the time"
        )
    return Result({"output": str(output)} | asdict(done), [*lines, *agreement_lines(done.agreement)])


def report(
    folder: Features,
    output: Annotated[Path, typer.Option(help=".html page to write.")] = Path("report.html"),
    model: Annotated[
        str | None, typer.Option(help="Model of the features, if it has moved since.", show_default="the recorded one")
    ] = None,
    num_images: Annotated[int, typer.Option(help="Number of images in the map and the gallery.", min=1)] = 400,
    allow_external: AllowExternal = False,
) -> Result:
    """Write a page that shows features: a map of the images, their nearest neighbors, and the norms of patch tokens."""
    check_packages((*PACKAGES, "sklearn"), extra="features")
    check_output(output, (".html", ".htm"))
    from ..visualization.report import page as job

    page = job.make_report(folder, model=model, num_images=num_images, allow_external=allow_external)
    write_text(output, page.html)
    warn(*page.warnings)
    size = output.stat().st_size
    record = {"output": str(output), "images": page.num_images, "bytes": size, "warnings": page.warnings}
    return Result(record, [f"{output}: {count(page.num_images, 'image')}, {size / 1e6:.1f} MB, opens without a network"])
