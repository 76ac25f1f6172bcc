"""Real images: the results of the evaluations for a small ViT, against scikit-learn on the very same features, and against random weights.

Half of the digits train the ViT from scratch, and are what the evaluations learn from; accuracies are those on the other half.
"""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from vitrail.evaluation.logistic import C_GRID, fit_logistic
from vitrail.evaluation.pooled_evaluation import evaluate_knn, evaluate_logistic, pooled_vectors
from vitrail.evaluation.probing import probe
from vitrail.evaluation.recipes import RECIPES
from vitrail.features.cache import FeatureCache

POINT = 0.01
# By how much training must lift an accuracy. Measured: probe 65 points, k-NN 63, logistic regression 5
MARGINS = {"probe": 0.40, "k-NN": 0.40, "logistic regression": 0.03}
QUICK = dataclasses.replace(RECIPES["quick"], iterations=150)


class Evaluations:
    """Evaluations of one model, with its features in one cache."""

    def __init__(self, model, image_processor, data, folder):
        self.subject = (model, image_processor, data)
        self.folder = folder
        self.cache = FeatureCache(folder / "cache", batch_size=128, progress=False)

    def probe(self):
        return probe(*self.subject, recipe=QUICK, output_dir=self.folder / "model", cache=self.cache)

    def knn(self):
        return evaluate_knn(*self.subject, cache=self.cache)

    def features(self):
        """Return the tokens of both splits, (N, P, D), and their labels."""
        model, image_processor, data = self.subject
        splits = [self.cache.features(model, image_processor, split) for split in (data.train, data.validation)]
        return [np.array(split.tokens[0]) for split in splits], [split.labels for split in splits]

    def pooled(self):
        model, image_processor, data = self.subject
        splits = [self.cache.features(model, image_processor, split) for split in (data.train, data.validation)]
        return [pooled_vectors(split, model.config.pooling) for split in splits], [split.labels for split in splits]


@pytest.fixture(scope="module")
def trained(trained_model, digits, digits_processor, tmp_path_factory):
    return Evaluations(trained_model, digits_processor, digits, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def random(random_model, digits, digits_processor, tmp_path):
    return Evaluations(random_model, digits_processor, digits, tmp_path)


def test_the_probe_reaches_scikit_learn_and_beats_random_weights(trained, random):
    results = trained.probe()
    assert results["accuracy"] > 0.9
    assert len(results["heads"]) == 52
    best = results["best_head"]
    tokens, (train_labels, labels) = trained.features()
    chosen = slice(2 - best["num_cls_layers"], 2 + best["mean_patch"])
    train, validation = (half[:, chosen].reshape(len(half), -1) for half in tokens)
    expected = max(
        LogisticRegression(C=strength, max_iter=1000).fit(train, train_labels).score(validation, labels)
        for strength in (0.01, 0.1, 1)
    )
    assert results["accuracy"] >= expected - POINT
    assert results["accuracy"] - random.probe()["accuracy"] > MARGINS["probe"]


def test_knn_is_scikit_learns_and_beats_random_weights(trained, random):
    results = trained.knn()
    (train, validation), (train_labels, labels) = trained.pooled()
    for row in results["by_k"]:
        reference = KNeighborsClassifier(
            row["k"], algorithm="brute", weights=lambda distances: np.exp((1 - distances**2 / 2) / 0.07)
        )
        expected = reference.fit(normalize(train), train_labels).score(normalize(validation), labels)
        assert row["accuracy"] == pytest.approx(expected, abs=0.3 * POINT)
        assert row["top_5_accuracy"] >= row["accuracy"]
    assert [row["k"] for row in results["by_k"]] == [10, 20, 100, 200]
    assert results["accuracy"] == max(row["accuracy"] for row in results["by_k"])
    assert results["accuracy"] - random.knn()["accuracy"] > MARGINS["k-NN"]


def test_logistic_regression_reaches_scikit_learns_and_beats_random_weights(trained, random):
    results = evaluate_logistic(*trained.subject, cache=trained.cache)
    (train, validation), (train_labels, labels) = trained.pooled()
    assert results["accuracy"] >= LogisticRegression(max_iter=1000).fit(train, train_labels).score(validation, labels) - POINT
    assert [row["C"] for row in results["by_C"]] == sorted(C_GRID)
    (train, validation), (train_labels, labels) = random.pooled()
    fitted = fit_logistic(
        train, train_labels, grid=C_GRID[::6]
    )  # the whole grid takes long where features separate the classes poorly
    assert results["accuracy"] - (fitted.classify(validation)[:, 0] == labels).mean() > MARGINS["logistic regression"]


def test_fine_tuning_goes_on_from_the_best_head(trained, trained_model, tmp_path):
    before = {name: tensor.clone() for name, tensor in trained_model.state_dict().items()}
    model, image_processor, data = trained.subject
    results = probe(
        model, image_processor, data, recipe=QUICK, output_dir=tmp_path / "model", cache=trained.cache, unfreeze_epochs=1
    )
    assert results["task"] == "fine-tuning after a linear probe"
    assert results["fine_tuning"]["epochs"] == 1
    assert results["fine_tuning"]["layer_decay"] == 0.75
    assert results["best_head"]["accuracy"] > 0.9
    assert results["accuracy"] > 0.85
    assert results["accuracy"] != results["best_head"]["accuracy"]
    for name, tensor in trained_model.state_dict().items():
        assert (tensor == before[name]).all(), name


@pytest.mark.parametrize(("pooling", "tokens"), [("cls", [1]), ("avg", [2]), ("cls+avg", [1, 2])])
def test_pooled_vectors_are_what_the_model_pools(trained, pooling, tokens):
    model, image_processor, data = trained.subject
    features = trained.cache.features(model, image_processor, data.validation)
    expected = np.concatenate([np.array(features.tokens[0, :, token]) for token in tokens], axis=-1)
    np.testing.assert_array_equal(pooled_vectors(features, pooling), expected)
