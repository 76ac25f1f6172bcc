"""The patches of photographs: splits without a common pixel, the recipe, and a page with the numbers that were measured."""

import json
import runpy

import numpy as np

import paths
from vitrail.pretraining.recipes import RECIPES, find_recipe

PATCHES = paths.EXAMPLES / "patches"
SCRIPT = runpy.run_path(str(PATCHES / "adapt.py"))


def test_no_pixel_is_in_two_splits():
    seen = {title: np.zeros(photograph.shape[:2], dtype=int) for title, photograph in SCRIPT["photographs"]().items()}
    splits = ["train", "validation", "test"]
    numbers, labels = dict.fromkeys(splits, 0), {split: set() for split in splits}
    for split, label, name, pixels in SCRIPT["patches"]():
        top, left = map(int, name.removesuffix(".png").split("-"))
        area = seen[label.split("-")[0]][top : top + 32, left : left + 32]
        assert pixels.shape == (*area.shape, 3) == (32, 32, 3)
        area |= 1 << splits.index(split)
        numbers[split] += 1
        labels[split].add(label)
    assert {int(value) for mask in seen.values() for value in np.unique(mask)} == {0, 1, 2, 4}
    assert numbers == {"train": 640, "validation": 320, "test": 320}
    assert labels["train"] == labels["validation"] == labels["test"]
    assert len(labels["train"]) == 20


def test_the_recipe_is_adapt_with_small_views():
    recipe = find_recipe(str(PATCHES / "recipe.json"))
    adapt = RECIPES["adapt"]
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (adapt.epochs, adapt.batch_size, 5 * adapt.learning_rate)
    assert recipe.arguments == adapt.arguments
    assert [crop.size for crop in (*recipe.augmentation.global_crops, recipe.augmentation.local_crop)] == [32, 32, 16]


def test_the_page_reports_what_was_measured():
    results = json.loads((PATCHES / "results.json").read_text(encoding="utf-8"))
    assert SCRIPT["card"](results) == (PATCHES / "README.md").read_text(encoding="utf-8")
    assert [len(results[name]) for name in ("start", "adapted", "random", "raw_pixels")] == [1, 3, 3, 1]
    guide = (paths.CHECKOUT / "docs" / "guides" / "pretraining.md").read_text(encoding="utf-8")
    for name in ("start", "adapted", "random", "raw_pixels"):
        mean = np.mean([100 * row["knn"] for row in results[name]])
        assert f"{mean:.1f} %" in guide
