"""Evaluation of backbones on labeled images: weighted k-NN, as in DINO's evaluation, during a run, and a comparison at its end."""

import math
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from ..data.image_sources import read_images
from ..data.labeled import LabeledImages
from ..data.reader import Batch, ImageReader, Piece, UnreadableEntry
from ..evaluation.knn import knn_classify
from ..evaluation.logistic import fit_logistic
from ..features.feature_types import FeatureType, feature_outputs
from ..features.inference import run_model
from ..model_cards.records import FeatureAccuracy
from ..modeling.modeling_vit import ViTModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, CompiledModel
from ..runtime.workers import InferenceWorkers
from .arguments import PretrainingArguments
from .stops import check_knn
from .trainer import PretrainingTrainer

NUM_NEIGHBORS = 20  # DINO's best for most models: arXiv:2104.14294, section 4.1
MAX_IMAGES = 10_000  # of each split, evenly spread, so that an evaluation takes little time
ACCURACY = "eval_knn_accuracy"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class FeatureEvaluation:
    """The accuracy of classifying the validation split by the pooled features of a backbone.

    Args:
        image_processor: of the model.
        images: train and validation split. The neighbors are searched in the train split.
        device: where to compute.
        batch_size, num_workers: see `vitrail.extract`.
    """

    image_processor: VitrailImageProcessor
    images: LabeledImages
    device: torch.device
    batch_size: int = 32
    num_workers: int = 0

    def knn(self, backbone: ViTModel) -> float | None:
        """Return the accuracy of k-NN, from 0 to 1; None if no image of a split can be read."""
        return self.accuracy(backbone).knn

    def accuracy(self, backbone: ViTModel, *, logistic: bool = False) -> FeatureAccuracy:
        """Return the accuracies from 0 to 1, that of logistic regression if `logistic`; None if no image of a split can be read."""
        train, train_labels = self._vectors(backbone, self.images.train)
        validation, labels = self._vectors(backbone, self.images.validation)
        if not len(train_labels) or not len(labels):
            return FeatureAccuracy(knn=None)
        k = min(NUM_NEIGHBORS, len(train_labels))
        classes = knn_classify(
            train,
            train_labels,
            validation,
            num_classes=len(self.images.label_names),
            num_neighbors=[k],
            device=self.device,
        )[k]
        found = FeatureAccuracy(knn=float((classes[:, 0] == labels).mean()))
        if logistic:
            found.logistic = float(
                (fit_logistic(train, train_labels, device=self.device).classify(validation)[:, 0] == labels).mean()
            )
        return found

    @property
    def num_validation_images(self) -> int:
        """The number of images that are classified, if all can be read."""
        return min(len(self.images.validation), MAX_IMAGES)

    def _vectors(self, backbone: ViTModel, images: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the pooled vectors of images, (N, D), and their labels, (N,), without those of unreadable images."""
        number = min(len(images), MAX_IMAGES)
        images = images.select([index * len(images) // number for index in range(number)])
        workers = InferenceWorkers(self.device)
        compiled = CompiledModel(
            feature_outputs(backbone.to(self.device).eval(), [FeatureType("pooled")]),
            DEFAULT_RUNTIME,
            batch_size=self.batch_size,
            num_streams=workers.number,
        )
        reader = ImageReader(read_images(images), self.image_processor, self.batch_size, self.num_workers)
        rows: list[int] = []
        vectors = [np.zeros((0, backbone.config.pooled_size), dtype=np.float32)]
        for item, features in run_model(compiled, reader, [Piece(0, 0, number)], chunk_size=number, workers=workers):
            if isinstance(item, Batch):
                rows += [entry.row for entry in item.entries]
                vectors.append(features[0])
            elif isinstance(item, UnreadableEntry):
                logger.warning_once(f"left out of the evaluation: {item.entry.path}: {item.reason}")
        order = np.argsort(rows)  # images of one shape came together
        return np.concatenate(vectors)[order], np.array(images["label"][:])[rows][order]


@dataclass(frozen=True)
class BackboneKNN(TrainerCallback):
    """Logs the k-NN accuracy of the features of `trainer.backbone` as "eval_knn_accuracy" at the end of epochs.

    If an evaluation takes longer than `ddp_timeout` (`TrainingArguments`), the other processes, which wait for it, fail.

    Args:
        trainer: of the run.
        evaluation: on labeled images.
        every: epochs between two evaluations. The last epoch is always evaluated.
        start: the accuracy of the model that the run starts from. It is logged at epoch 0, and a run that gets worse stops
            (`knn_margin`, `knn_patience`). None for random weights.
    """

    trainer: PretrainingTrainer
    evaluation: FeatureEvaluation
    every: int = 1
    start: float | None = None

    def on_train_begin(self, args: PretrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the accuracy of the start model, unless the run resumes."""
        if self.start is not None and state.global_step == 0:
            self._log(self.start, control)

    def on_epoch_end(self, args: PretrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate in the first process, while the others wait. All log the same accuracy."""
        if round(state.epoch or 0) % self.every and state.global_step < state.max_steps:
            return
        accuracy = [self.evaluation.knn(self.trainer.backbone) if state.is_world_process_zero else None]
        broadcast_object_list(accuracy)
        self._log(accuracy[0], control)
        if self.start is not None:
            accuracies = [point[ACCURACY] for point in state.log_history if ACCURACY in point and point["step"]]  # after the start
            check_knn(args, accuracies, start=self.start, number=self.evaluation.num_validation_images)

    def _log(self, accuracy: float | None, control: TrainerControl) -> None:
        should_log = control.should_log  # logging resets it, and the loss of the epoch may not be logged yet
        self.trainer.log({ACCURACY: math.nan if accuracy is None else accuracy})
        control.should_log = should_log
