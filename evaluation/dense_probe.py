"""A linear head for segmentation or depth on frozen patch tokens, trained by `transformers.Trainer`.

Shape letters: B images, N patches, D size of a token, H W pixels, h w patches, K classes.
"""

from collections.abc import Sequence
from typing import Any, cast

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction

from ..configuration.configuration_vit import ViTConfig
from ..data.dense_targets import IGNORE_INDEX, TargetFormat
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..modeling.modeling_vit_dense import (
    ViTForDepthEstimation,
    ViTForSemanticSegmentation,
    ViTLinearDepthHead,
    ViTSegmentationHead,
    depth_from_logits,
    depth_loss,
    resize,
)
from .dense_metrics import DenseMetric
from .dense_recipes import DenseRecipe
from .recipes import INITIAL_STD
from .training import ScheduledTrainer

NOT_COUNTED = -100  # the label that the Trainer leaves out where it counts the items of an update
MAX_KEPT = 2**29  # bytes of resized targets that stay in memory; others are decoded again in each epoch
CHUNK = 256  # images whose tokens are in memory while their mean and variance are computed

HEADS = {"segmentation": ("segmentation_head", ViTSegmentationHead), "depth": ("depth_head", ViTLinearDepthHead)}
MODELS = {"segmentation": ViTForSemanticSegmentation, "depth": ViTForDepthEstimation}


def dense_config(backbone: ViTConfig, *, label_names: Sequence[str], depth_range: tuple[float, float]) -> ViTConfig:
    """Return the config of a model with a linear head on the normed patch tokens of the last block, as DINOv3 trains it.

    label_names: of the classes; empty for depth, whose head has a batch norm and 256 bins.
    """
    fields = backbone.to_dict() | {"dense_layers": None, "dense_norm": True}
    if label_names:
        fields |= {
            "id2label": dict(enumerate(label_names)),
            "label2id": {name: number for number, name in enumerate(label_names)},
            "segmentation_size": None,
            "segmentation_window": None,
            "segmentation_stride": None,
        }
    else:
        fields |= {"depth_head": "linear", "depth_readout": "ignore", "depth_batch_norm": True, "depth_upsampling": 1}
        fields |= {"depth_num_bins": 256, "depth_bins": "linear", "depth_range": depth_range, "depth_clamp": False}
    config = ViTConfig.from_dict(fields)
    config.dtype = backbone.dtype
    return config


class DenseHead(nn.Module):
    """The head of a dense model on cached tokens.

    The batch norm keeps the mean and the variance of all training tokens, which frozen tokens have from the beginning: the head is then
    linear in them, and does not depend on how a batch is divided.

    Args:
        config: from `dense_config`.
        task: "segmentation" or "depth".
        grid: number of patches (h, w) of an image.
        seed: of the initial weights.
    """

    accepts_loss_kwargs = True  # the Trainer then counts the pixels of an update, and passes their number to `forward`

    def __init__(self, config: ViTConfig, task: str, grid: tuple[int, int], *, seed: int) -> None:
        super().__init__()
        self.config, self.task, self.grid = config, task, grid
        self.head: Any = HEADS[task][1](config)
        convolution: Any = self.head.classifier if task == "segmentation" else self.head.projection
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            convolution.weight.copy_(torch.from_numpy(INITIAL_STD * rng.standard_normal(convolution.weight.shape)))
            convolution.bias.zero_()

    def train(self, mode: bool = True) -> "DenseHead":
        """Leave the batch norm in evaluation mode."""
        super().train(mode)
        self.head.batch_norm.eval()
        return self

    @torch.no_grad()
    def fit_batch_norm(self, tokens: np.ndarray) -> None:
        """Set the mean and the variance of the batch norm from the training tokens, (images, N, D)."""
        sums = np.zeros((2, tokens.shape[-1]))
        for start in range(0, len(tokens), CHUNK):
            rows = tokens[start : start + CHUNK].reshape(-1, tokens.shape[-1]).astype(np.float64)
            sums += rows.sum(0), (rows**2).sum(0)
        mean, square = sums / (tokens.shape[0] * tokens.shape[1])
        self.head.batch_norm.running_mean.copy_(torch.from_numpy(mean))
        self.head.batch_norm.running_var.copy_(torch.from_numpy(np.maximum(square - mean**2, 0)))

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: torch.Tensor | int | None = None
    ) -> dict[str, torch.Tensor]:
        """Run the head.

        Args:
            features: (B, N, D).
            labels: (B, H, W) class indices, -100 to ignore; or depths in meters, 0 to ignore.
            num_items_in_batch: labels of the whole update, of which these may be a slice, that are not -100.

        Returns:
            "maps": logits (B, K, h, w), or depths (B, 1, h, w). With labels, "loss": the mean cross entropy of the pixels, or the mean
            over the images of the scale-invariant loss of each.
        """
        patches = features.transpose(1, 2).unflatten(2, self.grid)
        maps = self.head([(patches, None)])
        if self.task == "depth":
            maps = depth_from_logits(maps, self.config)[:, None]
        if labels is None:
            return {"maps": maps}
        resized = resize(maps, labels.shape[-2:])
        if num_items_in_batch is None:
            num_items_in_batch = labels.ne(NOT_COUNTED).sum()
        if self.task == "segmentation":
            total = F.cross_entropy(resized, labels, ignore_index=NOT_COUNTED, reduction="sum")
        else:
            total = self._depth_losses(resized[:, 0], labels).sum() * labels.shape[-2] * labels.shape[-1]
        return {"loss": total / num_items_in_batch, "maps": maps}

    def _depth_losses(self, depths: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image; 0 for an image with fewer than two depths, which have no variance."""
        high = self.config.depth_range[1]
        counted = ((labels > 0) & (labels <= high)).flatten(1).sum(1) > 1
        losses = [
            depth_loss(depth, label, high) if counts else 0 * depth.sum()
            for depth, label, counts in zip(depths, labels, counted.tolist(), strict=True)
        ]
        return torch.stack(losses) if losses else 0 * depths.sum()


class DenseRows(Dataset):
    """Rows of cached tokens and their targets.

    Args:
        tokens: (images, N, D).
        targets: with the column "target"; one for each image.
        size: (H, W) that targets are resized to, by the nearest pixel. None leaves the targets out, and gives the numbers of rows.
    """

    def __init__(
        self, tokens: np.ndarray, targets: datasets.Dataset, target_format: TargetFormat, *, size: tuple[int, int] | None
    ) -> None:
        self.tokens, self.targets, self.target_format, self.size = tokens, targets, target_format, size
        self.kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def target(self, row: int) -> np.ndarray:
        """Return a target at its own size."""
        return self.target_format.read(self.targets[row]["target"], name=f"of row {row}")

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return `features` (B, N, D), and `labels`: (B, H, W), or the numbers of rows (B,)."""
        rows = np.asarray(indices, dtype=np.int64) % len(self)
        features = torch.from_numpy(np.asarray(self.tokens[rows]))
        if self.size is None:
            return {"features": features, "labels": torch.from_numpy(rows)}
        labels = [self._resized(row, self.size) for row in rows.tolist()] or [self._resized(0, self.size)]
        stacked = torch.stack(labels)[: len(rows)]
        return {"features": features, "labels": stacked.long() if self.target_format.task == "segmentation" else stacked}

    def _resized(self, row: int, size: tuple[int, int]) -> torch.Tensor:
        if row in self.kept:
            return self.kept[row]
        target = torch.from_numpy(self.target(row))
        resized = F.interpolate(target[None, None].float(), size, mode="nearest-exact")[0, 0]
        if self.target_format.task == "segmentation":
            resized = resized.masked_fill(resized == IGNORE_INDEX, NOT_COUNTED).short()
        if (len(self.kept) + 1) * resized.nbytes <= MAX_KEPT:
            self.kept[row] = resized
        return resized


class DenseProbeTrainer(ScheduledTrainer):
    """Trains a `DenseHead` by AdamW, and measures it at the size of each target."""

    description = "head"
    model: DenseHead

    def __init__(self, *, recipe: DenseRecipe, metric: DenseMetric, **kwargs: Any) -> None:
        super().__init__(compute_metrics=self._scores, **kwargs)
        self.recipe, self.metric = recipe, metric

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create AdamW."""
        if self.optimizer is None:
            recipe = self.recipe
            self.optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas
            )
        return self.optimizer

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return what the metric measures of each image, and the numbers of the images."""
        rows = inputs["labels"].tolist()
        dataset = cast(DenseRows, self.eval_dataset)
        with torch.no_grad():
            maps = model(self.prepare_batch(inputs)["features"])["maps"]
        measured = [self._measure(one, dataset.target(row)) for one, row in zip(maps, rows, strict=True)]
        return None, torch.from_numpy(np.stack(measured)).to(self.args.device), inputs["labels"].to(self.args.device)

    def _measure(self, maps: torch.Tensor, target: np.ndarray) -> np.ndarray:
        resized = resize(maps[None], target.shape)[0]
        prediction = resized.argmax(0) if self.model.task == "segmentation" else resized[0]
        return self.metric.measure(prediction.cpu().numpy(), target)

    def _scores(self, predictions: EvalPrediction) -> dict[str, float]:
        return self.metric.summarize(np.asarray(predictions.predictions))


def merge_dense_head(model: ViTPreTrainedModel, trained: DenseHead) -> ViTPreTrainedModel:
    """Return a dense model with the encoder of `model`, which shares its memory, and a trained head."""
    backbone = model.base_model
    with torch.device("meta"):
        merged = MODELS[trained.task](trained.config)
    merged.vit.load_state_dict(backbone.state_dict(), assign=True)
    setattr(merged, HEADS[trained.task][0], trained.head.to(backbone.device, backbone.dtype))
    return merged.eval()
