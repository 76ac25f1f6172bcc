"""What all methods share: a student that is trained, and a teacher that receives no gradient."""

import copy
from typing import Any

import torch
from torch import nn

from ...modeling.modeling_vit import ViTModel
from ...utils.compat import CHECKPOINTING

NUM_GLOBAL_CROPS = 2  # which a teacher sees: "The 2 global views", arXiv:2104.14294, section 3.1


class Network(nn.Module):
    """A backbone, with the head of a method."""

    backbone: ViTModel

    def __init__(self, backbone: ViTModel) -> None:
        super().__init__()
        self.backbone = backbone


class StudentTeacher(nn.Module):
    """A student and its teacher: `forward` returns {"loss": …} and numbers for the log, as transformers' Trainer expects of a model.

    The teacher stays in evaluation mode, without dropout and stochastic depth.
    """

    student: Network

    accepts_loss_kwargs = False  # the Trainer then divides the loss, a mean, by the number of accumulation steps

    def __init__(self, student: Network, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "StudentTeacher":
        """Set the mode of the student."""
        super().train(mode)
        self.teacher.eval()
        return self

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Enable activation checkpointing in the student's backbone; transformers' Trainer calls it."""
        getattr(self.student.backbone, f"{CHECKPOINTING}_enable")(**kwargs)

    gradient_checkpointing_enable = activation_checkpointing_enable  # the name before transformers 5.23


class SelfDistillation(StudentTeacher):
    """A teacher that is the moving average of its student."""

    teacher: Network

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Set every parameter of the teacher to momentum * itself + (1 - momentum) * the student's."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def update_centers(self) -> None:
        """End an update for the centers of the losses, in each process."""
        raise NotImplementedError


def crop_batches(pixel_values: torch.Tensor, local_pixel_values: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the global crops of a batch, and the local ones if there are any.

    Args:
        pixel_values: (B, 2, C, S, S).
        local_pixel_values: (B, n, C, s, s).

    Raises:
        ValueError: there are not two global crops.
    """
    if pixel_values.ndim != 5 or pixel_values.shape[1] != NUM_GLOBAL_CROPS:
        raise ValueError(
            f"pixel_values has the shape {tuple(pixel_values.shape)}; expected two global crops per image, (batch, 2, channels, "
            "height, width). vitrail.MultiCropImages makes them."
        )
    return [pixel_values, *([local_pixel_values] if local_pixel_values is not None and local_pixel_values.shape[1] else [])]


def crop_after_crop(views: torch.Tensor) -> torch.Tensor:
    """Return crops (B, n, …) as (n * B, …): the first crop of all images, then the second."""
    return views.transpose(0, 1).flatten(0, 1)


def copy_backbone(backbone: ViTModel, **changes: Any) -> ViTModel:
    """Return a copy in float32 whose config has other values, such as `drop_path_rate`.

    With `use_mask_token=True`, the mask token is trained; one that the backbone lacks is zero, as in a new model. Otherwise it is frozen,
    because no image would train it.
    """
    config = copy.deepcopy(backbone.config)
    for name, value in {"drop_path_rate": 0.0, "dtype": torch.float32, **changes}.items():
        setattr(config, name, value)
    model = ViTModel(config)
    state = {**backbone.state_dict()}
    if model.embeddings.mask_token is not None:
        state.setdefault("embeddings.mask_token", torch.zeros_like(model.embeddings.mask_token))
        model.embeddings.mask_token.requires_grad_(changes.get("use_mask_token", False))
    model.load_state_dict(state)
    return model
