"""The command that trains a model on images without labels: `vitrail pretrain`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..convert.loading import load
from ..errors import VitrailError
from ..hub.save import check_output_dir
from ..utils.optional import check_packages
from .evaluation import (
    PACKAGES,
    DataRevision,
    ImageColumn,
    LabelColumn,
    NumWorkers,
    Seed,
    Strict,
    TrainSplit,
    ValidationFraction,
    ValidationSplit,
    check_not_itself,
)
from .images import check_output


def pretrain(
    data: Annotated[
        str,
        typer.Option(help="Images: a folder, with a folder for each class or without, Parquet, WebDataset, a Hub id, or digits."),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write: the teacher, pretraining.json and its curves.")],
    arch: Annotated[
        str | None, typer.Option(help="Train from scratch: vit_small_patch16 and the like, or the config.json of a ViTConfig.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="Or go on from a model: whatever `vitrail convert` takes.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="How to train: dino, or a .json file that changes it.")] = "dino",
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.", min=1)] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    train_split: TrainSplit = None,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Set labeled images aside to measure on; or train on all there are.")
    ] = True,
    validation_split: ValidationSplit = None,
    validation_fraction: ValidationFraction = 0.2,
    data_revision: DataRevision = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images that the model takes at a time, on each device, up to the recipe's batch.", min=1, show_default="all"
        ),
    ] = None,
    num_workers: NumWorkers = 0,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Epochs between two evaluations by k-NN, where there are labels.  [default: 25 in all]", min=1),
    ] = None,
    original_checkpoint: Annotated[
        Path | None, typer.Option(help="A .pth file to write as well: the run in DINO's own layout.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Train a model by DINO on images without labels, and write the teacher.

    After an interruption the same command goes on from the last epoch. Labels, where there are any, only measure.
    """
    check_packages(PACKAGES, extra="evaluation")
    if (arch is None) == (from_ is None):
        raise VitrailError("Give either --arch, to train from scratch, or --from, to go on from a model.")
    from ..data.labeled import load_training_images
    from ..pretraining import job
    from ..pretraining.architectures import new_model
    from ..pretraining.recipes import find_recipe
    from ..utils.processes import start_processes

    check_output_dir(output)
    if original_checkpoint is not None:
        check_output(original_checkpoint, (".pth",))
    chosen = find_recipe(recipe)
    if from_ is not None:
        check_not_itself(from_, output)
        model, image_processor, report = load(from_)
    else:
        assert arch is not None
        model, image_processor = new_model(arch, image_size=chosen.augmentation.global_crops[0].size, seed=seed)
        report = None
    images = load_training_images(
        data,
        image_column=image_column,
        label_column=label_column,
        train_split=train_split,
        labels=labels,
        validation_split=validation_split,
        validation_fraction=validation_fraction,
        seed=seed,
        revision=data_revision,
    )
    run = job.pretrain(
        model,
        image_processor,
        images,
        output_dir=output,
        recipe=chosen,
        epochs=epochs,
        seed=seed,
        device_batch_size=batch_size,
        num_workers=num_workers,
        evaluate_every=evaluate_every,
        strict=strict,
        original_checkpoint=original_checkpoint,
        report=report,
        from_scratch=arch is not None,
    )
    if not start_processes().is_main_process:
        return
    lines = [f"{run['data']['train_images']} images, {run['epochs']} epochs, {run['updates']} updates"]
    for last in [point for point in run["curves"] if "loss" in point][-1:]:  # a recipe may say that none is logged
        lines.append(
            f"  loss {last['loss']:.3f}; entropy of targets {last['target_entropy']:.2f}, of their mean "
            f"{last['mean_target_entropy']:.2f}; norm of the centre {last['center_norm']:.2f}"
        )
    if run["knn"] is not None and run["knn"]["accuracy"] is not None:
        lines.append(f"  k-NN accuracy of the teacher (k = {run['knn']['k']}): {run['knn']['accuracy']:.1%}")
    files = [
        f"{output}: the teacher, pretraining.json and its curves",
        *([str(original_checkpoint)] if original_checkpoint else []),
    ]
    console = Console(highlight=False, soft_wrap=True)
    for line in [*lines, f"  written to {'; '.join(files)}"]:
        console.print(line, markup=False)
