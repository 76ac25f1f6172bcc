"""Probing for segmentation and depth, from images to a model: patch tokens, a linear head, the head merged into the model, and a report."""

import contextlib
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.report import ConversionReport
from ..data.dense import DenseImages
from ..errors import VitrailError
from ..features.cache import FeatureCache
from ..hub.saving import folder_of_run, save
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_grid, output_size, uncropped
from ..utils.checkpoint_files import last_checkpoint
from ..utils.processes import start_processes
from .dense_metrics import DenseMetric, DepthErrors, MeanIoU
from .dense_probe import DenseHead, DenseProbeTrainer, DenseRows, dense_config, merge_dense_head
from .dense_recipes import DenseRecipe, find_dense_recipe, make_dense_schedule
from .report import write_dense_report
from .results import DenseProbeRecord, describe_model, describe_run
from .training import training_arguments

HEAD = "head"  # the folder of checkpoints in the folder of a run
EVALUATIONS = 10
BATCH = 64  # images that a head evaluates at a time


def whole_image_processor(image_processor: VitrailImageProcessor, image_size: tuple[int, int]) -> VitrailImageProcessor:
    """Return a copy of an image processor that resizes images to the size of its crop, or of the model, without cropping."""
    height, width = output_size(image_processor) or image_size
    return uncropped(image_processor, size={"height": height, "width": width})


def metric_of(data: DenseImages) -> DenseMetric:
    """Return the metric of the task of data."""
    return MeanIoU(len(data.label_names)) if data.task == "segmentation" else DepthErrors(data.depth_range)


def train_dense_head(
    data: DenseImages,
    head: DenseHead,
    tokens: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    *,
    recipe: DenseRecipe,
    size: tuple[int, int],
    output_dir: Path,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> tuple[DenseProbeTrainer, int | None]:
    """Train a head; return its Trainer, and the update that it resumed from, if it did.

    Args:
        tokens: of "train" and "validation", (images, N, D).
        rows: of "train" and "validation": the rows of the data that the tokens belong to.
        size: (H, W) of the training targets.
    """
    head.fit_batch_norm(tokens["train"])
    schedule = make_dense_schedule(recipe, len(tokens["train"]), seed=seed)
    args = training_arguments(
        output_dir,
        schedule,
        seed=seed,
        device_batch_size=BATCH,
        num_workers=num_workers,
        evaluate_every=max(1, schedule.num_updates // EVALUATIONS),
    )
    trainer = DenseProbeTrainer(
        recipe=recipe,
        metric=metric_of(data),
        schedule=schedule,
        model=head,
        args=args,
        train_dataset=DenseRows(tokens["train"], data.train.select(rows["train"]), data.target_format, size=size),
        eval_dataset=DenseRows(tokens["validation"], data.validation.select(rows["validation"]), data.target_format, size=None),
        progress=progress,
    )
    return trainer, trainer.train_or_resume()


def probe_dense(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    data: DenseImages,
    *,
    output_dir: str | os.PathLike,
    recipe: str | DenseRecipe = "dinov3",
    seed: int = 0,
    cache: FeatureCache | None = None,
    report: ConversionReport | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a linear head for segmentation or depth on the frozen patch tokens of a model, and write the model with it to a folder.

    Images are resized to the size of the model, without cropping. As in `probe`, features come from the cache, the same call resumes
    after an interruption, and the result does not depend on the number of processes.

    Args:
        model: the backbone. It is not changed, but moves to the device of this process.
        data: from `vitrail.load_dense_images`.
        recipe: a name in `vitrail.evaluation.dense_recipes.DENSE_RECIPES`, or a recipe of your own.
        seed: of the initial weights and the order of the images.
        cache: where features are kept, and how they are computed.
        report: from `vitrail.load`, kept in the folder.
        overwrite: replace a trained model in `output_dir`.

    Returns:
        A `DenseProbeRecord` as a dictionary: the content of results.json.

    Raises:
        VitrailError: the folder holds other things, the run in it has other settings or is in progress, or an unreadable image is refused.
    """
    recipe = find_dense_recipe(recipe, data.task) if isinstance(recipe, str) else recipe
    if not isinstance(data, DenseImages):
        raise VitrailError(f"found {type(data).__name__}; expected images with masks or depths, from load_dense_images.")
    output_dir = Path(output_dir)
    run_folder = folder_of_run(output_dir, overwrite=overwrite)
    processes = start_processes()
    model, cache = model.to(processes.device).eval(), cache or FeatureCache()
    config = model.base_model.config
    image_processor = whole_image_processor(image_processor, config.image_shape)
    grid, size = output_grid(image_processor, config.patch_shape), output_size(image_processor)
    assert size is not None
    described, times = describe_model(report), [time.monotonic()]
    with run_folder.lock() if processes.is_main_process else contextlib.nullcontext():
        cache.resume(model, run_folder.begun_with())
        features = {
            "train": cache.patch_features(model, image_processor, data.train),
            "validation": cache.patch_features(model, image_processor, data.validation),
        }
        if processes.is_main_process:
            settings = {"recipe": asdict(recipe), "seed": seed, "data": data.fingerprint, "runtime": features["train"].runtime}
            settings |= {name: split.key for name, split in features.items()}
            run_folder.begin(settings, has_results=last_checkpoint(run_folder.path / HEAD) is not None)
        processes.wait_for_everyone()
        times.append(time.monotonic())
        trainer, resumed_from = train_dense_head(
            data,
            DenseHead(
                dense_config(config, label_names=data.label_names, depth_range=data.depth_range),
                data.task,
                grid,
                seed=seed,
            ),
            {name: split.tokens[0] for name, split in features.items()},
            {name: split.rows for name, split in features.items()},
            recipe=recipe,
            size=size,
            output_dir=run_folder.path / HEAD,
            seed=seed,
            num_workers=cache.num_workers,
            progress=cache.progress,
        )
        times.append(time.monotonic())
        rows = np.asarray(trainer.predict(trainer.eval_dataset).predictions)
        times.append(time.monotonic())
        metric = trainer.metric
        scores = metric.summarize(rows)
        if any(np.isnan(list(scores.values()))):
            raise VitrailError(
                "the head diverged, or no pixel of the validation images counts: lower the learning rate in the recipe."
            )
        classes = dict(zip(data.label_names, metric.per_class(rows).tolist(), strict=True)) if isinstance(metric, MeanIoU) else {}
        results = DenseProbeRecord(
            task=f"{data.task} probe",
            scores=scores,
            iou_by_class={name: None if np.isnan(value) else value for name, value in classes.items()},
            recipe=asdict(recipe) | {"seed": seed, "updates": trainer.schedule.num_updates},
            depth_range=list(data.depth_range) if data.task == "depth" else None,
            curves=trainer.points_by_update("loss", *(f"eval_{name}" for name in scores)),
            resumed_from=resumed_from,
            **describe_run(
                data,
                features,
                model=described,
                seconds=dict(zip(("features", "head", "evaluation"), np.diff(times).tolist(), strict=True)),
            ),
        ).to_dict()
        if processes.is_main_process:
            save(merge_dense_head(model, trainer.model), image_processor, output_dir, report=report, overwrite=True)
            write_dense_report(output_dir, results, metric.confusion(rows) if isinstance(metric, MeanIoU) else None)
            run_folder.remove()
        processes.wait_for_everyone()
    return results
