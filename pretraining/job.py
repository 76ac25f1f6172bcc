"""DINO's training from images to a folder: student and teacher, crops, the Trainer, what is measured meanwhile, and a report."""

import contextlib
import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.trainer_callback import PrinterCallback

from ..convert.report import ConversionReport
from ..data.unlabeled import TrainingImages
from ..errors import VitrailError
from ..evaluation.recipes import REFERENCE_BATCH
from ..evaluation.results import described_model, public_name, versions
from ..evaluation.training import KeepLastCheckpoint, Progress, last_checkpoint
from ..hub.save import check_output_dir, save
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import check_new
from ..utils.processes import start_processes
from ..utils.run_folder import RunFolder
from .arguments import DINO_ARGUMENTS, DINOTrainingArguments
from .checkpoints import check_original_layout, save_original_checkpoint
from .crops import MultiCropImages
from .recipes import PretrainingRecipe, find_recipe, fit_to_patches
from .report import write_report
from .teacher_evaluation import ACCURACY, MAX_IMAGES, NUM_NEIGHBORS, TeacherKNN
from .trainer import DINOTrainer

LOGS = 500  # about so many points has a curve
EVALUATIONS = 25  # by k-NN, where nothing else is said
UNKNOWN = {"name": None}  # a model of which no report says where it comes from
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of accelerate's mixed precision


def pretrain(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    images: TrainingImages,
    *,
    output_dir: str | os.PathLike,
    recipe: str | PretrainingRecipe = "dino",
    epochs: int | None = None,
    seed: int = 0,
    device_batch_size: int | None = None,
    num_workers: int = 0,
    evaluate_every: int | None = None,
    strict: bool = False,
    original_checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    report: ConversionReport | None = None,
    from_scratch: bool = False,
) -> dict[str, Any]:
    """Trains a model by DINO on images without labels, and writes the teacher as a folder.

    The folder is that of `vitrail.save`, with pretraining.json and its curves. A run that is interrupted is taken up again by the same
    call, from the checkpoint of the last epoch in `output_dir`.run, which is removed in the end. Every process that `accelerate launch`
    starts calls this function.

    Args:
        model: where student and teacher begin, which itself stays as it is.
        image_processor: of the model; its normalisation is that of the crops.
        images: to train on; labels, if there are any, only measure.
        recipe: a name in `vitrail.pretraining.recipes.RECIPES`, a JSON file (see `find_recipe`), or a recipe of your own.
        epochs: instead of the recipe's.
        seed: of the head's first weights, the order of the images, their crops, and stochastic depth.
        device_batch_size: images that a device takes at a time, with all their crops; gradients are accumulated up to the recipe's batch.
            None takes all at once.
        num_workers: processes that decode images and make crops; 0 to do it in this one.
        evaluate_every: epochs between two evaluations of the teacher by k-NN; None for 25 in all.
        strict: refuse an image that cannot be read, instead of taking the next one in its place.
        original_checkpoint: a .pth file to write as well, in the original's layout of full checkpoints.
        report: what `vitrail.load` said of the model.
        from_scratch: that the model has random weights; the record says so.

    Returns:
        What pretraining.json holds but for the hash of the weights.

    Raises:
        VitrailError: there are fewer images than a batch has, the folder holds something else, the run in it is another one or goes on
            elsewhere, or the training diverges.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    vit = model.base_model
    recipe = dataclasses.replace(
        recipe,
        epochs=recipe.epochs if epochs is None else epochs,
        augmentation=fit_to_patches(recipe.augmentation, vit.config.patch_size),
    )
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    if original_checkpoint is not None:
        check_new(Path(original_checkpoint))
        check_original_layout(vit, image_processor)
    if len(images.train) < recipe.batch_size:
        raise VitrailError(
            f"{images.source} has {len(images.train)} images to train on, fewer than a batch of the recipe {recipe.name}, "
            f"{recipe.batch_size}: give a recipe (.json) with a smaller batch_size."
        )
    processes = start_processes()
    begun_with = None if from_scratch else described_model(report) or UNKNOWN
    run_folder = RunFolder(output_dir.with_name(f"{output_dir.name}.run"))
    args = training_arguments(
        run_folder.path, recipe, processes, seed=seed, device_batch_size=device_batch_size, num_workers=num_workers
    )
    with run_folder.lock() if processes.is_main_process else contextlib.nullcontext():
        if processes.is_main_process:
            settings = {
                "recipe": dataclasses.asdict(recipe),
                "seed": seed,
                "data": images.fingerprint,
                "model": begun_with,
                "config": json.loads(vit.config.to_json_string()),
                "image processor": json.loads(image_processor.to_json_string()),
            }
            run_folder.begin(settings, has_results=last_checkpoint(run_folder.path) is not None)
        processes.wait_for_everyone()
        started = time.monotonic()
        crops = MultiCropImages(images.train, image_processor, recipe.augmentation, seed=seed, strict=strict)
        trainer = DINOTrainer(vit, args, train_dataset=crops, callbacks=[KeepLastCheckpoint()])
        _observe(trainer, image_processor, images, evaluate_every or -(-recipe.epochs // EVALUATIONS), progress=progress)
        checkpoint = last_checkpoint(run_folder.path)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        processes.wait_for_everyone()  # or one may still write into the folder of the run when it goes
        if not all(parameter.isfinite().all() for parameter in trainer.teacher.parameters()):
            raise VitrailError("The teacher's weights are no finite numbers: write a smaller learning_rate into the recipe.")
        run = {
            "task": "DINO self-supervised training",
            "model": begun_with,
            **_described(trainer, recipe, images),
            "resumed_from": None if checkpoint is None else checkpoint.name,
            "seconds": round(time.monotonic() - started, 1),
        }
        if processes.is_main_process:
            save(trainer.teacher, image_processor, output_dir, report=report)
            write_report(output_dir, run)
            if original_checkpoint is not None:
                save_original_checkpoint(trainer, recipe, Path(original_checkpoint))
            run_folder.remove()
        processes.wait_for_everyone()
        return run


def _observe(
    trainer: DINOTrainer, image_processor: VitrailImageProcessor, images: TrainingImages, evaluate_every: int, *, progress: bool
) -> None:
    """A bar instead of printed logs, and k-NN where there are labels."""
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(Progress("pretraining"))
    if images.labeled is not None:
        num_workers = trainer.args.dataloader_num_workers
        trainer.add_callback(TeacherKNN(trainer, image_processor, images.labeled, every=evaluate_every, num_workers=num_workers))


def training_arguments(
    output_dir: Path,
    recipe: PretrainingRecipe,
    processes: PartialState,
    *,
    seed: int,
    device_batch_size: int | None,
    num_workers: int,
) -> DINOTrainingArguments:
    """Arguments of a DINOTrainer for a recipe: checkpoints after each epoch go to `output_dir`.

    Raises VitrailError if a batch cannot be divided among the processes.
    """
    share, rest = divmod(recipe.batch_size, processes.num_processes)
    if rest:
        raise VitrailError(
            f"A batch of {recipe.batch_size} images cannot be divided evenly among {processes.num_processes} processes: give a recipe "
            "(.json) with another batch_size, or start another number of processes."
        )
    at_once = max(number for number in range(1, min(device_batch_size or share, share) + 1) if share % number == 0)
    return DINOTrainingArguments(
        str(output_dir),
        seed=seed,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate * recipe.batch_size / REFERENCE_BATCH,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=share // at_once,
        **{
            "dataloader_num_workers": num_workers,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "logging_steps": 1 / LOGS,  # a share of the run
            "save_strategy": "epoch",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.accelerator.is_available(),
            **recipe.arguments,
        },
    )


def _described(trainer: DINOTrainer, recipe: PretrainingRecipe, images: TrainingImages) -> dict[str, Any]:
    """What was run, on what, what was logged, and with which versions."""
    args = trainer.args
    return {
        "recipe": {"name": recipe.name, "source": recipe.source},
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "arguments": {name: getattr(args, name) for name in DINO_ARGUMENTS} | dict(recipe.arguments),
        "augmentation": dataclasses.asdict(recipe.augmentation),
        "precision": PRECISIONS[trainer.accelerator.mixed_precision],
        "seed": args.seed,
        "data": {"source": public_name(images.source), "fingerprint": images.fingerprint, "train_images": len(images.train)},
        "updates": trainer.state.global_step,
        "knn": _knn(trainer, images),
        "curves": [entry for entry in trainer.state.log_history if "loss" in entry or ACCURACY in entry],
        "processes": args.world_size,
        "versions": versions(),
    }


def _knn(trainer: DINOTrainer, images: TrainingImages) -> dict[str, Any] | None:
    """How the teacher was measured, and the last accuracy, if there is one; images that cannot be read are counted too."""
    if images.labeled is None:
        return None
    halves = {"train": images.labeled.train, "validation": images.labeled.validation}
    counts = {f"{name}_images": min(len(half), MAX_IMAGES) for name, half in halves.items()}
    accuracies = [entry[ACCURACY] for entry in trainer.state.log_history if ACCURACY in entry]
    known = bool(accuracies) and not math.isnan(accuracies[-1])
    return {"k": min(NUM_NEIGHBORS, counts["train_images"]), "accuracy": accuracies[-1] if known else None, **counts}
