"""Files next to the teacher: pretraining.json, its curves, and the parts of the card about them."""

import json
import math

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

import paths
from small_models import tiny_model
from small_run import KNN, make_run, without_numbers
from vitrail.errors import VitrailError
from vitrail.hub.saving import save
from vitrail.model_cards.model_folder import hash_weights
from vitrail.model_cards.records import PretrainingRecord, read_pretraining
from vitrail.pretraining.report import training_curves, write_report
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.utils.atomic import read_json


@pytest.fixture
def folder(tmp_path):
    processor = VitrailImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    save(tiny_model(image_size=8, patch_size=4), processor, tmp_path / "model")
    return tmp_path / "model"


def record(run):
    return PretrainingRecord.from_dict(run, "pretraining.json")


def drawn(axes):
    return [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]


@pytest.mark.parametrize("knn", [None, KNN])
def test_curves_show_what_was_logged(knn):
    run = make_run(knn=knn)
    loss_axes, entropy_axes, last_axes = training_curves(record(run)).axes
    points = [point for point in run["curves"] if "loss" in point]
    epochs = [point["epoch"] for point in points]

    def curve(name):
        return epochs, [point[name] for point in points]

    np.testing.assert_allclose(drawn(loss_axes), [curve("loss")])
    mean, single, limit = drawn(entropy_axes)
    np.testing.assert_allclose([mean, single], [curve("mean_target_entropy"), curve("target_entropy")])
    np.testing.assert_allclose(limit[1], [math.log(100)] * 2)
    if knn is None:
        np.testing.assert_allclose(drawn(last_axes), [curve("center_norm")])
        assert last_axes.get_title(loc="left") == "Norm of the center"
    else:
        np.testing.assert_allclose(drawn(last_axes), [([1, 2, 3], [25, 50, 75])])
        assert "k = 20" in last_axes.get_title(loc="left")
    assert all(axes.get_xlabel() == "epoch" for axes in (loss_axes, entropy_axes, last_axes))
    labels = [text.get_text() for text in entropy_axes.get_legend().get_texts()]
    assert labels == ["of the batch's mean target", "of a target"]


@pytest.mark.parametrize("knn", [None, KNN])
def test_files_are_written_whole(folder, knn):
    run = without_numbers(make_run(knn=knn), "loss")
    write_report(folder, record(run))
    written = json.loads((folder / "pretraining.json").read_text(), parse_constant=pytest.fail)
    assert written.pop("weights_sha256") == hash_weights(folder)
    losses = [point["loss"] for point in written["curves"] if "loss" in point]
    assert losses == [5.0, None, 3.0]  # JSON has no NaN
    assert written == run | {"format_version": 1, "curves": written["curves"]}
    assert written["curves"][0] == run["curves"][0]
    with Image.open(folder / "pretraining.png") as picture:
        picture.load()
        assert min(picture.size) > 400
        assert len(set(picture.convert("L").tobytes())) > 20
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert read_pretraining(folder).to_dict() == written


def test_a_run_of_one_update_can_be_drawn(folder):
    run = make_run()
    write_report(folder, record(run | {"curves": run["curves"][:1]}))
    write_report(folder, record(run | {"curves": []}))


def test_the_card_has_the_training(folder):
    write_report(folder, record(make_run(knn=KNN)))
    text = ModelCard.load(folder / "README.md").text
    assert "on the 12,345 images of" in text
    assert "classifies 81.2 % of 200 validation images correctly" in text
    assert "![Training curves](pretraining.png)" in text


def test_an_accuracy_that_is_not_known_is_not_reported(folder):
    """The accuracy is unknown when no labeled image is readable."""
    write_report(folder, record(make_run(knn=KNN | {"accuracy": math.nan})))
    assert read_pretraining(folder).knn.accuracy is None
    text = ModelCard.load(folder / "README.md").text
    assert "on the 12,345 images of" in text
    assert "nearest" not in text


def test_an_edited_card_stays(folder):
    (folder / "README.md").write_text("mine")
    write_report(folder, record(make_run()))
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "pretraining.json").is_file()


def test_an_unknown_version_is_one_clear_error():
    with pytest.raises(VitrailError, match=r"pretraining\.json has format version 2; this vitrail reads versions up to 1"):
        record(make_run(format_version=2))


def test_the_record_of_the_digits_is_read():
    path = paths.EXAMPLES / "digits" / "pretraining.json"
    content = read_json(path)
    assert content["format_version"] == 1
    known = PretrainingRecord.read(path)
    expected = {"teacher": None, "comparison": None, **content}  # fields that are younger than the record
    assert json.loads(json.dumps(known.to_dict())) == {name: expected[name] for name in expected if name != "weights_sha256"}
