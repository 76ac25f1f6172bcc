"""Commands that evaluate a model on labeled images: `vitrail probe`, `knn` and `logistic`."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import VitrailError
from ..hub.saving import folder_of_run
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import AUTO, NUM_CALIBRATION, Runtime
from ..utils.atomic import to_json, write_text
from ..utils.optional import check_packages
from .options import (
    Data,
    DataOptions,
    DenseOptions,
    FeatureOptions,
    Model,
    Overwrite,
    ReadingOptions,
    ResultsFile,
    RuntimeOptions,
    Task,
    given,
)
from .output import Result, agreement_lines, check_not_itself, check_output, load_model, warn

if TYPE_CHECKING:
    from ..data.dense import DenseImages
    from ..data.labeled import LabeledImages
    from ..features.cache import FeatureCache

MAX_PATHS = 10  # skipped images that are printed
# Tasks of a probe, and the options that only some of them have
TASKS = {
    "classification": ("views", "unfreeze"),
    "segmentation": ("labels", "reduce_labels"),
    "depth": ("depth_unit",),
}
PACKAGES = ("accelerate", "datasets", "evaluate", "matplotlib", "sklearn")


def probe(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder to write: the model with its best head, results.json and pictures.")],
    reading_options: ReadingOptions,
    data_options: DataOptions,
    feature_options: FeatureOptions,
    runtime_options: RuntimeOptions,
    dense_options: DenseOptions,
    task: Task = "classification",
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Training recipe: dino, dinov2 or quick; segmentation: dinov3 or dinov2; depth: dinov3.",
            show_default="quick, or dinov3",
        ),
    ] = None,
    views: Annotated[
        int, typer.Option(help="dino, dinov2: cached views per training image; 0 draws new views every epoch.", min=0)
    ] = 0,
    unfreeze: Annotated[int, typer.Option(help="Epochs of fine-tuning the whole classifier afterwards.", min=0)] = 0,
    overwrite: Overwrite = False,
) -> Result | None:
    """Train linear heads on frozen features, and write the model with the best head: a classifier, a segmentation or a depth head.

    After an interruption, the same command resumes.
    """
    check_packages(PACKAGES, extra="evaluation")
    runtime = runtime_options.runtime()
    check_not_itself(model, output)
    if task not in TASKS:
        raise VitrailError(f"found task={task}; expected {', '.join(TASKS)}")
    for name, value in (asdict(dense_options) | {"views": views, "unfreeze": unfreeze}).items():
        if value and name not in TASKS[task]:
            raise VitrailError(f"found {name}={value}, but {task} has no such option: leave it out")
    folder_of_run(output, overwrite=overwrite)
    if task != "classification":
        from ..evaluation.dense_recipes import find_dense_recipe

        dense_recipe = find_dense_recipe(recipe or "dinov3", cast(Any, task))
        return _probe_dense(
            _load_dense(data, task, data_options, dense_options, reading_options.depth_range),
            model,
            replace(reading_options, depth_range=None) if task == "depth" else reading_options,
            feature_options,
            runtime,
            output_dir=output,
            recipe=dense_recipe,
            seed=data_options.seed,
            overwrite=overwrite,
        )
    from ..evaluation import probing as job
    from ..evaluation.recipes import find_recipe

    chosen = find_recipe(recipe or "quick")
    images = _load_labeled(data, data_options)
    loaded, image_processor, report = load_model(model, **asdict(reading_options))
    cache = _cache(images, image_processor, feature_options, runtime)
    results = job.probe(
        loaded,
        image_processor,
        images,
        output_dir=output,
        recipe=chosen,
        views=views,
        seed=data_options.seed,
        unfreeze_epochs=unfreeze,
        cache=cache,
        report=report,
        overwrite=overwrite,
    )
    best = results["best_head"]
    lines = [f"best of {len(results['heads'])} heads on these images: {best['name']}, accuracy {best['accuracy']:.1%}"]
    if results["fine_tuning"] is not None:
        lines.append(f"fine-tuned for {unfreeze} epochs:")
    lines += [_scores(results, images), *agreement_lines(cache.agreement)]
    return _result(results, [*lines, f"written to {output}: the model, results.json and three pictures"])


def knn(
    model: Model,
    data: Data,
    reading_options: ReadingOptions,
    data_options: DataOptions,
    feature_options: FeatureOptions,
    runtime_options: RuntimeOptions,
    k: Annotated[
        list[int] | None, typer.Option("-k", help="Number of neighbors; may be repeated.", show_default="10, 20, 100, 200")
    ] = None,
    output: ResultsFile = None,
) -> Result | None:
    """Classify images by a weighted vote of their nearest neighbors, as DINO is evaluated."""
    check_packages(PACKAGES, extra="evaluation")
    runtime = runtime_options.runtime()
    from ..evaluation.knn import NUM_NEIGHBORS
    from ..evaluation.pooled_evaluation import evaluate_knn

    if output is not None:
        check_output(output, (".json",))
    images = _load_labeled(data, data_options)
    loaded, image_processor, report = load_model(model, **asdict(reading_options))
    cache = _cache(images, image_processor, feature_options, runtime)
    results = evaluate_knn(loaded, image_processor, images, num_neighbors=k or NUM_NEIGHBORS, cache=cache, report=report)
    lines = [f"k = {row['k']:<4} {_scores(row, images)}" for row in results["by_k"]]
    if skipped := sorted(set(k or NUM_NEIGHBORS) - {row["k"] for row in results["by_k"]}):
        lines.append(f"k = {', '.join(map(str, skipped))} skipped: there are fewer training images")
    return _result(results, [*lines, *agreement_lines(cache.agreement)], output)


def logistic(
    model: Model,
    data: Data,
    reading_options: ReadingOptions,
    data_options: DataOptions,
    feature_options: FeatureOptions,
    runtime_options: RuntimeOptions,
    output: ResultsFile = None,
) -> Result | None:
    """Fit a logistic regression on frozen features, as DINOv2 is evaluated."""
    check_packages(PACKAGES, extra="evaluation")
    runtime = runtime_options.runtime()
    from ..evaluation.pooled_evaluation import evaluate_logistic

    if output is not None:
        check_output(output, (".json",))
    images = _load_labeled(data, data_options)
    loaded, image_processor, report = load_model(model, **asdict(reading_options))
    cache = _cache(images, image_processor, feature_options, runtime)
    results = evaluate_logistic(loaded, image_processor, images, seed=data_options.seed, cache=cache, report=report)
    lines = [f"C = {results['C']:.3g}   {_scores(results, images)}"]
    if results["unconverged"]:
        lines.append(f"the fits of {len(results['unconverged'])} values of C did not converge")
    return _result(results, [*lines, *agreement_lines(cache.agreement)], output)


def _load_labeled(data: str, data_options: DataOptions) -> "LabeledImages":
    from ..data.labeled import load_labeled_images

    images = load_labeled_images(data, **data_options.arguments())
    warn(*images.warnings)
    return images


def _load_dense(
    data: str, task: str, data_options: DataOptions, dense_options: DenseOptions, depth_range: tuple | None
) -> "DenseImages":
    from ..configuration.class_names import read_labels
    from ..data.dense import load_dense_images

    arguments = data_options.arguments()
    images = load_dense_images(
        data,
        task=cast(Any, task),
        target_column=arguments.pop("label_column"),
        label_names=None if dense_options.labels is None else read_labels(dense_options.labels),
        reduce_labels=dense_options.reduce_labels,
        depth_unit=dense_options.depth_unit,
        **given(depth_range=depth_range if task == "depth" else None),
        **arguments,
    )
    warn(*images.warnings)
    return images


def _cache(
    images: "LabeledImages | DenseImages", image_processor: VitrailImageProcessor, options: FeatureOptions, runtime: Runtime
) -> "FeatureCache":
    from ..data.image_sources import read_images
    from ..data.reader import sample_images
    from ..features.cache import FeatureCache

    calibrates = runtime.precision in ("int8", AUTO)
    train = read_images(images.train, image_column="image")
    return FeatureCache(
        strict=options.strict,
        runtime=runtime,
        calibration=sample_images(train, image_processor, NUM_CALIBRATION) if calibrates else None,
        **given(folder=options.cache_dir, batch_size=options.batch_size, num_workers=options.num_workers),
    )


def _probe_dense(
    images: "DenseImages",
    model: str,
    reading_options: ReadingOptions,
    feature_options: FeatureOptions,
    runtime: Runtime,
    **arguments: Any,
) -> Result | None:
    """Train a head and return its scores; `arguments` are those of `probe_dense`."""
    from ..evaluation.dense_probing import probe_dense, whole_image_processor

    loaded, image_processor, report = load_model(model, **asdict(reading_options))
    image_processor = whole_image_processor(image_processor, loaded.config.image_shape)
    cache = _cache(images, image_processor, feature_options, runtime)
    results = probe_dense(loaded, image_processor, images, cache=cache, report=report, **arguments)
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in results["scores"].items())
    written = f"written to {arguments['output_dir']}: the model, results.json and pictures"
    return _result(results, [scores, *agreement_lines(cache.agreement), written])


def _scores(results: Mapping[str, float], images: "LabeledImages") -> str:
    """Return the scores in words; the top-5 accuracy of up to 5 classes is always 1."""
    top_5 = f", top-5 {results['top_5_accuracy']:.1%}" if len(images.label_names) > 5 else ""
    return f"accuracy {results['accuracy']:.1%}{top_5}, mean per class {results['mean_per_class_accuracy']:.1%}"


def _result(results: Mapping[str, Any], lines: list[str], output: Path | None = None) -> Result | None:
    """Return the results in the main process, and None in the others; write them to `output` if given."""
    from ..utils.processes import start_processes

    if not start_processes().is_main_process:
        return None
    if output is not None:
        write_text(output, to_json(results) + "\n")
        lines = [*lines, f"written to {output}"]
    data, unreadable = results["data"], results["unreadable_images"]
    counts = f"{data['train_images']} training images, {data['validation_images']} validation images"
    counts += f", {len(data['labels'])} classes" if data["labels"] else ""
    skipped = [f"  skipped: {image['path']}: {image['reason']}" for image in unreadable[:MAX_PATHS]]
    if len(unreadable) > MAX_PATHS:
        skipped.append(f"  skipped: {len(unreadable)} images in all")
    return Result(results, [counts, *skipped, *(f"  {line}" for line in lines)])
