"""Files next to the model: results.json, the pictures, and the parts of the card about them."""

import json
import math
import warnings

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

import vitrail
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.convert.verification import Check
from vitrail.evaluation.report import accuracy_by_head, learning_curves, plot_confusion, write_report
from vitrail.hub.saving import keep_verification, save
from vitrail.hub.upload import stage
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.processing.image_processing_vit import VitrailImageProcessor

LABELS = ["cat", "dog", "a price of $5 or $6, which is no formula"]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}


def make_results(num_rates=3, *, epochs=4, fine_tuning=None):
    rates = [10.0**-power for power in range(num_rates)]
    heads = [
        {
            "name": f"{features}, lr {rate:g}",
            "features": features,
            "learning_rate": rate,
            "num_cls_layers": 1,
            "mean_patch": mean_patch,
            "training_loss": math.nan if rate == 1 else 0.5,
            "accuracy": 0.5 + 0.1 * index + 0.05 * mean_patch,
            "top_5_accuracy": 1.0,
        }
        for mean_patch, features in enumerate(["[CLS]", "[CLS] + mean patch"])
        for index, rate in enumerate(rates)
    ]
    curves = [
        {
            "update": 5 * epoch,
            "epoch": epoch,
            "losses": [math.nan if head["learning_rate"] == 1 and num_rates > 1 else 1 / epoch for head in heads],
            "accuracy": [head["accuracy"] * epoch / 4 for head in heads],
        }
        for epoch in range(1, 5)
    ]
    return {
        "task": "linear probe",
        "accuracy": heads[-1]["accuracy"],
        "top_5_accuracy": 1.0,
        "mean_per_class_accuracy": 0.625,
        "best_head": heads[-1],
        "recipe": {"name": "plain", "source": "this test", "epochs": epochs},
        "fine_tuning": fine_tuning,
        "heads": heads,
        "curves": curves,
        "unreadable_images": [],
        "data": {"source": "a|b", "fingerprint": "00", "train_images": 1000, "validation_images": 20, "labels": LABELS},
    }


CONFUSION = np.array([[5, 1, 0], [2, 6, 0], [0, 0, 6]])


@pytest.fixture
def folder(tmp_path):
    model = ViTForImageClassification(ViTConfig(**SMALL, num_labels=3))
    save(model, VitrailImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False), tmp_path / "model")
    return tmp_path / "model"


def lines_of(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def test_learning_curves_show_every_head():
    results = make_results()
    losses, accuracies = learning_curves(results).axes
    for axes, key, scale in ((losses, "losses", 1), (accuracies, "accuracy", 100)):
        drawn = lines_of(axes)
        assert len(drawn) == 7  # the best once more, in front
        for index in range(6):
            np.testing.assert_allclose(drawn[index], [scale * point[key][index] for point in results["curves"]])
        np.testing.assert_array_equal(drawn[6], drawn[5])
        np.testing.assert_array_equal(axes.get_lines()[0].get_xdata(), [1, 2, 3, 4])
        assert axes.get_xlabel() == "epoch"
    by_update = learning_curves(make_results(epochs=None)).axes[0]
    np.testing.assert_array_equal(by_update.get_lines()[0].get_xdata(), [5, 10, 15, 20])
    assert by_update.get_xlabel() == "iteration"


def test_accuracy_by_head_has_a_line_for_each_choice_of_features():
    (axes,) = accuracy_by_head(make_results()).axes
    cls, both, ring = axes.get_lines()
    np.testing.assert_allclose(cls.get_xdata(), [1, 0.1, 0.01])
    np.testing.assert_allclose(cls.get_ydata(), [50, 60, 70])
    np.testing.assert_allclose(both.get_ydata(), [55, 65, 75])
    assert (ring.get_xdata(), ring.get_ydata()) == ([0.01], [75])
    assert cls.get_marker() != both.get_marker()
    assert ring.get_zorder() > both.get_zorder() > cls.get_zorder()  # the best is in front of its equals


def test_one_head_alone_can_be_drawn(tmp_path):
    results = make_results(num_rates=1)
    results["heads"] = results["heads"][1:]
    for point in results["curves"]:
        point["losses"], point["accuracy"] = point["losses"][1:], point["accuracy"][1:]
    for figure in (learning_curves(results), accuracy_by_head(results)):
        figure.savefig(tmp_path / "picture.png")


def test_a_confusion_matrix_shows_shares_of_the_true_class(tmp_path):
    figure = plot_confusion(CONFUSION, LABELS)
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[500 / 6, 100 / 6, 0], [25, 75, 0], [0, 0, 100]])
    assert [text.get_text() for text in axes.texts] == ["83", "17", "25", "75", "100"]
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["cat", "dog"]
    assert len(axes.get_yticklabels()[2].get_text()) <= 26
    figure.savefig(tmp_path / "picture.png")


def test_of_many_classes_those_with_most_errors_are_shown(tmp_path):
    confusion = np.diag(np.full(100, 10))
    wrong = np.arange(40, 80)
    confusion[wrong, wrong - 40] = np.arange(40)  # the classes from 50 on are wrong most often
    figure = plot_confusion(confusion, [f"class {number}" for number in range(100)])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 30
    assert {f"class {number}" for number in range(70, 80)} <= set(names)
    assert "the 30 of 100 classes with the most errors" in figure.get_suptitle()
    figure.savefig(tmp_path / "picture.png")


def test_files_are_written_whole(folder):
    results = make_results()
    write_report(folder, results, CONFUSION)
    written = json.loads((folder / "results.json").read_text())
    assert written["heads"][0]["training_loss"] is None  # JSON has no NaN
    assert written["heads"][1] == results["heads"][1]
    for name in ("curves.png", "heads.png", "confusion.png"):
        with Image.open(folder / name) as picture:
            picture.load()
            assert min(picture.size) > 400
            assert len(set(picture.convert("L").tobytes())) > 20
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_card_has_the_results(folder):
    write_report(folder, make_results(), CONFUSION)
    card = ModelCard.load(folder / "README.md")
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"accuracy": 0.75, "mean_per_class_accuracy": 0.625}  # top-5 of three classes is meaningless
    assert {result.dataset_name for result in card.data.eval_results} == {"a|b"}
    assert "on the 20 validation images of" in card.text
    assert {result.dataset_type for result in card.data.eval_results} == {"imagefolder"}
    assert "trained on 1,000 other images" in card.text
    assert "the best of 6 linear classifiers" in card.text
    assert "selected by its accuracy on the validation images" in card.text
    assert "It reads [CLS] + mean patch and was trained with a learning rate of 0.01" in card.text
    assert "| top-1 accuracy | 75.0 % |" in card.text
    assert "![Confusion matrix](confusion.png)" in card.text
    assert "fine-tuned" not in card.text
    keep_verification(folder, [Check("weights", "source", passed=True, difference=0.0)])  # renders the card again
    assert ModelCard.load(folder / "README.md").data.eval_results == card.data.eval_results


def test_the_card_reports_that_a_model_was_fine_tuned(folder):
    write_report(folder, make_results(fine_tuning={"epochs": 7, "source": "a paper"}), CONFUSION)
    assert "Then the whole model was fine-tuned for 7 epochs (a paper)." in ModelCard.load(folder / "README.md").text


def test_an_edited_card_stays(folder):
    (folder / "README.md").write_text("mine")
    write_report(folder, make_results(), CONFUSION)
    assert (folder / "README.md").read_text() == "mine"


def test_results_go_to_the_hub_with_the_model_and_go_away_with_it(folder, tmp_path):
    write_report(folder, make_results(), CONFUSION)
    files = {"results.json", "curves.png", "heads.png", "confusion.png"}
    assert stage(folder, tmp_path / "upload", repo_id="user/name").files.keys() >= files
    exported = stage(folder, tmp_path / "exported", repo_id="user/name", to="transformers")
    card = ModelCard.load(exported.files["README.md"])
    assert [result.metric_value for result in card.data.eval_results] == [0.75, 0.625]
    assert "confusion.png" not in card.text
    model, image_processor, _ = vitrail.load(folder)
    save(model, image_processor, folder, overwrite=True)
    assert not files & {path.name for path in folder.iterdir()}
    assert ModelCard.load(folder / "README.md").data.eval_results is None


def test_names_of_other_scripts_are_not_an_error(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        plot_confusion(CONFUSION, ["猫", "犬", "鳥"]).savefig(tmp_path / "picture.png")
