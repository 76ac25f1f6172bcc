"""Settings are validated when they change, and not in every call."""

import json
import pickle

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import Image

from vitrail.processing import image_processing_vit
from vitrail.processing.image_processing_vit import VitrailImageProcessor

IMAGE = Image.effect_noise((60, 40), 60).convert("RGB")


def prepared(image_processor, **options):
    return image_processor(IMAGE, return_tensors="pt", **options)["pixel_values"]


def test_equal_settings_are_validated_once(monkeypatch):
    validated = []
    monkeypatch.setattr(image_processing_vit, "_validate_values", lambda settings: validated.append(settings.size.shortest_edge))
    image_processing_vit._validate.cache_clear()
    image_processor = VitrailImageProcessor()
    validated.clear()  # the constructor's settings have no return_tensors
    for options in (
        {},
        {},
        {"size": {"shortest_edge": 230}},
        {"size": {"shortest_edge": 230}},
        {},
        {"size": {"shortest_edge": 256}},
    ):
        prepared(image_processor, **options)
    assert validated == [256, 230]
    image_processing_vit._validate.cache_clear()


@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_every_call_follows_its_own_settings(backend):
    image_processor = VitrailImageProcessor(backend=backend)
    whole, small = prepared(image_processor), prepared(image_processor, crop_size=32)
    assert small.shape == (1, 3, 32, 32)
    assert torch.equal(prepared(image_processor), whole)
    image_processor.crop_size.height = image_processor.crop_size.width = 32  # changed in its place
    assert torch.equal(prepared(image_processor), small)
    image_processor.image_std = [0.5, 0.5, 0.5]
    assert not torch.equal(prepared(image_processor), small)
    image_processor.image_std[2] = 0.25
    torch.testing.assert_close(prepared(image_processor)[:, 2], prepared(image_processor, image_std=0.5)[:, 2] * 2)


def test_what_does_not_fit_is_refused_after_what_fits():
    image_processor = VitrailImageProcessor()
    before = prepared(image_processor)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"found rescale_factor=-1\.0"):
            prepared(image_processor, rescale_factor=-1.0)
        with pytest.raises(StrictDataclassFieldValidationError):
            prepared(image_processor, do_resize=1)  # equal to True
        with pytest.raises(TypeError):
            prepared(image_processor, sise=3)
    assert torch.equal(prepared(image_processor), before)
    image_processor.resample = 9
    with pytest.raises(ValueError, match="found resample=9"):
        prepared(image_processor)


def test_calls_leave_no_trace_in_files_and_copies(tmp_path):
    image_processor, fresh = VitrailImageProcessor(), VitrailImageProcessor()
    expected = prepared(image_processor)
    assert image_processor.to_json_string() == fresh.to_json_string()
    image_processor.save_pretrained(tmp_path)
    assert not [name for name in json.loads((tmp_path / "preprocessor_config.json").read_text()) if name.startswith("_")]
    assert torch.equal(prepared(pickle.loads(pickle.dumps(image_processor))), expected)  # noqa: S301 - as between processes
