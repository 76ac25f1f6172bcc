"""Vectors in the plane, so that near ones lie near each other."""

import numpy as np
from sklearn.manifold import TSNE

MIN_FOR_TSNE = 60  # images; among fewer there are no neighbourhoods to keep
PERPLEXITY = 30  # about how many neighbours count, t-SNE's usual


def project(vectors: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, str]:
    """Places in the plane, (n, 2) float32, of vectors (n, D) by their directions, and the name of the method.

    t-SNE (van der Maaten and Hinton 2008) that begins at the two principal components; of few vectors, or of equal ones, these alone.
    They lie around the origin, with the larger extent along the first axis.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    places = principal_components(directions)
    if len(vectors) < MIN_FOR_TSNE or places[:, 0].std() < 1e-6:
        return places, "PCA"
    start = places / places[:, 0].std() * 1e-4  # as scikit-learn scales it
    places = TSNE(perplexity=min(PERPLEXITY, (len(vectors) - 1) / 3), init=start, random_state=seed).fit_transform(directions)
    return principal_components(places), "t-SNE"


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """The two first principal components of vectors (n, D), (n, 2) float32; zero where there is none. The largest value is positive."""
    centred = vectors - vectors.mean(axis=0)
    left, lengths, _ = np.linalg.svd(centred, full_matrices=False)
    components = np.zeros((len(vectors), 2), dtype=np.float32)
    found = (left * lengths)[:, :2]
    components[:, : found.shape[1]] = found
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=0)[None], axis=0)
    return components * np.where(largest < 0, -1, 1).astype(np.float32)
