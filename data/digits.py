"""The 1797 handwritten digits of 8 x 8 pixels that scikit-learn contains, as a dataset with two splits."""

import io

import datasets
import numpy as np
from PIL import Image


def digit_splits() -> dict[str, datasets.Dataset]:
    """Return the splits "train" and "validation", each with half of each class, and the columns "image" and "label"."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    images = [
        {"bytes": png((levels * (255 / 16)).round().astype(np.uint8)), "path": f"digit-{row:04d}.png"}
        for row, levels in enumerate(digits.images)
    ]
    return {
        name: datasets.Dataset.from_dict({"image": [images[row] for row in rows], "label": digits.target[rows]}, features=features)
        for name, rows in zip(("train", "validation"), stratified_split(digits.target, fraction=0.5, seed=0), strict=True)
    }


def stratified_split(labels: np.ndarray, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of two splits, ascending; the second has `fraction` of each class.

    labels: (N,) int. A class of two or more images has at least one in each split; a single image goes to the first.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    second = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        second[rng.permutation(rows)[:count]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)


def png(array: np.ndarray) -> bytes:
    """Return an image, (H, W) or (H, W, 3) of uint8, as the content of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()
