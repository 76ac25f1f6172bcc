"""Logistic regression of several classes with an L2 penalty, by Newton's method, in bounded memory.

The loss and its gradient are in float64, and decide when a fit has converged. The direction of a step solves Newton's equations by
conjugate gradients in float32, which changes the number of steps and not the optimum.

Shape letters: N images, D size of a feature, K classes, R principal components. Parameters are (K, D + 1); the last column is the bias.
Images are the last dimension of logits, which makes the softmax over few classes several times faster.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

MAX_PASSES = 1000  # over the features, for each fit
MAX_PRODUCTS = 250  # passes for the direction of one step
TOLERANCE = 1e-6  # of the gradient of the mean loss, for parameters in which the curvature is about 1
CHUNK = 2**20  # numbers of features, or of logits, that are in memory in float64; more do not stay in the caches of a processor
SAMPLE = 2**13  # rows, or twice as many as features are wide, from which the curvature is estimated
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Preconditioner:
    """An estimate of the matrix of second derivatives: a number for each parameter along the principal components, in float32.

    basis: (D + 1, R + 1), orthonormal columns.
    scale: (K, R + 1).
    """

    basis: torch.Tensor
    scale: torch.Tensor

    def solve(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return the product of the inverse with a gradient (K, D + 1)."""
        return gradient @ self.basis / self.scale @ self.basis.T

    def error(self, gradient: torch.Tensor) -> float:
        """Return the largest number of a gradient, for parameters in which the estimate is 1."""
        return (gradient.float() @ self.basis / self.scale.sqrt()).abs().max().item()


class SoftmaxRegression:
    """The mean cross entropy of linear classifiers on some rows of features, plus the penalty; and its derivatives.

    Features are centered, which changes the bias alone.

    Args:
        features: (N, D), in any floating-point type.
        labels: (N,) int64, below `num_classes`.
        rows: the rows to fit, int64.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, num_classes: int) -> None:
        self.features, self.labels, self.rows = features, labels, rows
        self.num_classes = num_classes
        self.chunk = max(1, CHUNK // max(features.shape[1] + 1, num_classes))
        self.sample = rows[:: max(1, len(rows) // max(SAMPLE, 2 * features.shape[1]))]
        self.mean = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
        for part in rows.split(self.chunk):
            self.mean += features[part].double().sum(0) / len(rows)
        self._kept: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.basis = self._principal_components()

    def zeros(self) -> torch.Tensor:
        """Return parameters to start from."""
        return self.mean.new_zeros(self.num_classes, len(self.mean) + 1)

    def penalty(self, strength: float) -> torch.Tensor:
        """Return the weight of half of each squared parameter, (D + 1,), for a value of C."""
        # scikit-learn and cuML penalize the difference of the two rows of weights of two classes, which is half as much
        penalty = self.mean.new_full((len(self.mean) + 1,), (1 if self.num_classes > 2 else 2) / (len(self.rows) * strength))
        penalty[-1] = 0  # of the bias
        return penalty

    def loss(self, parameters: torch.Tensor, penalty: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Return the loss and its gradient, in float64."""
        loss, gradient = self.mean.new_zeros(()), torch.zeros_like(parameters)
        for inputs, labels in self._chunks(self.rows, torch.float64):
            errors = (parameters @ inputs.T).log_softmax(0)  # (K, n)
            loss -= errors.gather(0, labels).sum()
            errors.exp_().scatter_add_(0, labels, -torch.ones_like(errors[:1]))
            gradient += errors @ inputs
        weighted = penalty * parameters
        return float(loss / len(self.rows) + (weighted * parameters).sum() / 2), gradient / len(self.rows) + weighted

    def curvature(self, parameters: torch.Tensor, penalty: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the product with the matrix of second derivatives, in float32."""
        parameters, penalty = parameters.float(), penalty.float()

        def product(direction: torch.Tensor) -> torch.Tensor:
            total = torch.zeros_like(direction)
            for inputs, _ in self._chunks(self.rows, torch.float32):
                probabilities = (parameters @ inputs.T).softmax(0)
                change = direction @ inputs.T
                change -= (probabilities * change).sum(0)
                total += change.mul_(probabilities) @ inputs
            return total / len(self.rows) + penalty * direction

        return product

    def preconditioner(self, parameters: torch.Tensor, penalty: torch.Tensor) -> Preconditioner:
        """Return an estimate of that matrix. Along the principal components of the features, the parameters are almost independent."""
        squares = self.basis.new_zeros(self.num_classes, self.basis.shape[1])
        parameters = parameters.float()
        for inputs, _ in self._chunks(self.sample, torch.float32):
            probabilities = (parameters @ inputs.T).softmax(0)
            squares += probabilities.mul_(1 - probabilities) @ (inputs @ self.basis).square_()
        scale = (squares / len(self.sample) + penalty.float() @ self.basis**2).clamp_min_(EPS)
        return Preconditioner(self.basis, scale)

    def _principal_components(self) -> torch.Tensor:
        """Return an orthonormal basis of the rows that are sampled, and the bias: of other directions the optimum has none."""
        size = len(self.mean)
        if len(self.sample) >= size:
            products = self.mean.new_zeros(size + 1, size + 1)
            for inputs, _ in self._chunks(self.sample, torch.float64):
                products += inputs.T @ inputs
            components = torch.linalg.eigh(products[:-1, :-1])[1]
        else:
            centered = self.features[self.sample].double() - self.mean
            values, left = torch.linalg.eigh(centered @ centered.T)
            kept = values > values[-1] * len(values) * EPS
            components = centered.T @ left[:, kept] / values[kept].sqrt()
        return torch.block_diag(components, components.new_ones(1, 1)).float()

    def _chunks(self, rows: torch.Tensor, dtype: torch.dtype) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the inputs of rows, centered, with a column of ones, (n, D + 1), and their labels (1, n). Small ones are kept."""
        if len(rows) > self.chunk or rows is not self.rows:
            return (self._inputs(part, dtype) for part in rows.split(self.chunk))
        if dtype not in self._kept:
            self._kept[dtype] = [self._inputs(rows, dtype)]
        return self._kept[dtype]

    def _inputs(self, rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self.mean.new_ones(len(rows), len(self.mean) + 1, dtype=dtype)
        torch.sub(self.features[rows], self.mean.to(dtype), out=inputs[:, :-1])
        return inputs, self.labels[None, rows]


def minimize(problem: SoftmaxRegression, strength: float, start: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the parameters of the optimum for a value of C, and whether they were reached within `MAX_PASSES`."""
    penalty = problem.penalty(strength)
    parameters, passes = start, 1
    loss, gradient = problem.loss(parameters, penalty)
    while True:
        preconditioner = problem.preconditioner(parameters, penalty)
        error = preconditioner.error(gradient)
        if error <= TOLERANCE:
            return parameters, True
        direction, products = _solve(
            problem.curvature(parameters, penalty),
            preconditioner,
            gradient,
            accuracy=min(0.1, max(1e-3, error)),
            max_products=min(MAX_PRODUCTS, MAX_PASSES - passes),
        )
        passes += products
        slope, step = (gradient * direction).sum().item(), 1.0
        while passes < MAX_PASSES and step > EPS:
            passes += 1
            new = problem.loss(parameters + step * direction, penalty)
            if new[0] <= loss + 1e-4 * step * slope + 64 * EPS * abs(loss):
                break
            step /= 2
        else:
            return parameters, False
        parameters, (loss, gradient) = parameters + step * direction, new


def _solve(
    curvature: Callable[[torch.Tensor], torch.Tensor],
    preconditioner: Preconditioner,
    gradient: torch.Tensor,
    *,
    accuracy: float,
    max_products: int,
) -> tuple[torch.Tensor, int]:
    """Return the step whose product with the curvature is minus the gradient, by conjugate gradients, and the number of products."""
    size = gradient.abs().max()  # so that no square is too small for float32
    residual = (-gradient / size).float()
    preconditioned = preconditioner.solve(residual)
    direction, step = preconditioned, torch.zeros_like(residual)
    first = norm = (residual * preconditioned).sum()
    products = 0
    while products < max_products and norm > accuracy**2 * first:
        products += 1
        product = curvature(direction)
        bend = (direction * product).sum()
        if not bend > 0:  # by rounding
            break
        step += norm / bend * direction
        residual -= norm / bend * product
        preconditioned = preconditioner.solve(residual)
        before, norm = norm, (residual * preconditioned).sum()
        direction = preconditioned + norm / before * direction
    return step.double() * size, products
