"""The losses against DINOv2's and DINOv3's own code: the golden case, with gradients; and what they do at their edges."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deterministic
import forked
from vitrail.pretraining.methods.dinov2 import IBOTLoss
from vitrail.pretraining.methods.losses import (
    CenteredLoss,
    cross_entropies,
    gram_loss,
    koleo_loss,
    masked_cross_entropy,
    sinkhorn_knopp,
)

CASE = json.loads((deterministic.GOLDEN / "training_losses.json").read_text(encoding="utf-8"))
SETTINGS = CASE["parameters"]
REFERENCE = load_file(deterministic.GOLDEN / "training_losses.safetensors")
INPUTS = {name: deterministic.pixel_values(spec) for name, spec in CASE["inputs"].items()}
MASKS = INPUTS["masks"] < 0
STUDENTS = torch.stack([INPUTS[f"student_{view}"] for view in range(3)])


def check(actual, name, index=...):
    torch.testing.assert_close(actual, REFERENCE[name][index].reshape(actual.shape), rtol=1e-5, atol=1e-5)


def test_centers_and_targets_of_crops():
    loss = CenteredLoss(SETTINGS["prototypes"], center_momentum=SETTINGS["center_momentum"])
    for view, outputs in enumerate((INPUTS["teacher_0"], INPUTS["teacher_1"])):
        loss.train().targets(outputs, SETTINGS["temperature"])
        loss.update_center()
        check(loss.center[0], "dino_centers", view)
        check(loss.eval().targets(outputs, SETTINGS["temperature"]), "dino_softmax", view)
    assert loss.gathered is None


def test_dino():
    pairs = cross_entropies(STUDENTS, REFERENCE["dino_softmax"], SETTINGS["student_temperature"])
    check(pairs.sum(), "dino_v2_loss")
    check(pairs.mean(), "dino_v3_loss")
    check((pairs.sum() - pairs.trace()) / 4, "dino_v3_loss_no_diagonal")


def test_gradients_of_dino():
    """Against the sum of -t log softmax(s), which the original computes, by autograd in double precision."""
    students = STUDENTS.double().requires_grad_()
    logs = (students / SETTINGS["student_temperature"]).log_softmax(dim=-1)
    (-(REFERENCE["dino_softmax"].double()[:, None] * logs).sum(dim=-1).mean(dim=-1).sum()).backward()
    ours = STUDENTS.clone().requires_grad_()
    cross_entropies(ours, REFERENCE["dino_softmax"], SETTINGS["student_temperature"]).sum().backward()
    torch.testing.assert_close(ours.grad, students.grad.float(), rtol=1e-5, atol=1e-5)


def test_sinkhorn_knopp():
    check(sinkhorn_knopp(INPUTS["teacher_0"], SETTINGS["temperature"]), "dino_sinkhorn")
    check(sinkhorn_knopp(INPUTS["patch_teacher"][MASKS], SETTINGS["temperature"]), "ibot_sinkhorn")


def test_sinkhorn_knopp_does_not_overflow():
    targets = sinkhorn_knopp(8 * INPUTS["teacher_0"], SETTINGS["temperature"])
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))
    assert sinkhorn_knopp(torch.zeros(0, 5), 0.1).shape == (0, 5)


def test_ibot():
    loss = IBOTLoss(SETTINGS["prototypes"], center_momentum=SETTINGS["center_momentum"])
    loss.targets(INPUTS["patch_teacher"].flatten(0, 1), SETTINGS["temperature"])
    loss.update_center()
    check(loss.center, "ibot_center")
    teacher, student = (INPUTS[f"patch_{name}"][MASKS] for name in ("teacher", "student"))
    check(loss.eval().targets(teacher, SETTINGS["temperature"]), "ibot_softmax", MASKS)
    value = loss(student, teacher, MASKS, teacher_temperature=SETTINGS["temperature"])
    check(value, "ibot_masked_loss")
    check(value, "ibot_loss")  # the original's form over all patches


def test_ibot_where_nothing_is_masked():
    loss = IBOTLoss(4).train()
    nothing = torch.zeros(0, 4, requires_grad=True)
    value = loss(nothing, nothing, torch.zeros(2, 9, dtype=torch.bool), teacher_temperature=0.1)
    value.backward()
    loss.update_center()
    assert value.item() == 0
    assert torch.equal(loss.center, torch.zeros(1, 4))


def test_koleo():
    features = INPUTS["features"].clone().requires_grad_()
    value = koleo_loss(features)
    check(value, "koleo")
    value.backward()
    check(features.grad, "koleo_grad")
    assert koleo_loss(features[:1]).item() == 0


def test_gram():
    output = INPUTS["gram_output"].clone().requires_grad_()
    value = gram_loss(output, INPUTS["gram_target"])
    check(value, "gram")
    value.backward()
    check(output.grad, "gram_grad")


@pytest.mark.parametrize("name", ["cross entropies", "ibot", "koleo", "gram", "sinkhorn"])
def test_losses_are_in_float32_under_autocast(name):
    def compute():
        patches = INPUTS["gram_output"], INPUTS["gram_target"]
        return {
            "cross entropies": lambda: cross_entropies(STUDENTS, REFERENCE["dino_softmax"], 0.1),
            "ibot": lambda: masked_cross_entropy(STUDENTS[0], REFERENCE["dino_softmax"][0], torch.ones(6), 0.1),
            "koleo": lambda: koleo_loss(INPUTS["features"]),
            "gram": lambda: gram_loss(*patches),
            "sinkhorn": lambda: sinkhorn_knopp(INPUTS["teacher_0"], 0.07),
        }[name]()

    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = compute()
    assert torch.equal(under_autocast, compute())


def in_each_process(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    features = INPUTS["features"].chunk(2)[rank].clone().requires_grad_()
    value = koleo_loss(features)
    value.backward()
    targets = sinkhorn_knopp(INPUTS["teacher_0"].chunk(2)[rank], SETTINGS["temperature"])
    torch.save({"koleo": value.detach(), "grad": features.grad, "targets": targets}, folder / f"{rank}.pth")
    torch.distributed.destroy_process_group()


def test_two_processes_see_the_joined_batch(tmp_path):
    forked.run_two(__file__, "in_each_process", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2))
    check(first["koleo"], "koleo")
    check(torch.cat((first["grad"], second["grad"])) / 2, "koleo_grad")  # both processes' losses; their mean is taken
    check(torch.cat((first["targets"], second["targets"])), "dino_sinkhorn")
