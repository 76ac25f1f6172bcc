"""Weighted k nearest neighbours, as DINO is evaluated: no training, and no choice but k.

Caron et al. 2021, arXiv:2104.14294, section 4.1; facebookresearch/dino, eval_knn.py; after Wu et al. 2018, arXiv:1805.01978.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..errors import VitrailError

NUM_NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
NUM_RANKED = 5


@torch.inference_mode()
def knn_classify(
    train_features: np.ndarray | torch.Tensor,
    train_labels: np.ndarray | torch.Tensor,
    features: np.ndarray | torch.Tensor,
    *,
    num_classes: int,
    num_neighbours: Sequence[int] = NUM_NEIGHBOURS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
    query_chunk: int = 1024,
    bank_chunk: int = 16384,
    progress: bool = False,
) -> dict[int, np.ndarray]:
    """The most probable classes of each image by a vote of its k nearest neighbours among the training images.

    Nearness is the cosine; a neighbour votes for its class with exp(cosine / temperature). No more than query_chunk x bank_chunk
    cosines are held at a time, and of features as many rows, so that those may be memory-mapped.

    Args:
        train_features: (N, D), on any device, normalised or not.
        train_labels: (N,) int, below num_classes.
        features: (M, D) of the images to classify.
        num_neighbours: the values of k. Those beyond N are left out.
        device: where to compute.

    Returns:
        For each k the 5 (or num_classes, if fewer) classes with most votes, the first one first, (M, 5) int64. Of equal votes,
        and of none, the lower class comes first. For `metrics.TopKAccuracy` and its kin.

    Raises VitrailError if there are fewer training images than any k, or the features differ in width.
    """
    possible = sorted(k for k in set(num_neighbours) if 0 < k <= len(train_labels))
    if not possible:
        raise VitrailError(
            f"found {len(train_labels)} training images for k = {', '.join(map(str, num_neighbours))}; choose a k up to that number"
        )
    if train_features.shape[1:] != features.shape[1:] or features.ndim != 2:
        raise VitrailError(
            f"found features of the shapes {tuple(train_features.shape)} for training and {tuple(features.shape)} to classify; "
            "expected (N, D) and (M, D) of the same model"
        )
    bank_labels = torch.as_tensor(np.asarray(train_labels), dtype=torch.int64).to(device)
    ranked: dict[int, list[torch.Tensor]] = {k: [] for k in possible}
    for start in tqdm(range(0, len(features), query_chunk), desc="k-NN", disable=None if progress else True):
        queries = _unit_rows(features, start, query_chunk, device)
        cosines, rows = _nearest(queries, train_features, k=possible[-1], chunk=bank_chunk, device=device)
        labels = bank_labels[rows]
        weights = ((cosines - cosines[:, :1]) / temperature).exp()  # less the largest: the same order, and no overflow
        for k in possible:
            votes = torch.zeros(len(queries), num_classes, device=device)
            votes.scatter_add_(1, labels[:, :k], weights[:, :k])
            ranked[k].append(votes.sort(dim=1, descending=True, stable=True).indices[:, :NUM_RANKED].cpu())
    return {k: torch.cat(chunks).numpy() for k, chunks in ranked.items()}


def _nearest(
    queries: torch.Tensor, bank: np.ndarray | torch.Tensor, *, k: int, chunk: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest cosines of each query, descending, and their rows in the bank, both (Q, k)."""
    cosines = torch.empty(len(queries), 0, device=device)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), chunk):
        similarity = queries @ _unit_rows(bank, start, chunk, device).T
        values, indices = similarity.topk(min(k, similarity.shape[1]), dim=1)
        cosines, rows = torch.cat([cosines, values], dim=1), torch.cat([rows, indices + start], dim=1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return cosines, rows


def _unit_rows(features: np.ndarray | torch.Tensor, start: int, count: int, device: torch.device | str) -> torch.Tensor:
    rows = features[start : start + count]
    rows = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows))  # a copy: memory maps are read-only
    return F.normalize(rows.to(device).float(), dim=1)
