"""Commands that measure a model on labeled images: `vitrail probe`, `knn`, `logistic`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..convert.loading import load
from ..errors import VitrailError
from ..hub.save import check_output_dir
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import NUM_CALIBRATION, Runtime
from ..utils.atomic import write_text
from ..utils.optional import check_packages
from .checkpoints import Source
from .images import check_output
from .runtime import EngineOption, PrecisionOption, agreement_lines

if TYPE_CHECKING:
    from ..data.labeled import LabeledImages
    from ..features.cache import FeatureCache

MAX_PATHS = 10  # of images left out that are printed
PACKAGES = ("accelerate", "datasets", "evaluate", "matplotlib", "sklearn")

Data = Annotated[
    str, typer.Option(help="Labeled images: a folder with a folder for each class, Parquet, WebDataset, a Hub id, or digits.")
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images, where its type does not tell it.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels, where its type does not tell it.")]
TrainSplit = Annotated[str | None, typer.Option(help="Split to learn from, where its name does not tell it.")]
ValidationSplit = Annotated[str | None, typer.Option(help="Split to measure on, where its name does not tell it.")]
ValidationFraction = Annotated[float, typer.Option(help="Share of each class to measure on, where there is no such split.")]
DataRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a dataset on the Hub.")]
Seed = Annotated[
    int, typer.Option(help="Of all that is drawn: validation images, first weights, order, crops.", min=0, max=2**32 - 1)
]
BatchSize = Annotated[int, typer.Option(help="Images that the model takes at a time, on each device.", min=1)]
NumWorkers = Annotated[int, typer.Option(help="Processes that decode images.", min=0)]
CacheDir = Annotated[Path | None, typer.Option(help="Where features are kept, instead of HF_HOME/vitrail/features.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read, instead of leaving it out.")]
ResultsFile = Annotated[Path | None, typer.Option(help="A .json file to write the results into as well.")]


def probe(
    model: Source,
    data: Data,
    output: Annotated[Path, typer.Option(help="The folder to write: the model with its best head, results.json and pictures.")],
    recipe: Annotated[str, typer.Option(help="How to train: dino, dinov2 or quick.")] = "quick",
    views: Annotated[
        int, typer.Option(help="Cached views of each training image, instead of new ones in each epoch (dino, dinov2).", min=0)
    ] = 0,
    unfreeze: Annotated[int, typer.Option(help="Then fine-tune the whole model for so many epochs.", min=0)] = 0,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    train_split: TrainSplit = None,
    validation_split: ValidationSplit = None,
    validation_fraction: ValidationFraction = 0.2,
    data_revision: DataRevision = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = 0,
    cache_dir: CacheDir = None,
    strict: Strict = False,
    precision: PrecisionOption = None,
    engine: EngineOption = "eager",
) -> None:
    """Train linear classifiers on frozen features, and write the model with the best of them.

    After an interruption the same command goes on where it was.
    """
    check_packages(PACKAGES, extra="evaluation")
    runtime = Runtime(precision, engine)
    check_not_itself(model, output)
    from ..evaluation import probing as job
    from ..evaluation.recipes import find_recipe

    chosen = find_recipe(recipe)
    check_output_dir(output)
    images = _read_data(
        data,
        image_column=image_column,
        label_column=label_column,
        train_split=train_split,
        validation_split=validation_split,
        validation_fraction=validation_fraction,
        seed=seed,
        revision=data_revision,
    )
    loaded, image_processor, report = load(model)
    cache = _feature_cache(batch_size, num_workers, cache_dir, strict, runtime, images, image_processor)
    results = job.probe(
        loaded,
        image_processor,
        images,
        output_dir=output,
        recipe=chosen,
        views=views,
        seed=seed,
        unfreeze_epochs=unfreeze,
        cache=cache,
        report=report,
    )
    best = results["best_head"]
    lines = [f"best of {len(results['heads'])} heads on these images: {best['name']}, accuracy {best['accuracy']:.1%}"]
    if results["fine_tuning"] is not None:
        lines.append(f"fine-tuned for {unfreeze} epochs:")
    lines += [_scores(results), *agreement_lines(cache.agreement)]
    _print(results, [*lines, f"written to {output}: the model, results.json, and three pictures"])


def knn(
    model: Source,
    data: Data,
    k: Annotated[
        list[int] | None, typer.Option("-k", help="Number of neighbours; may be repeated.  [default: 10 20 100 200]")
    ] = None,
    output: ResultsFile = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    train_split: TrainSplit = None,
    validation_split: ValidationSplit = None,
    validation_fraction: ValidationFraction = 0.2,
    data_revision: DataRevision = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = 0,
    cache_dir: CacheDir = None,
    strict: Strict = False,
    precision: PrecisionOption = None,
    engine: EngineOption = "eager",
) -> None:
    """Classify images by a weighted vote of their nearest neighbours, as DINO is evaluated."""
    check_packages(PACKAGES, extra="evaluation")
    runtime = Runtime(precision, engine)
    from ..evaluation.knn import NUM_NEIGHBORS
    from ..evaluation.pooled_evaluation import evaluate_knn

    if output is not None:
        check_output(output, (".json",))
    images = _read_data(
        data,
        image_column=image_column,
        label_column=label_column,
        train_split=train_split,
        validation_split=validation_split,
        validation_fraction=validation_fraction,
        seed=seed,
        revision=data_revision,
    )
    loaded, image_processor, report = load(model)
    cache = _feature_cache(batch_size, num_workers, cache_dir, strict, runtime, images, image_processor)
    results = evaluate_knn(
        loaded,
        image_processor,
        images,
        num_neighbors=k or NUM_NEIGHBORS,
        cache=cache,
        report=report,
    )
    lines = [f"k = {row['k']:<4} {_scores(row)}" for row in results["by_k"]]
    if left_out := sorted(set(k or NUM_NEIGHBORS) - {row["k"] for row in results["by_k"]}):
        lines.append(f"k = {', '.join(map(str, left_out))} left out: there are not so many images to learn from")
    _print(results, [*lines, *agreement_lines(cache.agreement)], output)


def logistic(
    model: Source,
    data: Data,
    output: ResultsFile = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    train_split: TrainSplit = None,
    validation_split: ValidationSplit = None,
    validation_fraction: ValidationFraction = 0.2,
    data_revision: DataRevision = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = 0,
    cache_dir: CacheDir = None,
    strict: Strict = False,
    precision: PrecisionOption = None,
    engine: EngineOption = "eager",
) -> None:
    """Fit a logistic regression on frozen features, as DINOv2 is evaluated."""
    check_packages(PACKAGES, extra="evaluation")
    runtime = Runtime(precision, engine)
    from ..evaluation.pooled_evaluation import evaluate_logistic

    if output is not None:
        check_output(output, (".json",))
    images = _read_data(
        data,
        image_column=image_column,
        label_column=label_column,
        train_split=train_split,
        validation_split=validation_split,
        validation_fraction=validation_fraction,
        seed=seed,
        revision=data_revision,
    )
    loaded, image_processor, report = load(model)
    cache = _feature_cache(batch_size, num_workers, cache_dir, strict, runtime, images, image_processor)
    results = evaluate_logistic(loaded, image_processor, images, seed=seed, cache=cache, report=report)
    lines = [f"C = {results['C']:.3g}   {_scores(results)}"]
    if results["unconverged"]:
        lines.append(f"the fits of {len(results['unconverged'])} values of C ended before they had converged")
    _print(results, [*lines, *agreement_lines(cache.agreement)], output)


def check_not_itself(model: str, output: Path) -> None:
    """Refuses to write over the model that is read."""
    if Path(model).exists() and Path(model).resolve() == output.resolve():
        raise VitrailError(f"{output} is the model itself: give the name of another folder to write.")


def _read_data(source: str, **options: Any) -> "LabeledImages":
    from ..data.labeled import load_labeled_images

    return load_labeled_images(source, **options)


def _feature_cache(
    batch_size: int,
    num_workers: int,
    cache_dir: Path | None,
    strict: bool,
    runtime: Runtime,
    images: "LabeledImages",
    image_processor: VitrailImageProcessor,
) -> "FeatureCache":
    from ..data.image_sources import read_images
    from ..data.reader import sample_images
    from ..features.cache import FeatureCache, default_cache_dir

    return FeatureCache(
        cache_dir or default_cache_dir(),
        batch_size=batch_size,
        num_workers=num_workers,
        strict=strict,
        runtime=runtime,
        calibration=sample_images(read_images(images.train), image_processor, NUM_CALIBRATION)
        if runtime.precision == "int8"
        else None,
    )


def _scores(results: Mapping[str, float]) -> str:
    return (
        f"accuracy {results['accuracy']:.1%}, top-5 {results['top_5_accuracy']:.1%}, "
        f"mean per class {results['mean_per_class_accuracy']:.1%}"
    )


def _print(results: Mapping[str, Any], lines: list[str], output: Path | None = None) -> None:
    """One process of several prints."""
    from ..utils.processes import start_processes

    if not start_processes().is_main_process:
        return
    if output is not None:
        write_text(output, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        lines = [*lines, f"written to {output}"]
    console = Console(highlight=False, soft_wrap=True)
    data, unreadable = results["data"], results["unreadable_images"]
    console.print(
        f"{data['train_images']} images to learn from, {data['validation_images']} to measure on, {len(data['labels'])} classes",
        markup=False,
    )
    for image in unreadable[:MAX_PATHS]:
        console.print(f"  left out: {image['path']}: {image['reason']}", markup=False)
    if len(unreadable) > MAX_PATHS:
        console.print(f"  left out: {len(unreadable)} images in all", markup=False)
    for line in lines:
        console.print(f"  {line}", markup=False)
