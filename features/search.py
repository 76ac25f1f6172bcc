"""The stored vectors nearest to a query: by the index where there is one, else by comparing it with all vectors, chunk by chunk."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .manifest import Shard
from .neighbors import nearest_in_chunks, unit_rows
from .store import StoredFeatures
from .vector_index import IndexRecord, open_index


@dataclass(frozen=True)
class Neighbors:
    """The outcome of a search.

    ids, cosines: of the nearest vectors, descending by cosine.
    index: the record of the index that was used, or None for exact search.
    warning: what a user should know about the index.
    """

    ids: np.ndarray
    cosines: np.ndarray
    index: IndexRecord | None
    warning: str | None

    @property
    def method(self) -> str:
        """How the neighbors were found, as text."""
        return search_method(self.index)


def search_method(index: IndexRecord | None) -> str:
    """Return how neighbors were found, as text."""
    return "exact search" if index is None else f"index, recall@10 {index.recall:.3f}"


def find_neighbors(
    stored: StoredFeatures, query: torch.Tensor, *, k: int, column: str | None = None, exact: bool = False
) -> Neighbors:
    """Return the stored vectors with the largest cosines with a query.

    The index proposes candidates, and their cosines are computed from the stored vectors. Rows that the index lacks are searched exactly.

    Args:
        query: a normalized vector, (1, D) float32.
        k: number of neighbors; fewer are returned if fewer are stored.
        exact: compare the query with all vectors, even if there is an index.

    Raises VitrailError: the column holds no vectors; the index belongs to other features, is damaged, or needs FAISS.
    """
    column = stored.vector_column(column)
    index, warning = (None, None) if exact else open_index(stored, column)
    if index is None:
        chunks = _chunks(stored, column, None)
    else:
        candidates = index.search(query.numpy(), k)[0] if len(index) else np.empty(0, np.int64)
        chunks = itertools.chain(_rows(stored, column, candidates[candidates >= 0]), _chunks(stored, column, index.missing))
    cosines, ids = nearest_in_chunks(query, chunks, k=k)
    return Neighbors(ids[0].numpy(), cosines[0].numpy(), None if index is None else index.record, warning)


def _chunks(stored: StoredFeatures, column: str, shards: Sequence[Shard] | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ids and normalized vectors; shards: None for all files."""
    if shards is None or shards:
        for ids, vectors in stored.chunks(column, shards=shards):
            yield torch.from_numpy(ids), unit_rows(vectors, 0, len(vectors), "cpu")


def _rows(stored: StoredFeatures, column: str, ids: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield some rows, if there are any, as one chunk."""
    if len(ids):
        table = stored.rows(ids, [column]).combine_chunks()
        vectors = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
        yield torch.from_numpy(table["id"].to_numpy().copy()), unit_rows(vectors, 0, len(vectors), "cpu")
