"""Many linear classifiers on the same frozen features, trained in one run of `transformers.Trainer`.

Shape letters: B rows, T tokens, D size of a token, A heads, K classes.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EvalPrediction

from ..configuration.configuration_vit import ViTConfig
from ..modeling.modeling_vit import ViTForImageClassification, ViTPreTrainedModel
from .recipes import INITIAL_STD, MOMENTUM, REFERENCE_BATCH, Head
from .training import ScheduledTrainer

TOP = 5  # classes that evaluation keeps for each row and head, for top-1 and top-5 accuracy
DIVERGED = -1  # in place of a class, if the logits of a head are NaN


class LinearHeads(nn.Module):
    """Linear classifiers with separate weights; adjacent heads that read the same features are one matrix, and run as one product.

    Args:
        heads: the heads; those that read the same features should be adjacent.
        token_size: size D of a token of the features.
        num_cls_layers: number of tokens that are [CLS]; see `vitrail.features.cache.CachedFeatures`.
        num_labels: number of classes K.
        seed: of the initial weights, which depend on the seed and on the features of a head, not on the other heads.
    """

    accepts_loss_kwargs = True  # the Trainer then counts the rows of an update, and passes their number to `forward`
    learning_rates: torch.Tensor  # (A,)

    def __init__(self, heads: Sequence[Head], *, token_size: int, num_cls_layers: int, num_labels: int, seed: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.tokens: list[slice] = []  # of each group
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()  # (size * K, tokens * D) and (size * K,) of each group
        for choice, members in itertools.groupby((head.num_cls_layers, head.mean_patch) for head in heads):
            tokens, size = token_slice(choice, num_cls_layers), len(list(members))
            rng = np.random.default_rng([seed, *map(int, choice)])
            weight = INITIAL_STD * rng.standard_normal((num_labels, token_size * (tokens.stop - tokens.start)))
            self.tokens.append(tokens)
            self.weights.append(nn.Parameter(torch.from_numpy(weight).float().repeat(size, 1)))
            self.biases.append(nn.Parameter(torch.zeros(size * num_labels)))
        rates = torch.tensor([head.learning_rate for head in heads])
        self.register_buffer("learning_rates", rates, persistent=False)

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: torch.Tensor | int | None = None
    ) -> dict[str, torch.Tensor]:
        """Run all heads.

        Args:
            features: (B, T, D).
            labels: (B,) class numbers.
            num_items_in_batch: rows of the whole update, of which these may be a slice; losses are divided by it, instead of B.

        Returns:
            With labels, "losses" (A,), the mean cross entropies, and "loss", their sum weighted by the learning rates. Except in
            training, "logits" (B, A, K).
        """
        token_size, columns = features.shape[-1], features.flatten(1)  # (B, T * D), of which a group reads a part without a copy
        # Rows are the last dimension, which makes the softmax over few classes several times faster
        logits = torch.cat(
            [
                torch.addmm(bias[:, None], weight, columns[:, token_size * tokens.start : token_size * tokens.stop].t())
                for tokens, weight, bias in zip(self.tokens, self.weights, self.biases, strict=True)
            ]
        ).unflatten(0, (-1, self.num_labels))  # (A, K, B)
        outputs = {} if self.training else {"logits": logits.permute(2, 0, 1)}
        if labels is not None:
            losses = F.cross_entropy(logits, labels.expand(len(logits), -1), reduction="none").sum(1)
            losses = losses / (len(labels) if num_items_in_batch is None else num_items_in_batch)
            outputs = {"loss": (losses * self.learning_rates).sum(), "losses": losses, **outputs}
        return outputs

    def weights_of_heads(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the weight (K, tokens * D) and the bias (K,) of each head, parts of the parameters."""
        return [
            head
            for weight, bias in zip(self.weights, self.biases, strict=True)
            for head in zip(weight.split(self.num_labels), bias.split(self.num_labels), strict=True)
        ]


def token_slice(choice: tuple[int, bool], num_cls_layers: int) -> slice:
    """Return which tokens of the features a choice of features takes; see `vitrail.features.cache.CachedFeatures`."""
    layers, mean_patch = choice
    if num_cls_layers == 0:
        return slice(0, 1)
    return slice(num_cls_layers - layers, num_cls_layers + int(mean_patch))


class ProbeTrainer(ScheduledTrainer):
    """Trains `LinearHeads` by SGD with momentum, each head at the learning rate of its `Head`.

    Args:
        heads: of the model, in the same order.
        features_of: (B, C, H, W) -> (B, T, D), if the training data are images ("pixel_values") and not features.
    """

    description = "heads"

    def __init__(
        self,
        *,
        heads: Sequence[Head],
        features_of: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(compute_metrics=_accuracies, preprocess_logits_for_metrics=top_classes, **kwargs)
        self.heads = heads
        self.features_of = features_of
        self.losses = torch.zeros(len(heads), device=self.args.device)  # summed since the last log

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create one SGD for all heads. Each learns at its own rate, which weights its loss: momentum is linear in the gradient."""
        if self.optimizer is None:
            learning_rate = self.schedule.batch_size / REFERENCE_BATCH
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), lr=learning_rate, momentum=MOMENTUM, weight_decay=0, fused=True
            )
        return self.optimizer

    def prepare_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute the features of images, where the training data are images."""
        inputs = super().prepare_batch(batch)
        if "pixel_values" in inputs:
            assert self.features_of is not None
            inputs["features"] = self.features_of(inputs.pop("pixel_values"))
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the losses of the heads, and keep each loss for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.losses += outputs["losses"].detach()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Return logits and labels, without a loss: some heads may have diverged, and then their sum has no meaning."""
        inputs = self.prepare_batch(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad():
            return None, model(**inputs)["logits"], labels

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Replace the summed loss by the mean loss of each head since the last log."""
        if "loss" in logs:
            steps = self.state.global_step - max((entry["step"] for entry in self.training_log()), default=0)
            del logs["loss"]
            logs["losses"] = (self.accelerator.reduce(self.losses, "sum") / steps).tolist()
            self.losses = torch.zeros_like(self.losses)
        super().log(logs, start_time)

    def training_log(self) -> list[dict[str, Any]]:
        """Return the log of the training, {"step", "losses" (A,), …}, the latest last."""
        return [entry for entry in self.state.log_history if "losses" in entry]


def top_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the most probable classes, (…, at most 5), of logits (…, K), which evaluation then need not keep."""
    classes = logits.topk(min(TOP, logits.shape[-1])).indices.int()
    return classes.masked_fill(logits.isnan().any(-1, keepdim=True), DIVERGED)


def accuracies(classes: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return top-1 and top-5 accuracy, (…), of the most probable classes (N, …, at most 5) of rows with labels (N,)."""
    hits = classes == labels.reshape(-1, *[1] * (classes.ndim - 1))
    return {"accuracy": hits[..., 0].mean(0), "top_5_accuracy": hits.any(-1).mean(0)}


def _accuracies(predictions: EvalPrediction) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in accuracies(predictions.predictions, predictions.label_ids).items()}


def merge_head(
    model: ViTPreTrainedModel, head: Head, weight: torch.Tensor, bias: torch.Tensor, label_names: Sequence[str]
) -> ViTForImageClassification:
    """Return a classifier with the encoder of `model` and the weights of a head. The encoders share their memory.

    Args:
        model: the backbone that the features come from; its own classifier, if any, is dropped.
        head: the features that `weight` reads.
        weight, bias: (K, classifier_input_size) and (K,).
        label_names: in the order of the class indices.
    """
    backbone = model.base_model
    fields = backbone.config.to_dict() | {
        "classifier_cls_layers": max(head.num_cls_layers, 1),
        "classifier_mean_patch": head.mean_patch,
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "problem_type": "single_label_classification",
    }
    if head.num_cls_layers == 1 and not head.mean_patch:
        fields["pooling"] = "cls"  # such a classifier reads `pooler_output`
    config = ViTConfig.from_dict(fields)
    config.dtype = backbone.dtype
    with torch.device("meta"):
        merged = ViTForImageClassification(config)
    merged.vit.load_state_dict(backbone.state_dict(), assign=True)
    num_labels, input_size = weight.shape
    merged.classifier = nn.Linear(input_size, num_labels, device=backbone.device, dtype=backbone.dtype)
    with torch.no_grad():
        merged.classifier.weight.copy_(weight)
        merged.classifier.bias.copy_(bias)
    return merged.eval()
