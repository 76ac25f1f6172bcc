"""Linear segmentation of digits on photographs: `python examples/digits/scenes.py OUTPUT`, from a checkout.

The same linear head is trained on the patch tokens of the checkpoint in this folder, on those of random weights, and on raw pixels: the 192
numbers of each patch of 8 x 8 pixels. The data are "digit-scenes" (vitrail/data/digit_scenes.py).
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import vitrail
from vitrail.data.decoding import open_image
from vitrail.data.dense import DenseImages
from vitrail.evaluation.dense_probe import DenseHead
from vitrail.evaluation.dense_probing import train_dense_head
from vitrail.evaluation.dense_recipes import find_dense_recipe

CHECKPOINT = Path(__file__).with_name("dino_vit_digits.pth")
SEEDS = (0, 1, 2)
SIDE, PATCH = 64, 8


def raw_pixels(images: object) -> np.ndarray:
    """Return the pixels of each patch, (images, patches, 192), from 0 to 1."""
    pixels = [torch.from_numpy(np.array(open_image(row))) for row in images]
    return F.unfold(torch.stack(pixels).movedim(-1, 1) / 255, PATCH, stride=PATCH).transpose(1, 2).numpy()


def probe_pixels(data: DenseImages, output: Path, seed: int) -> dict[str, float]:
    """Train the head on raw pixels and return its scores."""
    splits = {"train": data.train, "validation": data.validation}
    labels = {"id2label": dict(enumerate(data.label_names)), "label2id": {name: row for row, name in enumerate(data.label_names)}}
    config = vitrail.ViTConfig(hidden_size=3 * PATCH**2, num_attention_heads=3, image_size=SIDE, patch_size=PATCH, **labels)
    trainer, _ = train_dense_head(
        data,
        DenseHead(config, "segmentation", config.patch_grid, seed=seed),
        {name: raw_pixels(split["image"]) for name, split in splits.items()},
        {name: np.arange(len(split)) for name, split in splits.items()},
        recipe=find_dense_recipe("dinov3", "segmentation"),
        size=(SIDE, SIDE),
        output_dir=output,
        seed=seed,
        progress=False,
    )
    return trainer.metric.summarize(np.asarray(trainer.predict(trainer.eval_dataset).predictions))


def main(output: Path) -> None:
    """Train with each seed, which draws the head, the order of the images and the random weights, and print the scores."""
    data = vitrail.load_dense_images("digit-scenes")
    cache = vitrail.FeatureCache(output / "features", progress=False)
    model, image_processor, _ = vitrail.load(CHECKPOINT, num_heads=2, image_size=SIDE, dtype="float32")
    for seed in SEEDS:
        torch.manual_seed(seed)
        fresh = vitrail.ViTModel(model.config)
        rows = {
            name: vitrail.probe_dense(one, image_processor, data, output_dir=output / f"{name}-{seed}", seed=seed, cache=cache)[
                "scores"
            ]
            for name, one in (("trained", model), ("random", fresh))
        }
        rows["pixels"] = probe_pixels(data, output / f"pixels-{seed}", seed)
        for name, scores in rows.items():
            print(seed, name, ", ".join(f"{key} {value:.4f}" for key, value in scores.items()), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
