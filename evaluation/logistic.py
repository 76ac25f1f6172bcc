"""Logistic regression on frozen features; held-out training images select the regularization strength.

Oquab et al. 2023, arXiv:2304.07193; facebookresearch/dinov2, dinov2/eval/log_regression.py, whose solver is cuML's L-BFGS with tol=1e-12.
Newton's method finds the same optimum here, which is also that of scikit-learn's LogisticRegression with the same C.

Shape letters: N images, D size of a feature, K classes.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.utils import logging

from ..errors import VitrailError
from ..runtime.torch_engines import num_threads
from ..utils.progress import progress_bar
from .softmax_regression import CHUNK, SoftmaxRegression, minimize

C_GRID = tuple((10 ** np.linspace(-6, 5, 45)).tolist())
HELD_OUT = 10  # one in 10 training images is held out to select C
MIN_SELECTING = 200  # a tenth with fewer images is followed by other tenths, up to all 10
FEW_SELECTING = 100  # with fewer images in all, a warning
SMALL = 2**22  # numbers in features for which threads cost more than they save
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
    unconverged: the values of C of which a fit stopped after 1000 passes over the features.
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
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        chunks = _logits(_tensor(features), torch.arange(len(features)), weight, bias)
        ranked = [logits.sort(dim=1, descending=True, stable=True).indices[:, :NUM_RANKED] for logits in chunks]
        return self.classes[torch.cat(ranked).numpy()]


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> LogisticProbe:
    """Select C on a tenth of the training images of each class, then fit on all of them. Features are not scaled.

    If a tenth has fewer than 200 images, other tenths are held out in turn, and C is selected by all of them. Beside the features, which
    keep their type, memory does not grow with the number of images.

    Args:
        features: (N, D).
        labels: (N,) int.
        grid: values of C, the inverse strength of the L2 penalty.
        seed: of the choice of the tenth.
        device: where to compute, if it is a GPU of CUDA; other devices need not have float64, and the CPU computes for them.

    Raises VitrailError if there are fewer than two classes, or no class has two images.
    """
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
    device = device if torch.device(device).type == "cuda" else "cpu"
    inputs, targets = _tensor(features).to(device), torch.from_numpy(labels).to(device)
    correct = dict.fromkeys(grid, 0)
    unconverged = set()
    with (
        num_threads(1) if inputs.numel() < SMALL else contextlib.nullcontext(),
        progress_bar("logistic regression", len(held_out) * len(grid) + 1, unit="fits", wanted=progress) as advance,
    ):
        for rows in held_out:
            fitted = np.setdiff1d(np.arange(len(labels)), rows)
            selecting = torch.from_numpy(rows).to(device)
            for strength, weight, bias, converged in _fits(inputs, targets, fitted, len(classes), grid):
                predicted = torch.cat([logits.argmax(1) for logits in _logits(inputs, selecting, weight, bias)])
                correct[strength] += int((predicted == targets[selecting]).sum())
                unconverged |= set() if converged else {strength}
                advance(1)
        best = [strength for strength in grid if correct[strength] == max(correct.values())]
        chosen = best[len(best) // 2]
        _, weight, bias, converged = next(_fits(inputs, targets, np.arange(len(labels)), len(classes), [chosen]))
        unconverged |= set() if converged else {chosen}
        advance(1)
    scores = {strength: number / num_selecting for strength, number in correct.items()}
    parameters = weight.cpu().numpy(), bias.cpu().numpy()
    return LogisticProbe(*parameters, classes, chosen, scores, num_selecting, tuple(sorted(unconverged)))


def _tenths(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a number below 10 for each row, spread evenly over each class; -1 for the only image of a class."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    order = order[np.bincount(labels)[labels[order]] > 1]
    tenths = np.full(len(labels), -1)
    tenths[order] = np.arange(len(order)) % HELD_OUT
    return tenths


def _fits(
    features: torch.Tensor, labels: torch.Tensor, rows: np.ndarray, num_classes: int, grid: Sequence[float]
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor, bool]]:
    """Yield C, weight (K, D), bias (K,) and whether the fit on some rows converged, for ascending values of C.

    Each fit starts on the line through the optima of the two values of C before, which halves the passes over the features.
    """
    problem = SoftmaxRegression(features, labels, torch.from_numpy(rows).to(features.device), num_classes)
    before = parameters = problem.zeros()
    for strength in grid:
        found, converged = minimize(problem, strength, 2 * parameters - before)
        before, parameters = parameters, found
        weight = parameters[:, :-1]
        yield strength, weight, parameters[:, -1] - weight @ problem.mean, converged


def _logits(features: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the logits of rows, in float64, as many at a time as fit into memory."""
    for part in rows.split(max(1, CHUNK // max(weight.shape))):
        yield features[part].double() @ weight.T + bias


def _tensor(features: np.ndarray) -> torch.Tensor:
    """Return features as a tensor, which shares their memory unless they are read-only."""
    features = np.asarray(features)
    return torch.from_numpy(features if features.flags.writeable else features.copy())
