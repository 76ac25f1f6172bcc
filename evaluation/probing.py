"""Linear probing, from images to a model: features, heads, the best head merged into the model, and a report."""

import contextlib
import copy
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers.utils import logging

from ..convert.report import ConversionReport
from ..data.image_sources import ImageSource
from ..data.labeled import LabeledImages, load_labeled_images
from ..data.reader import TrainingViews
from ..errors import VitrailError
from ..features.cache import NUM_CLS_LAYERS, CachedFeatures, FeatureCache
from ..features.feature_types import classifier_features, join_tokens
from ..hub.saving import folder_of_run, save
from ..modeling.modeling_vit import ViTForImageClassification, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.checkpoint_files import last_checkpoint
from ..utils.processes import start_processes
from ..utils.run_folder import RunFolder
from .fine_tuning import FineTuner, finetune
from .linear_probe import DIVERGED, LinearHeads, ProbeTrainer, accuracies, merge_head
from .metrics import confusion_matrix
from .recipes import Head, Recipe, find_recipe, make_schedule, recipe_heads
from .report import write_report
from .results import ProbeRecord, compute_scores, describe_model, describe_run
from .training import training_arguments
from .training_data import FeatureRows, ImageRows

HEADS, FINE_TUNING = "heads", "fine-tuning"  # folders of checkpoints in the folder of a run
EVALUATIONS = 25  # of a recipe that counts iterations; one that counts epochs is evaluated after each
MAX_LOGITS = 2**27  # numbers that all heads make at a time, on features: 512 MiB; larger batches are accumulated


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ProbeRun:
    """The arguments that the steps of a probe share; see `probe`."""

    model: ViTPreTrainedModel
    image_processor: VitrailImageProcessor
    data: LabeledImages
    recipe: Recipe
    views: int
    seed: int
    cache: FeatureCache
    folder: RunFolder

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads to train."""
        return recipe_heads(self.recipe, self.model.base_model.config)

    def features(self, images: datasets.Dataset, *, views: int) -> CachedFeatures:
        """Return the features of one split of the data."""
        return self.cache.features(
            self.model,
            self.image_processor,
            images,
            num_cls_layers=max(NUM_CLS_LAYERS, *(head.num_cls_layers for head in self.heads)),
            views=TrainingViews(views, self.seed, int(self.recipe.resample)) if views else None,
        )

    def images(self, images: datasets.Dataset, features: CachedFeatures, *, augmented: bool) -> ImageRows:
        """Return the images that features belong to."""
        return ImageRows(
            images,
            self.image_processor,
            rows=features.rows,
            labels=features.labels,
            seed=self.seed if augmented else None,
            resample=self.recipe.resample,
        )

    def train_heads(self, train: CachedFeatures, validation: CachedFeatures) -> tuple[ProbeTrainer, int | None]:
        """Train the heads; return their Trainer, and the update that it resumed from, if it did."""
        on_images = self.recipe.augmented and not self.views
        schedule = make_schedule(self.recipe, len(train.labels), seed=self.seed)
        heads, num_labels = self.heads, len(self.data.label_names)
        vit = self.model.base_model
        compiled = self.cache.compile(vit, classifier_features(vit.config, train.num_cls_layers))  # built when it is first called
        args = training_arguments(
            self.folder.path / HEADS,
            schedule,
            seed=self.seed,
            device_batch_size=self.cache.batch_size if on_images else max(1, MAX_LOGITS // (len(heads) * num_labels)),
            num_workers=self.cache.num_workers if on_images else 0,
            evaluate_every=schedule.updates_per_epoch
            if schedule.iterations is None
            else max(1, schedule.iterations // EVALUATIONS),
        )
        trainer = ProbeTrainer(
            heads=heads,
            schedule=schedule,
            model=LinearHeads(
                heads,
                token_size=train.tokens.shape[-1],
                num_cls_layers=train.num_cls_layers,
                num_labels=num_labels,
                seed=self.seed,
            ),
            args=args,
            train_dataset=(
                self.images(self.data.train, train, augmented=True) if on_images else FeatureRows(train.tokens, train.labels)
            ),
            eval_dataset=FeatureRows(validation.tokens, validation.labels),
            features_of=lambda pixel_values: join_tokens(compiled(pixel_values)),
            progress=self.cache.progress,
        )
        return trainer, trainer.train_or_resume()

    def fine_tune(
        self, merged: ViTForImageClassification, train: CachedFeatures, validation: CachedFeatures, epochs: int
    ) -> FineTuner:
        """Fine-tune a copy of a merged model; return its Trainer, whose `model` it is."""
        return finetune(
            copy.deepcopy(merged),  # whose encoder is still that of the backbone
            self.images(self.data.train, train, augmented=True),
            self.images(self.data.validation, validation, augmented=False),
            epochs=epochs,
            output_dir=self.folder.path / FINE_TUNING,
            seed=self.seed,
            device_batch_size=self.cache.batch_size,
            num_workers=self.cache.num_workers,
            progress=self.cache.progress,
        )


def probe(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    data: LabeledImages | ImageSource,
    *,
    output_dir: str | os.PathLike,
    recipe: str | Recipe = "quick",
    views: int = 0,
    seed: int = 0,
    unfreeze_epochs: int = 0,
    cache: FeatureCache | None = None,
    report: ConversionReport | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train linear classifiers on the frozen features of a model, and write the model with the best classifier to a folder.

    `vitrail.save` writes the folder; results.json and its pictures are added. After an interruption, the same call resumes: features come
    from their cache, training continues from a checkpoint in `output_dir`.run, which is removed at the end. Every process that
    `accelerate launch` starts calls this function; the result does not depend on their number.

    Args:
        model: the backbone. It is not changed, but moves to the device of this process.
        data: from `vitrail.load_labeled_images`, or a source that it takes.
        recipe: a name in `vitrail.evaluation.recipes.RECIPES`, or a recipe of your own.
        views: with an augmented recipe, the number of cached views of each training image; 0 draws a new view in each epoch.
        seed: of the initial weights, the order of the images, and their training views.
        unfreeze_epochs: epochs of fine-tuning the whole model afterwards.
        cache: where features are kept, and how they are computed. Gradients are accumulated if a training batch has more than `batch_size`
            images.
        report: from `vitrail.load`, kept in the folder.
        overwrite: replace a trained model in `output_dir`.

    Returns:
        A `ProbeRecord` as a dictionary: the content of results.json.

    Raises:
        VitrailError: the folder holds other things, the run in it has other settings or is in progress, an unreadable image is refused,
            or training diverges.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    data = data if isinstance(data, LabeledImages) else load_labeled_images(data, seed=seed)
    if views and not recipe.augmented:
        raise VitrailError(
            f"found views={views}, but the recipe {recipe.name} uses the one view of the image processor: leave out views={views}."
        )
    if len(data.label_names) < 2:
        raise VitrailError(f"{data.source} has one class, {data.label_names[0]!r}: a classifier needs two or more.")
    output_dir = Path(output_dir)
    run_folder = folder_of_run(output_dir, overwrite=overwrite)
    processes = start_processes()
    model = model.to(processes.device).eval()
    run = ProbeRun(model, image_processor, data, recipe, views, seed, cache or FeatureCache(), run_folder)

    with run_folder.lock() if processes.is_main_process else contextlib.nullcontext():
        return _run_probe(run, processes, output_dir, unfreeze_epochs=unfreeze_epochs, report=report)


def _run_probe(
    run: ProbeRun, processes: PartialState, output_dir: Path, *, unfreeze_epochs: int, report: ConversionReport | None
) -> dict[str, Any]:
    """Compute features, train heads, fine-tune, and write the folder."""
    data, recipe = run.data, run.recipe
    model = describe_model(report)
    times = [time.monotonic()]
    run.cache.resume(run.model, run.folder.begun_with())
    train, validation = run.features(data.train, views=run.views), run.features(data.validation, views=0)
    if processes.is_main_process:
        settings = {"recipe": asdict(recipe), "views": run.views, "seed": run.seed, "unfreeze_epochs": unfreeze_epochs}
        has_results = any(last_checkpoint(run.folder.path / name) for name in (HEADS, FINE_TUNING))
        settings |= {"train": train.key, "validation": validation.key, "runtime": train.runtime}
        run.folder.begin(settings, has_results=has_results)
    processes.wait_for_everyone()
    times.append(time.monotonic())

    trainer, resumed_from = run.train_heads(train, validation)
    classes = trainer.predict(trainer.eval_dataset).predictions  # (N, heads, at most 5)
    heads = _head_results(trainer, classes, validation.labels)
    best = int(np.argmax([head["accuracy"] for head in heads]))  # the first of equals
    classes = classes[:, best]
    _check_finite(classes, f"all heads of the recipe {recipe.name} diverged")
    weight, bias = trainer.model.weights_of_heads()[best]
    merged = merge_head(run.model, trainer.heads[best], weight, bias, data.label_names)
    times.append(time.monotonic())

    fine_tuning = None
    if unfreeze_epochs:
        fine_tuner = run.fine_tune(merged, train, validation, unfreeze_epochs)
        classes = fine_tuner.predict(fine_tuner.eval_dataset).predictions
        _check_finite(classes, "fine-tuning diverged")
        check_better(classes, validation.labels, heads[best])
        merged = fine_tuner.model
        fine_tuning = {"epochs": unfreeze_epochs, **asdict(fine_tuner.settings)}
    times.append(time.monotonic())

    results = ProbeRecord(
        task="linear probe" if fine_tuning is None else "fine-tuning after a linear probe",
        **compute_scores(classes, validation.labels),
        best_head=heads[best],
        selection="the best head by its accuracy on these validation images",
        recipe=asdict(recipe) | {"views": run.views, "seed": run.seed},
        fine_tuning=fine_tuning,
        heads=heads,
        curves=_curves(trainer),
        resumed_from=resumed_from,
        **describe_run(
            data,
            {"train": train, "validation": validation},
            model=model,
            seconds=dict(zip(("features", "heads", "fine_tuning"), np.diff(times).tolist(), strict=True)),
        ),
    ).to_dict()
    if processes.is_main_process:
        save(merged, run.image_processor, output_dir, report=report, overwrite=True)
        write_report(output_dir, results, confusion_matrix(classes[:, 0], validation.labels, len(data.label_names)))
        run.folder.remove()
    processes.wait_for_everyone()
    return results


def _check_finite(classes: np.ndarray, otherwise: str) -> None:
    if (classes == DIVERGED).any():
        raise VitrailError(f"{otherwise}: the learning rates are too high for this batch size; lower them in the recipe")


def check_better(classes: np.ndarray, labels: np.ndarray, head: dict[str, Any]) -> None:
    """Warn if the classes of a fine-tuned model are less accurate than the head that it began with."""
    accuracy = float((classes[:, 0] == labels).mean())
    if accuracy < head["accuracy"]:
        logger.warning(
            f"fine-tuning lowers the accuracy of the best head from {head['accuracy']:.1%} to {accuracy:.1%}. The fine-tuned model is "
            "written; leave out the fine-tuning (--unfreeze) to keep the model with that head."
        )


def _head_results(trainer: ProbeTrainer, classes: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    losses = trainer.training_log()[-1]["losses"]
    by_head = {name: values.tolist() for name, values in accuracies(classes, labels).items()}
    return [
        {"name": head.name, "features": head.features, **asdict(head), "training_loss": losses[index]}
        | {name: values[index] for name, values in by_head.items()}
        for index, head in enumerate(trainer.heads)
    ]


def _curves(trainer: ProbeTrainer) -> list[dict[str, Any]]:
    """Return the losses and accuracies of all heads, by update."""
    per_epoch = trainer.schedule.updates_per_epoch
    points = trainer.points_by_update("losses", "eval_accuracy")
    return [{"update": point["update"], "epoch": point["update"] / per_epoch} | point for point in points]
