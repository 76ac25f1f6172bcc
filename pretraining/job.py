"""A whole pretraining run: images, student and teacher, checkpoints, evaluation, and the folder of the result."""

import contextlib
import copy
import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from ..convert.report import ConversionReport
from ..data.labeled import TrainingImages
from ..errors import VitrailError
from ..evaluation.results import PACKAGES, describe_model
from ..hub.saving import folder_of_run, save
from ..model_cards.records import (
    FeatureAccuracy,
    FeatureComparison,
    KNNEvaluation,
    PretrainingRecord,
    RecipeSource,
    TrainingData,
)
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import check_new
from ..utils.checkpoint_files import last_checkpoint
from ..utils.folders import check_writable
from ..utils.processes import start_processes
from ..utils.text import public_name
from ..utils.trainer import KeepLastCheckpoint
from ..utils.versions import installed_versions
from .arguments import DINOv2TrainingArguments, PretrainingArguments
from .checkpoints import check_original_layout, save_original_checkpoint
from .crops import MultiCropImages
from .dino_trainer import DINOTrainer
from .dinov2_trainer import DINOv2Trainer
from .distillation_trainer import DistillationTrainer, Teacher
from .feature_evaluation import ACCURACY, MAX_IMAGES, NUM_NEIGHBORS, BackboneKNN, FeatureEvaluation
from .frozen_teacher import FrozenTeacher
from .masks import BlockMasking
from .methods.student_teacher import copy_backbone
from .recipes import METHODS, PretrainingRecipe, enlarged, find_recipe, fit_to_patches
from .report import write_report
from .trainer import PretrainingTrainer

TRAINERS: dict[str, type[DINOTrainer | DINOv2Trainer | DistillationTrainer]] = {
    "dino": DINOTrainer,
    "dinov2": DINOv2Trainer,
    "distill": DistillationTrainer,
}

NUM_LOGS = 500  # approximate number of points of a curve
NUM_EVALUATIONS = 25  # by k-NN, if evaluate_every is None
UNKNOWN = {"name": None}  # a model without a conversion report
PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}  # of accelerate's mixed precision


def pretrain(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    images: TrainingImages,
    *,
    output_dir: str | os.PathLike,
    recipe: str | PretrainingRecipe = "dino",
    teacher: Teacher | None = None,
    epochs: int | None = None,
    high_resolution_epochs: int | None = None,
    total_batch_size: int | None = None,
    seed: int = 0,
    device_batch_size: int | None = None,
    num_workers: int = 0,
    evaluate_every: int | None = None,
    logistic: bool = False,
    strict: bool = False,
    original_checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
    report: ConversionReport | None = None,
    from_scratch: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a model on images without labels, and write the result as a folder: the teacher, or the student of a distillation.

    The folder is that of `vitrail.save`, with pretraining.json and its curves. If a run is interrupted, the same call resumes it from the
    checkpoint of the last epoch in `output_dir`.run, which is removed at the end. Every process that `accelerate launch` starts calls
    this function.

    Args:
        model: initial weights of the student, and of a teacher that is its average. The model itself stays unchanged.
        image_processor: of the model. The crops are normalized with its mean and standard deviation.
        images: to train on. Labels, if there are any, are only used to evaluate the result.
        recipe: a name in `vitrail.pretraining.recipes.RECIPES`, a JSON file (see `find_recipe`), or a recipe of your own.
        teacher: the frozen model of a distillation and its image processor, as `vitrail.load` returns them. The model itself is used: it
            is converted to float32, frozen, and moved to the device.
        epochs, high_resolution_epochs, total_batch_size: replace the numbers in the recipe. The batch is that of an update, over all
            devices; the epochs of high resolution are the last ones, for the method dinov2.
        seed: of the initial weights of the head, the order of the images, their crops, and stochastic depth.
        device_batch_size: images per device and forward pass, with all their crops; gradients are accumulated up to the recipe's batch.
            None runs the whole batch in one pass.
        num_workers: processes that decode images and make crops; 0 does it in the main process.
        evaluate_every: epochs between two k-NN evaluations; None for 25 evaluations.
        logistic: compare start model, result and random weights by logistic regression, too, and not by k-NN alone. A comparison
            requires labels, and `from_scratch=False`. With several processes, the others wait for it, at most `ddp_timeout`.
        strict: raise if an image cannot be read, instead of using the next image in its place.
        original_checkpoint: a .pth file to write as well, in the layout of the method's own code: DINO's full checkpoint, or DINOv2's
            teacher_checkpoint.
        report: from `vitrail.load`.
        from_scratch: whether the model has random weights; for the record.
        overwrite: replace a trained model in `output_dir`.

    Returns:
        The content of pretraining.json, without the hash of the weights; see `vitrail.model_cards.records.PretrainingRecord`.

    Raises:
        VitrailError: there are fewer images than a batch has, the folder holds other files, its run has other settings or is in progress,
            the training diverges or collapses, or the features get worse than those of `model` (see `PretrainingArguments`).
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    recipe.check_teacher(teacher is not None)
    vit = model.base_model
    recipe = dataclasses.replace(
        recipe,
        epochs=recipe.epochs if epochs is None else epochs,
        batch_size=recipe.batch_size if total_batch_size is None else total_batch_size,
        augmentation=fit_to_patches(recipe.augmentation, vit.config.patch_shape),
    )
    if high_resolution_epochs is not None:
        if recipe.method != "dinov2":
            raise VitrailError(f"The method {recipe.method} has no phase of high resolution: leave high_resolution_epochs out.")
        recipe = dataclasses.replace(recipe, arguments={**recipe.arguments, "high_resolution_epochs": high_resolution_epochs})
    options: dict[str, Any] = {}
    if teacher is not None:
        teacher = FrozenTeacher(*teacher)
        teacher.check(recipe.augmentation, image_processor)
        options = {"teacher": teacher, "image_processor": image_processor}
    output_dir = Path(output_dir)
    run_folder = folder_of_run(output_dir, overwrite=overwrite)
    if original_checkpoint is not None:
        check_new(Path(original_checkpoint))
        check_writable(Path(original_checkpoint))
        check_original_layout(vit, image_processor, recipe)
    if from_scratch:
        recipe.check_new_model()
    if logistic and (from_scratch or images.labeled is None):
        raise VitrailError(
            "logistic=True compares with the model that a run starts from, on labeled images, and this run has no such model or no labels: "
            "leave it out."
        )
    if len(images.train) < recipe.batch_size:
        raise VitrailError(
            f"{images.source} has {len(images.train)} images to train on, fewer than a batch of the recipe {recipe.name}, "
            f"{recipe.batch_size}: lower it with total_batch_size=."
        )
    processes = start_processes()
    initial_model = None if from_scratch else describe_model(report) or UNKNOWN
    teacher_model = None if teacher is None else describe_model(teacher.report) or UNKNOWN
    args = training_arguments(
        run_folder.path, recipe, processes, seed=seed, device_batch_size=device_batch_size, num_workers=num_workers
    )
    with run_folder.lock() if processes.is_main_process else contextlib.nullcontext():
        if processes.is_main_process:
            settings = {
                "recipe": recipe.numbers(),
                "seed": seed,
                "data": images.fingerprint,
                "model": initial_model,
                "config": {key: value for key, value in json.loads(vit.config.to_json_string()).items() if key != "auto_map"},
                "image processor": json.loads(image_processor.to_json_string()),
                **({} if teacher is None else {"teacher": teacher.settings()}),
            }
            run_folder.begin(settings, has_results=last_checkpoint(run_folder.path) is not None)
        processes.wait_for_everyone()
        started = time.monotonic()
        crops = make_crops_dataset(images.train, image_processor, recipe, args, vit.config.patch_shape, strict=strict)
        trainer = TRAINERS[recipe.method](vit, args, train_dataset=crops, callbacks=[KeepLastCheckpoint()], **options)
        evaluation, start = None, None
        if images.labeled is not None:
            evaluation = FeatureEvaluation(image_processor, images.labeled, args.device, num_workers=num_workers)
            start = None if from_scratch else _evaluate_start(evaluation, vit, processes, logistic=logistic)
        trainer.show_progress("pretraining" if progress else None)
        if evaluation is not None:
            every = evaluate_every or -(-recipe.epochs // NUM_EVALUATIONS)
            trainer.add_callback(BackboneKNN(trainer, evaluation, every=every, start=None if start is None else start.knn))
        resumed_update = trainer.train_or_resume()
        processes.wait_for_everyone()  # before the folder of the run is removed, into which each process writes
        backbone = trainer.backbone  # adapters are merged into it
        if not all(parameter.isfinite().all() for parameter in backbone.parameters()):
            raise VitrailError("The trained weights contain NaN or inf: lower learning_rate in the recipe.")
        record = _make_record(
            trainer,
            recipe,
            images,
            model=initial_model,
            teacher=teacher_model,
            resumed_from=None if resumed_update is None else f"checkpoint-{resumed_update}",
            seconds=round(time.monotonic() - started, 1),
        )
        if processes.is_main_process:
            if evaluation is not None and start is not None and record.knn is not None:
                record.comparison = _compare(evaluation, start, backbone, knn=record.knn.accuracy, seed=seed)
            save(backbone, image_processor, output_dir, report=report, overwrite=True)
            write_report(output_dir, record)
            if original_checkpoint is not None:
                save_original_checkpoint(trainer, recipe, image_processor, Path(original_checkpoint))
            run_folder.remove()
        processes.wait_for_everyone()
        return record.to_dict()


def _evaluate_start(evaluation: FeatureEvaluation, model: ViTModel, processes: PartialState, *, logistic: bool) -> FeatureAccuracy:
    """Return the accuracies of the model that a run starts from, in all processes."""
    found = [evaluation.accuracy(copy_backbone(model), logistic=logistic) if processes.is_main_process else None]
    broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def _compare(
    evaluation: FeatureEvaluation, start: FeatureAccuracy, backbone: ViTModel, *, knn: float | None, seed: int
) -> FeatureComparison:
    """Return the accuracies of the start model, of the result, whose k-NN accuracy is known, and of random weights."""
    logistic = start.logistic is not None
    result = evaluation.accuracy(backbone, logistic=True) if logistic else FeatureAccuracy(knn=knn)
    set_seed(seed)
    random = ViTModel(copy.deepcopy(backbone.config))
    return FeatureComparison(start=start, result=result, random=evaluation.accuracy(random, logistic=logistic))


def training_arguments(
    output_dir: Path,
    recipe: PretrainingRecipe,
    processes: PartialState,
    *,
    seed: int,
    device_batch_size: int | None,
    num_workers: int,
) -> PretrainingArguments:
    """Return the arguments of the Trainer of a recipe, which writes a checkpoint into `output_dir` after each epoch.

    Raises:
        VitrailError: the batch cannot be divided evenly among the processes.
    """
    share, rest = divmod(recipe.batch_size, processes.num_processes)
    if rest:
        raise VitrailError(
            f"A batch of {recipe.batch_size} images cannot be divided evenly among {processes.num_processes} processes: change it with "
            "total_batch_size=, or start another number of processes."
        )
    per_pass = max(number for number in range(1, min(device_batch_size or share, share) + 1) if share % number == 0)
    return METHODS[recipe.method].arguments(
        str(output_dir),
        seed=seed,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.scaled_learning_rate,
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=share // per_pass,
        **{
            "dataloader_num_workers": num_workers,
            "dataloader_pin_memory": processes.device.type == "cuda",
            "logging_steps": 1 / NUM_LOGS,  # a share of the run
            "save_strategy": "epoch",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": processes.device.type == "cpu",
            **recipe.arguments,
        },
    )


def make_crops_dataset(
    images: datasets.Dataset,
    image_processor: VitrailImageProcessor,
    recipe: PretrainingRecipe,
    args: PretrainingArguments,
    patch_size: tuple[int, int],
    *,
    strict: bool = False,
) -> MultiCropImages:
    """Return the views of images for a recipe, whose crops fit the patches, with the masks that its method needs."""
    masking, high_resolution = None, None
    if isinstance(args, DINOv2TrainingArguments):
        masking = BlockMasking(patch_size[0], args.mask_probability, args.min_mask_ratio, args.max_mask_ratio)
        if args.high_resolution_epochs:
            larger = fit_to_patches(enlarged(recipe.augmentation, args.high_resolution_scale), patch_size)
            high_resolution = larger, recipe.epochs - args.high_resolution_epochs
    return MultiCropImages(
        images,
        image_processor,
        recipe.augmentation,
        masking=masking,
        high_resolution=high_resolution,
        seed=args.seed,
        strict=strict,
    )


def _make_record(
    trainer: PretrainingTrainer,
    recipe: PretrainingRecipe,
    images: TrainingImages,
    *,
    model: dict[str, Any] | None,
    teacher: dict[str, Any] | None,
    resumed_from: str | None,
    seconds: float,
) -> PretrainingRecord:
    args = trainer.args
    return PretrainingRecord(
        task=METHODS[recipe.method].task,
        model=model,
        teacher=teacher,
        recipe=RecipeSource(name=recipe.name, source=recipe.source),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        arguments={name: getattr(args, name) for name in args.method_fields()} | dict(recipe.arguments),
        augmentation=dataclasses.asdict(recipe.augmentation),
        precision=PRECISIONS[trainer.accelerator.mixed_precision],
        seed=args.seed,
        data=TrainingData(source=public_name(images.source), fingerprint=images.fingerprint, train_images=len(images.train)),
        updates=trainer.state.global_step,
        knn=_last_evaluation(trainer, images),
        curves=[entry for entry in trainer.state.log_history if "loss" in entry or ACCURACY in entry],
        processes=args.world_size,
        versions=installed_versions(PACKAGES),
        resumed_from=resumed_from,
        seconds=seconds,
    )


def _last_evaluation(trainer: PretrainingTrainer, images: TrainingImages) -> KNNEvaluation | None:
    """Return the last k-NN evaluation, if there are labels. The numbers of images include unreadable images."""
    if images.labeled is None:
        return None
    accuracies = [entry[ACCURACY] for entry in trainer.state.log_history if ACCURACY in entry]
    known = bool(accuracies) and not math.isnan(accuracies[-1])
    train_images = min(len(images.labeled.train), MAX_IMAGES)
    return KNNEvaluation(
        k=min(NUM_NEIGHBORS, train_images),
        accuracy=accuracies[-1] if known else None,
        train_images=train_images,
        validation_images=min(len(images.labeled.validation), MAX_IMAGES),
    )
