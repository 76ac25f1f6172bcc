"""Make everything in this folder: `python examples/digits/train.py OUTPUT [dino | dinov2]`, from a checkout.

The script trains a small model by DINO and by DINOv2 on one half of scikit-learn's digits, with three seeds each. It evaluates the models,
initial random weights and raw pixels on the other half. The teachers of the first seed become the checkpoints. With a method named, the
other's results stay.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
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
FOLDERS = {"dino": HERE, "dinov2": HERE / "dinov2"}  # of the files of a method
TRAINED = {"dino": "trained", "dinov2": "trained_dinov2"}  # their rows in results.json
ROWS = {
    "trained": "teacher, DINO",
    "trained_dinov2": "teacher, DINOv2",
    "random": "initial random weights",
    "raw_pixels": "raw pixels (64 numbers)",
}
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

`dinov2/dinov2_vit_digits.pth` is the teacher of DINOv2's method ([Oquab et al. 2023](https://arxiv.org/abs/2304.07193)): the same
architecture with LayerScale and a mask token, {dinov2[epochs]} epochs, {dinov2[updates]:,} updates, {dinov2[seconds]:.0f} s, with the
files in `dinov2/`. Its recipe is that of DINO with half the small views, and the best of seven settings of layer decay, LayerScale,
learning rate, KoLeo's weight and centering in runs of 15 epochs, by the k-NN accuracy on 30 % of the training half.

## Evaluation

Accuracy on the {validation} images of the other half, on which the model was not trained: the mean over the seeds {seeds}, with the minimum
and the maximum in brackets. k-NN is a vote of the {k} nearest training images on the pooled features ([CLS]). The linear probe is the best
head of `vitrail probe --recipe quick`. The head was chosen on the same images, so its accuracy is slightly optimistic. The recipe of DINO
was chosen out of about fifteen, also on these images, by the k-NN accuracy of seed 0. [results.json](results.json) has the results of
each seed.

| features | k-NN top-1, % | linear probe top-1, % |
|---|---|---|
{table}

{verdict}

## Limits

The model was trained on digits of 8 x 8 pixels, written by 13 people before 1998, and on nothing else. Use it to try the library only.
"""


def command(method: str) -> str:
    """Return the command that trains, without seed and output."""
    folder = FOLDERS[method].relative_to(HERE.parents[1])
    return f"vitrail pretrain --data digits --arch {folder}/config.json --recipe {folder}/recipe.json"


def train(method: str, seed: int, output: Path) -> dict:
    """Run the command, unless its output exists, and return the content of pretraining.json."""
    words = [*command(method).split(), "--seed", str(seed), "--output", str(output)]
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


def run(method: str, seed: int, output: Path) -> dict[str, float]:
    """Train and evaluate with one seed."""
    trained = train(method, seed, output / f"{method}-{seed}")
    model, image_processor, _ = vitrail.load(output / f"{method}-{seed}")
    return {"seed": seed, "seconds": trained["seconds"], **measure(model, image_processor, output / f"{method}-{seed}-measured")}


def run_random(seed: int, output: Path) -> dict[str, float]:
    """Evaluate random weights, from which both methods begin: LayerScale begins at 1 and the mask token is not used."""
    model, image_processor = new_model(str(HERE / "config.json"), image_size=32, seed=seed)
    return {"seed": seed, **measure(model.eval(), image_processor, output / f"random-{seed}")}


def keep(method: str, output: Path) -> None:
    """Keep the checkpoint of the first seed, in the method's own layout and in float16, and its curves."""
    folder, trained = FOLDERS[method], output / f"{method}-{SEEDS[0]}"
    model, image_processor, _ = vitrail.load(trained)
    tensors = to_format(model, image_processor, method).tensors
    state = {f"backbone.{name}": tensor.half() for name, tensor in tensors.items()}
    torch.save({"teacher": state}, folder / f"{method}_vit_digits.pth")
    for name in ("pretraining.json", "pretraining.png"):
        shutil.copy(trained / name, folder / name)


def accuracy_at(trained: dict, epoch: int) -> float:
    """Return the k-NN accuracy that a run logged after an epoch."""
    return next(
        point["eval_knn_accuracy"] for point in trained["curves"] if point["epoch"] == epoch and "eval_knn_accuracy" in point
    )


def card(results: dict, trained: dict, dinov2: dict, model: vitrail.ViTModel, cpu: str) -> str:
    """Return the model card."""

    def cell(name: str, metric: str) -> str:
        values = [100 * row[metric] for row in results[name] if metric in row]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{np.mean(values):.1f}{spread}" if values else ""

    rows = [f"| {label} | {cell(name, 'knn')} | {cell(name, 'linear_probe')} |" for name, label in ROWS.items()]
    errors = {name: 100 * (1 - np.mean([row["linear_probe"] for row in results[name]])) for name in (*TRAINED.values(), "random")}
    pixels, trained_knn = results["raw_pixels"][0]["knn"], np.mean([row["knn"] for row in results["trained"]])
    verdict = (
        f"Training lowers the error of the linear probe from {errors['random']:.1f} % to {errors['trained']:.1f} % by DINO, and to "
        f"{errors['trained_dinov2']:.1f} % by DINOv2, in a fifth of the updates.\nAfter {dinov2['epochs']} epochs, as many as DINOv2 had, "
        f"k-NN on DINO's teacher of seed 0 was right for {100 * accuracy_at(trained, dinov2['epochs']):.1f} %.\n"
        f"k-NN on raw pixels is {'better' if pixels > trained_knn else 'worse'} than on the features of DINO: digits of one class nearly "
        "cover one another, unlike natural images."
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
        command=command("dino"),
        dinov2=dinov2,
        seeds=", ".join(map(str, SEEDS)),
        k=NUM_NEIGHBORS,
        table="\n".join(rows),
        verdict=verdict,
        cpu=cpu,
    )


def main(output: Path, methods: Sequence[str]) -> None:
    output = output.absolute()
    path = HERE / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    for method in methods:
        results[TRAINED[method]] = [run(method, seed, output) for seed in SEEDS]
        keep(method, output)
    results |= {"random": [run_random(seed, output) for seed in SEEDS], "raw_pixels": [measure_pixels()]}
    path.write_text(json.dumps({name: results[name] for name in ROWS}, indent=2) + "\n", encoding="utf-8")
    model, _, _ = vitrail.load(HERE / "dino_vit_digits.pth")
    trained, dinov2 = (json.loads((folder / "pretraining.json").read_text(encoding="utf-8")) for folder in FOLDERS.values())
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    (HERE / "README.md").write_text(card(results, trained, dinov2, model, models[0]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or tuple(FOLDERS))
