"""Files beside the teacher: pretraining.json, its curves, and what the card says of them."""

import json
import math

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from small_run import KNN, make_run, without_numbers
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.convert.model_folder import hash_weights, read_pretraining
from vitrail.hub.save import save
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.pretraining.report import training_curves, write_report
from vitrail.processing.image_processing_vit import VitrailImageProcessor

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.fixture
def folder(tmp_path):
    processor = VitrailImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
    save(ViTModel(ViTConfig(**SMALL)), processor, tmp_path / "model")
    return tmp_path / "model"


def drawn(axes):
    return [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]


@pytest.mark.parametrize("knn", [None, KNN])
def test_curves_show_what_was_logged(knn):
    run = make_run(knn=knn)
    loss_axes, entropy_axes, last_axes = training_curves(run).axes
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
        assert last_axes.get_title(loc="left") == "Norm of the centre"
    else:
        np.testing.assert_allclose(drawn(last_axes), [([1, 2, 3], [25, 50, 75])])
        assert "k = 20" in last_axes.get_title(loc="left")
    assert all(axes.get_xlabel() == "epoch" for axes in (loss_axes, entropy_axes, last_axes))
    labels = [text.get_text() for text in entropy_axes.get_legend().get_texts()]
    assert labels == ["of the batch's mean target", "of a target"]


@pytest.mark.parametrize("knn", [None, KNN])
def test_files_are_written_whole(folder, knn):
    run = without_numbers(make_run(knn=knn), "loss")
    write_report(folder, run)
    written = json.loads((folder / "pretraining.json").read_text(), parse_constant=pytest.fail)
    assert written.pop("weights_sha256") == hash_weights(folder)
    losses = [point["loss"] for point in written["curves"] if "loss" in point]
    assert losses == [5.0, None, 3.0]  # JSON has no NaN
    assert written == run | {"curves": written["curves"]}
    assert written["curves"][0] == run["curves"][0]
    with Image.open(folder / "pretraining.png") as picture:
        picture.load()
        assert min(picture.size) > 400
        assert len(set(picture.convert("L").tobytes())) > 20
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert read_pretraining(folder) == written | {"weights_sha256": hash_weights(folder)}


def test_a_run_of_one_update_can_be_drawn(folder):
    run = make_run()
    write_report(folder, run | {"curves": run["curves"][:1]})
    write_report(folder, run | {"curves": []})


def test_the_card_has_the_training(folder):
    write_report(folder, make_run(knn=KNN))
    text = ModelCard.load(folder / "README.md").text
    assert "on the 12,345 images of" in text
    assert "names 81.2 % of 200 images right" in text
    assert "![Curves of the training](pretraining.png)" in text


def test_an_accuracy_that_is_not_known_is_not_told(folder):
    """Where no labeled image could be read."""
    write_report(folder, make_run(knn=KNN | {"accuracy": math.nan}))
    assert read_pretraining(folder)["knn"]["accuracy"] is None
    text = ModelCard.load(folder / "README.md").text
    assert "on the 12,345 images of" in text
    assert "nearest" not in text


def test_an_edited_card_stays(folder):
    (folder / "README.md").write_text("mine")
    write_report(folder, make_run())
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "pretraining.json").is_file()
