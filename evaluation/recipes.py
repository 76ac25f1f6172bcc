"""Recipes of linear probing: the heads, the images, the length and the learning rates of a training."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..features.feature_types import reads_tokens

# Common to all recipes (facebookresearch/dino, eval_linear.py; facebookresearch/dinov2, dinov2/eval/linear.py)
MOMENTUM = 0.9  # of SGD, without weight decay
INITIAL_STD = 0.01  # of the normal distribution of the initial weights; biases are zero
REFERENCE_BATCH = 256  # learning rates are for this batch size, and scaled linearly

POOLED = (0, False)  # the only choice of features if the classifier reads `pooler_output`
WIDE = 768  # hidden size of ViT-B


@dataclass(frozen=True)
class Recipe:
    """A way to train linear classifiers on frozen features.

    source: the code that it reproduces.
    learning_rates: for 256 images; each is combined with each choice of features.
    features: choices of features: the number of last blocks whose [CLS] a head reads, and whether the mean patch follows.
    wide_features: the choices for models at least as wide as ViT-B, if the source distinguishes them.
    batch_size: images of an update, on all devices together.
    epochs: the cosine decays after each epoch, and the last batch of an epoch may be smaller; or
    iterations: the cosine decays after each update, and batches continue from one epoch into the next.
    augmented: random resized crops and horizontal flips; otherwise one deterministic view of each image.
    resample: Pillow's filter for these crops.
    """

    name: str
    source: str
    learning_rates: tuple[float, ...]
    features: tuple[tuple[int, bool], ...]
    wide_features: tuple[tuple[int, bool], ...] | None = None
    batch_size: int = 1024
    epochs: int | None = None
    iterations: int | None = None
    augmented: bool = True
    resample: int = int(Image.Resampling.BICUBIC)


# dinov2/eval/linear.py: --learning-rates, and the loops of setup_linear_classifiers
DINOV2_LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
DINOV2_FEATURES = ((1, False), (1, True), (4, False), (4, True))

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "dino",
            # --n_last_blocks, --avgpool_patchtokens, --lr, --epochs; the README runs 8 processes with batches of 128
            source="facebookresearch/dino, eval_linear.py",
            learning_rates=(0.001,),
            features=((4, False),),
            wide_features=((1, True),),
            epochs=100,
            resample=int(Image.Resampling.BILINEAR),
        ),
        Recipe(
            "dinov2",
            # 10 epochs of 1250 iterations; 8 processes with batches of 128
            source="facebookresearch/dinov2, dinov2/eval/linear.py",
            learning_rates=DINOV2_LEARNING_RATES,
            features=DINOV2_FEATURES,
            iterations=12_500,
        ),
        Recipe(
            "quick",
            source="the heads of facebookresearch/dinov2, dinov2/eval/linear.py, on one view and for a tenth of the iterations",
            learning_rates=DINOV2_LEARNING_RATES,
            features=DINOV2_FEATURES,
            batch_size=256,
            iterations=1250,
            augmented=False,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe with a name.

    Raises:
        VitrailError: there is no such recipe.
    """
    if name not in RECIPES:
        raise VitrailError(f'there is no recipe "{name}": choose {", ".join(RECIPES)}')
    return RECIPES[name]


@dataclass(frozen=True)
class Head:
    """A linear classifier to train.

    learning_rate: for 256 images.
    num_cls_layers: number of last blocks whose [CLS] it reads, oldest first; 0 for `pooler_output` alone.
    mean_patch: whether the mean patch of the last block follows.
    """

    learning_rate: float
    num_cls_layers: int
    mean_patch: bool

    @property
    def features(self) -> str:
        """The features that it reads, in words."""
        if self.num_cls_layers == 0:
            return "pooled"
        cls_tokens = "[CLS]" if self.num_cls_layers == 1 else f"[CLS] of {self.num_cls_layers} blocks"
        return cls_tokens + (" + mean patch" if self.mean_patch else "")

    @property
    def name(self) -> str:
        """Its features and learning rate, in words."""
        return f"{self.features}, lr {self.learning_rate:g}"


def recipe_heads(recipe: Recipe, config: ViTConfig) -> tuple[Head, ...]:
    """Return the heads that a recipe trains on a model; those that read the same features are adjacent.

    A head reads at most the blocks that the model has. A model whose classifier cannot read tokens has one choice of features.
    """
    choices = recipe.features
    if recipe.wide_features is not None and config.hidden_size >= WIDE:
        choices = recipe.wide_features
    if not reads_tokens(config):
        choices = (POOLED,)
    choices = tuple(dict.fromkeys((min(layers, config.num_hidden_layers), mean_patch) for layers, mean_patch in choices))
    return tuple(Head(rate, *choice) for choice in choices for rate in recipe.learning_rates)


@dataclass(frozen=True)
class Schedule:
    """The rows that each update of a training reads, and its learning rate.

    A schedule depends on its fields alone, and not on the number of processes, nor on interruptions.
    """

    num_rows: int
    batch_size: int
    seed: int
    epochs: int | None = None
    iterations: int | None = None

    @property
    def updates_per_epoch(self) -> int:
        """The number of updates that read each row once; the last may read fewer rows."""
        return -(-self.num_rows // self.batch_size)

    @property
    def num_updates(self) -> int:
        """The number of updates of the whole run."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return self.epochs * self.updates_per_epoch

    def learning_rate_factor(self, update: int) -> float:
        """Return the factor of the learning rates in an update: a cosine from 1 to 0, in steps of an epoch or of an update."""
        if self.iterations is not None:
            done = update / self.iterations
        else:
            assert self.epochs is not None
            done = update // self.updates_per_epoch / self.epochs
        return (1 + math.cos(math.pi * done)) / 2

    def updates(self) -> Iterator[np.ndarray]:
        """Yield the rows of each update, as `epoch * num_rows + row`.

        The order of an epoch is `numpy.random.default_rng([seed, epoch]).permutation(num_rows)`.
        """
        return itertools.islice(self._batches(), self.num_updates)

    def _batches(self) -> Iterator[np.ndarray]:
        pending = np.empty(0, dtype=np.int64)
        for epoch in itertools.count():
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
            pending = np.concatenate((pending, epoch * self.num_rows + order))
            end = len(pending)
            if self.iterations is not None:
                end -= end % self.batch_size  # the rest begins the first batch of the next epoch
            for start in range(0, end, self.batch_size):
                yield pending[start : start + self.batch_size]
            pending = pending[end:]


def make_schedule(recipe: Recipe, num_rows: int, *, seed: int) -> Schedule:
    """Return the schedule of a recipe on `num_rows` training images."""
    return Schedule(num_rows, recipe.batch_size, seed, epochs=recipe.epochs, iterations=recipe.iterations)
