"""Evaluations that read one vector of each image, the one that the model pools: nearest neighbours and logistic regression."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..convert.report import ConversionReport
from ..data.labeled import LabeledImages
from ..features.cache import Features
from ..features.cache_settings import Extraction
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.processes import start_processes
from .knn import NUM_NEIGHBORS, TEMPERATURE, knn_classify
from .logistic import fit_logistic
from .results import described, described_model, scores

# The parts of the features that make `pooler_output`, where they are [CLS] tokens and the mean patch
POOLED_PARTS = {"cls": (-2,), "avg": (-1,), "cls+avg": (-2, -1)}


def pooled_vectors(features: Features, pooling: str) -> np.ndarray:
    """`pooler_output` of each image, (N, D), or (N, 2 D) for "cls+avg".

    Args:
        features: of the one view of the image processor.
        pooling: of the model's config.
    """
    parts = POOLED_PARTS[pooling] if features.num_cls_layers else (0,)
    return np.concatenate([features.parts[0, :, part] for part in parts], axis=-1)


class PooledVectors:
    """What a model pools of both halves of the data."""

    def __init__(
        self,
        model: ViTPreTrainedModel,
        image_processor: VitrailImageProcessor,
        data: LabeledImages,
        extraction: Extraction,
        report: ConversionReport | None,
    ) -> None:
        self.model = described_model(report)
        started = time.monotonic()
        self.data = data
        self.device = start_processes().device
        model = model.to(self.device)
        self.halves = {
            "train": extraction.features(model, image_processor, data.train),
            "validation": extraction.features(model, image_processor, data.validation),
        }
        pooling = model.base_model.config.pooling
        self.train, self.validation = (pooled_vectors(features, pooling) for features in self.halves.values())
        self.train_labels, self.validation_labels = (features.labels for features in self.halves.values())
        self.extracted = time.monotonic()
        self.seconds = {"features": self.extracted - started}

    def described(self) -> dict[str, Any]:
        """What results say of the run, which ends now."""
        seconds = self.seconds | {"evaluation": time.monotonic() - self.extracted}
        return described(self.data, self.halves, model=self.model, seconds=seconds)


def evaluate_knn(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    data: LabeledImages,
    *,
    num_neighbors: Sequence[int] = NUM_NEIGHBORS,
    extraction: Extraction | None = None,
    report: ConversionReport | None = None,
) -> dict[str, Any]:
    """Weighted k-NN of what a model pools, as DINO is evaluated.

    Args:
        model: moves to the device of this process.
        num_neighbors: the values of k; those beyond the number of training images are left out.
        extraction: how images are read and run.
        report: what `vitrail.load` said of the model, for the result.

    Returns:
        The scores of the best k, those of every k under "by_k", and what `vitrail.evaluation.results.described` says.

    Raises:
        VitrailError: a bad image, where they are refused, or fewer training images than any k.
    """
    extraction = extraction or Extraction()
    vectors = PooledVectors(model, image_processor, data, extraction, report)
    classes = knn_classify(
        vectors.train,
        vectors.train_labels,
        vectors.validation,
        num_classes=len(data.label_names),
        num_neighbors=num_neighbors,
        device=vectors.device,
        progress=extraction.progress,
    )
    by_k = [{"k": k, **scores(ranked, vectors.validation_labels)} for k, ranked in classes.items()]
    best = max(by_k, key=lambda row: row["accuracy"])
    selection = "the best k by its accuracy on these validation images"
    return {"task": "k-NN", **best, "selection": selection, "temperature": TEMPERATURE, "by_k": by_k, **vectors.described()}


def evaluate_logistic(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    data: LabeledImages,
    *,
    seed: int = 0,
    extraction: Extraction | None = None,
    report: ConversionReport | None = None,
) -> dict[str, Any]:
    """Logistic regression on what a model pools, as DINOv2 is evaluated.

    Args:
        model: moves to the device of this process.
        seed: of the choice of the training images that choose C.
        extraction: how images are read and run.
        report: what `vitrail.load` said of the model, for the result.

    Returns:
        The scores, "C", the accuracies that chose it under "by_C", and what `vitrail.evaluation.results.described` says.

    Raises:
        VitrailError: a bad image, where they are refused, or too few images to learn from.
    """
    extraction = extraction or Extraction()
    vectors = PooledVectors(model, image_processor, data, extraction, report)
    fitted = fit_logistic(vectors.train, vectors.train_labels, seed=seed, progress=extraction.progress)
    return {
        "task": "logistic regression",
        **scores(fitted.classify(vectors.validation), vectors.validation_labels),
        "C": fitted.C,
        "by_C": [{"C": strength, "accuracy": accuracy} for strength, accuracy in fitted.scores.items()],
        "unconverged": list(fitted.unconverged),
        "seed": seed,
        **vectors.described(),
    }
