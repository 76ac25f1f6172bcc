"""Which parameters of a backbone are trained: all, those after the first blocks, or low-rank adapters (LoRA).

Hu et al. 2021, arXiv:2106.09685. For self-supervised training of a published backbone: ExPLoRA, Khanna et al. 2024, arXiv:2406.10973.
"""

import copy
import re

import torch
from torch import nn

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTModel
from ..utils.optional import check_packages
from .methods.student_teacher import SelfDistillation, StudentTeacher

ADAPTED = re.compile(r"layers\.(\d+)\.(?:attention\.(?:qkv|proj)|mlp\.\w+)")  # linear layers that get adapters


def select_trained_parameters(model: StudentTeacher, *, frozen_blocks: int, lora_rank: int, seed: int) -> None:
    """Freeze the embeddings and the first blocks of the student's backbone, and add adapters to the other blocks.

    A teacher that is the moving average of its student gets the same adapters.

    Raises:
        VitrailError: the backbone has fewer blocks, or peft is not installed.
    """
    student = model.student.backbone
    if frozen_blocks > len(student.layers):
        raise VitrailError(
            f"frozen_blocks is {frozen_blocks}, but the model has {len(student.layers)} blocks: lower it, in a recipe (.json) as "
            '{"arguments": {"frozen_blocks": …}}.'
        )
    if frozen_blocks:
        freeze_blocks(student, frozen_blocks)
    if not lora_rank or hasattr(student, "peft_config"):
        return
    check_packages(["peft"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_adapters(student, lora_rank, first_block=frozen_blocks)
    if isinstance(model, SelfDistillation):
        teacher = model.teacher.backbone
        add_adapters(teacher, lora_rank, first_block=frozen_blocks)
        adapters = {name: tensor for name, tensor in student.state_dict().items() if ".lora_" in name}
        teacher.load_state_dict(adapters, strict=False)
        teacher.requires_grad_(False)


def freeze_blocks(backbone: ViTModel, number: int) -> None:
    """Freeze the embeddings, the positions that blocks share, and the first blocks, but not a new mask token."""
    trained = _new_mask_token(backbone)
    for part in (backbone.embeddings, backbone.relative_position, *backbone.layers[:number]):
        if part is not None:
            part.requires_grad_(False)
    if trained is not None:
        trained.requires_grad_(True)


def add_adapters(backbone: ViTModel, rank: int, *, first_block: int = 0) -> None:
    """Freeze the backbone, except for a new mask token, and add adapters to the blocks from `first_block` on. They begin at 0."""
    from peft import LoraConfig, inject_adapter_in_model

    trained = _new_mask_token(backbone)
    layers = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and (place := ADAPTED.fullmatch(name)) and int(place[1]) >= first_block
    ]
    # A scale of 1, so that the learning rate does not depend on the rank
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), backbone)
    if trained is not None:
        trained.requires_grad_(True)


@torch.no_grad()
def merge_adapters(backbone: ViTModel) -> ViTModel:
    """Return the backbone with its adapters merged into its weights, as a copy; a backbone without adapters is returned itself."""
    if not hasattr(backbone, "peft_config"):
        return backbone
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(backbone)
    for name, layer in list(merged.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            merged.set_submodule(name, layer.get_base_layer())
    del merged.peft_config
    return merged


def _new_mask_token(backbone: ViTModel) -> nn.Parameter | None:
    """Return a mask token that has not been trained yet: `copy_backbone` adds one of zeros to a backbone that has none."""
    token = backbone.embeddings.mask_token
    return token if token is not None and token.requires_grad and not token.any() else None
