"""What a linear probe costs: features taken once against the backbone in the loop, and many heads against one.

ViT-S/16 with random weights on sklearn's digits, 224 x 224 pixels. Features are taken of one view; with the backbone in the loop every
epoch runs it on new random crops, for one epoch that is measured and counted 100 times. Heads train on features from the cache; runs of
one head and of 52 alternate, and their medians are compared.
"""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

EPOCHS = 100
REPEATS = 3


def run() -> list[dict[str, Any]]:
    """Rows of seconds, with the ratio to what it is compared with."""
    import torch
    from transformers.utils import logging

    import vitrail
    from vitrail.data.labeled import load_labeled_images
    from vitrail.evaluation.probing import probe
    from vitrail.evaluation.recipes import Recipe, find_recipe
    from vitrail.features.cache import FeatureCache

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = vitrail.ViTModel(vitrail.ViTConfig(**vitrail.SIZES["small"], patch_size=16)).eval()
    image_processor = vitrail.make_image_processor("dino")
    data = load_labeled_images("digits")
    dino, quick = find_recipe("dino"), find_recipe("quick")
    one_head = replace(quick, name="quick, one head", learning_rates=(0.01,), features=((4, True),))

    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder, "features"), progress=False)

        def seconds(recipe: Recipe) -> dict[str, float]:
            output = Path(folder, "out")
            return probe(model, image_processor, data, output_dir=output, recipe=recipe, cache=cache, overwrite=True)["seconds"]

        once = seconds(replace(dino, batch_size=256, augmented=False))
        in_the_loop = seconds(replace(dino, batch_size=256, epochs=1))["heads"] * EPOCHS
        alternating = [(seconds(one_head)["heads"], seconds(quick)["heads"]) for _ in range(REPEATS)]
    one, many = (statistics.median(times) for times in zip(*alternating, strict=True))
    cached = once["features"] + once["heads"]
    rows = [
        ("100 epochs, backbone in the loop", in_the_loop, in_the_loop / cached),
        ("100 epochs, features taken once", cached, 1.0),
        ("  of these, the features", once["features"], once["features"] / cached),
        ("quick, 1 head, on cached features", one, 1.0),
        ("quick, 52 heads, on cached features", many, many / one),
        ("quick, 1 head, features included", once["features"] + one, 1.0),
        ("quick, 52 heads, features included", once["features"] + many, (once["features"] + many) / (once["features"] + one)),
    ]
    return [{"work": work, "seconds": round(time, 1), "ratio": round(ratio, 2)} for work, time, ratio in rows]
