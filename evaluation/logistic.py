"""Logistic regression on frozen features; held-out training images select the regularization strength.

Oquab et al. 2023, arXiv:2304.07193; facebookresearch/dinov2, dinov2/eval/log_regression.py, whose GPU solver (cuML) is
scikit-learn's L-BFGS here.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm

from ..errors import VitrailError

C_GRID = tuple((10 ** np.linspace(-6, 5, 45)).tolist())
HELD_OUT = 10  # one in 10 training images is held out to select C
MAX_ITERATIONS = 1000
# The original's is 1e-12, which takes three times as long and changes no accuracy; scikit-learn's default, 1e-4, stops too early
TOLERANCE = 1e-6
NUM_RANKED = 5


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted classifier, and the selection of its C.

    estimator: fitted on all training images with `C`, in float64; `coef_` (K, D) and `intercept_` (K,), but (1, D) and (1,) for
        two classes.
    C: the value of the grid with the best accuracy on the held-out images, the smallest among equals.
    scores: that accuracy, from 0 to 1, for each C.
    unconverged: the values of C whose fit stopped at 1000 iterations.
    """

    estimator: LogisticRegression
    C: float
    scores: dict[float, float]
    unconverged: tuple[float, ...]

    def classify(self, features: np.ndarray) -> np.ndarray:
        """Return the most probable classes of images (M, D), the most probable first, (M, 5) int64, or fewer if there are fewer."""
        probabilities = self.estimator.predict_proba(np.asarray(features, dtype=np.float64))
        return self.estimator.classes_[np.argsort(-probabilities, axis=1, kind="stable")[:, :NUM_RANKED]]


def fit_logistic(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    grid: Sequence[float] = C_GRID,
    seed: int = 0,
    progress: bool = False,
) -> LogisticProbe:
    """Select C on a random tenth of the training images, then fit on all of them. Features are not scaled.

    Each fit of the grid starts from the previous one, which saves iterations and does not change the optimum.

    Args:
        features: (N, D).
        labels: (N,) int.
        grid: values of C, the inverse strength of the L2 penalty.
        seed: of the choice of the tenth.

    Raises VitrailError if fewer than two classes are left for training.
    """
    features = np.asarray(features, dtype=np.float64)
    labels = np.asarray(labels)
    rows = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    held_out, fitted = np.split(rows, [max(len(rows) // HELD_OUT, 1)])
    if len(np.unique(labels[fitted])) < 2:
        raise VitrailError(
            f"found {len(labels)} training images of {len(np.unique(labels))} classes, a tenth of which is held out; give more "
            "images, of at least two classes"
        )
    scores: dict[float, float] = {}
    unconverged = []
    estimator = LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True)
    for strength in tqdm(sorted(grid), desc="logistic regression", disable=None if progress else True):
        if not _fit(estimator.set_params(C=strength), features[fitted], labels[fitted]):
            unconverged.append(strength)
        scores[strength] = float(estimator.score(features[held_out], labels[held_out]))
    best = max(scores, key=scores.__getitem__)
    estimator = LogisticRegression(C=best, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    _fit(estimator, features, labels)
    return LogisticProbe(estimator, best, scores, tuple(unconverged))


def _fit(estimator: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> bool:
    """Fit an estimator; return whether it has converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported in `unconverged`
        estimator.fit(features, labels)
    return bool(estimator.n_iter_.max() < estimator.max_iter)
