from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from vitrail.features.embed import encoder
from vitrail.features.maps import HEAT_COLOURS, HEAT_OPACITY, attention_picture, contact_sheet, overlay

PHOTO = Path(__file__).parent.parent / "images" / "chelsea.jpg"


def test_the_lightest_place_is_where_attention_is_largest():
    photo = Image.new("RGB", (64, 32), "black")
    attention = np.zeros((4, 8), dtype=np.float32)
    attention[1, 6] = 0.25  # the patch around x = 52, y = 12
    picture = np.asarray(overlay(photo, attention)).astype(float)
    brightness = picture.sum(axis=-1)
    y, x = np.unravel_index(brightness.argmax(), brightness.shape)
    assert (x // 8, y // 8) == (6, 1)
    np.testing.assert_allclose(picture[0, 0], HEAT_COLOURS[0] * HEAT_OPACITY, atol=1)


def test_heat_grows_lighter():
    lightness = HEAT_COLOURS @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 10).all()


def test_contact_sheet_has_room_for_every_cell():
    cells = [(str(index), Image.new("RGB", (20, 10), "red")) for index in range(5)]
    sheet = np.asarray(contact_sheet(cells))
    red = (sheet == (255, 0, 0)).all(axis=-1).sum()
    assert red == 5 * 20 * 10


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_what_the_model_sees(channels):
    torch.manual_seed(0)
    config = vitrail.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        num_channels=channels, num_labels=2,
    )  # fmt: skip
    model = vitrail.ViTForImageClassification(config).eval()
    processor = vitrail.make_image_processor("dino", image_size=32, num_channels=channels)
    maps, picture = attention_picture(model, processor, PHOTO, layer=1)
    pixel_values = processor(PHOTO, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = encoder(model)(pixel_values, output_attentions=True).attentions[1][0, :, 0, 1:].view(4, 4, 4)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    seen = np.asarray(picture)[22:54, 6:38].astype(float) / 255  # the first cell
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
    np.testing.assert_allclose(seen[..., :channels].transpose(2, 0, 1), pixel_values[0] * std + mean, atol=1 / 255)
