"""Nearest neighbors by cosine similarity, computed in pieces, so that features may be memory-mapped."""

import numpy as np
import torch
import torch.nn.functional as F


def nearest(
    queries: torch.Tensor, bank: np.ndarray | torch.Tensor, *, k: int, chunk: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest cosines of each query, descending, and their rows in the bank, both (Q, k)."""
    cosines = torch.empty(len(queries), 0, device=device)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    for start in range(0, len(bank), chunk):
        similarity = queries @ unit_rows(bank, start, chunk, device).T
        values, indices = similarity.topk(min(k, similarity.shape[1]), dim=1)
        cosines, rows = torch.cat([cosines, values], dim=1), torch.cat([rows, indices + start], dim=1)
        cosines, order = cosines.topk(min(k, cosines.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return cosines, rows


def unit_rows(features: np.ndarray | torch.Tensor, start: int, count: int, device: torch.device | str) -> torch.Tensor:
    """Return rows start to start + count of features (N, D), normalized to length 1, float32."""
    rows = features[start : start + count]
    rows = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows))  # a copy: memory maps are read-only
    return F.normalize(rows.to(device).float(), dim=1)
