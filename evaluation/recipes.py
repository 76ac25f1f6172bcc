"""Recipes of linear probing: the heads, the images, the length and the learning rates of a training."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ..configuration.configuration_vit import ViTConfig
from ..errors import VitrailError
from ..features.feature_types import reads_tokens

# Both facebookresearch/dino, eval_linear.py (eval_linear, LinearClassifier), and facebookresearch/dinov2, dinov2/eval/linear.py
# (run_eval_linear, LinearClassifier, scale_lr)
MOMENTUM = 0.9  # SGD(momentum=0.9, weight_decay=0)
INITIAL_STD = 0.01  # weight.data.normal_(mean=0.0, std=0.01); bias.data.zero_()
REFERENCE_BATCH = 256  # lr * batch_size / 256.

POOLED = (0, False)  # the only choice of features if the classifier reads `pooler_output`
WIDE = 768  # hidden size of ViT-B; eval_linear.py, --n_last_blocks: "n=4 when evaluating ViT-Small and n=1 with ViT-Base"


@dataclass(frozen=True)
class Recipe:
    """A way to train linear classifiers on frozen features.

    source: the code that the recipe repeats.
    learning_rates: for a batch of 256 images. Each is combined with each choice of features.
    features: choices of the input of a head: the number of last blocks whose [CLS] it reads, and whether the mean patch follows.
    wide_features: the choices for models at least as wide as ViT-B, if they differ.
    batch_size: images per update, on all devices together.
    epochs: length of the run. The learning rate decreases after each epoch, whose last batch may be smaller.
    iterations: length of the run, instead of epochs. The learning rate decreases after each update, and batches span epochs.
    augmented: use random resized crops and flips, instead of one deterministic view per image.
    resample: Pillow's filter for the crops.
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


# dinov2/eval/linear.py, get_args_parser: learning_rates=[…]
DINOV2_LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
# dinov2/eval/linear.py: n_last_blocks_list = [1, 4] in run_eval_linear; avgpool in [False, True] in setup_linear_classifiers
DINOV2_FEATURES = ((1, False), (1, True), (4, False), (4, True))

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "dino",
            source="facebookresearch/dino, eval_linear.py",
            learning_rates=(0.001,),  # --lr
            features=((4, False),),  # --n_last_blocks 4, --avgpool_patchtokens: "to False for ViT-Small and to True with ViT-Base"
            wide_features=((1, True),),
            batch_size=1024,  # --batch_size_per_gpu (128) on 8 GPUs: README.md, "Evaluation: Linear classification on ImageNet"
            epochs=100,  # --epochs
            resample=int(Image.Resampling.BILINEAR),  # RandomResizedCrop(224), with torchvision's default filter
        ),
        Recipe(
            "dinov2",
            source="facebookresearch/dinov2, dinov2/eval/linear.py",
            learning_rates=DINOV2_LEARNING_RATES,
            features=DINOV2_FEATURES,
            batch_size=1024,  # get_args_parser: batch_size=128 per GPU, on 8 GPUs
            iterations=12_500,  # get_args_parser: epochs=10, epoch_length=1250
        ),
        Recipe(
            "quick",
            source="the heads of facebookresearch/dinov2, dinov2/eval/linear.py, on one view and for a tenth of the iterations",
            learning_rates=DINOV2_LEARNING_RATES,
            features=DINOV2_FEATURES,
            batch_size=256,  # of our own choice, as are the next two: a probe on cached features within minutes
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
        raise VitrailError(f'There is no recipe "{name}": choose {", ".join(RECIPES)}')
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


def cosine_factor(done: float) -> float:
    """Return the factor of a learning rate that falls from 1 to 0 along a cosine, after a share of the updates."""
    return (1 + math.cos(math.pi * done)) / 2


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
        return cosine_factor(done)

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


@dataclass(frozen=True)
class WarmupSchedule(Schedule):
    """A schedule with a linear warm-up of the learning rate over `warmup` updates, and a cosine or a line from 1 to 0 afterwards."""

    warmup: int = 0
    decay: Literal["cosine", "linear"] = "cosine"

    def learning_rate_factor(self, update: int) -> float:
        """Return the factor of the learning rates in an update."""
        if update < self.warmup:
            return update / self.warmup
        done = (update - self.warmup) / (self.num_updates - self.warmup)
        return cosine_factor(done) if self.decay == "cosine" else 1 - done


def make_schedule(recipe: Recipe, num_rows: int, *, seed: int) -> Schedule:
    """Return the schedule of a recipe on `num_rows` training images."""
    return Schedule(num_rows, recipe.batch_size, seed, epochs=recipe.epochs, iterations=recipe.iterations)
