"""DINO: a student with a projection head learns the outputs of its moving average, the teacher.

Caron et al. 2021, arXiv:2104.14294, algorithm 1; facebookresearch/dino, vision_transformer.py (DINOHead), utils.py (MultiCropWrapper) and
main_dino.py (DINOLoss). Shape letters: B images, C channels, S s side of global and local crops, n local crops, V views of an image,
D pooled size, K prototypes.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...modeling.modeling_vit import ViTModel
from .losses import CenteredLoss, cross_entropies
from .student_teacher import NUM_GLOBAL_CROPS, Network, SelfDistillation, copy_backbone, crop_after_crop, crop_batches


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are `weight_g * weight_v / |weight_v|` (Salimans and Kingma 2016, arXiv:1602.07868).

    Args:
        normalized: keep all rows at length 1: `weight_g` is not trained.
    """

    def __init__(self, in_features: int, out_features: int, *, normalized: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=not normalized)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight_g * F.normalize(self.weight_v, dim=1, eps=0.0))


class DINOHead(nn.Module):
    """Three linear layers with GELU in between, L2 normalization, and a layer of prototypes: (B, D) -> (B, K).

    Args:
        in_features: D.
        num_prototypes: K.
        hidden_size, bottleneck_size: widths of the hidden layers and of the normalized output of the third layer.
        normalize_last_layer: keep the prototypes at length 1.
    """

    def __init__(
        self,
        in_features: int,
        num_prototypes: int = 65536,
        *,
        hidden_size: int = 2048,
        bottleneck_size: int = 256,
        normalize_last_layer: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, bottleneck_size),
        )
        self.last_layer = WeightNormLinear(bottleneck_size, num_prototypes, normalized=normalize_last_layer)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


class DINONetwork(Network):
    """A backbone and a head."""

    head: DINOHead

    def __init__(self, backbone: ViTModel, head: DINOHead) -> None:
        super().__init__(backbone)
        self.head = head

    def forward(self, *crops: torch.Tensor) -> torch.Tensor:
        """Run crops of several sizes, each (number, C, side, side): one pass of the backbone per size, one pass of the head.

        Returns:
            (sum of the numbers, K), in the order of the crops.
        """
        return self.head(torch.cat([self.features(pixel_values) for pixel_values in crops]))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the pooled features, (number, D). If [CLS] alone is pooled, the last block computes nothing else."""
        config = self.backbone.config
        if config.pooling == "cls" and config.norm_before_pooling and config.representation_size is None:
            return self.backbone.cls_features(pixel_values)
        return self.backbone(pixel_values, return_dict=True).pooler_output


@dataclass(frozen=True)
class CollapseDiagnostics:
    """Whether the teacher still distinguishes images: tensors of one number each, entropies in nats.

    target_entropy: mean entropy of the targets. Near log K, the outputs have collapsed to uniform.
    mean_target_entropy: entropy of the mean target of the batch. Near 0, the outputs have collapsed to one prototype.
    center_norm: Euclidean norm of the center.
    """

    target_entropy: torch.Tensor
    mean_target_entropy: torch.Tensor
    center_norm: torch.Tensor


class DINOLoss(CenteredLoss):
    """Cross entropy between the teacher's targets and the student's outputs, for every pair of two different views."""

    def forward(
        self, student_outputs: torch.Tensor, teacher_outputs: torch.Tensor, *, teacher_temperature: float
    ) -> tuple[torch.Tensor, CollapseDiagnostics]:
        """Return the mean cross entropy, and the diagnostics.

        Args:
            student_outputs: (V * B, K), view after view, the global views first.
            teacher_outputs: (2 * B, K) of the two global views. No gradient flows into them.
        """
        batch_size = len(teacher_outputs) // NUM_GLOBAL_CROPS
        targets = self.targets(teacher_outputs, teacher_temperature)
        pairs = cross_entropies(
            student_outputs.unflatten(0, (-1, batch_size)), targets.unflatten(0, (-1, batch_size)), self.student_temperature
        )  # (2, V)
        equal_views = pairs.diagonal()
        return (pairs.sum() - equal_views.sum()) / (pairs.numel() - len(equal_views)), self._diagnostics(targets)

    @torch.no_grad()
    def _diagnostics(self, targets: torch.Tensor) -> CollapseDiagnostics:
        return CollapseDiagnostics(
            target_entropy=torch.special.entr(targets).sum(dim=-1).mean(),
            mean_target_entropy=torch.special.entr(targets.mean(dim=0)).sum(),
            center_norm=self.center.norm(),
        )


class DINOModel(SelfDistillation):
    """Student, teacher and loss.

    Args:
        backbone: initial backbone of both.
        head: initial head of both.
        loss: with its center.
        teacher_temperature: of the teacher's softmax. A DINOTrainer changes the attribute.
        drop_path_rate: stochastic depth of the student.
    """

    student: DINONetwork
    teacher: DINONetwork
    loss: DINOLoss

    def __init__(
        self,
        backbone: ViTModel,
        head: DINOHead,
        loss: DINOLoss,
        *,
        teacher_temperature: float = 0.04,
        drop_path_rate: float = 0.0,
    ) -> None:
        student = DINONetwork(copy_backbone(backbone, drop_path_rate=drop_path_rate), head)
        super().__init__(student, DINONetwork(copy_backbone(backbone), copy.deepcopy(head)))
        self.loss = loss
        self.teacher_temperature = teacher_temperature

    def forward(self, pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the loss of a batch.

        Args:
            pixel_values: (B, 2, C, S, S), two global crops of each image.
            local_pixel_values: (B, n, C, s, s), local crops, which only the student sees.

        Returns:
            "loss", and the fields of `CollapseDiagnostics`.

        Raises:
            ValueError: there are not two global crops.
        """
        crops = [crop_after_crop(views) for views in crop_batches(pixel_values, local_pixel_values)]
        with torch.no_grad():
            teacher_outputs = self.teacher(crops[0])  # (2 * B, K)
        loss, diagnostics = self.loss(self.student(*crops), teacher_outputs, teacher_temperature=self.teacher_temperature)
        return {"loss": loss, **vars(diagnostics)}

    def update_centers(self) -> None:
        """Update the center."""
        self.loss.update_center()
