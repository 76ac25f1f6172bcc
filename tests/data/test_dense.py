"""Images with masks or maps of depth: folders, datasets, and what is refused."""

import datasets
import numpy as np
import pytest
from PIL import Image

from vitrail.data import digit_scenes
from vitrail.data.dense import load_dense_images
from vitrail.data.digits import png
from vitrail.errors import VitrailError

RNG = np.random.default_rng(0)
MASKS = [RNG.integers(0, 3, (6, 8)).astype(np.uint8) for _ in range(4)]
MILLIMETERS = [RNG.integers(0, 9000, (6, 8)).astype(np.uint16) for _ in range(4)]


def write(folder, targets, *, kind="masks", layout="{kind}/{name}", suffix=".png"):
    """Write an image and a target for each of `targets`, a list or {split: list}."""
    for split, rows in targets.items() if isinstance(targets, dict) else [("", targets)]:
        for number, target in enumerate(rows):
            for part, array in (("images", np.zeros((6, 8, 3), np.uint8)), (kind, target)):
                file = folder / layout.format(kind=part, name=f"{number}.png", split=split)
                file.parent.mkdir(parents=True, exist_ok=True)
                if part == kind and suffix == ".npy":
                    np.save(file.with_suffix(suffix), array)
                else:
                    Image.fromarray(array).save(file)
    return folder


def targets_of(split, target_format):
    return [target_format.read(row["target"], name="") for row in split]


@pytest.mark.parametrize("layout", ["{kind}/{split}/{name}", "{split}/{kind}/{name}"])
def test_folders_of_splits_on_either_side(layout, tmp_path):
    found = load_dense_images(write(tmp_path, {"training": MASKS[:3], "validation": MASKS[3:]}, layout=layout))
    np.testing.assert_array_equal(targets_of(found.train, found.target_format), MASKS[:3])
    np.testing.assert_array_equal(targets_of(found.validation, found.target_format), MASKS[3:])
    assert found.label_names == ("0", "1", "2")


def test_a_part_is_held_out_of_a_folder_without_splits(tmp_path):
    found = load_dense_images(write(tmp_path, MASKS), validation_fraction=0.25, reduce_labels=True)
    assert (len(found.train), len(found.validation)) == (3, 1)
    (mask,) = targets_of(found.validation, found.target_format)
    row = int(found.validation[0]["image"]["path"].split("/")[-1][0])
    np.testing.assert_array_equal(mask, np.choose(MASKS[row], [255, 0, 1]))  # label 0 is ignored


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_depths_are_meters(suffix, tmp_path):
    targets = MILLIMETERS if suffix == ".png" else [depth.astype(np.float64) / 1000 for depth in MILLIMETERS]
    found = load_dense_images(
        write(tmp_path, {"train": targets[:3], "val": targets[3:]}, kind="depth", layout="{split}/{kind}/{name}", suffix=suffix),
        task="depth",
    )
    np.testing.assert_allclose(targets_of(found.train, found.target_format), np.stack(MILLIMETERS[:3]) / 1000, rtol=1e-6)
    assert found.label_names == ()


def test_columns_of_a_dataset_and_the_unit_of_depths():
    image = {"bytes": png(np.zeros((6, 8, 3), np.uint8)), "path": None}
    columns = {"photo": [image] * 4, "depth_map": [{"bytes": png(mask), "path": None} for mask in MASKS]}
    dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(dict.fromkeys(columns, datasets.Image())))
    found = load_dense_images(dataset, task="depth", depth_unit=0.5)
    rows = np.random.default_rng(0).permutation(4)
    np.testing.assert_array_equal(targets_of(found.validation, found.target_format)[0], MASKS[rows[0]] / 2)
    with pytest.raises(VitrailError, match=r"found no column with the masks; choose it with label_column, among photo .*depth_map"):
        load_dense_images(dataset)


@pytest.mark.parametrize(
    ("targets", "arguments", "message"),
    [
        ([*MASKS[:3], MASKS[3].T], {}, r"has 8 x 6 pixels, its target 6 x 8"),
        ([*MASKS[:3], np.zeros((6, 8, 3), np.uint8)], {}, r"3\.png has the mode RGB; expected one channel"),
        ([(mask > 0).astype(np.uint8) * 255 for mask in MASKS], {}, r"all masks hold class 0 alone, or 255, which is ignored"),
        (MASKS, {"label_names": ("a", "b")}, r"holds the class 2; expected indices below 2"),
        (MILLIMETERS, {}, r"holds the class \d+; expected indices below 1000"),
        (MASKS, {"task": "depth"}, r"has 8 bits, in which millimeters do not fit"),
        (MILLIMETERS, {"task": "depth", "depth_unit": 10.0}, r"no pixel has a depth from 0\.001 to 10 m; the largest is \d+ m"),
        (MASKS[:1], {}, r"leaves no images for train"),
    ],
)
def test_refused_targets(targets, arguments, message, tmp_path):
    folder = write(tmp_path, targets, kind="depth" if "task" in arguments else "masks")
    with pytest.raises(VitrailError, match=message):
        load_dense_images(folder, **arguments)


def test_files_without_a_counterpart_and_folders_of_other_names(tmp_path):
    folder = write(tmp_path / "data", MASKS)
    with pytest.raises(VitrailError, match=r"has the folders images, masks; expected images/ for the images and depth/"):
        load_dense_images(folder, task="depth")
    (folder / "masks" / "2.png").unlink()
    with pytest.raises(VitrailError, match=r"1 files have no counterpart, for example images/2\.png"):
        load_dense_images(folder)


def test_depths_beyond_the_range_are_a_warning(tmp_path, caplog):
    folder = write(tmp_path, MILLIMETERS, kind="depth")
    load_dense_images(folder, task="depth", depth_range=(0.001, 5.0))
    share = np.mean([(depth > 5000).sum() for depth in MILLIMETERS]) / np.mean([(depth > 0).sum() for depth in MILLIMETERS])
    assert f"{share:.1%} of the depths are beyond 5 m" in caplog.text


def test_digit_scenes_share_no_digit_and_no_background(monkeypatch):
    """Each split is drawn from another half of the digits and another photograph."""
    monkeypatch.setattr(digit_scenes, "NUM_SCENES", {"train": 12, "validation": 6})
    splits = digit_scenes.digit_scene_splits()
    for split, count in (("train", 12), ("validation", 6)):
        masks = np.stack(splits[split]["mask"])
        assert masks.shape == (count, 64, 64)
        assert 0.03 < (masks > 0).mean() < 0.3
        assert set(np.unique(masks)) <= set(range(11))
    assert set(digit_scenes.PHOTOGRAPHS.values()) == {"china.jpg", "flower.jpg"}
