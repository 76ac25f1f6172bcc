"""Evaluations of the pooled vector of each image: k nearest neighbors and logistic regression."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..convert.report import ConversionReport
from ..data.image_sources import ImageSource
from ..data.labeled import LabeledImages, load_labeled_images
from ..features.cache import CachedFeatures, FeatureCache
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.processes import start_processes
from .knn import NUM_NEIGHBORS, TEMPERATURE, knn_classify
from .logistic import fit_logistic
from .results import KNNRecord, LogisticRecord, compute_scores, describe_model, describe_run

# The tokens of the features that make `pooler_output`, where they are [CLS] and the mean patch
POOLED_TOKENS = {"cls": (-2,), "avg": (-1,), "cls+avg": (-2, -1)}


def pooled_vectors(features: CachedFeatures, pooling: str) -> np.ndarray:
    """Return `pooler_output` of each image, (N, D), or (N, 2 D) for "cls+avg".

    Args:
        features: of the one view of the image processor.
        pooling: of the model's config.
    """
    tokens = POOLED_TOKENS[pooling] if features.num_cls_layers else (0,)
    return np.concatenate([features.tokens[0, :, token] for token in tokens], axis=-1)


class PooledVectors:
    """The pooled vectors of both splits of the data."""

    def __init__(
        self,
        model: ViTPreTrainedModel,
        image_processor: VitrailImageProcessor,
        data: LabeledImages,
        cache: FeatureCache,
        report: ConversionReport | None,
    ) -> None:
        self.model = describe_model(report)
        started = time.monotonic()
        self.data = data
        self.device = start_processes().device
        model = model.to(self.device)
        self.splits = {
            "train": cache.features(model, image_processor, data.train),
            "validation": cache.features(model, image_processor, data.validation),
        }
        pooling = model.base_model.config.pooling
        self.train, self.validation = (pooled_vectors(features, pooling) for features in self.splits.values())
        self.train_labels, self.validation_labels = (features.labels for features in self.splits.values())
        self.extracted = time.monotonic()
        self.seconds = {"features": self.extracted - started}

    def describe(self) -> dict[str, Any]:
        """Return the description of the run, which ends now, for the results."""
        seconds = self.seconds | {"evaluation": time.monotonic() - self.extracted}
        return describe_run(self.data, self.splits, model=self.model, seconds=seconds)


def evaluate_knn(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    data: LabeledImages | ImageSource,
    *,
    num_neighbors: Sequence[int] = NUM_NEIGHBORS,
    cache: FeatureCache | None = None,
    report: ConversionReport | None = None,
) -> dict[str, Any]:
    """Evaluate the pooled vectors of a model by weighted k-NN, as in DINO.

    Args:
        model: moves to the device of this process.
        data: from `vitrail.load_labeled_images`, or a source that it takes.
        num_neighbors: values of k; those above the number of training images are left out.
        cache: where features are kept, and how they are computed.
        report: from `vitrail.load`, for the results.

    Returns:
        A `KNNRecord` as a dictionary.

    Raises:
        VitrailError: an unreadable image, if they are refused, or fewer training images than any k.
    """
    data = data if isinstance(data, LabeledImages) else load_labeled_images(data)
    cache = cache or FeatureCache()
    vectors = PooledVectors(model, image_processor, data, cache, report)
    classes = knn_classify(
        vectors.train,
        vectors.train_labels,
        vectors.validation,
        num_classes=len(data.label_names),
        num_neighbors=num_neighbors,
        device=vectors.device,
        progress=cache.progress,
    )
    by_k = [{"k": k, **compute_scores(ranked, vectors.validation_labels)} for k, ranked in classes.items()]
    best = max(by_k, key=lambda row: row["accuracy"])
    return KNNRecord(
        task="k-NN",
        **best,
        selection="the best k by its accuracy on these validation images",
        temperature=TEMPERATURE,
        by_k=by_k,
        **vectors.describe(),
    ).to_dict()


def evaluate_logistic(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    data: LabeledImages | ImageSource,
    *,
    seed: int = 0,
    cache: FeatureCache | None = None,
    report: ConversionReport | None = None,
) -> dict[str, Any]:
    """Evaluate the pooled vectors of a model by logistic regression, as in DINOv2.

    Args:
        model: moves to the device of this process.
        data: from `vitrail.load_labeled_images`, or a source that it takes.
        seed: of the random choice of the training images that select C; see `fit_logistic`.
        cache: where features are kept, and how they are computed.
        report: from `vitrail.load`, for the results.

    Returns:
        A `LogisticRecord` as a dictionary.

    Raises:
        VitrailError: an unreadable image, if they are refused, or too few training images.
    """
    data = data if isinstance(data, LabeledImages) else load_labeled_images(data)
    cache = cache or FeatureCache()
    vectors = PooledVectors(model, image_processor, data, cache, report)
    fitted = fit_logistic(vectors.train, vectors.train_labels, seed=seed, device=vectors.device, progress=cache.progress)
    return LogisticRecord(
        task="logistic regression",
        **compute_scores(fitted.classify(vectors.validation), vectors.validation_labels),
        C=fitted.C,
        by_C=[{"C": strength, "accuracy": accuracy} for strength, accuracy in fitted.scores.items()],
        selection=f"C by its accuracy on {fitted.num_selecting} training images that were held out",
        unconverged=list(fitted.unconverged),
        seed=seed,
        **vectors.describe(),
    ).to_dict()
