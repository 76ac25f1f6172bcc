"""The stored vectors nearest to a query: by the index where there is one, else by comparing it with all vectors, chunk by chunk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import CorruptFileError
from .manifest import Shard
from .neighbors import nearest_in_chunks, unit_rows
from .store import CHUNK_ROWS, StoredFeatures
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

    With an index, cosines are those of its vectors in float16, within 0.001. Rows that the index lacks are searched exactly.

    Args:
        query: a normalized vector, (1, D) float32.
        k: number of neighbors; fewer are returned if fewer are stored.
        exact: compare the query with all vectors, even if there is an index.

    Raises VitrailError: the column holds no vectors; the index belongs to other features, is damaged, or needs FAISS.
    """
    column = stored.vector_column(column)
    index, warning = (None, None) if exact else open_index(stored, column)
    cosines, ids = nearest_in_chunks(query, unit_chunks(stored, column, shards=None if index is None else index.missing), k=k)
    if index is not None:
        found, found_cosines = (torch.from_numpy(array) for array in index.search(query.numpy(), k))
        ids = torch.cat([found, ids], dim=1)
        cosines, order = torch.cat([found_cosines, cosines], dim=1).clamp(max=1).topk(min(k, ids.shape[1]), dim=1)
        ids = ids.gather(1, order)
    return Neighbors(ids[0].numpy(), cosines[0].numpy(), None if index is None else index.record, warning)


def unit_chunks(
    stored: StoredFeatures, column: str, *, rows: int = CHUNK_ROWS, shards: Sequence[Shard] | None = None
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield ids and normalized vectors; see `StoredFeatures.chunks`. An empty list of files yields nothing.

    Raises CorruptFileError if a vector contains NaN or inf.
    """
    if shards is None or shards:
        for ids, vectors in stored.chunks(column, rows=rows, shards=shards):
            yield ids, unit_vectors(stored, ids, vectors)


def unit_vectors(stored: StoredFeatures, ids: np.ndarray, vectors: np.ndarray) -> torch.Tensor:
    """Return stored vectors, normalized. Raises CorruptFileError if one contains NaN or inf, which `extract` does not write."""
    units = unit_rows(vectors, 0, len(vectors), "cpu")
    if not units.sum().isfinite():
        number = ids[int(units.isfinite().all(dim=1).byte().argmin())]
        raise CorruptFileError(
            f"{stored.folder} holds vectors with NaN or inf, such as that of the image with id {number}: copy the whole folder again, or "
            "extract into a new one."
        )
    return units
