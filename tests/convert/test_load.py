"""What `load` says when its arguments or a config make no model."""

import pytest
import torch

import deterministic
import vitrail
from vitrail.errors import UnsupportedCheckpointError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "checkpoint.pth"
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), path)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [({"image_size": 33}, r"write image_size=\(28, 28\)"), ({"num_heads": 5}, "num_attention_heads=5")],
)
def test_options_that_make_no_model(source, options, message):
    with pytest.raises(UnsupportedCheckpointError, match=message):
        vitrail.load(source, **options)


def test_two_models_in_one_file(source, tmp_path):
    tensors = torch.load(source, weights_only=True)["teacher"]
    tensors |= {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "both.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"backbone\.cls_token and cls_token: two models"):
        vitrail.load(tmp_path / "both.pth")


def test_an_activation_that_nobody_knows():
    with pytest.raises(Exception, match='hidden_act "foo" is no activation'):
        vitrail.ViTConfig(hidden_act="foo")
