"""Evaluation of the backbone during training: weighted k-NN on labeled images, as in DINO's evaluation."""

import math
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..data.image_sources import read_images
from ..data.labeled import LabeledImages
from ..data.reader import Batch, ImageReader, Piece, UnreadableEntry
from ..evaluation.knn import knn_classify
from ..features.feature_types import FeatureType, feature_outputs
from ..features.inference import run_model
from ..modeling.modeling_vit import ViTModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import DEFAULT_RUNTIME, CompiledModel
from ..runtime.workers import InferenceWorkers
from .trainer import PretrainingTrainer

NUM_NEIGHBORS = 20  # DINO's best for most models: arXiv:2104.14294, section 4.1
MAX_IMAGES = 10_000  # of each split, evenly spread, so that an evaluation takes little time
ACCURACY = "eval_knn_accuracy"

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class BackboneKNN(TrainerCallback):
    """Logs the k-NN accuracy of the features of `trainer.backbone` as "eval_knn_accuracy" at the end of epochs.

    If an evaluation takes longer than `ddp_timeout` (`TrainingArguments`), the other processes, which wait for it, fail.

    Args:
        trainer: of the run.
        image_processor: of the model.
        images: train and validation split. The neighbors are searched in the train split.
        every: epochs between two evaluations. The last epoch is always evaluated.
        batch_size, num_workers: see `vitrail.extract`.
    """

    trainer: PretrainingTrainer
    image_processor: VitrailImageProcessor
    images: LabeledImages
    every: int = 1
    batch_size: int = 32
    num_workers: int = 0

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate in the first process, while the others wait. All log the same accuracy."""
        if round(state.epoch or 0) % self.every and state.global_step < state.max_steps:
            return
        accuracy = [self.accuracy() if state.is_world_process_zero else math.nan]
        broadcast_object_list(accuracy)
        should_log = control.should_log  # logging resets it, and the loss of the epoch may not be logged yet
        self.trainer.log({ACCURACY: accuracy[0]})
        control.should_log = should_log

    def accuracy(self) -> float:
        """Return the accuracy on the validation split; NaN if no image of a split can be read."""
        train, train_labels = self._vectors(self.images.train)
        validation, labels = self._vectors(self.images.validation)
        if not len(train_labels) or not len(labels):
            return math.nan
        k = min(NUM_NEIGHBORS, len(train_labels))
        classes = knn_classify(
            train,
            train_labels,
            validation,
            num_classes=len(self.images.label_names),
            num_neighbors=[k],
            device=self.trainer.args.device,
        )[k]
        return float((classes[:, 0] == labels).mean())

    def _vectors(self, images: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Return the pooled vectors of images, (N, D), and their labels, (N,), without those of unreadable images."""
        number = min(len(images), MAX_IMAGES)
        images = images.select([index * len(images) // number for index in range(number)])
        backbone: ViTModel = self.trainer.backbone.eval()
        workers = InferenceWorkers(backbone.device)
        compiled = CompiledModel(
            feature_outputs(backbone, [FeatureType("pooled")]),
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
                logger.warning_once(f"left out of the evaluation by k-NN: {item.entry.path}: {item.reason}")
        order = np.argsort(rows)  # images of one shape came together
        return np.concatenate(vectors)[order], np.array(images["label"][:])[rows][order]
