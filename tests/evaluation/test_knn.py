import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail.errors import VitrailError
from vitrail.evaluation.knn import NUM_NEIGHBORS, TEMPERATURE, knn_classify


@pytest.fixture(scope="module")
def splits():
    """Features and labels of the even digits of the collection, to learn from, and of the odd ones."""
    digits = load_digits()
    features = (digits.data * np.linspace(0.5, 2, len(digits.data))[:, None]).astype(np.float32)  # of different lengths
    return features[::2], digits.target[::2], features[1::2], digits.target[1::2]


def votes_of_scikit_learn(train_features, train_labels, features, *, k, temperature):
    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1 - distances) / temperature)
    )
    return classifier.fit(train_features.astype(np.float64), train_labels).predict_proba(features.astype(np.float64))


@pytest.mark.parametrize("temperature", [TEMPERATURE, 1.0])
def test_the_votes_are_those_of_scikit_learn(splits, temperature):
    train_features, train_labels, features, labels = splits
    ranked = knn_classify(train_features, train_labels, features, num_classes=10, temperature=temperature)
    assert tuple(ranked) == NUM_NEIGHBORS == (10, 20, 100, 200)
    for k, classes in ranked.items():
        votes = votes_of_scikit_learn(train_features, train_labels, features, k=k, temperature=temperature)
        assert classes.shape == (len(labels), 5)
        best = -np.sort(-votes, axis=1)[:, :5]
        np.testing.assert_allclose(np.take_along_axis(votes, classes, axis=1), best, atol=1e-5)
        accuracy = (classes[:, 0] == labels).mean()
        assert abs(accuracy - (votes.argmax(axis=1) == labels).mean()) < 0.002
        assert 0.85 < accuracy < 1


def test_a_near_neighbor_outweighs_two_far_ones():
    angles = np.radians([5, 40, 40])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    query = np.array([[3.0, 0.0]])
    near, far = np.exp(np.cos(angles[:2]) / 0.07)
    assert near > 2 * far
    classes = knn_classify(bank, np.array([2, 1, 1]), query, num_classes=3, num_neighbors=(1, 3))
    assert {k: ranked.tolist() for k, ranked in classes.items()} == {1: [[2, 0, 1]], 3: [[2, 1, 0]]}
    assert knn_classify(bank, np.array([2, 1, 1]), query, num_classes=3, num_neighbors=(3,), temperature=10)[3][0, 0] == 1


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(100, 10_000), (10_000, 37), (64, 150), (1, 899)])
def test_chunks_change_nothing(splits, query_chunk, bank_chunk):
    train_features, train_labels, features, _ = splits
    features = features[:200]
    whole = knn_classify(train_features, train_labels, features, num_classes=10)
    chunked = knn_classify(train_features, train_labels, features, num_classes=10, query_chunk=query_chunk, bank_chunk=bank_chunk)
    for k, ranked in whole.items():
        np.testing.assert_array_equal(chunked[k], ranked)


def test_memory_is_bounded_by_the_chunks(splits):
    train_features, train_labels, features, _ = splits
    sizes = []

    class Measured(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                part.numel() for part in (result if isinstance(result, tuple | list) else [result]) if torch.is_tensor(part)
            )
            return result

    with Measured():
        knn_classify(train_features, train_labels, features, num_classes=10, num_neighbors=(10,), query_chunk=50, bank_chunk=100)
    assert 50 * 100 <= max(sizes) <= 100 * features.shape[1]  # a chunk of cosines, or of features


def test_memory_maps_and_tensors(splits, tmp_path):
    train_features, train_labels, features, _ = splits
    np.save(tmp_path / "bank.npy", train_features)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    expected = knn_classify(train_features, train_labels, features, num_classes=10)
    for bank, labels in ((mapped, train_labels), (torch.from_numpy(train_features), torch.from_numpy(train_labels))):
        ranked = knn_classify(bank, labels, features, num_classes=10)
        assert all(np.array_equal(ranked[k], expected[k]) for k in expected)


def test_a_low_temperature_does_not_overflow(splits):
    train_features, train_labels, features, _ = splits
    ranked = knn_classify(train_features, train_labels, features, num_classes=10, num_neighbors=(1, 20), temperature=1e-4)
    assert (ranked[1][:, 0] == ranked[20][:, 0]).mean() > 0.99


def test_more_neighbors_than_images(splits):
    train_features, train_labels, features, _ = splits
    assert tuple(knn_classify(train_features[:50], train_labels[:50], features, num_classes=10)) == (10, 20)
    with pytest.raises(VitrailError, match="found 5 training images for k = 10, 20, 100, 200"):
        knn_classify(train_features[:5], train_labels[:5], features, num_classes=10)


def test_features_of_two_models(splits):
    train_features, train_labels, features, _ = splits
    with pytest.raises(VitrailError, match=r"\(899, 64\) for training and \(898, 32\)"):
        knn_classify(train_features, train_labels, features[:, :32], num_classes=10)


def test_on_cuda_as_on_the_cpu(splits, cuda):
    train_features, train_labels, features, _ = splits
    expected = knn_classify(train_features, train_labels, features, num_classes=10)
    moved = torch.from_numpy(train_features).to(cuda), train_labels, torch.from_numpy(features).to(cuda)
    for arguments in (splits[:3], moved):
        found = knn_classify(*arguments, num_classes=10, device=cuda, bank_chunk=300)
        assert found.keys() == expected.keys()
        for k, classes in found.items():  # two classes with about as many votes may change places
            assert (classes[:, 0] == expected[k][:, 0]).mean() > 0.995
