"""DINO's loss against its formula, written here in numpy and double precision."""

import math

import numpy as np
import pytest
import torch

from vitrail.pretraining.methods.dino import DINOLoss

B, K = 5, 7


def softmax(values):
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def entropy(probabilities):
    return -(probabilities * np.log(probabilities)).sum(axis=-1)


def formula(student, teacher, center, *, student_temperature, teacher_temperature):
    """H(P_t(x), P_s(x')) over all pairs of different views, arXiv:2104.14294, equation 3; (V, B, K) and (2, B, K)."""
    targets = softmax((teacher - center) / teacher_temperature)
    log_probabilities = np.log(softmax(student / student_temperature))
    losses = [
        -(targets[seen, image] * log_probabilities[view, image]).sum()
        for image in range(student.shape[1])
        for seen in range(2)
        for view in range(len(student))
        if view != seen
    ]
    return np.mean(losses), targets


def outputs(num_views, seed=0, batch_size=B, scale=1.0):
    """(V, B, K) of the student and (2, B, K) of the teacher, in double precision."""
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(num_views, batch_size, K)), 0.1 * rng.normal(size=(2, batch_size, K)) + np.arange(K) / 20


def as_rows(views):
    return torch.tensor(views.reshape(-1, views.shape[-1]), dtype=torch.float32)


@pytest.mark.parametrize("num_views", [2, 3, 10])
def test_the_loss_is_that_of_the_paper(num_views):
    student, teacher = outputs(num_views)
    loss = DINOLoss(K, student_temperature=0.2)
    loss.center += torch.linspace(-0.2, 0.3, K)
    expected, targets = formula(student, teacher, np.linspace(-0.2, 0.3, K), student_temperature=0.2, teacher_temperature=0.07)
    value, signs = loss(as_rows(student), as_rows(teacher), teacher_temperature=0.07)
    np.testing.assert_allclose(value.item(), expected, rtol=1e-5)
    np.testing.assert_allclose(signs.target_entropy, entropy(targets).mean(), rtol=1e-5)
    np.testing.assert_allclose(signs.mean_target_entropy, entropy(targets.mean(axis=(0, 1))), rtol=1e-5)
    np.testing.assert_allclose(signs.center_norm, np.linalg.norm(np.linspace(-0.2, 0.3, K)), rtol=1e-5)


def test_gradients_reach_the_student_alone():
    student, teacher = (as_rows(views).requires_grad_() for views in outputs(3))
    value, signs = DINOLoss(K)(student, teacher, teacher_temperature=0.04)
    value.backward()
    assert teacher.grad is None
    assert not any(sign.requires_grad for sign in vars(signs).values())
    targets = torch.softmax(teacher.detach() / 0.04, dim=-1).chunk(2)
    # of 2 * 3 - 2 pairs and B images, the gradient of a cross entropy: (probability - target) / temperature
    probabilities = torch.softmax(student.detach() / 0.1, dim=-1).chunk(3)
    expected = [probabilities[0] - targets[1], probabilities[1] - targets[0], 2 * probabilities[2] - targets[0] - targets[1]]
    torch.testing.assert_close(student.grad, torch.cat(expected) / (0.1 * 4 * B), rtol=1e-4, atol=1e-6)


def test_half_precision_is_computed_in_float32():
    """Differences of large numbers, divided by a small temperature."""
    student, teacher = (as_rows(20 + views).bfloat16() for views in outputs(4))
    value, _ = DINOLoss(K)(student, teacher, teacher_temperature=0.04)
    assert value.dtype == torch.float32
    assert value == DINOLoss(K)(student.float(), teacher.float(), teacher_temperature=0.04)[0]


def test_the_center_follows_the_mean_of_the_teacher():
    loss = DINOLoss(K, center_momentum=0.8)
    center = np.zeros(K)
    for seed in range(3):
        student, teacher = outputs(2, seed=seed)
        before = loss.center.clone()
        loss(as_rows(student), as_rows(teacher), teacher_temperature=0.04)
        assert torch.equal(loss.center, before)  # until the update ends
        loss.update_center()
        center = 0.8 * center + 0.2 * teacher.mean(axis=(0, 1))
        np.testing.assert_allclose(loss.center.numpy(), center[None], rtol=1e-5, atol=1e-7)


def test_several_passes_are_gathered_as_one_batch():
    """This also holds when the last pass is smaller."""
    passes = [outputs(2, seed=seed, batch_size=size) for seed, size in enumerate((5, 5, 2))]
    divided, whole = DINOLoss(K), DINOLoss(K)
    for student, teacher in passes:
        divided(as_rows(student), as_rows(teacher), teacher_temperature=0.04)
    student, teacher = (np.concatenate(views, axis=1) for views in zip(*passes, strict=True))
    whole(as_rows(student), as_rows(teacher), teacher_temperature=0.04)
    for loss in (divided, whole):
        loss.update_center()
        np.testing.assert_allclose(loss.center[0].numpy(), 0.1 * teacher.mean(axis=(0, 1)), rtol=1e-5)
    torch.testing.assert_close(divided.center, whole.center)


def test_nothing_is_gathered_in_evaluation():
    student, teacher = map(as_rows, outputs(2))
    loss = DINOLoss(K)
    loss(student, teacher, teacher_temperature=0.04)
    loss.eval()
    loss(student, teacher + 100, teacher_temperature=0.04)
    loss.train()
    loss.update_center()
    torch.testing.assert_close(loss.center, 0.1 * teacher.mean(dim=0, keepdim=True))


def test_an_update_begins_again():
    student, teacher = map(as_rows, outputs(2))
    loss = DINOLoss(K, center_momentum=0.0)
    for shift in (100, 0):
        loss(student, teacher + shift, teacher_temperature=0.04)
        loss.update_center()
    torch.testing.assert_close(loss.center, teacher.mean(dim=0, keepdim=True))


def test_only_the_center_is_kept_in_checkpoints():
    loss = DINOLoss(K)
    loss(*map(as_rows, outputs(2)), teacher_temperature=0.04)
    assert loss.state_dict().keys() == {"center"}


def test_signs_of_a_collapse_to_uniform():
    student, _ = outputs(2)
    loss = DINOLoss(K)
    loss.center += 3
    value, signs = loss(as_rows(student), torch.full((2 * B, K), 3.0), teacher_temperature=0.04)
    assert signs.target_entropy.item() == pytest.approx(math.log(K), rel=1e-6)
    assert signs.mean_target_entropy.item() == pytest.approx(math.log(K), rel=1e-6)
    assert signs.center_norm.item() == pytest.approx(3 * math.sqrt(K), rel=1e-6)
    assert value >= math.log(K)


def test_signs_of_a_collapse_to_one_prototype():
    student, _ = outputs(2)
    teacher = torch.zeros(2 * B, K)
    teacher[:, 2] = 50
    _, signs = DINOLoss(K)(as_rows(student), teacher, teacher_temperature=0.04)
    assert signs.target_entropy.item() == 0
    assert signs.mean_target_entropy.item() == 0


def test_a_sound_teacher_is_between_the_two():
    """Sure of each image, with a prototype for each: entropy 0 of a target, and log K of their mean."""
    student, _ = outputs(2, batch_size=K)
    _, signs = DINOLoss(K)(as_rows(student), 50 * torch.eye(K).repeat(2, 1), teacher_temperature=0.04)
    assert signs.target_entropy.item() == 0
    assert signs.mean_target_entropy.item() == pytest.approx(math.log(K), rel=1e-6)
