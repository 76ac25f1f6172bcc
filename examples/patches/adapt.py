"""Make everything in this folder: `python examples/patches/adapt.py OUTPUT`, from a checkout.

The script adapts the checkpoint on board, which has seen nothing but digits, to patches of four photographs, with three seeds. It evaluates
the start model, the results, random weights and raw pixels on patches of other areas of the photographs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

import vitrail
from vitrail import FeatureCache, evaluate_knn, evaluate_logistic, load_labeled_images
from vitrail.data.decoding import open_image
from vitrail.evaluation.knn import knn_classify
from vitrail.pretraining.architectures import new_model

HERE = Path(__file__).parent
DIGITS = HERE.parent / "digits"
SEEDS = (0, 1, 2)
NUM_NEIGHBORS = 20
SIDE, STRIDE, TILE, CELL = 32, 8, 48, 4  # pixels of a patch, between patches, of a tile; tiles on each side of a cell
SPLITS = ("train", "validation", "test", "train")  # of the tiles of a square of four
COMMAND = "vitrail pretrain --data DATA --from START --method dinov2 --recipe examples/patches/recipe.json"
ROWS = {"start": "start model", "adapted": "adapted", "random": "random weights", "raw_pixels": "raw pixels (3,072 numbers)"}


def photographs() -> dict[str, np.ndarray]:
    """Return the photographs on board, (H, W, 3): scikit-learn's two, matplotlib's, and the one in examples/."""
    china, flower = load_sample_images().images
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as hopper:
        portrait = np.asarray(hopper.convert("RGB"))
    with Image.open(HERE.parent / "chelsea.jpg") as chelsea:
        cat = np.asarray(chelsea.convert("RGB"))
    return {"china": china, "flower": flower, "grace_hopper": portrait, "chelsea": cat}


def patches() -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Yield split, label, name and pixels of every patch.

    A photograph is divided into tiles, and each patch lies within a tile, so that patches of two splits share no pixel. A label is a cell
    of a coarse grid: 4 x 4 tiles of one photograph.
    """
    for title, photograph in photographs().items():
        rows, columns = (length // TILE // CELL * CELL for length in photograph.shape[:2])
        for row, column in np.ndindex(rows, columns):
            split = SPLITS[row % 2 * 2 + column % 2]
            label = f"{title}-{row // CELL}-{column // CELL}"
            for offset in np.ndindex(*[(TILE - SIDE) // STRIDE + 1] * 2):
                top, left = row * TILE + offset[0] * STRIDE, column * TILE + offset[1] * STRIDE
                yield split, label, f"{top}-{left}.png", photograph[top : top + SIDE, left : left + SIDE]


def write_data(folder: Path) -> None:
    """Write the patches as train/, validation/ and test/ folders of a folder for each label."""
    for split, label, name, pixels in patches():
        path = folder / split / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def adapt(seed: int, output: Path) -> dict:
    """Run the command, unless its output exists, and return the content of pretraining.json."""
    result = output / f"seed-{seed}"
    names = {"DATA": str(output / "data"), "START": str(output / "start")}
    words = [names.get(word, word) for word in COMMAND.split()]
    words += ["--validation-split", "validation", "--seed", str(seed), "--output", str(result)]
    if not (result / "pretraining.json").exists():
        subprocess.run([sys.executable, "-m", *words], check=True, cwd=HERE.parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((result / "pretraining.json").read_text(encoding="utf-8"))


def measure(
    model: vitrail.ViTModel, image_processor: vitrail.VitrailImageProcessor, output: Path, split: str = "test"
) -> dict[str, float]:
    """Return the accuracies of k-NN and of logistic regression on a split, from 0 to 1."""
    data = load_labeled_images(output / "data", validation_split=split)
    cache = FeatureCache(output / "features", progress=False)
    nearest = evaluate_knn(model, image_processor, data, num_neighbors=[NUM_NEIGHBORS], cache=cache)
    return {"knn": nearest["accuracy"], "logistic": evaluate_logistic(model, image_processor, data, cache=cache)["accuracy"]}


def measure_pixels(output: Path, split: str = "test") -> dict[str, float]:
    """Return the k-NN accuracy on the pixels of a patch."""
    data = load_labeled_images(output / "data", validation_split=split)
    (train_pixels, train_labels), (pixels, labels) = (
        (np.stack([np.asarray(open_image(image), np.float32).ravel() for image in part["image"]]), np.array(part["label"][:]))
        for part in (data.train, data.validation)
    )
    classes = knn_classify(train_pixels, train_labels, pixels, num_classes=len(data.label_names), num_neighbors=[NUM_NEIGHBORS])
    return {"knn": float((classes[NUM_NEIGHBORS][:, 0] == labels).mean())}
