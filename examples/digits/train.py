"""Make everything in this folder: `python examples/digits/train.py OUTPUT`, from a checkout.

The script trains a small model with DINO on one half of scikit-learn's digits, with three seeds. It evaluates the model, its initial random
weights and raw pixels on the other half. The teacher of the first seed becomes the checkpoint in this folder.
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
from vitrail import FeatureCache, evaluate_knn, load_labeled_images, probe
from vitrail.convert.export import to_format
from vitrail.data.decoding import open_image
from vitrail.evaluation.knn import knn_classify
from vitrail.pretraining.architectures import new_model

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
NUM_NEIGHBORS = 20
COMMAND = "vitrail pretrain --data digits --arch examples/digits/config.json --recipe examples/digits/recipe.json"
ROWS = {"trained": "trained teacher", "random": "initial random weights", "raw_pixels": "raw pixels (64 numbers)"}
CARD = """\
---
license: apache-2.0
library_name: vitrail
pipeline_tag: image-feature-extraction
tags: [vitrail, vit, dino, self-supervised]
---

# dino_vit_digits

A very small trained Vision Transformer ({parameters:,} parameters: {layers} blocks of width {width}, patches of 8 pixels, images of 32
pixels). It comes with the repository, so that `make demo` shows real features without a network connection. `dino_vit_digits.pth` is a
teacher in DINO's own format, `{{"teacher": …}}`, in float16, without the projection head.

    vitrail convert examples/digits/dino_vit_digits.pth dino-vit-digits/

## Training

Trained with DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)), without labels and from scratch, on the {train} images of one
half of scikit-learn's digits (8 x 8 pixels, 16 gray levels; UCI, Alpaydin and Kaynak 1998): {epochs} epochs, batches of {batch} images,
{updates} updates, seed 0, {seconds:.0f} s (one thread on an {cpu}, whose cores other runs shared). The command:

    {command} --seed 0 --output OUT

[recipe.json](recipe.json) holds the differences from DINO's own recipe: views that suit digits (no flips, no colors), a smaller head, a
lower teacher temperature, and a small batch, for many updates on few images. [pretraining.json](pretraining.json) holds every setting.
`train.py` in this folder makes all files again.

![loss, entropies and k-NN accuracy during the training](pretraining.png)

## Evaluation

Accuracy on the {validation} images of the other half, on which the model was not trained: the mean over the seeds {seeds}, with the minimum
and the maximum in brackets. k-NN is a vote of the {k} nearest training images on the pooled features ([CLS]). The linear probe is the best
head of `vitrail probe --recipe quick`. The head was chosen on the same images, so its accuracy is slightly optimistic. The training
recipe was chosen out of about fifteen, also on these images, by the k-NN accuracy of seed 0. [results.json](results.json) has the results
of each seed.

| features | k-NN top-1, % | linear probe top-1, % |
|---|---|---|
{table}

{verdict}

## Limits

The model was trained on digits of 8 x 8 pixels, written by 13 people before 1998, and on nothing else. Use it to try the library only.
"""


def train(seed: int, output: Path) -> dict:
    """Run the command, unless its output exists, and return the content of pretraining.json."""
    words = [*COMMAND.split(), "--seed", str(seed), "--output", str(output)]
    if not (output / "pretraining.json").exists():
        subprocess.run([sys.executable, "-m", *words], check=True, cwd=HERE.parents[1], env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((output / "pretraining.json").read_text(encoding="utf-8"))


def measure(model: vitrail.ViTModel, image_processor: vitrail.VitrailImageProcessor, output: Path) -> dict[str, float]:
    """Return the accuracies of k-NN and of the quick linear probe on the validation split, from 0 to 1."""
    data = load_labeled_images("digits")
    cache = FeatureCache(output / "features", progress=False)
    nearest = evaluate_knn(model, image_processor, data, num_neighbors=[NUM_NEIGHBORS], cache=cache)
    probed = probe(model, image_processor, data, output_dir=output / "probe", cache=cache)
    return {"knn": nearest["accuracy"], "linear_probe": probed["accuracy"]}


def measure_pixels() -> dict[str, float]:
    """Return the k-NN accuracy on the 64 gray levels."""
    data = load_labeled_images("digits")
    (train_pixels, train_labels), (pixels, labels) = (
        (np.stack([np.asarray(open_image(image), np.float32).ravel() for image in half["image"]]), np.array(half["label"][:]))
        for half in (data.train, data.validation)
    )
    classes = knn_classify(train_pixels, train_labels, pixels, num_classes=10, num_neighbors=[NUM_NEIGHBORS])
    return {"knn": float((classes[NUM_NEIGHBORS][:, 0] == labels).mean())}


def run(seed: int, output: Path) -> dict[str, dict]:
    """Train and evaluate with one seed."""
    trained = train(seed, output / f"seed-{seed}")
    details = {"seed": seed, "seconds": trained["seconds"]}
    model, image_processor, _ = vitrail.load(output / f"seed-{seed}")
    results = {"trained": details | measure(model, image_processor, output / f"trained-{seed}")}
    model, image_processor = new_model(str(HERE / "config.json"), image_size=32, seed=seed)
    results["random"] = {"seed": seed, **measure(model.eval(), image_processor, output / f"random-{seed}")}
    return results


def card(results: dict, trained: dict, model: vitrail.ViTModel, cpu: str) -> str:
    """Return the model card."""

    def cell(name: str, metric: str) -> str:
        values = [100 * row[metric] for row in results[name] if metric in row]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{spread}" if values else ""

    rows = [f"| {label} | {cell(name, 'knn')} | {cell(name, 'linear_probe')} |" for name, label in ROWS.items()]
    means = {name: np.mean([row["linear_probe"] for row in results[name]]) for name in ("trained", "random")}
    pixels, trained_knn = results["raw_pixels"][0]["knn"], np.mean([row["knn"] for row in results["trained"]])
    verdict = (
        f"Training lowers the error of the linear probe from {100 * (1 - means['random']):.1f} % to {100 * (1 - means['trained']):.1f} %, "
        f"by {100 * (means['trained'] - means['random']):.1f} points.\n"
        f"k-NN on raw pixels is {'better' if pixels > trained_knn else 'worse'} than on the features: digits of one class nearly cover "
        "one another, unlike natural images."
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
    results = {name: [single[name] for single in runs] for name in ("trained", "random")} | {"raw_pixels": [measure_pixels()]}
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
