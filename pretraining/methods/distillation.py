"""Distillation: a student learns the features of a frozen, usually larger model, its teacher, through linear projections.

Romero et al. 2014, arXiv:1412.6550, section 2.2: a regressor from the student's width to the teacher's, and the squared error; Zhang et
al. 2024, arXiv:2407.10366, section 3: features of the image and of its patches. Shape letters: B crops, C channels, S side, N patches,
h w grid of patches, D and D' widths of student and teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...modeling.modeling_vit import ViTModel
from .losses import at_least_float32, full_precision
from .student_teacher import Network, StudentTeacher, copy_backbone, crop_batches

DISTANCES = ("mse", "cosine")


@dataclass(frozen=True)
class LayerFeatures:
    """The features of crops after a block: `image` (B, D), as the model pools it, and `patches` (B, N, D) on `grid`."""

    image: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]


def layer_features(backbone: ViTModel, pixel_values: torch.Tensor, num_layers: int) -> list[LayerFeatures]:
    """Return the features after `num_layers` blocks at equal distances, the last block last, behind the final norm of the model."""
    depths = spaced_depths(backbone.config.num_hidden_layers, num_layers)
    outputs = backbone(pixel_values, output_hidden_states=depths[:-1], return_dict=True)
    tokens = [*(backbone.norm_tokens(outputs.hidden_states[depth]) for depth in depths[:-1]), outputs.last_hidden_state]
    first = backbone.config.num_prefix_tokens
    return [LayerFeatures(backbone.pool(layer), layer[:, first:], outputs.patch_grid) for layer in tokens]


def spaced_depths(num_blocks: int, num_layers: int) -> list[int]:
    """Return the number of blocks before each of `num_layers` layers; the last one follows all blocks."""
    return [-(-num_blocks * layer // num_layers) for layer in range(1, num_layers + 1)]


class DistillationStudent(Network):
    """A backbone, and for each layer a projection of its image features and one of its patch features."""

    def __init__(self, backbone: ViTModel, teacher: ViTModel, num_layers: int) -> None:
        super().__init__(backbone)
        ours, theirs = backbone.config, teacher.config
        self.image_projections = nn.ModuleList(nn.Linear(ours.pooled_size, theirs.pooled_size) for _ in range(num_layers))
        self.patch_projections = nn.ModuleList(nn.Linear(ours.hidden_size, theirs.hidden_size) for _ in range(num_layers))

    def forward(self, pixel_values: torch.Tensor) -> list[LayerFeatures]:
        """Return the projected features of crops (B, C, S, S)."""
        layers = layer_features(self.backbone, pixel_values, len(self.image_projections))
        return [
            LayerFeatures(image(layer.image), patch(layer.patches), layer.grid)
            for image, patch, layer in zip(self.image_projections, self.patch_projections, layers, strict=True)
        ]


class DistillationModel(StudentTeacher):
    """Student, teacher and loss. The state dict holds the student alone: whoever resumes a run gives the same teacher again.

    Both see the same crops. Where their grids of patches differ, the teacher's features are interpolated to the student's grid
    (bilinear; antialiased where the grid shrinks).

    Args:
        student: initial backbone of the student, which is copied.
        teacher: the teacher, in float32. It is frozen, not copied.
        distance: between projected features and the teacher's: "mse" or "cosine".
        num_layers: pairs of blocks at the same share of the depth, whose features are compared; the last blocks are the last pair.
        image_loss_weight, patch_loss_weight: factors of the two parts of the loss.
        renormalization: factor and summand of each channel, which turn the student's pixel values into the teacher's.
        drop_path_rate: stochastic depth of the student.

    Raises:
        ValueError: student or teacher has fewer than `num_layers` blocks.
    """

    student: DistillationStudent
    teacher: ViTModel
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        student: ViTModel,
        teacher: ViTModel,
        *,
        distance: str = "mse",
        num_layers: int = 1,
        image_loss_weight: float = 1.0,
        patch_loss_weight: float = 1.0,
        renormalization: tuple[Sequence[float], Sequence[float]] = ((1.0,), (0.0,)),
        drop_path_rate: float = 0.0,
    ) -> None:
        for name, model in (("student", student), ("teacher", teacher)):
            if model.config.num_hidden_layers < num_layers:
                raise ValueError(
                    f"num_layers is {num_layers}, but the {name} has {model.config.num_hidden_layers} blocks: choose at most that number."
                )
        backbone = copy_backbone(student, drop_path_rate=drop_path_rate)
        backbone.config.drop_path_rate = 0.0  # of the result; the blocks keep their rates
        super().__init__(DistillationStudent(backbone, teacher, num_layers), teacher)
        self.distance = distance
        self.num_layers = num_layers
        self.image_loss_weight = image_loss_weight
        self.patch_loss_weight = patch_loss_weight
        for name, numbers in zip(("scale", "shift"), renormalization, strict=True):
            self.register_buffer(name, torch.tensor(numbers)[:, None, None], persistent=False)
        self.register_state_dict_post_hook(_leave_out_teacher)
        self.register_load_state_dict_post_hook(_expect_no_teacher)

    def forward(self, pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Return the loss of a batch.

        Args:
            pixel_values: (B, 2, C, S, S), two global crops of each image, normalized for the student.
            local_pixel_values: (B, n, C, s, s), local crops, which both see, too.

        Returns:
            "loss", and its parts "image_loss" and "patch_loss" before their factors: means over crops, patches and layers.

        Raises:
            ValueError: there are not two global crops.
        """
        crops = [views.flatten(0, 1) for views in crop_batches(pixel_values, local_pixel_values)]  # each (B, C, side, side)
        parts = torch.stack([self._losses(batch) for batch in crops])  # (batches, 2)
        numbers = parts.new_tensor([len(batch) for batch in crops])[:, None]
        image_loss, patch_loss = (numbers * parts).sum(dim=0) / numbers.sum()
        return {
            "loss": self.image_loss_weight * image_loss + self.patch_loss_weight * patch_loss,
            "image_loss": image_loss.detach(),
            "patch_loss": patch_loss.detach(),
        }

    def _losses(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the loss of image features and of patch features, (2,), of crops (B, C, S, S)."""
        with torch.no_grad():
            targets = layer_features(self.teacher, pixel_values * self.scale + self.shift, self.num_layers)
        losses = [
            torch.stack(
                (
                    feature_distance(layer.image, target.image, self.distance),
                    feature_distance(layer.patches, on_grid(target, layer.grid), self.distance),
                )
            )
            for layer, target in zip(self.student(pixel_values), targets, strict=True)
        ]
        return torch.stack(losses).mean(dim=0)


def feature_distance(features: torch.Tensor, targets: torch.Tensor, distance: str) -> torch.Tensor:
    """Return the mean squared error of features (…, D'), or 1 minus the mean of their cosines."""
    with full_precision(features):
        features, targets = at_least_float32(features), at_least_float32(targets)
        if distance == "mse":
            return F.mse_loss(features, targets)
        return 1 - F.cosine_similarity(features, targets, dim=-1).mean()


def on_grid(features: LayerFeatures, grid: tuple[int, int]) -> torch.Tensor:
    """Return patch features, (B, N', D), interpolated to another grid of patches."""
    if features.grid == grid:
        return features.patches
    maps = at_least_float32(features.patches).transpose(1, 2).unflatten(2, features.grid)  # (B, D, h, w)
    return F.interpolate(maps, size=grid, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def _leave_out_teacher(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    for name in [name for name in state_dict if name.startswith(f"{prefix}teacher.")]:
        del state_dict[name]


def _expect_no_teacher(module: nn.Module, incompatible_keys: Any) -> None:
    missing: list[str] = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if "teacher." not in name]
