"""Weighted k nearest neighbors, the evaluation of DINO: no training, and no hyperparameter but k.

Caron et al. 2021, arXiv:2104.14294, section 4.1; facebookresearch/dino, eval_knn.py; after Wu et al. 2018, arXiv:1805.01978.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import VitrailError
from ..features.neighbors import nearest, unit_rows

NUM_NEIGHBORS = (10, 20, 100, 200)
TEMPERATURE = 0.07
NUM_RANKED = 5


@torch.inference_mode()
def knn_classify(
    train_features: np.ndarray | torch.Tensor,
    train_labels: np.ndarray | torch.Tensor,
    features: np.ndarray | torch.Tensor,
    *,
    num_classes: int,
    num_neighbors: Sequence[int] = NUM_NEIGHBORS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    query_chunk: int = 1024,
    bank_chunk: int = 16384,
    progress: bool = False,
) -> dict[int, np.ndarray]:
    """Return the most probable classes of each image by a vote of its k nearest neighbors among the training images.

    Distances are cosine; a neighbor votes for its class with exp(cosine / temperature). No more than query_chunk x bank_chunk
    cosines are in memory at a time, and as few rows of features, which may be memory-mapped.

    Args:
        train_features: (N, D), on any device, normalized or not.
        train_labels: (N,) int, below num_classes.
        features: (M, D) of the images to classify.
        num_neighbors: values of k; those above N are left out.
        device: where to compute.

    Returns:
        For each k, the 5 (or num_classes, if fewer) classes with the most votes, the most first, (M, 5) int64, as the metrics take
        them. Among equal votes, the lower class comes first.

    Raises VitrailError if there are fewer training images than any k, or the features differ in width.
    """
    possible = sorted(k for k in set(num_neighbors) if 0 < k <= len(train_labels))
    if not possible:
        raise VitrailError(
            f"found {len(train_labels)} training images for k = {', '.join(map(str, num_neighbors))}; choose a k up to that number"
        )
    if train_features.shape[1:] != features.shape[1:] or features.ndim != 2:
        raise VitrailError(
            f"found features of the shapes {tuple(train_features.shape)} for training and {tuple(features.shape)} to classify; "
            "expected (N, D) and (M, D) of the same model"
        )
    bank_labels = torch.as_tensor(np.asarray(train_labels), dtype=torch.int64).to(device)
    ranked: dict[int, list[torch.Tensor]] = {k: [] for k in possible}
    for start in tqdm(range(0, len(features), query_chunk), desc="k-NN", disable=None if progress else True):
        queries = unit_rows(features, start, query_chunk, device)
        cosines, rows = nearest(queries, train_features, k=possible[-1], chunk=bank_chunk, device=device)
        labels = bank_labels[rows]
        weights = ((cosines - cosines[:, :1]) / temperature).exp()  # relative to the largest: the same order, and no overflow
        for k in possible:
            votes = torch.zeros(len(queries), num_classes, device=device)
            votes.scatter_add_(1, labels[:, :k], weights[:, :k])
            ranked[k].append(votes.sort(dim=1, descending=True, stable=True).indices[:, :NUM_RANKED].cpu())
    return {k: torch.cat(chunks).numpy() for k, chunks in ranked.items()}
