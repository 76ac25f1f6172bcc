"""The command that trains a model on images without labels: `vitrail pretrain`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..errors import VitrailError
from ..hub.saving import folder_of_run
from ..model_cards.pretraining_section import training_method
from ..utils.optional import check_packages
from .evaluation import PACKAGES
from .options import BatchSize, Data, DataOptions, NumWorkers, Overwrite, Strict
from .output import Result, check_not_itself, check_output, load_model, warn

NOT_PRINTED = ("epoch", "step", "grad_norm", "learning_rate", "teacher_momentum")  # of the last point of the curves


@dataclass(frozen=True)
class TrainingOptions:
    """How training runs and what it writes."""

    epochs: Annotated[int | None, typer.Option(help="Number of epochs.", min=1, show_default="from the recipe")] = None
    high_resolution_epochs: Annotated[
        int | None,
        typer.Option(help="Number of last epochs with larger global crops (method dinov2).", min=0, show_default="from the recipe"),
    ] = None
    total_batch_size: Annotated[
        int | None, typer.Option(help="Number of images per update, over all devices.", min=1, show_default="from the recipe")
    ] = None
    batch_size: BatchSize = None
    num_workers: NumWorkers = None
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Epochs between k-NN evaluations, which need labels.", min=1, show_default="25 evaluations in all"),
    ] = None
    logistic: Annotated[
        bool, typer.Option("--logistic", help="With --from and labels, compare the models by logistic regression, too.")
    ] = False
    original_checkpoint: Annotated[
        Path | None, typer.Option(help=".pth file to write as well: the run as a checkpoint of the method's own code.")
    ] = None
    strict: Strict = False


def pretrain(
    data: Data,
    output: Annotated[Path, typer.Option(help="Folder to write: the trained model, pretraining.json and its curves.")],
    data_options: DataOptions,
    options: TrainingOptions,
    arch: Annotated[
        str | None, typer.Option(help="Train from scratch: a name such as vit_small_patch16, or a config.json of a ViTConfig.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="Train further from a checkpoint, as `vitrail convert` takes it.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Training method: dino, dinov2 or distill.", show_default="that of the recipe, else dino")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Training recipe: dino, dinov2, dinov2-short, adapt, distill, or a .json file that changes one.",
            show_default="that of the method; adapt for dinov2 with --from",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Frozen model that the method distill learns from, as `vitrail convert` takes it."),
    ] = None,
    overwrite: Overwrite = False,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Hold out labeled images for k-NN evaluation, or train on all images.")
    ] = True,
) -> Result | None:
    """Train a model on images without labels, by DINO, DINOv2 or distillation, and write the result.

    After an interruption, the same command resumes from the last epoch. Labels, if there are any, are used for evaluation alone.
    """
    check_packages(PACKAGES, extra="evaluation")
    if (arch is None) == (from_ is None):
        raise VitrailError("Give either --arch, to train from scratch, or --from, to train a model further.")
    from ..data.labeled import load_training_images
    from ..pretraining import job
    from ..pretraining.architectures import new_model
    from ..pretraining.recipes import find_recipe
    from ..utils.processes import start_processes

    folder_of_run(output, overwrite=overwrite)
    original = options.original_checkpoint
    if original is not None:
        check_output(original, (".pth",))
    chosen = find_recipe(recipe, method=method, from_model=from_ is not None)
    chosen.check_teacher(teacher is not None)
    if from_ is not None:
        check_not_itself(from_, output)
        model, image_processor, report = load_model(from_)
    else:
        assert arch is not None
        size = chosen.augmentation.global_crops[0].size
        model, image_processor = new_model(arch, image_size=size, seed=data_options.seed, method=chosen.method)
        report = None
    if teacher is not None:
        check_not_itself(teacher, output)
    images = load_training_images(data, labels=labels, **data_options.arguments())
    warn(*images.warnings)
    run = job.pretrain(
        model,
        image_processor,
        images,
        output_dir=output,
        recipe=chosen,
        teacher=None if teacher is None else load_model(teacher, dtype="float32"),
        epochs=options.epochs,
        high_resolution_epochs=options.high_resolution_epochs,
        total_batch_size=options.total_batch_size,
        seed=data_options.seed,
        device_batch_size=options.batch_size,
        num_workers=options.num_workers or 0,
        evaluate_every=options.evaluate_every,
        logistic=options.logistic,
        strict=options.strict,
        original_checkpoint=original,
        report=report,
        from_scratch=arch is not None,
        overwrite=overwrite,
    )
    if not start_processes().is_main_process:
        return None
    lines = [
        f"{run['data']['train_images']} images, {run['epochs']} epochs, {run['updates']} updates, recipe {run['recipe']['name']}"
    ]
    if recipe is None and chosen.name != chosen.method:
        lines.append(
            f"  {chosen.name} is the recipe of {chosen.method} with --from; --recipe {chosen.method} is that of a new model"
        )
    for last in [point for point in run["curves"] if "loss" in point][-1:]:  # a recipe may log no loss
        numbers = {name: value for name, value in last.items() if name not in NOT_PRINTED}
        lines.append("  " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items()))
    method_of_card = training_method(run["task"])
    assert method_of_card is not None
    result = method_of_card.result
    if run["comparison"] is not None:
        lines += comparison_lines(run["comparison"], k=run["knn"]["k"], result=result)
    elif run["knn"] is not None and run["knn"]["accuracy"] is not None:
        lines.append(f"  k-NN accuracy of the {result} (k = {run['knn']['k']}): {run['knn']['accuracy']:.1%}")
    files = [f"{output}: the {result}, pretraining.json and its curves", *([str(original)] if original else [])]
    return Result(run, [*lines, f"  written to {'; '.join(files)}"])


def comparison_lines(comparison: Mapping[str, Mapping[str, float | None]], *, k: int, result: str) -> list[str]:
    """Return a line for each evaluation: start model, result and random weights side by side."""
    names = {"start": "start model", "result": result, "random": "random weights"}
    lines = []
    for metric, title in {"knn": f"k-NN accuracy (k = {k})", "logistic": "logistic regression accuracy"}.items():
        accuracies = {name: comparison[model][metric] for model, name in names.items()}
        if None not in accuracies.values():
            lines.append(f"  {title}: {', '.join(f'{name} {accuracy:.1%}' for name, accuracy in accuracies.items())}")
    return lines
