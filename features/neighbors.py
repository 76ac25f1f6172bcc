"""Nearest neighbors by cosine similarity, computed in pieces, so that features may be memory-mapped or read from files."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F


def nearest(
    queries: torch.Tensor, bank: np.ndarray | torch.Tensor, *, k: int, chunk: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest cosines of each query, descending, and their rows in the bank, both (Q, k)."""
    rows = torch.arange(len(bank), device=device)
    chunks = ((rows[start : start + chunk], unit_rows(bank, start, chunk, device)) for start in range(0, len(bank), chunk))
    return nearest_in_chunks(queries, chunks, k=k)


def nearest_in_chunks(
    queries: torch.Tensor, chunks: Iterable[tuple[np.ndarray | torch.Tensor, torch.Tensor]], *, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest cosines of each query, descending, and their ids, both (Q, k).

    Args:
        queries: normalized vectors, (Q, D).
        chunks: ids, (n,) int64, an array or a tensor, and normalized vectors, (n, D). One chunk is in memory at a time.
    """
    cosines = torch.empty(len(queries), 0, device=queries.device)
    ids = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for chunk_ids, vectors in chunks:
        values, indices = (queries @ vectors.T).topk(min(k, len(vectors)), dim=1)
        cosines, ids = torch.cat([cosines, values], dim=1), torch.cat([ids, torch.as_tensor(chunk_ids)[indices]], dim=1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]), dim=1)
        ids = ids.gather(1, order)
    return cosines, ids


def unit_rows(features: np.ndarray | torch.Tensor, start: int, count: int, device: torch.device | str) -> torch.Tensor:
    """Return rows start to start + count of features (N, D), normalized to length 1, float32."""
    rows = features[start : start + count]
    rows = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows))  # a copy: memory maps are read-only
    return F.normalize(rows.to(device).float(), dim=1)
