"""DINOv2: DINO's loss on whole crops, iBOT's on masked patches, and KoLeo's on [CLS].

Oquab et al. 2023, arXiv:2304.07193, section 4; facebookresearch/dinov2, train/ssl_meta_arch.py. Gram anchoring: DINOv3, Siméoni et
al. 2025, arXiv:2508.10104, section 4. Shape letters: B images, C channels, S s side of global and local crops, n local crops, N patches
of a global crop, M masked patches of all crops, D hidden size, K prototypes.
"""

import copy
from dataclasses import dataclass

import torch

from ...modeling.modeling_vit import ViTModel
from .dino import DINOHead, DINOLoss, DINONetwork
from .losses import CenteredLoss, gram_loss, koleo_loss, masked_cross_entropy
from .student_teacher import NUM_GLOBAL_CROPS, SelfDistillation, copy_backbone, crop_after_crop, crop_batches


class IBOTLoss(CenteredLoss):
    """Cross entropy between the teacher's targets and the student's outputs for the same patches, which the student saw masked.

    A crop weighs the same however many of its patches are masked.
    """

    def forward(
        self, student_patches: torch.Tensor, teacher_patches: torch.Tensor, masks: torch.Tensor, *, teacher_temperature: float
    ) -> torch.Tensor:
        """Return the loss of masked patches.

        Args:
            student_patches, teacher_patches: outputs for the M masked patches, (M, K), in the order of `masks`.
            masks: (crops, N), true where a patch is masked.
        """
        weights = 1 / masks.sum(dim=1, keepdim=True).clamp(min=1) / len(masks)
        targets = self.targets(teacher_patches, teacher_temperature)
        return masked_cross_entropy(student_patches, targets, weights.expand_as(masks)[masks], self.student_temperature)


class DINOv2Network(DINONetwork):
    """A backbone with a head for crops and one for patches, which may be the same.

    Args:
        patch_head: iBOT's head; None uses `head`.
    """

    def __init__(self, backbone: ViTModel, head: DINOHead, patch_head: DINOHead | None) -> None:
        super().__init__(backbone, head)
        self.patch_head = patch_head

    def tokens(self, pixel_values: torch.Tensor, masks: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pooled features, (crops, D), and the patch features, (crops, N, D), of global crops."""
        outputs = self.backbone(pixel_values, bool_masked_pos=masks, return_dict=True)
        return outputs.pooler_output, outputs.last_hidden_state[:, self.backbone.config.num_prefix_tokens :]

    def heads(self, features: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs for crops and for patches, from the features of both. A shared head runs once."""
        if self.patch_head is None:
            outputs = self.head(torch.cat((features, patches)))
            return outputs[: len(features)], outputs[len(features) :]
        return self.head(features), self.patch_head(patches)


@dataclass(frozen=True)
class LossWeights:
    """The factors of the parts of the loss. iBOT's, KoLeo's and Gram's are not computed where the factor is 0."""

    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    gram: float = 0.0


class DINOv2Model(SelfDistillation):
    """Student, teacher and losses.

    Where pooled features are wider than those of patches ("cls+avg", or a representation layer), a `patch_head` is needed.

    Args:
        backbone: initial backbone of both. A mask token is added where it has none.
        head, patch_head: initial heads of both; see `DINOv2Network`.
        loss, patch_loss: with their centers.
        weights: of the losses.
        teacher_temperature: of the teacher's softmax. A DINOv2Trainer changes the attribute.
        drop_path_rate: stochastic depth of the student: in each branch of each block, a share of a batch's crops is left out.
    """

    student: DINOv2Network
    teacher: DINOv2Network

    def __init__(
        self,
        backbone: ViTModel,
        head: DINOHead,
        patch_head: DINOHead | None,
        loss: DINOLoss,
        patch_loss: IBOTLoss,
        *,
        weights: LossWeights = LossWeights(),
        teacher_temperature: float = 0.07,
        drop_path_rate: float = 0.0,
    ) -> None:
        depth = {"drop_path_rate": drop_path_rate, "drop_path_schedule": "constant", "drop_path_mode": "batch"}
        student = DINOv2Network(copy_backbone(backbone, use_mask_token=True, **depth), head, patch_head)
        teacher = DINOv2Network(copy_backbone(backbone, use_mask_token=True), copy.deepcopy(head), copy.deepcopy(patch_head))
        super().__init__(student, teacher)
        self.loss = loss
        self.patch_loss = patch_loss
        self.weights = weights
        self.teacher_temperature = teacher_temperature
        # The frozen Gram teacher is the initial backbone
        self.anchor = copy_backbone(backbone).requires_grad_(False).eval() if weights.gram else None

    def train(self, mode: bool = True) -> "DINOv2Model":
        """Set the mode of the student."""
        super().train(mode)
        if self.anchor is not None:
            self.anchor.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        masks: torch.Tensor | None = None,
        local_pixel_values: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the loss of a batch.

        Args:
            pixel_values: (B, 2, C, S, S), two global crops of each image.
            masks: (B, 2, N), true where the student sees the mask token in place of a patch.
            local_pixel_values: (B, n, C, s, s), local crops, which only the student sees.

        Returns:
            "loss", its parts before their factors, "target_entropy" and "mean_target_entropy" (see `CollapseDiagnostics`).

        Raises:
            ValueError: there are not two global crops, or no masks.
        """
        batches = crop_batches(pixel_values, local_pixel_values)
        if masks is None:
            raise ValueError(
                "There are no masks: make the crops by vitrail.MultiCropImages(…, masking=vitrail.BlockMasking(patch_size))."
            )
        crops, *local_crops = (crop_after_crop(views) for views in batches)
        masks = crop_after_crop(masks)
        rows = (masks.flatten() & bool(self.weights.ibot)).nonzero().squeeze(1)  # of the patches that heads read, (M,)
        with torch.no_grad():
            features, patches = self.teacher.tokens(crops)
            teacher_outputs, teacher_patches = self.teacher.heads(features, patches.flatten(0, 1)[rows])
        features, patches = self.student.tokens(crops, masks)
        local_features = [self.student.features(local) for local in local_crops]
        student_outputs, student_patches = self.student.heads(torch.cat([features, *local_features]), patches.flatten(0, 1)[rows])
        temperature = self.teacher_temperature
        dino, diagnostics = self.loss(student_outputs, teacher_outputs, teacher_temperature=temperature)
        losses = {"dino": dino}
        if self.weights.ibot:
            losses["ibot"] = self.patch_loss(student_patches, teacher_patches, masks, teacher_temperature=temperature)
        if self.weights.koleo:  # not between the crops of one image
            losses["koleo"] = torch.stack([koleo_loss(views) for views in features.chunk(NUM_GLOBAL_CROPS)]).sum()
        if self.anchor is not None:
            with torch.no_grad():
                anchors = self.anchor(crops, return_dict=True).last_hidden_state[:, self.anchor.config.num_prefix_tokens :]
            losses["gram"] = gram_loss(patches, anchors)
        return {
            "loss": torch.stack([getattr(self.weights, name) * loss for name, loss in losses.items()]).sum(),
            **{f"{name}_loss": loss.detach() for name, loss in losses.items()},
            "target_entropy": diagnostics.target_entropy,
            "mean_target_entropy": diagnostics.mean_target_entropy,
        }

    def update_centers(self) -> None:
        """Update the centers of crops and of patches."""
        self.loss.update_center()
        if self.weights.ibot:
            self.patch_loss.update_center()
