"""Makes everything in this folder: `python examples/digits/train.py OUTPUT`, from a checkout.

Trains the little model by DINO on one half of scikit-learn's digits, with three seeds, and measures it on the other half, beside the same
architecture with the random weights that it began with, and raw pixels. The teacher of the first seed becomes the checkpoint on board.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import vitrail
from vitrail.convert.export import to_format
from vitrail.data.decoding import open_image
from vitrail.data.labeled import load_labeled_images
from vitrail.evaluation.knn import knn_classify
from vitrail.evaluation.pooled_evaluation import evaluate_knn
from vitrail.evaluation.probing import probe
from vitrail.features.cache import FeatureCache
from vitrail.pretraining.architectures import new_model

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
NUM_NEIGHBORS = 20
COMMAND = "vitrail pretrain --data digits --arch examples/digits/config.json --recipe examples/digits/recipe.json"
ROWS = {"trained": "trained, the teacher", "random": "random weights, as it began", "raw_pixels": "raw pixels, 64 numbers"}
CARD = """\
---
license: apache-2.0
library_name: vitrail
pipeline_tag: image-feature-extraction
tags: [vitrail, vit, dino, self-supervised]
---

# dino_vit_digits

A very small Vision Transformer ({parameters:,} parameters: {layers} blocks of {width}, patches of 8 in images of 32 pixels) that was really
trained, on board so that `make demo` has real features to show without a network. `dino_vit_digits.pth` is a teacher file in DINO's own
format, `{{"teacher": …}}`, in float16, without the projection head.

    vitrail convert examples/digits/dino_vit_digits.pth dino-vit-digits/

## Training

DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)), without labels, from scratch, on the {train} images of one half of
scikit-learn's digits (8 x 8 pixels, 16 grey levels; UCI, Alpaydin and Kaynak 1998): {epochs} epochs of {batch} images an update,
{updates} updates, with the seed 0, in {seconds:.0f} s (one thread on an {cpu}, whose cores other runs shared), by

    {command} --seed 0 --output OUT

[recipe.json](recipe.json) says in what it differs from DINO's own recipe: views that suit digits (no mirror images, no colours), a
smaller head, a sharper teacher, and a batch so small that few images make many updates. [pretraining.json](pretraining.json) has
every setting. `train.py` in this folder makes all of it again.

![loss, entropies and k-NN accuracy during the training](pretraining.png)

## Measured

On the {validation} images of the other half, which it was not trained on; the mean of the seeds {seeds}, with the smallest and the largest
in brackets. k-NN is a vote of the {k} nearest training images of what the model pools ([CLS]); the linear probe is the best of the heads
of `vitrail probe --recipe quick`, chosen on the same images, so that it is a little too high; and the recipe of the training was chosen
among about fifteen by the k-NN accuracy on these images, with the seed 0. [results.json](results.json) has each seed.

| features | k-NN top-1, % | linear probe top-1, % |
|---|---|---|
{table}

{verdict}

## Limits

It knows digits of 8 x 8 pixels, written by 13 people before 1998, and nothing else: use it to try the library, not for work.
"""


def train(seed: int, output: Path) -> dict:
    """Runs the command, unless it has been, and gives what pretraining.json says."""
    words = [*COMMAND.split(), "--seed", str(seed), "--output", str(output)]
    if not (output / "pretraining.json").exists():
        subprocess.run([sys.executable, "-m", *words], check=True, cwd=HERE.parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((output / "pretraining.json").read_text(encoding="utf-8"))


def measure(model: vitrail.ViTModel, image_processor: vitrail.VitrailImageProcessor, output: Path) -> dict[str, float]:
    """k-NN and the quick linear probe, from 0 to 1, of the digits that were not trained on."""
    data = load_labeled_images("digits")
    cache = FeatureCache(output / "features", progress=False)
    nearest = evaluate_knn(model, image_processor, data, num_neighbors=[NUM_NEIGHBORS], cache=cache)
    probed = probe(model, image_processor, data, output_dir=output / "probe", cache=cache)
    return {"knn": nearest["accuracy"], "linear_probe": probed["accuracy"]}


def measure_pixels() -> dict[str, float]:
    """k-NN of the 64 grey levels themselves, by the same vote."""
    data = load_labeled_images("digits")
    (train_pixels, train_labels), (pixels, labels) = (
        (np.stack([np.asarray(open_image(image), np.float32).ravel() for image in half["image"]]), np.array(half["label"][:]))
        for half in (data.train, data.validation)
    )
    classes = knn_classify(train_pixels, train_labels, pixels, num_classes=10, num_neighbors=[NUM_NEIGHBORS])
    return {"knn": float((classes[NUM_NEIGHBORS][:, 0] == labels).mean())}


def run(seed: int, output: Path) -> dict[str, dict]:
    """Trains and measures with one seed."""
    trained = train(seed, output / f"seed-{seed}")
    about = {"seed": seed, "seconds": trained["seconds"]}
    model, image_processor, _ = vitrail.load(output / f"seed-{seed}")
    results = {"trained": about | measure(model, image_processor, output / f"trained-{seed}")}
    model, image_processor = new_model(str(HERE / "config.json"), image_size=32, seed=seed)
    results["random"] = {"seed": seed, **measure(model.eval(), image_processor, output / f"random-{seed}")}
    return results


def card(results: dict, trained: dict, model: vitrail.ViTModel, cpu: str) -> str:
    """The model card, of what was measured."""

    def cell(name: str, metric: str) -> str:
        values = [100 * row[metric] for row in results[name] if metric in row]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{spread}" if values else ""

    rows = [f"| {label} | {cell(name, 'knn')} | {cell(name, 'linear_probe')} |" for name, label in ROWS.items()]
    means = {name: np.mean([row["linear_probe"] for row in results[name]]) for name in ("trained", "random")}
    pixels, trained_knn = results["raw_pixels"][0]["knn"], np.mean([row["knn"] for row in results["trained"]])
    verdict = (
        f"The error of the linear probe is {100 * (1 - means['trained']):.1f} % instead of {100 * (1 - means['random']):.1f} %: "
        f"{100 * (means['trained'] - means['random']):.1f} points less.\n"
        f"Raw pixels are {'better' if pixels > trained_knn else 'worse'} neighbours than the features: digits of one class nearly cover "
        "one another, which natural images do not."
    )
    return CARD.format(
        parameters=model.num_parameters(),
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        train=trained["data"]["train_images"],
        validation=trained["knn"]["validation_images"],
        epochs=trained["epochs"],
        batch=trained["batch_size"],
        updates=f"{trained['updates']:,}",
        seconds=trained["seconds"],
        command=COMMAND,
        seeds=", ".join(map(str, SEEDS)),
        k=NUM_NEIGHBORS,
        table="\n".join(rows),
        verdict=verdict,
        cpu=cpu,
    )


def main(output: Path) -> None:
    output = output.absolute()
    runs = [run(seed, output) for seed in SEEDS]
    results = {name: [one[name] for one in runs] for name in ("trained", "random")} | {"raw_pixels": [measure_pixels()]}
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    model, image_processor, _ = vitrail.load(output / "seed-0")
    tensors = to_format(model, image_processor, "dino").tensors
    torch.save({"teacher": {f"backbone.{name}": tensor.half() for name, tensor in tensors.items()}}, HERE / "dino_vit_digits.pth")
    for name in ("pretraining.json", "pretraining.png"):
        shutil.copy(output / "seed-0" / name, HERE / name)
    trained = json.loads((HERE / "pretraining.json").read_text(encoding="utf-8"))
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    (HERE / "README.md").write_text(card(results, trained, model, models[0]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
