"""Recipes of linear heads for segmentation and depth: learning rate, length and schedule."""

from dataclasses import dataclass
from typing import Literal

from ..data.dense_targets import DenseTask
from ..errors import VitrailError
from .recipes import WarmupSchedule


@dataclass(frozen=True)
class DenseRecipe:
    """A way to train a batch norm and a 1x1 convolution on frozen patch tokens, by AdamW.

    source: the configuration that the numbers come from.
    iterations: updates on the publisher's data.
    max_epochs: our own choice: a smaller set is trained for at most this many epochs.
    warmup: share of the updates in which the learning rate increases linearly.
    decay: from the warm-up to 0.
    """

    name: str
    source: str
    learning_rate: float
    weight_decay: float
    betas: tuple[float, float]
    iterations: int
    warmup: float
    decay: Literal["cosine", "linear"]
    batch_size: int = 16
    max_epochs: int = 100


DENSE_RECIPES: dict[DenseTask, dict[str, DenseRecipe]] = {
    "segmentation": {
        "dinov3": DenseRecipe(
            "dinov3",
            source="facebookresearch/dinov3, eval/segmentation/configs/config-ade20k-linear-training.yaml",
            learning_rate=1e-3,  # optimizer: lr
            weight_decay=1e-3,  # optimizer: weight_decay
            betas=(0.9, 0.999),  # optimizer: beta1, beta2
            iterations=40_000,  # scheduler: total_iter
            warmup=1500 / 40_000,  # scheduler: warmup_iters
            decay="cosine",  # scheduler: anneal_strategy
            batch_size=16,  # bs 2, n_gpus 8
        ),
        "dinov2": DenseRecipe(
            "dinov2",
            source="dinov2_vitb14_ade20k_linear_config.py, published next to the heads of facebookresearch/dinov2",
            learning_rate=1e-3,  # optimizer: lr
            weight_decay=1e-4,  # optimizer: weight_decay
            betas=(0.9, 0.999),  # optimizer: betas
            iterations=40_000,  # runner: max_iters
            warmup=1500 / 40_000,  # lr_config: warmup_iters
            decay="linear",  # lr_config: policy "poly", power 1
            batch_size=16,  # samples_per_gpu 2, 8 GPUs
        ),
    },
    "depth": {
        "dinov3": DenseRecipe(
            "dinov3",
            source="facebookresearch/dinov3, eval/depth/configs/config-nyu.yaml",
            learning_rate=3e-4,  # optimizer: lr
            weight_decay=1e-4,  # optimizer: weight_decay
            betas=(0.9, 0.99),  # optimizer: beta1, beta2
            iterations=38_400,  # scheduler: total_iter
            warmup=12_800 / 38_400,  # scheduler: warmup_iters
            decay="cosine",  # scheduler: WarmupOneCycleLR
            batch_size=16,  # bs 4, n_gpus 4
        ),
    },
}


def find_dense_recipe(name: str, task: DenseTask) -> DenseRecipe:
    """Return the recipe of a task with a name; raise VitrailError if there is none."""
    recipes = DENSE_RECIPES[task]
    if name not in recipes:
        raise VitrailError(f'There is no recipe "{name}" for {task}: choose {", ".join(recipes)}')
    return recipes[name]


def make_dense_schedule(recipe: DenseRecipe, num_rows: int, *, seed: int) -> WarmupSchedule:
    """Return the schedule of a recipe on `num_rows` training images."""
    epoch = -(-num_rows // recipe.batch_size)
    updates = min(recipe.iterations, recipe.max_epochs * epoch)
    return WarmupSchedule(
        num_rows, recipe.batch_size, seed, iterations=updates, warmup=round(recipe.warmup * updates), decay=recipe.decay
    )
