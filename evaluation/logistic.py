"""Logistic regression on frozen features; held-out training images select the regularization strength.

Oquab et al. 2023, arXiv:2304.07193; facebookresearch/dinov2, dinov2/eval/log_regression.py, whose GPU solver (cuML) is L-BFGS in float64
here. The optimum is that of scikit-learn's LogisticRegression with the same C.

Shape letters: N images, D size of a feature, K classes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax
from threadpoolctl import threadpool_limits
from transformers.utils import logging

from ..errors import VitrailError
from ..utils.progress import progress_bar

C_GRID = tuple((10 ** np.linspace(-6, 5, 45)).tolist())
HELD_OUT = 10  # one in 10 training images is held out to select C
MIN_SELECTING = 200  # a tenth with fewer images is followed by other tenths, up to all 10
FEW_SELECTING = 100  # with fewer images in all, a warning
MAX_ITERATIONS = 1000
TOLERANCE = 1e-6  # of the gradient of the mean loss, for parameters in which the curvature is about 1
HISTORY = 20  # updates from which L-BFGS estimates the curvature
SMALL = 2**22  # numbers in features for which threads of BLAS cost more than they save
NUM_RANKED = 5

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted classifier, and the selection of its C.

    weight: (K, D), fitted on all training images with `C`, in float64.
    bias: (K,).
    classes: (K,), the labels that occur, ascending.
    C: the value of the grid with the best accuracy on the held-out images, the middle among equals.
    scores: that accuracy, from 0 to 1, for each C.
    num_selecting: the number of held-out images that selected C.
    unconverged: the values of C of which a fit stopped at 1000 iterations.
    """

    weight: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    C: float
    scores: dict[float, float]
    num_selecting: int
    unconverged: tuple[float, ...]

    def classify(self, features: np.ndarray) -> np.ndarray:
        """Return the most probable classes of images (M, D), the most probable first, (M, 5) int64, or fewer if there are fewer."""
        logits = np.asarray(features, dtype=np.float64) @ self.weight.T + self.bias
        return self.classes[np.argsort(-logits, axis=1, kind="stable")[:, :NUM_RANKED]]


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    progress: bool = False,
) -> LogisticProbe:
    """Select C on a tenth of the training images of each class, then fit on all of them. Features are not scaled.

    If a tenth has fewer than 200 images, other tenths are held out in turn, and C is selected by all of them.

    Args:
        features: (N, D).
        labels: (N,) int.
        grid: values of C, the inverse strength of the L2 penalty.
        seed: of the choice of the tenth.

    Raises VitrailError if there are fewer than two classes, or no class has two images.
    """
    features = np.asarray(features, dtype=np.float64)
    classes, labels = np.unique(labels, return_inverse=True)
    grid = sorted(grid)
    tenths = _tenths(labels, np.random.Generator(np.random.PCG64(seed)))
    held_out = [rows for rows in (np.flatnonzero(tenths == tenth) for tenth in range(HELD_OUT)) if len(rows)]
    if len(classes) < 2 or not held_out:
        raise VitrailError(
            f"found {len(labels)} training images of {len(classes)} classes, a tenth of which is held out; give more "
            "images, of at least two classes"
        )
    held_out = held_out[: math.ceil(MIN_SELECTING / len(held_out[0]))]
    num_selecting = sum(map(len, held_out))
    if num_selecting < FEW_SELECTING:
        logger.warning(f"only {num_selecting} training images select C: with more images, the accuracy may be higher.")
    correct = dict.fromkeys(grid, 0)
    unconverged = set()
    with (
        threadpool_limits(1 if features.size < SMALL else None, user_api="blas"),
        progress_bar("logistic regression", len(held_out) * len(grid) + 1, unit="fits", wanted=progress) as advance,
    ):
        for rows in held_out:
            fitted = np.setdiff1d(np.arange(len(labels)), rows)
            for strength, weight, bias, converged in _fits(features[fitted], labels[fitted], len(classes), grid):
                correct[strength] += int(((features[rows] @ weight.T + bias).argmax(1) == labels[rows]).sum())
                unconverged |= set() if converged else {strength}
                advance(1)
        best = [strength for strength in grid if correct[strength] == max(correct.values())]
        chosen = best[len(best) // 2]
        _, weight, bias, _ = next(_fits(features, labels, len(classes), [chosen]))
        advance(1)
    scores = {strength: number / num_selecting for strength, number in correct.items()}
    return LogisticProbe(weight, bias, classes, chosen, scores, num_selecting, tuple(sorted(unconverged)))


def _tenths(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a number below 10 for each row, spread evenly over each class; -1 for the only image of a class."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    order = order[np.bincount(labels)[labels[order]] > 1]
    tenths = np.full(len(labels), -1)
    tenths[order] = np.arange(len(order)) % HELD_OUT
    return tenths


def _fits(
    features: np.ndarray, labels: np.ndarray, num_classes: int, grid: Sequence[float]
) -> Iterator[tuple[float, np.ndarray, np.ndarray, bool]]:
    """Yield C, weight (K, D), bias (K,) and whether the fit converged, for ascending values of C.

    Rotating the features changes neither the penalty nor the optimum; centering them changes the bias alone. Along the principal
    components, the parameters are almost independent, so that scaling each of them by its own curvature makes L-BFGS several times faster.
    Each fit starts from the previous one.
    """
    mean = features.mean(0)
    basis = _principal_components(features - mean)
    inputs = np.concatenate(((features - mean) @ basis, np.ones((len(features), 1))), axis=1)
    targets = np.eye(num_classes)[labels]
    parameters = np.zeros((inputs.shape[1], num_classes))
    for strength in grid:
        parameters, converged = _minimize(inputs, targets, strength, parameters)
        weight = (basis @ parameters[:-1]).T
        yield strength, weight, parameters[-1] - weight @ mean, converged


def _principal_components(centered: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (D, at most D and N) of the features: of other directions the optimum has none."""
    if centered.shape[0] >= centered.shape[1]:
        return np.linalg.eigh(centered.T @ centered)[1]
    values, left = np.linalg.eigh(centered @ centered.T)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return centered.T @ left[:, kept] / np.sqrt(values[kept])


def _minimize(inputs: np.ndarray, targets: np.ndarray, strength: float, start: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the parameters (D + 1, K) that minimize the mean cross entropy and the penalty, and whether L-BFGS converged."""
    number, num_classes = targets.shape
    # scikit-learn and cuML penalize the difference of the two rows of weights of two classes, which is half as much
    penalty = np.full((len(start), 1), 1 / (number * (strength if num_classes > 2 else strength / 2)))
    penalty[-1] = 0  # of the bias
    probabilities = softmax(inputs @ start, axis=1)
    curvature = (inputs**2).T @ (probabilities * (1 - probabilities)) / number + penalty
    scale = 1 / np.sqrt(np.maximum(curvature, np.finfo(np.float64).eps))

    def loss_and_gradient(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = scaled.reshape(start.shape) * scale
        logits = inputs @ parameters
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        sums = powers.sum(axis=1, keepdims=True)
        loss = (np.log(sums).sum() - (logits * targets).sum()) / number + (penalty * parameters**2).sum() / 2
        gradient = inputs.T @ (powers / sums - targets) / number + penalty * parameters
        return loss, (gradient * scale).ravel()

    options: dict[str, Any] = {"maxiter": MAX_ITERATIONS, "maxcor": HISTORY, "maxls": 50, "gtol": TOLERANCE}
    options["ftol"] = 64 * np.finfo(np.float64).eps
    result = minimize(loss_and_gradient, (start / scale).ravel(), jac=True, method="L-BFGS-B", options=options)
    return result.x.reshape(start.shape) * scale, bool(result.nit < MAX_ITERATIONS)
