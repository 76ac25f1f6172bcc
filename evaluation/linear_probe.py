"""Many linear classifiers on the same frozen features, trained in one run of `transformers.Trainer`.

Shape letters: B rows, T tokens of the features, D size of a token, A heads that are trained, K classes.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
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

TOP = 5  # of the classes, kept for each row and head in evaluation: enough for top-1 and top-5 accuracy
DIVERGED = -1  # stands for a class where a head's logits are not numbers


class LinearHeads(nn.Module):
    """Linear classifiers with weights of their own; those that read the same features run as one matrix product.

    Args:
        heads: what each reads; heads that read the same should stand together.
        token_size: size D of a token of the features.
        num_cls_layers: how many of the tokens are [CLS]; see `vitrail.features.cache.CachedFeatures`.
        num_labels: number of classes K.
        seed: of the first weights, which depend on this number and on what a head reads, not on the other heads.
    """

    accepts_loss_kwargs = True  # tells the Trainer to count the rows of an update, and to give their number to `forward`

    def __init__(self, heads: Sequence[Head], *, token_size: int, num_cls_layers: int, num_labels: int, seed: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.groups = [
            (token_slice(choice, num_cls_layers), len(list(members)))
            for choice, members in itertools.groupby((head.num_cls_layers, head.mean_patch) for head in heads)
        ]
        self.linears = nn.ModuleList()
        for head in heads:
            tokens = token_slice((head.num_cls_layers, head.mean_patch), num_cls_layers)
            linear = nn.Linear(token_size * (tokens.stop - tokens.start), num_labels)
            rng = np.random.default_rng([seed, head.num_cls_layers, int(head.mean_patch)])
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(INITIAL_STD * rng.standard_normal(linear.weight.shape)))
                linear.bias.zero_()
            self.linears.append(linear)

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: torch.Tensor | int | None = None
    ) -> dict[str, torch.Tensor]:
        """Runs every head.

        Args:
            features: (B, T, D).
            labels: (B,) class numbers.
            num_items_in_batch: rows of the whole update, of which these may be a slice: what losses are divided by, instead of B.

        Returns:
            "loss", the sum over the heads, and "losses", (A,): mean cross entropies, with `labels`. "logits", (B, A, K), except
            in training.
        """
        all_losses, all_logits = [], []
        linears: Iterator[Any] = iter(self.linears)
        for tokens, size in self.groups:
            group = list(itertools.islice(linears, size))
            weight = torch.cat([linear.weight for linear in group])  # (size * K, tokens * D)
            bias = torch.cat([linear.bias for linear in group])
            # Rows come last, which makes the softmax over few classes several times faster
            logits = torch.addmm(bias[:, None], weight, features[:, tokens].flatten(1).t())  # (size * K, B)
            logits = logits.unflatten(0, (size, self.num_labels))
            if labels is not None:
                all_losses.append(F.cross_entropy(logits, labels.expand(size, -1), reduction="none").sum(1))
            if not self.training:
                all_logits.append(logits)
        outputs = {} if self.training else {"logits": torch.cat(all_logits).permute(2, 0, 1)}
        if labels is not None:
            losses = torch.cat(all_losses) / (len(labels) if num_items_in_batch is None else num_items_in_batch)
            outputs = {"loss": losses.sum(), "losses": losses, **outputs}
        return outputs


def token_slice(choice: tuple[int, bool], num_cls_layers: int) -> slice:
    """Return which tokens of the features a choice of features takes; see `vitrail.features.cache.CachedFeatures`."""
    layers, mean_patch = choice
    if num_cls_layers == 0:
        return slice(0, 1)
    return slice(num_cls_layers - layers, num_cls_layers + int(mean_patch))


class ProbeTrainer(ScheduledTrainer):
    """Trains `LinearHeads`, each with its own group of the optimizer: SGD with momentum, at the learning rate of its `Head`.

    Args:
        heads: of the model, in the same order.
        features_of: (B, C, H, W) -> (B, T, D), where the training data are images ("pixel_values") and not features.
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
        """SGD with a group for each head."""
        if self.optimizer is None:
            scale = self.schedule.batch_size / REFERENCE_BATCH
            groups = [
                {"params": list(linear.parameters()), "lr": head.learning_rate * scale}
                for head, linear in zip(self.heads, self.model.linears, strict=True)
            ]
            self.optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=0)
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
        """The sum of the heads' losses, which are also kept apart for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.losses += outputs["losses"].detach()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Logits and labels; no loss, because a sum over heads, of which some may have diverged, says nothing."""
        inputs = self.prepare_batch(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad():
            return None, model(**inputs)["logits"], labels

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Puts the mean loss of each head since the last log in the place of their sum."""
        if "loss" in logs:
            steps = self.state.global_step - max((entry["step"] for entry in self.training_log()), default=0)
            del logs["loss"]
            logs["losses"] = (self.accelerator.reduce(self.losses, "sum") / steps).tolist()
            self.losses = torch.zeros_like(self.losses)
        super().log(logs, start_time)

    def training_log(self) -> list[dict[str, Any]]:
        """{"step", "losses" (A,), …}, the latest last."""
        return [entry for entry in self.state.log_history if "losses" in entry]


def top_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The most probable classes, (…, at most 5), of logits (…, K), so that an evaluation need not keep those."""
    classes = logits.topk(min(TOP, logits.shape[-1])).indices.int()
    return classes.masked_fill(logits.isnan().any(-1, keepdim=True), DIVERGED)


def accuracies(classes: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Top-1 and top-5 accuracy, (…), of the most probable classes (N, …, at most 5) of rows with labels (N,)."""
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
