"""Commands that evaluate a model on labeled images: `vitrail probe`, `knn` and `logistic`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..convert.report import ConversionReport
from ..hub.saving import folder_of_run
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import NUM_CALIBRATION, Runtime
from ..utils.atomic import to_json, write_text
from ..utils.optional import check_packages
from .options import Data, DataOptions, FeatureOptions, Model, Overwrite, ReadingOptions, ResultsFile, RuntimeOptions, given
from .output import Result, agreement_lines, check_not_itself, check_output, load_model, warn

if TYPE_CHECKING:
    from ..data.labeled import LabeledImages
    from ..features.cache import FeatureCache

MAX_PATHS = 10  # skipped images that are printed
PACKAGES = ("accelerate", "datasets", "evaluate", "matplotlib", "sklearn")


def probe(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder to write: the model with its best head, results.json and pictures.")],
    reading_options: ReadingOptions,
    data_options: DataOptions,
    feature_options: FeatureOptions,
    runtime_options: RuntimeOptions,
    recipe: Annotated[str, typer.Option(help="Training recipe: dino, dinov2 or quick.")] = "quick",
    views: Annotated[
        int, typer.Option(help="dino, dinov2: cached views per training image; 0 draws new views every epoch.", min=0)
    ] = 0,
    unfreeze: Annotated[int, typer.Option(help="Epochs of fine-tuning the whole model afterwards.", min=0)] = 0,
    overwrite: Overwrite = False,
) -> Result | None:
    """Train linear classifiers on frozen features, and write the model with the best classifier.

    After an interruption, the same command resumes.
    """
    check_packages(PACKAGES, extra="evaluation")
    runtime = runtime_options.runtime()
    check_not_itself(model, output)
    from ..evaluation import probing as job
    from ..evaluation.recipes import find_recipe

    chosen = find_recipe(recipe)
    folder_of_run(output, overwrite=overwrite)
    images, loaded, image_processor, report, cache = _load(model, data, reading_options, data_options, feature_options, runtime)
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
    images, loaded, image_processor, report, cache = _load(model, data, reading_options, data_options, feature_options, runtime)
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
    images, loaded, image_processor, report, cache = _load(model, data, reading_options, data_options, feature_options, runtime)
    results = evaluate_logistic(loaded, image_processor, images, seed=data_options.seed, cache=cache, report=report)
    lines = [f"C = {results['C']:.3g}   {_scores(results, images)}"]
    if results["unconverged"]:
        lines.append(f"the fits of {len(results['unconverged'])} values of C did not converge")
    return _result(results, [*lines, *agreement_lines(cache.agreement)], output)


def _load(
    model: str,
    data: str,
    reading_options: ReadingOptions,
    data_options: DataOptions,
    feature_options: FeatureOptions,
    runtime: Runtime,
) -> tuple["LabeledImages", ViTPreTrainedModel, VitrailImageProcessor, ConversionReport, "FeatureCache"]:
    from ..data.image_sources import read_images
    from ..data.labeled import load_labeled_images
    from ..data.reader import sample_images
    from ..features.cache import FeatureCache

    images = load_labeled_images(data, **data_options.arguments())
    warn(*images.warnings)
    loaded, image_processor, report = load_model(model, **asdict(reading_options))
    int8 = runtime.precision == "int8"
    cache = FeatureCache(
        strict=feature_options.strict,
        runtime=runtime,
        calibration=sample_images(read_images(images.train), image_processor, NUM_CALIBRATION) if int8 else None,
        **given(
            folder=feature_options.cache_dir,
            batch_size=feature_options.batch_size,
            num_workers=feature_options.num_workers,
        ),
    )
    return images, loaded, image_processor, report, cache


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
    counts = f"{data['train_images']} training images, {data['validation_images']} validation images, {len(data['labels'])} classes"
    skipped = [f"  skipped: {image['path']}: {image['reason']}" for image in unreadable[:MAX_PATHS]]
    if len(unreadable) > MAX_PATHS:
        skipped.append(f"  skipped: {len(unreadable)} images in all")
    return Result(results, [counts, *skipped, *(f"  {line}" for line in lines)])
