"""Projection of vectors to the plane: t-SNE or PCA."""

import numpy as np
from sklearn.manifold import TSNE

MIN_FOR_TSNE = 60  # images; fewer have no neighborhoods worth preserving
PERPLEXITY = 30  # effective number of neighbors; the usual value of t-SNE


def project(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, str]:
    """Return the projection (n, 2) float32 of the directions of vectors (n, D), and the name of the method.

    The method is t-SNE (van der Maaten and Hinton 2008), initialized with the first two principal components; for few or equal vectors,
    the principal components alone. The projection is centered, with the larger extent along the first axis.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    positions = principal_components(directions)
    if len(vectors) < MIN_FOR_TSNE or positions[:, 0].std() < 1e-6:
        return positions, "PCA"
    start = positions / positions[:, 0].std() * 1e-4  # as scikit-learn scales it
    positions = TSNE(perplexity=min(PERPLEXITY, (len(vectors) - 1) / 3), init=start, random_state=seed).fit_transform(directions)
    return principal_components(positions), "t-SNE"


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """Return the first two principal components of vectors (n, D), (n, 2) float32, zero-padded. The largest value is positive."""
    centered = vectors - vectors.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centered, full_matrices=False)
    components = np.zeros((len(vectors), 2), dtype=np.float32)
    found = (left * lengths)[:, :2]
    components[:, : found.shape[1]] = found
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    return components * np.where(largest < 0, -1, 1).astype(np.float32)
