"""What DINO trains: a backbone with a projection head, the student, and their moving average, the teacher.

Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino, vision_transformer.py (DINOHead), utils.py (MultiCropWrapper) and main_dino.py.
Shape letters: B images, C channels, S s side of global and local crops, n local crops, D pooled size, K prototypes.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...modeling.modeling_vit import ViTModel
from .loss import NUM_GLOBAL_CROPS, DINOLoss


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows are `weight_g * weight_v / |weight_v|` (Salimans and Kingma 2016, arXiv:1602.07868).

    Args:
        normalized: keep all rows at length 1, `weight_g` being no parameter that learns.
    """

    def __init__(self, in_features: int, out_features: int, *, normalized: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=not normalized)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden_states, self.weight_g * F.normalize(self.weight_v, dim=1, eps=0.0))


class DINOHead(nn.Module):
    """Three linear layers with GELU between, the length 1, and a layer of prototypes: (B, D) -> (B, K).

    Args:
        in_features: D.
        num_prototypes: K.
        hidden_size, bottleneck_size: of what lies between.
        normalize_last_layer: whether prototypes keep the length 1.
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


class DINONetwork(nn.Module):
    """A backbone and a head."""

    backbone: ViTModel
    head: DINOHead

    def __init__(self, backbone: ViTModel, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, *crops: torch.Tensor) -> torch.Tensor:
        """Crops of several sizes, each (number, C, side, side): one pass of the backbone for each size, one of the head for all.

        Returns:
            (sum of the numbers, K), in the order of the crops.
        """
        return self.head(torch.cat([self.features(pixel_values) for pixel_values in crops]))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the model pools, (number, D): of the last block only what makes it is computed where that is [CLS] alone."""
        config = self.backbone.config
        if config.pooling == "cls" and config.norm_before_pooling and config.representation_size is None:
            return self.backbone.cls_features(pixel_values)
        return self.backbone(pixel_values, return_dict=True).pooler_output


class DINOModel(nn.Module):
    """Student, teacher and loss: `forward` gives the loss of a batch, as transformers' Trainer expects of a model.

    The teacher learns by no gradient: `update_teacher` moves it towards the student. It stays in evaluation mode.

    Args:
        backbone: where both begin.
        head: where both heads begin.
        loss: with its centre.
        teacher_temperature: of the teacher's softmax; a DINOTrainer changes the attribute.
        drop_path_rate: stochastic depth of the student.
    """

    student: DINONetwork
    teacher: DINONetwork
    loss: DINOLoss
    accepts_loss_kwargs = False  # tells the Trainer that the loss is a mean, to be divided among accumulation steps

    def __init__(
        self,
        backbone: ViTModel,
        head: DINOHead,
        loss: DINOLoss,
        *,
        teacher_temperature: float = 0.04,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.student = DINONetwork(_copy(backbone, drop_path_rate), head)
        self.teacher = DINONetwork(_copy(backbone, 0.0), copy.deepcopy(head))
        self.teacher.requires_grad_(False).eval()
        self.loss = loss
        self.teacher_temperature = teacher_temperature

    def train(self, mode: bool = True) -> "DINOModel":
        """The teacher stays as it is: without dropout, and without stochastic depth."""
        super().train(mode)
        self.teacher.eval()
        return self

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """That of the student's backbone; transformers' Trainer calls it."""
        self.student.backbone.activation_checkpointing_enable(**kwargs)

    def forward(self, pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The loss of a batch.

        Args:
            pixel_values: (B, 2, C, S, S), two global crops of each image.
            local_pixel_values: (B, n, C, s, s), which the student alone sees.

        Returns:
            "loss", and the fields of `CollapseDiagnostics`.

        Raises:
            ValueError: there are not two global crops.
        """
        if pixel_values.ndim != 5 or pixel_values.shape[1] != NUM_GLOBAL_CROPS:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; DINO takes two global crops of each image, (batch, 2, channels, "
                "height, width), as vitrail.pretraining.crops.MultiCropImages gives them."
            )
        given = [pixel_values, *([local_pixel_values] if local_pixel_values is not None and local_pixel_values.shape[1] else [])]
        crops = [views.transpose(0, 1).flatten(0, 1) for views in given]  # crop after crop, each (B, C, side, side)
        with torch.no_grad():
            teacher_outputs = self.teacher(crops[0])  # (2 * B, K)
        loss, signs = self.loss(self.student(*crops), teacher_outputs, teacher_temperature=self.teacher_temperature)
        return {"loss": loss, **vars(signs)}

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Every parameter of the teacher becomes momentum * itself + (1 - momentum) * the student's."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)


def _copy(backbone: ViTModel, drop_path_rate: float) -> ViTModel:
    """The same model, in float32, with another stochastic depth, and with nothing that no image would train."""
    config = copy.deepcopy(backbone.config)
    config.drop_path_rate, config.dtype = drop_path_rate, torch.float32
    model = ViTModel(config)
    model.load_state_dict(backbone.state_dict())
    if model.embeddings.mask_token is not None:
        model.embeddings.mask_token.requires_grad_(False)
    return model
