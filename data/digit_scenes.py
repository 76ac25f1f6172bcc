"""Handwritten digits on photographs, with a class for each pixel: a real segmentation set that needs no network.

The digits and the two photographs (china.jpg, flower.jpg) come with scikit-learn. A scene is a random crop of a photograph with one to
three digits in a random light color, which may touch the border and one another. The training scenes have digits of one half of the digits
on the one photograph, the validation scenes those of the other half on the other photograph: neither a digit nor a background is in both.
"""

import datasets
import numpy as np
from PIL import Image

from .digits import digit_splits, png

DIGIT_SCENES = "digit-scenes"
SIDE = 64  # pixels of a scene
NUM_SCENES = {"train": 400, "validation": 200}
PHOTOGRAPHS = {"train": "china.jpg", "validation": "flower.jpg"}
CROPS = (96, 320)  # sides of the crops, which become scenes
NUM_DIGITS = (1, 4)  # one to three
DIGITS = (28, 40)  # sides of a digit, in pixels of the scene
DIMMING = 0.4  # factor of the photograph, so that light digits stand out
INK = 0.5  # a pixel belongs to the digit where its ink covers at least that share


def scene_names() -> tuple[str, ...]:
    """Return the names of the classes."""
    return ("background", *map(str, range(10)))


def digit_scene_splits() -> dict[str, datasets.Dataset]:
    """Return the splits "train" and "validation", with the columns "image" and "mask"; they are always the same."""
    from sklearn.datasets import load_sample_image

    digits = digit_splits()
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    splits = {}
    for number, (split, count) in enumerate(NUM_SCENES.items()):
        photograph = Image.fromarray(load_sample_image(PHOTOGRAPHS[split]))
        pictures = [np.asarray(image) for image in digits[split]["image"]]
        labels = digits[split]["label"][:]
        rng = np.random.default_rng(number)
        scenes = [_scene(photograph, pictures, labels, rng) for _ in range(count)]
        columns = {
            name: [{"bytes": png(scene[index]), "path": f"{split}-{row:03d}.png"} for row, scene in enumerate(scenes)]
            for index, name in enumerate(features)
        }
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def _scene(
    photograph: Image.Image, digits: list[np.ndarray], labels: list[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene (H, W, 3) and its mask (H, W), both uint8."""
    side = int(rng.integers(*CROPS))
    left, top = int(rng.integers(photograph.width - side)), int(rng.integers(photograph.height - side))
    crop = photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    scene = np.asarray(crop, np.float64) * DIMMING
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for index in rng.integers(len(digits), size=int(rng.integers(*NUM_DIGITS))):
        size = int(rng.integers(*DIGITS))
        drawn = Image.fromarray(digits[index]).resize((size, size), Image.Resampling.BICUBIC)
        y, x = rng.integers(SIDE - size, size=2)
        ink = np.asarray(drawn, np.float64) / 255
        color = rng.integers(160, 256, size=3)
        place = np.s_[y : y + size, x : x + size]
        scene[place] += ink[..., None] * (color - scene[place])
        mask[place][ink >= INK] = labels[index] + 1
    return scene.round().astype(np.uint8), mask
