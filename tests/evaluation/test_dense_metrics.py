"""Metrics of dense prediction against scikit-learn and the formulas of their papers, without a network."""

import evaluate
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

import vitrail

RNG = np.random.default_rng(0)
SHAPES = [(5, 7), (9, 4), (6, 6)]


@pytest.fixture(autouse=True)
def offline(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


def test_mean_iou_is_the_jaccard_index_of_scikit_learn():
    """Class 4 is neither in the references nor predicted, class 3 is predicted alone; 255 does not count."""
    references = [RNG.choice([0, 1, 2, 255], size=shape, p=[0.6, 0.2, 0.1, 0.1]) for shape in SHAPES]
    predictions = [
        np.where(RNG.random(shape) < 0.6, reference % 255, 3) for reference, shape in zip(references, SHAPES, strict=True)
    ]
    true, predicted = (np.concatenate([array.ravel() for array in arrays]) for arrays in (references, predictions))
    counted = true != 255
    true, predicted = true[counted], predicted[counted]
    expected = {
        "mean_iou": sklearn_metrics.jaccard_score(true, predicted, labels=range(4), average="macro"),
        "pixel_accuracy": sklearn_metrics.accuracy_score(true, predicted),
        "mean_class_accuracy": sklearn_metrics.recall_score(true, predicted, labels=range(3), average="macro", zero_division=0),
    }
    metric = vitrail.MeanIoU(5)
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)
    metric.add_batch(predictions=predictions[:2], references=references[:2])
    metric.add(prediction=predictions[2], reference=references[2])
    assert metric.compute() == pytest.approx(expected)


def test_depth_errors_are_those_of_eigen():
    references = [RNG.uniform(0, 12, shape) * (RNG.random(shape) < 0.8) for shape in SHAPES]
    predictions = [reference * RNG.uniform(0.6, 1.6, reference.shape) + 0.01 for reference in references]
    expected = {"rmse": [], "abs_rel": [], "delta1": []}
    for prediction, reference in zip(predictions, references, strict=True):
        pairs = [(min(p, 10.0), t) for p, t in zip(prediction.ravel(), reference.ravel(), strict=True) if 0.001 <= t <= 10]
        expected["rmse"].append(sum((p - t) ** 2 for p, t in pairs) ** 0.5 / len(pairs) ** 0.5)
        expected["abs_rel"].append(sum(abs(p - t) / t for p, t in pairs) / len(pairs))
        expected["delta1"].append(sum(max(p / t, t / p) < 1.25 for p, t in pairs) / len(pairs))
    metric = vitrail.DepthErrors((0.001, 10.0))
    empty = np.zeros((3, 3))  # an image without depths does not count
    found = metric.compute(predictions=[*predictions, empty], references=[*references, empty])
    assert found == pytest.approx({name: np.mean(values) for name, values in expected.items()})
