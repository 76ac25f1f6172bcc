import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from vitrail.errors import VitrailError
from vitrail.evaluation import logistic, softmax_regression
from vitrail.evaluation.logistic import C_GRID, fit_logistic

SHORT_GRID = (1e-6, 1e-4, 1e-2, 0.5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other on a busy machine make small problems many times slower."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def splits():
    digits = load_digits()
    features = (digits.data / 16).astype(np.float32)
    return features[::2], digits.target[::2], features[1::2], digits.target[1::2]


@pytest.fixture(scope="module")
def probe(splits):
    return fit_logistic(splits[0], splits[1], grid=SHORT_GRID)


def test_the_grid_is_the_published_one():
    """45 powers of ten from 1e-6 to 1e5, evenly spaced in the exponent."""
    assert len(C_GRID) == 45
    assert C_GRID[0] == pytest.approx(1e-6)
    assert C_GRID[-1] == pytest.approx(1e5)
    np.testing.assert_allclose(np.diff(np.log10(C_GRID)), 0.25)


def test_the_whole_grid_reaches_scikit_learn(splits):
    features, labels, others, other_labels = splits
    rows = np.arange(len(labels)) % 3 == 0  # fewer images, for speed
    probe = fit_logistic(features[rows], labels[rows])
    assert tuple(probe.scores) == C_GRID
    assert max(probe.scores.values()) == probe.scores[probe.C] > 0.9 > 3 * probe.scores[C_GRID[0]]
    reference = LogisticRegression(C=probe.C, max_iter=10_000, tol=1e-8).fit(features[rows].astype(np.float64), labels[rows])
    accuracy = (probe.classify(others)[:, 0] == other_labels).mean()
    assert accuracy == pytest.approx(reference.score(others.astype(np.float64), other_labels), abs=0.003)
    assert accuracy > 0.9
    assert probe.unconverged == ()


def test_the_weights_minimize_the_penalized_loss(splits, probe):
    """C times the summed cross entropy plus half of the squared weights, over all training images; bias unpenalized."""
    features, labels = splits[0].astype(np.float64), splits[1]
    targets = np.eye(10)[labels]

    def loss(parameters):
        weight, bias = parameters[:640].reshape(10, 64), parameters[640:]
        logits = features @ weight.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        value = -probe.C * np.log((probabilities * targets).sum(axis=1)).sum() + (weight**2).sum() / 2
        errors = probe.C * (probabilities - targets)
        return value, np.concatenate([(errors.T @ features + weight).ravel(), errors.sum(axis=0)])

    found = np.concatenate([probe.weight.ravel(), probe.bias - probe.bias.mean()])
    best = minimize(loss, np.zeros(650), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-8})
    np.testing.assert_allclose(found[:640], best.x[:640], atol=1e-4)
    assert loss(found)[0] == pytest.approx(best.fun, rel=1e-6)


def test_scores_are_of_images_that_were_not_learned():
    """Labels at random: learned by heart they would give 1, held out they give chance."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(600, 700)), rng.integers(2, size=600)
    probe = fit_logistic(features, labels, grid=(1.0,))
    assert abs(probe.scores[1.0] - 0.5) < 0.25
    assert (probe.classify(features)[:, 0] == labels).mean() > 0.95


@pytest.fixture
def held_out(monkeypatch):
    """For each fit of a grid, the rows that it does not have."""
    fits, rest = [], logistic._fits

    def fit(features, labels, rows, num_classes, grid):
        fits.append(sorted(set(range(len(labels))) - set(rows.tolist())))
        return rest(features * 0, labels, rows, num_classes, grid)

    monkeypatch.setattr(logistic, "_fits", fit)
    return fits


def test_a_tenth_of_each_class_chooses(held_out):
    """Of 2105 images in classes of 2000, 100, 4 and 1; the single image is always learned."""
    labels = np.repeat([0, 1, 2, 3], [2000, 100, 4, 1])
    for seed in (0, 1):
        fit_logistic(np.zeros((2105, 1)), labels, grid=(1.0,), seed=seed)
    first, whole, second, _ = held_out
    assert whole == []
    assert first != second
    assert np.bincount(labels[first]).tolist() == [200, 10, 1]


def test_of_few_images_all_choose_in_turn(held_out, caplog):
    labels = np.repeat([0, 1, 2], [60, 30, 1])
    probe = fit_logistic(np.zeros((91, 1)), labels, grid=(1.0,))
    rows = sorted(row for fit in held_out[:-1] for row in fit)
    assert rows == list(range(90))
    assert len(held_out) == 11
    assert all(np.bincount(labels[fit]).tolist() == [6, 3] for fit in held_out[:-1])
    assert probe.num_selecting == 90
    assert "only 90 training images select C" in caplog.text


def test_of_equal_scores_the_middle_c(splits):
    """Two classes that are far apart: every C is right."""
    features = np.concatenate([np.zeros((50, 1)), np.ones((50, 1))]) + 0.0
    probe = fit_logistic(features, np.repeat([0, 1], 50), grid=(100.0, 1.0, 10.0))
    assert set(probe.scores.values()) == {1.0}
    assert probe.C == 10.0


@pytest.mark.parametrize("num_classes", [10, 2])
def test_every_fit_of_a_path_is_scikit_learns(splits, num_classes, monkeypatch):
    """The loss, as scikit-learn defines it, and the probabilities. In chunks of a few rows, and from a sample of them for the curvature."""
    rows = np.flatnonzero(splits[1] < num_classes)[:150]
    features, labels = splits[0][rows, ::2], splits[1][rows]
    monkeypatch.setattr(softmax_regression, "CHUNK", 33 * 60)
    monkeypatch.setattr(softmax_regression, "SAMPLE", 50)
    tensors = torch.from_numpy(features), torch.from_numpy(labels).long()
    for strength, weight, bias, converged in logistic._fits(*tensors, np.arange(len(rows)), num_classes, C_GRID[::8]):
        reference = LogisticRegression(C=strength, solver="newton-cg", tol=1e-9, max_iter=10_000).fit(
            features.astype(np.float64), labels
        )
        logits = features @ weight.numpy().T + bias.numpy()
        probabilities = softmax(logits, axis=1)
        expected = reference.predict_proba(features)
        np.testing.assert_allclose(probabilities, expected, atol=1e-4)
        weights = weight.numpy()
        if num_classes == 2:
            weights = weights[1:] - weights[:1]
        losses = [
            -strength * np.log(values[np.arange(len(labels)), labels]).sum() + (squared**2).sum() / 2
            for values, squared in ((probabilities, weights), (expected, reference.coef_))
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert converged


@pytest.mark.parametrize("shape", [(60, 8, 3), (20, 50, 3), (60, 8, 2)], ids=["wide", "more features than images", "two classes"])
def test_weights_are_those_of_scikit_learn(shape):
    """Of features that are far from 0 and of very different scales."""
    number, size, num_classes = shape
    rng = np.random.default_rng(0)
    features = rng.normal(size=(number, size)) * np.geomspace(0.01, 10, size) + 5
    labels = rng.integers(num_classes, size=number)
    probe = fit_logistic(features, labels, grid=(0.1,))
    reference = LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000).fit(features, labels)
    logits = features @ probe.weight.T + probe.bias
    expected = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    np.testing.assert_allclose(expected, reference.predict_proba(features), atol=1e-4)


def test_every_fit_is_independent_of_where_it_began(splits):
    features, labels = splits[:2]
    together = fit_logistic(features, labels, grid=SHORT_GRID).scores
    alone = {strength: fit_logistic(features, labels, grid=(strength,)).scores[strength] for strength in SHORT_GRID}
    assert together == pytest.approx(alone, abs=0.012)  # an image of the 89


def test_classes_come_by_their_own_numbers(splits):
    """This holds for a number that does not occur in train, and for two classes, where scikit-learn keeps one row of weights."""
    features, labels, others, other_labels = splits
    odd = (labels % 2 == 1, other_labels % 2 == 1)
    ranked = fit_logistic(features[odd[0]], labels[odd[0]], grid=(1.0,)).classify(others[odd[1]])
    assert set(ranked.ravel()) == {1, 3, 5, 7, 9}
    assert (ranked[:, 0] == other_labels[odd[1]]).mean() > 0.9
    two = (np.isin(labels, [3, 8]), np.isin(other_labels, [3, 8]))
    ranked = fit_logistic(features[two[0]], labels[two[0]], grid=(1.0,)).classify(others[two[1]])
    assert ranked.shape == (two[1].sum(), 2)
    assert (ranked[:, 0] == other_labels[two[1]]).mean() > 0.9


def test_fits_that_end_early_are_named(splits, monkeypatch):
    monkeypatch.setattr(softmax_regression, "MAX_PASSES", 3)
    assert fit_logistic(splits[0], splits[1], grid=(1e-2, 1.0)).unconverged == (1e-2, 1.0)


@pytest.mark.parametrize("labels", [[4] * 20, [4]])
def test_one_class_is_nothing_to_learn(labels):
    with pytest.raises(VitrailError, match=f"found {len(labels)} training images of 1 classes"):
        fit_logistic(np.zeros((len(labels), 3)), np.array(labels))


def test_on_cuda_as_on_the_cpu(splits, probe, cuda):
    found = fit_logistic(splits[0], splits[1], grid=SHORT_GRID, device=cuda)
    assert (found.C, found.unconverged) == (probe.C, probe.unconverged)
    assert found.scores == pytest.approx(probe.scores, abs=0.005)
    np.testing.assert_allclose(found.weight, probe.weight, rtol=0, atol=1e-3)
    assert (found.classify(splits[2])[:, 0] == probe.classify(splits[2])[:, 0]).mean() > 0.995
