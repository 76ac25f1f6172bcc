import datasets
import evaluate
import numpy as np
import pytest
import torch
import transformers
from sklearn import metrics as sklearn_metrics

import vitrail
from vitrail.data.labeled import load_labeled_images
from vitrail.errors import VitrailError
from vitrail.evaluation.metrics import MeanPerClassAccuracy, TopKAccuracy, compute_metrics, confusion_matrix, make_compute_metrics

CLASSES = 7


@pytest.fixture(autouse=True)
def offline(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path))


@pytest.fixture
def outputs():
    """Scores (N, K), and true classes (N,) of which some are rare and one never occurs."""
    rng = np.random.default_rng(0)
    references = rng.choice(CLASSES - 1, size=300, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.02])
    return rng.normal(size=(300, CLASSES)) + 1.5 * np.eye(CLASSES)[references], references


def mean_recall(references, predictions):
    """Return the recall of scikit-learn, averaged over the classes that occur."""
    return sklearn_metrics.recall_score(references, predictions, labels=np.unique(references), average="macro")


def ranked(scores):
    return np.argsort(-scores, axis=1)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_accuracy_is_that_of_scikit_learn(outputs, k):
    scores, references = outputs
    result = TopKAccuracy(k).compute(predictions=ranked(scores)[:, :5], references=references)
    expected = sklearn_metrics.top_k_accuracy_score(references, scores, k=k, labels=range(CLASSES))
    assert result == {"accuracy" if k == 1 else f"top_{k}_accuracy": pytest.approx(expected)}


def test_accuracy_of_classes(outputs):
    scores, references = outputs
    result = TopKAccuracy().compute(predictions=scores.argmax(axis=1), references=references)
    assert result == {"accuracy": pytest.approx(sklearn_metrics.accuracy_score(references, scores.argmax(axis=1)))}


def test_top_5_of_one_class_is_refused():
    with pytest.raises(VitrailError, match="5 most probable"):
        TopKAccuracy(5).compute(predictions=[0, 1], references=[0, 1])


def test_top_5_of_three_classes_is_everything():
    assert TopKAccuracy(5).compute(predictions=[[0, 1, 2], [2, 0, 1]], references=[2, 1]) == {"top_5_accuracy": 1.0}


@pytest.mark.parametrize("width", [None, 5])
def test_mean_per_class_accuracy_is_that_of_scikit_learn(outputs, width):
    scores, references = outputs
    predictions = ranked(scores)[:, 0] if width is None else ranked(scores)[:, :width]
    result = MeanPerClassAccuracy().compute(predictions=predictions, references=references)
    expected = mean_recall(references, scores.argmax(axis=1))
    assert result == {"mean_per_class_accuracy": pytest.approx(expected)}
    assert abs(expected - sklearn_metrics.accuracy_score(references, scores.argmax(axis=1))) > 0.01  # they do differ here


def test_batches_add_up(outputs):
    scores, references = outputs
    metric = TopKAccuracy(5)
    for rows in np.array_split(np.arange(len(references)), 3):
        metric.add_batch(predictions=ranked(scores)[rows, :5], references=references[rows])
    assert metric.compute() == TopKAccuracy(5).compute(predictions=ranked(scores)[:, :5], references=references)


def test_metrics_combine(outputs):
    scores, references = outputs
    combined = evaluate.combine([TopKAccuracy(), TopKAccuracy(5), MeanPerClassAccuracy()])
    result = combined.compute(predictions=ranked(scores)[:, :5], references=references)
    assert set(result) == {"accuracy", "top_5_accuracy", "mean_per_class_accuracy"}


def test_confusion_matrix_is_that_of_scikit_learn(outputs):
    scores, references = outputs
    matrix = confusion_matrix(scores.argmax(axis=1), references, CLASSES)
    expected = sklearn_metrics.confusion_matrix(references, scores.argmax(axis=1), labels=range(CLASSES))
    np.testing.assert_array_equal(matrix, expected)
    assert not np.array_equal(matrix, matrix.T)


@pytest.fixture(scope="module")
def classifier():
    """A model of 8 x 8 gray pixels whose classes have names that are not numbers, and its image processor."""
    torch.manual_seed(0)
    config = vitrail.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_channels=1, id2label={n: f"digit {n}" for n in range(10)}, label2id={f"digit {n}": n for n in range(10)},
    )  # fmt: skip
    model = vitrail.ViTForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)  # otherwise the output is the same for every image
    return model, vitrail.make_image_processor("google", image_size=8, num_channels=1)


@pytest.fixture(scope="module")
def digits():
    return load_labeled_images("digits").validation.select(range(40)).cast_column("image", datasets.Image())


def by_hand(classifier, digits):
    model, image_processor = classifier
    pixel_values = image_processor(digits["image"][:], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values).logits.argmax(dim=1).numpy()


def test_evaluator_of_a_folder(classifier, digits, tmp_path):
    for part in classifier:
        part.save_pretrained(tmp_path / "model")
    result = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=str(tmp_path / "model"),
        data=digits,
        metric=evaluate.combine([TopKAccuracy(), MeanPerClassAccuracy()]),
        label_mapping=classifier[0].config.label2id,
    )
    predictions, references = by_hand(classifier, digits), np.array(digits["label"])
    assert result["accuracy"] == pytest.approx((predictions == references).mean())
    assert result["mean_per_class_accuracy"] == pytest.approx(mean_recall(references, predictions))


def test_evaluator_of_a_pipeline(classifier, digits, monkeypatch):
    """evaluate 0.4.6 compares anything but a folder with a class that transformers 5 no longer has."""
    monkeypatch.setattr(transformers, "TFPreTrainedModel", type("TFPreTrainedModel", (), {}), raising=False)
    model, image_processor = classifier
    result = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=transformers.pipeline("image-classification", model=model, image_processor=image_processor),
        data=digits,
        metric=TopKAccuracy(),
        label_mapping=model.config.label2id,
        strategy="bootstrap",
        n_resamples=9,
        random_state=0,
    )
    assert result["accuracy"]["score"] == pytest.approx((by_hand(classifier, digits) == np.array(digits["label"])).mean())
    assert result["accuracy"]["standard_error"] > 0


CHOSEN = make_compute_metrics(TopKAccuracy(), TopKAccuracy(5), MeanPerClassAccuracy())


@pytest.mark.parametrize(("function", "keep_logits"), [(CHOSEN, True), (CHOSEN, False), (compute_metrics, True)])
def test_trainer_takes_the_same_objects(classifier, digits, tmp_path, function, keep_logits):
    model, image_processor = classifier
    rows = digits.with_transform(
        lambda batch: {
            "pixel_values": image_processor(batch["image"], return_tensors="pt")["pixel_values"],
            "labels": batch["label"],
        }
    )
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False
        ),
        eval_dataset=rows,
        compute_metrics=function,
        preprocess_logits_for_metrics=None if keep_logits else lambda logits, labels: logits.topk(5).indices,
    )
    result = trainer.evaluate()
    predictions, references = by_hand(classifier, digits), np.array(digits["label"])
    assert result["eval_accuracy"] == pytest.approx((predictions == references).mean())
    assert result["eval_mean_per_class_accuracy"] == pytest.approx(mean_recall(references, predictions))
    assert result["eval_accuracy"] < result["eval_top_5_accuracy"] < 1


def test_a_factory_in_place_of_the_function():
    with pytest.raises(VitrailError, match=r"found TopKAccuracy, expected an EvalPrediction: .*make_compute_metrics"):
        compute_metrics(TopKAccuracy())
