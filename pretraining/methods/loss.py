"""DINO's loss: the student learns what the teacher says of another view, centred and sharpened.

Caron et al. 2021, arXiv:2104.14294, algorithm 1; facebookresearch/dino, main_dino.py, DINOLoss. Shape letters: B images, V views of each,
K prototypes.
"""

from dataclasses import dataclass

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

NUM_GLOBAL_CROPS = 2  # which the teacher sees; the paper's form


@dataclass(frozen=True)
class CollapseDiagnostics:
    """What tells whether the teacher still distinguishes images; each a tensor of one number, in nats but for the norm.

    target_entropy: of a target, on average. log K where the teacher says the same of all prototypes: collapsed to uniform.
    mean_target_entropy: of the average target of the batch. Near 0 where one prototype takes all images: collapsed to one.
    center_norm: Euclidean norm of the centre.
    """

    target_entropy: torch.Tensor
    mean_target_entropy: torch.Tensor
    center_norm: torch.Tensor


class DINOLoss(nn.Module):
    """Cross entropy between the teacher's targets and the student's answers for every pair of two different views.

    Args:
        num_prototypes: K, width of the head.
        student_temperature: of the student's softmax.
        center_momentum: how much of the centre stays in an update.

    The centre is a running mean of the teacher's outputs. `forward` in training mode gathers them, and `update_center` ends an update:
    so the targets of an update do not depend on how it is divided among processes and accumulation steps.
    """

    center: torch.Tensor

    def __init__(self, num_prototypes: int, *, student_temperature: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        # Sum of the teacher's outputs since the last update of the centre, and in the last place how many they were. No buffer:
        # DistributedDataParallel would overwrite it with that of the first process
        self.gathered: torch.Tensor | None = None

    def forward(
        self, student_outputs: torch.Tensor, teacher_outputs: torch.Tensor, *, teacher_temperature: float
    ) -> tuple[torch.Tensor, CollapseDiagnostics]:
        """The mean cross entropy, and the signs of collapse.

        Args:
            student_outputs: (V * B, K), view after view, those that the teacher sees first.
            teacher_outputs: (2 * B, K) of the two global views; no gradient flows into them.
        """
        teacher_outputs = teacher_outputs.detach().float()
        targets = F.softmax((teacher_outputs - self.center) / teacher_temperature, dim=-1).chunk(NUM_GLOBAL_CROPS)  # 2 of (B, K)
        num_views = NUM_GLOBAL_CROPS * len(student_outputs) // len(teacher_outputs)
        answers = F.log_softmax(student_outputs.float() / self.student_temperature, dim=-1).chunk(num_views)  # V of (B, K)
        losses = [
            -(target * answer).sum(dim=-1).mean()
            for seen, target in enumerate(targets)
            for view, answer in enumerate(answers)
            if view != seen
        ]
        if self.training:
            self._gather(teacher_outputs)
        return torch.stack(losses).mean(), self._signs(torch.cat(targets))

    @torch.no_grad()
    def _gather(self, teacher_outputs: torch.Tensor) -> None:
        summed = torch.cat((teacher_outputs.sum(dim=0), teacher_outputs.new_tensor([len(teacher_outputs)])))
        self.gathered = summed if self.gathered is None else self.gathered + summed

    @torch.no_grad()
    def _signs(self, targets: torch.Tensor) -> CollapseDiagnostics:
        return CollapseDiagnostics(
            target_entropy=torch.special.entr(targets).sum(dim=-1).mean(),
            mean_target_entropy=torch.special.entr(targets.mean(dim=0)).sum(),
            center_norm=self.center.norm(),
        )

    @torch.no_grad()
    def update_center(self) -> None:
        """Moves the centre towards the mean of what was gathered in all processes, each of which must call this."""
        assert self.gathered is not None, "update_center follows a forward pass in training mode"
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.gathered)
        mean = self.gathered[:-1] / self.gathered[-1]
        self.center.lerp_(mean[None], 1 - self.center_momentum)
        self.gathered = None
