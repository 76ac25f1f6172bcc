"""Distill the checkpoint in this folder into a smaller model: `python examples/digits/distill.py OUTPUT`, from a checkout.

The script trains the model of small.json with three seeds: by distillation from dino_vit_digits.pth, and alone by DINO with recipe.json,
for the same processor time. Both see the half of scikit-learn's digits that the teacher was trained on, without labels. The other half
evaluates them. `--choose` compares settings instead, on a third of the first half that is held out.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train import HERE, NUM_NEIGHBORS, SEEDS, measure

import vitrail
from vitrail.data.digits import stratified_split
from vitrail.data.labeled import LabeledImages, TrainingImages, load_training_images
from vitrail.pretraining.architectures import new_model
from vitrail.pretraining.recipes import PretrainingRecipe, find_recipe

CONFIG, TEACHER, RESULTS = HERE / "small.json", HERE / "dino_vit_digits.pth", HERE / "distillation.json"
DISTILL, DINO = (find_recipe(str(HERE / name)) for name in ("distill.json", "recipe.json"))
RECIPES = {  # of the same processor time
    "distilled": DISTILL,
    "dino": replace(DINO, epochs=10, arguments={**DINO.arguments, "warmup_epochs": 1}),
}
ROWS = {"distilled": "distilled", "dino": "trained alone by DINO", "random": "random weights", "teacher": "the teacher"}


def longer(recipe: PretrainingRecipe, **changes: Any) -> PretrainingRecipe:
    return replace(recipe, epochs=20, arguments={**recipe.arguments, "warmup_epochs": 2, **changes})


CANDIDATES = {
    "distilled, mse": longer(DISTILL),
    "distilled, cosine": longer(DISTILL, distance="cosine"),
    "dino": longer(DINO),
    "dino, 4 times the learning rate": replace(longer(DINO), learning_rate=4 * DINO.learning_rate),
}


def train(recipe: PretrainingRecipe, seed: int, images: TrainingImages, output: Path) -> dict[str, float]:
    """Train a new model into a folder. Return the processor time, and the k-NN accuracy on the held-out images."""
    model, image_processor = new_model(str(CONFIG), image_size=32, seed=seed)
    teacher = vitrail.load(str(TEACHER)) if recipe.method == "distill" else None
    started = time.process_time()
    run = vitrail.pretrain(
        model,
        image_processor,
        images,
        output_dir=output,
        recipe=recipe,
        teacher=teacher,
        seed=seed,
        evaluate_every=recipe.epochs,
        progress=False,
        from_scratch=True,
    )
    return {"processor_seconds": round(time.process_time() - started, 1), "updates": run["updates"], "knn": run["knn"]["accuracy"]}


def choose(output: Path) -> None:
    """Print the k-NN accuracy of each candidate on a third of the training half."""
    half = load_training_images("digits").labeled
    parts = [half.train.select(rows) for rows in stratified_split(np.array(half.train["label"][:]), fraction=1 / 3, seed=0)]
    images = TrainingImages(parts[0], LabeledImages(*parts, half.label_names, "digits", "split"), "digits", "split")
    for name, recipe in CANDIDATES.items():
        print(name, train(recipe, 0, images, output / name.replace(" ", "-")))


def table(results: dict[str, list[dict]]) -> list[str]:
    """Return the rows of the table in the guide: mean and, over several seeds, minimum and maximum of each accuracy, in percent."""

    def cell(name: str, metric: str) -> str:
        values = [100 * row[metric] for row in results[name]]
        return f"{np.mean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")

    return [f"| {label} | {cell(name, 'knn')} | {cell(name, 'linear_probe')} |" for name, label in ROWS.items()]


def run(name: str, seed: int, output: Path) -> dict[str, float]:
    """Train and evaluate with one seed, unless that has been done."""
    kept, folder = output / f"{name}-{seed}.json", output / f"{name}-{seed}"
    if not kept.exists():
        trained = train(RECIPES[name], seed, load_training_images("digits"), folder)
        model, image_processor, _ = vitrail.load(str(folder))
        measured = measure(model, image_processor, output / f"features-{name}-{seed}")
        kept.write_text(json.dumps({"seed": seed, **trained, **measured}), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def main(output: Path) -> None:
    results: dict[str, list[dict]] = {name: [run(name, seed, output) for seed in SEEDS] for name in RECIPES} | {"random": []}
    for seed in SEEDS:
        model, image_processor = new_model(str(CONFIG), image_size=32, seed=seed)
        results["random"].append({"seed": seed, **measure(model.eval(), image_processor, output / f"features-random-{seed}")})
    model, image_processor, _ = vitrail.load(str(TEACHER))
    results["teacher"] = [measure(model.float(), image_processor, output / "features-teacher")]
    RESULTS.write_text(json.dumps({"num_neighbors": NUM_NEIGHBORS, **results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = choose if "--choose" in sys.argv else main
    chosen(Path(sys.argv[1]).absolute())
