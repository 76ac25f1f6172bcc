"""Frozen blocks and adapters: what is trained, what the teacher averages, what is written, and a run that resumes."""

import copy

import pytest
import torch
from transformers import TrainerCallback

import deterministic
from golden_training import HELD_OUT, UPDATES, golden_trainer
from small_models import make_images, make_model, run
from vitrail.errors import VitrailError
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.pretraining.methods.student_teacher import copy_backbone
from vitrail.pretraining.trained_parameters import add_adapters, freeze_blocks, merge_adapters
from vitrail.utils import optional

RANK = 3


class Adapters(TrainerCallback):
    """The student's adapters before the training and after each update, with the momentum of the update."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.states = [self.state()]
        self.momenta = []

    def state(self):
        return {
            name: tensor.clone() for name, tensor in self.trainer.model.student.backbone.state_dict().items() if ".lora_" in name
        }

    def on_step_end(self, args, state, control, **kwargs):
        self.states.append(self.state())
        self.momenta.append(self.trainer.teacher_momentum(state.global_step - 1))


def test_adapters_are_trained_averaged_and_merged(tmp_path):
    trainer = golden_trainer(tmp_path, lora_rank=RANK, frozen_blocks=1)
    student, teacher = (network.backbone for network in (trainer.model.student, trainer.model.teacher))
    before = copy.deepcopy(student.state_dict())
    adapters = Adapters(trainer)
    trainer.add_callback(adapters)
    trainer.train()

    names = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    layers = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    assert names == {f"layers.1.{layer}.lora_{matrix}.default.weight" for layer in layers for matrix in "AB"}
    assert adapters.states[0].keys() == names
    for name, tensor in student.state_dict().items():
        if name not in names:
            assert torch.equal(tensor, before[name]), name
            assert torch.equal(tensor, teacher.state_dict()[name]), name
    for name in names:
        assert not torch.equal(adapters.states[-1][name], adapters.states[0][name])
        average = adapters.states[0][name]
        for state, momentum in zip(adapters.states[1:], adapters.momenta, strict=True):
            average = momentum * average + (1 - momentum) * state[name]
        torch.testing.assert_close(teacher.state_dict()[name], average, rtol=0, atol=1e-6)
    assert len(adapters.momenta) == UPDATES

    merged = trainer.teacher
    assert type(merged.layers[1].mlp.fc1) is torch.nn.Linear
    expected = {name.replace(".base_layer", ""): tensor for name, tensor in before.items() if ".lora_" not in name}
    for layer in layers:
        low, high = (teacher.state_dict()[f"layers.1.{layer}.lora_{matrix}.default.weight"] for matrix in "AB")
        expected[f"layers.1.{layer}.weight"] = expected[f"layers.1.{layer}.weight"] + high @ low
    assert merged.state_dict().keys() == expected.keys()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-7)
    plain = ViTModel(merged.config)
    plain.load_state_dict(merged.state_dict())
    pixel_values = deterministic.pixel_values(HELD_OUT)
    with torch.no_grad():
        outputs = [model.eval()(pixel_values).last_hidden_state for model in (teacher, plain)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    assert hasattr(teacher, "peft_config"), "the teacher itself keeps its adapters"


def test_resumed_adapters_go_on_as_if_nothing_had_been(tmp_path):
    changes = {"lora_rank": RANK, "save_strategy": "steps", "save_steps": 3}
    first = golden_trainer(tmp_path, **changes)
    begun = Adapters(first).states[0]
    first.train()
    torch.rand(5)
    resumed = golden_trainer(tmp_path, **changes)
    for name, tensor in Adapters(resumed).states[0].items():
        assert torch.equal(tensor, begun[name]), "the seed decides where adapters begin"
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_frozen_blocks_stay(tmp_path):
    trainer = golden_trainer(tmp_path, frozen_blocks=1)
    before = copy.deepcopy(trainer.model.student.backbone.state_dict())
    trainer.train()
    for network in (trainer.model.student, trainer.model.teacher):
        moved = {name for name, tensor in network.backbone.state_dict().items() if not torch.equal(tensor, before[name])}
        assert moved == {name for name in before if not name.startswith(("embeddings.", "layers.0."))}
    with pytest.raises(VitrailError, match="frozen_blocks is 3, but the model has 2 blocks: lower it"):
        golden_trainer(tmp_path, frozen_blocks=3)


@pytest.mark.parametrize("name", ["swiglu", "relative_mlp_shared", "registers"])
def test_every_architecture_is_frozen_and_adapted(name):
    model = make_model(ViTModel, name)
    images = make_images(model.config)
    before = run(model, images)
    freeze_blocks(model, 1)
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        key for key, _ in model.named_parameters() if key.startswith(("embeddings.", "relative_position.", "layers.0."))
    }
    add_adapters(model, RANK)
    trained = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 4 * len(model.layers)
    assert not any("relative_position" in key for key in trained)
    with torch.no_grad():
        torch.testing.assert_close(run(model, images), before)
        for key, parameter in model.named_parameters():
            parameter.add_(0.1 * (".lora_" in key))
    adapted = run(model, images)
    assert not torch.allclose(adapted, before, atol=1e-3)
    torch.testing.assert_close(run(merge_adapters(model), images), adapted, rtol=1e-4, atol=1e-4)


def test_a_new_mask_token_is_trained():
    backbone = make_model(ViTModel, "absolute")
    for prepare in (lambda model: freeze_blocks(model, 1), lambda model: add_adapters(model, RANK)):
        model = copy_backbone(backbone, use_mask_token=True)
        prepare(model)
        assert model.embeddings.mask_token.requires_grad
        assert not model.embeddings.cls_token.requires_grad


def test_peft_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(VitrailError, match=r"not installed \(peft\): pip install peft$"):
        golden_trainer(tmp_path, lora_rank=RANK)
