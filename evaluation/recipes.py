"""Recipes of linear probing: which heads are trained, on which images, for how long and at which learning rates."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..features.feature_types import reads_tokens

# What all recipes share (facebookresearch/dino, eval_linear.py; facebookresearch/dinov2, dinov2/eval/linear.py)
MOMENTUM = 0.9  # of SGD, without weight decay
INITIAL_STD = 0.01  # of the normal distribution of a head's first weights; its bias is zero
REFERENCE_BATCH = 256  # a learning rate is for so many images, and is scaled linearly to the batch

POOLED = (0, False)  # the one choice of features where the classifier reads `pooler_output`
WIDE = 768  # hidden size of ViT-B


@dataclass(frozen=True)
class Recipe:
    """A way to train linear classifiers on frozen features.

    source: the code that it repeats.
    learning_rates: each for 256 images; every one is tried with every choice of features.
    features: choices of what a head reads: the [CLS] of how many last blocks, and whether the mean patch follows.
    wide_features: the choices for models at least as wide as ViT-B, where the source makes a difference.
    batch_size: images of an update, on all devices together.
    epochs: the cosine goes down after each epoch, and the last batch of an epoch may be smaller; or
    iterations: it goes down after each update, and batches run on from one epoch into the next.
    augmented: random resized crops and mirror images; or one deterministic view of each image.
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
    """The recipe of a name.

    Raises:
        VitrailError: there is none.
    """
    if name not in RECIPES:
        raise VitrailError(f'There is no recipe "{name}": choose {", ".join(RECIPES)}.')
    return RECIPES[name]


@dataclass(frozen=True)
class Head:
    """A linear classifier to train.

    learning_rate: for 256 images.
    num_cls_layers: it reads the [CLS] of so many last blocks, oldest first; 0 for `pooler_output` alone.
    mean_patch: whether the mean patch of the last block follows.
    """

    learning_rate: float
    num_cls_layers: int
    mean_patch: bool

    @property
    def features(self) -> str:
        """What it reads, in words."""
        if self.num_cls_layers == 0:
            return "pooled"
        cls_tokens = "[CLS]" if self.num_cls_layers == 1 else f"[CLS] of {self.num_cls_layers} blocks"
        return cls_tokens + (" + mean patch" if self.mean_patch else "")

    @property
    def name(self) -> str:
        """What it is, in words."""
        return f"{self.features}, lr {self.learning_rate:g}"


def recipe_heads(recipe: Recipe, config: ViTConfig) -> tuple[Head, ...]:
    """The heads that a recipe trains on a model; those that read the same features stand together.

    A model with fewer blocks than a head would read gives those it has; one whose classifier cannot read tokens has one choice.
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
    """What a recipe does to a number of rows: which of them each update reads, and at which learning rate.

    It depends on these fields and on nothing else: not on how many processes there are, nor on where a run was interrupted.
    """

    num_rows: int
    batch_size: int
    seed: int
    epochs: int | None = None
    iterations: int | None = None

    @property
    def updates_per_epoch(self) -> int:
        """Updates that read every row once; the last may read fewer rows than the others."""
        return -(-self.num_rows // self.batch_size)

    @property
    def num_updates(self) -> int:
        """Updates of the whole run."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return self.epochs * self.updates_per_epoch

    def learning_rate_factor(self, update: int) -> float:
        """What a learning rate is multiplied with in an update: a cosine from 1 to 0, in steps of an epoch or of an update."""
        if self.iterations is not None:
            done = update / self.iterations
        else:
            assert self.epochs is not None
            done = update // self.updates_per_epoch / self.epochs
        return (1 + math.cos(math.pi * done)) / 2

    def updates(self) -> Iterator[np.ndarray]:
        """For each update the rows it reads, as `epoch * num_rows + row`.

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
                end -= end % self.batch_size  # what is left goes into the next epoch's first batch
            for start in range(0, end, self.batch_size):
                yield pending[start : start + self.batch_size]
            pending = pending[end:]


def make_schedule(recipe: Recipe, num_rows: int, *, seed: int) -> Schedule:
    """The schedule of a recipe on `num_rows` training images."""
    return Schedule(num_rows, recipe.batch_size, seed, epochs=recipe.epochs, iterations=recipe.iterations)
