"""The losses of self-supervised training, at least in float32, also under autocast.

facebookresearch/dino, main_dino.py (DINOLoss); facebookresearch/dinov2, loss/ (DINOLoss, iBOTPatchLoss, KoLeoLoss);
facebookresearch/dinov3, loss/gram_loss.py. Shape letters: B images, V views of the student, T views of the teacher, M masked patches,
N patches, D features, K prototypes.
"""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

CENTERINGS = ("softmax", "sinkhorn_knopp")


class CenteredLoss(nn.Module):
    """A loss against targets that the teacher's outputs are turned into: by centering and softmax, or by Sinkhorn-Knopp.

    The center is a running mean of the teacher's outputs. `targets` in training mode sums these, and `update_center` ends an update. The
    targets of an update therefore do not depend on how it is divided among processes and accumulation steps. Sinkhorn-Knopp has no
    center; its targets depend on all outputs of a forward pass, those of the other processes included.

    Args:
        num_prototypes: K, width of the head.
        student_temperature: of the student's softmax.
        center_momentum: share of the center that an update keeps.
        centering: one of CENTERINGS.
    """

    center: torch.Tensor

    def __init__(
        self,
        num_prototypes: int,
        *,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        centering: str = "softmax",
    ) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.centering = centering
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        # Sum of the teacher's outputs since the last update of the center, and in the last place their number. Not a buffer:
        # DistributedDataParallel would overwrite it with the sum of the first process
        self.gathered: torch.Tensor | None = None

    @torch.no_grad()
    def targets(self, teacher_outputs: torch.Tensor, temperature: float) -> torch.Tensor:
        """Return the targets, at least in float32, of outputs (rows, K)."""
        teacher_outputs = at_least_float32(teacher_outputs)
        if self.centering == "sinkhorn_knopp":
            return sinkhorn_knopp(teacher_outputs, temperature)
        targets = F.softmax((teacher_outputs - self.center) / temperature, dim=-1)
        if self.training:
            summed = torch.cat((teacher_outputs.sum(dim=0), teacher_outputs.new_tensor([len(teacher_outputs)])))
            self.gathered = summed if self.gathered is None else self.gathered + summed
        return targets

    @torch.no_grad()
    def update_center(self) -> None:
        """Move the center towards the mean of the outputs of all processes. Each process must call this."""
        if self.centering == "sinkhorn_knopp":
            return
        assert self.gathered is not None, "update_center follows a forward pass in training mode"
        gathered = _summed_over_processes(self.gathered)
        number = gathered[-1]
        mean = gathered[:-1] / number.clamp(min=1)
        self.center.lerp_(mean[None], (1 - self.center_momentum) * (number > 0))  # it stays where no patch was masked
        self.gathered = None


@torch.no_grad()
def sinkhorn_knopp(outputs: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """Return targets (rows, K), each of sum 1, that use all prototypes about equally (Cuturi 2013, arXiv:1306.0895; SwAV, 2006.09882).

    Rows and prototypes are normalized in turn. With several processes, the rows are those of all.
    """
    outputs = at_least_float32(outputs) / temperature
    largest = outputs.max() if outputs.numel() else outputs.new_tensor(-torch.inf)
    if _is_distributed():
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    weights = (outputs - largest).exp()  # a common factor, which the normalization takes out again
    number = _summed_over_processes(weights.new_tensor(float(len(outputs))))
    weights /= _summed_over_processes(weights.sum())
    for _ in range(iterations):
        weights /= _summed_over_processes(weights.sum(dim=0, keepdim=True)) * outputs.shape[1]
        weights /= weights.sum(dim=1, keepdim=True) * number
    return weights * number


def cross_entropies(student_views: torch.Tensor, target_views: torch.Tensor, student_temperature: float) -> torch.Tensor:
    """Return the cross entropies, (T, V), of all pairs of a target view and a student's view: means over the images.

    Args:
        student_views: outputs (V, B, K).
        target_views: (T, B, K), each row of sum 1.
    """
    with full_precision(student_views):
        logits = at_least_float32(student_views) / student_temperature
        normalizers = logits.logsumexp(dim=-1).mean(dim=1)  # (V,)
        products = target_views.flatten(1) @ logits.flatten(1).T / logits.shape[1]  # (T, V)
        return normalizers - products


def masked_cross_entropy(
    student_patches: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, student_temperature: float
) -> torch.Tensor:
    """Return the weighted sum of the cross entropies of masked patches: iBOT's loss (Zhou et al. 2021, arXiv:2111.07832).

    Args:
        student_patches: outputs (M, K).
        targets: (M, K), each row of sum 1.
        weights: (M,), 1 / (masked patches of the crop * number of crops).
    """
    with full_precision(student_patches):
        logits = at_least_float32(student_patches) / student_temperature
        return (weights * (logits.logsumexp(dim=-1) - (targets * logits).sum(dim=-1))).sum()


def koleo_loss(features: torch.Tensor) -> torch.Tensor:
    """Return the Kozachenko-Leonenko loss of features (B, D), which spreads them (Sablayrolles et al. 2018, arXiv:1806.03198).

    It is the mean of -log of the distance from each normalized vector to its nearest neighbor, among the vectors of all processes; 0 for
    one vector.
    """
    epsilon = 1e-8
    with full_precision(features):
        features = _gathered(F.normalize(at_least_float32(features), dim=-1, eps=epsilon))
        if len(features) == 1:  # which has no neighbor
            return 0 * features.sum()
        with torch.no_grad():
            similarities = (features @ features.T).fill_diagonal_(-1)
            neighbors = similarities.argmax(dim=1)
        distances = F.pairwise_distance(features, features[neighbors], eps=epsilon)
        return -(distances + epsilon).log().mean()


def gram_loss(features: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of the similarities of an image's patches (DINOv3, arXiv:2508.10104, section 4).

    Args:
        features, anchors: patch features of the student and of the frozen Gram teacher, (B, N, D). Negative similarities count as 0.
    """
    with full_precision(features):
        gram, anchor_gram = (
            (normalized @ normalized.transpose(1, 2)).clamp(min=0)
            for normalized in (F.normalize(at_least_float32(patches), dim=-1) for patches in (features, anchors))
        )
        return F.mse_loss(gram, anchor_gram)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of lower precision in float32, and others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Return a context without autocast, for the device of a tensor."""
    return torch.autocast(tensor.device.type, enabled=False)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _summed_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    if _is_distributed():
        torch.distributed.all_reduce(tensor)
    return tensor


def _gathered(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes. Gradients flow back to the process that the rows are from."""
    if not _is_distributed():
        return rows
    from torch.distributed.nn.functional import all_gather  # which a torch without distributed training lacks

    return torch.cat(all_gather(rows))
