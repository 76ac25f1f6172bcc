"""Student, teacher and head of DINO: against torch's weight norm, the model's own outputs, and what each parameter receives."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from small_models import (
    CONFIGS,
    every_config,
    gradients,
    make_config,
    make_images,
    make_model,
    parameters_without_gradient,
    randomize,
)
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.pretraining.methods.dino import DINOHead, DINOLoss, DINOModel, DINONetwork, WeightNormLinear
from vitrail.utils.compat import CHECKPOINTING

K = 24  # prototypes


def pooled_size(config):
    return config.representation_size or config.hidden_size * (2 if config.pooling == "cls+avg" else 1)


def make_head(in_features, **options):
    torch.manual_seed(1)
    return randomize(DINOHead(in_features, K, hidden_size=20, bottleneck_size=10, **options))


def make_dino(name="offset", *, drop_path_rate=0.0, **options):
    backbone = make_model(ViTModel, name)
    return DINOModel(backbone, make_head(pooled_size(backbone.config), **options), DINOLoss(K), drop_path_rate=drop_path_rate)


def make_crops(config, batch_size=3, num_local_crops=2):
    """Crops of the config's size, and of two patches less each way."""
    small = [max(length - 2, 1) for length in config.patch_grid]
    global_crops = torch.stack([make_images(config, batch_size, seed=view) for view in range(2)], dim=1)
    local_crops = torch.stack([make_images(config, batch_size, small, seed=10 + view) for view in range(num_local_crops)], dim=1)
    return {"pixel_values": global_crops, "local_pixel_values": local_crops}


# --------------------------------------------------------------------------------------------------------------------- head


@pytest.mark.parametrize("normalized", [True, False])
def test_a_layer_with_weight_norm_is_that_of_torch(normalized):
    torch.manual_seed(0)
    layer = WeightNormLinear(10, K, normalized=normalized)
    with torch.no_grad():
        layer.weight_g.mul_(torch.rand(K, 1) + 0.5)
        layer.weight_v.mul_(torch.rand(K, 1) + 0.5)
    theirs = weight_norm(nn.Linear(10, K, bias=False))
    weight = theirs.parametrizations.weight
    weight.original0.data, weight.original1.data = layer.weight_g.detach().clone(), layer.weight_v.detach().clone()
    features = torch.randn(5, 10, requires_grad=True)
    copied = features.detach().clone().requires_grad_()
    torch.testing.assert_close(layer(features), theirs(copied))
    layer(features).square().sum().backward()
    theirs(copied).square().sum().backward()
    torch.testing.assert_close(features.grad, copied.grad)
    torch.testing.assert_close(layer.weight_v.grad, weight.original1.grad)
    if normalized:
        assert layer.weight_g.grad is None
    else:
        torch.testing.assert_close(layer.weight_g.grad, weight.original0.grad)


def test_a_new_layer_begins_as_in_the_original():
    """Rows at length 1, in directions of a new nn.Linear."""
    torch.manual_seed(0)
    layer = WeightNormLinear(10, K, normalized=True)
    torch.manual_seed(0)
    assert torch.equal(layer.weight_v, nn.Linear(10, K, bias=False).weight)
    assert torch.equal(layer.weight_g, torch.ones(K, 1))
    torch.testing.assert_close(layer(torch.eye(10)).norm(dim=0), torch.ones(K))


def test_a_head_is_that_of_the_original():
    """facebookresearch/dino, vision_transformer.py: an MLP, normalize, and a layer with weight norm."""
    head = make_head(32, normalize_last_layer=False)
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    assert [(linear.in_features, linear.out_features) for linear in linears] == [(32, 20), (20, 20), (20, 10)]
    features = torch.randn(5, 32)
    hidden = features
    for number, linear in enumerate(linears):
        hidden = hidden @ linear.weight.T + linear.bias
        if number < 2:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    hidden = hidden / hidden.norm(dim=-1, keepdim=True)
    prototypes = head.last_layer.weight_v / head.last_layer.weight_v.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), hidden @ (head.last_layer.weight_g * prototypes).T)


def test_a_new_head_begins_as_in_the_original():
    torch.manual_seed(0)
    head = DINOHead(384)
    assert (head.mlp[0].out_features, head.mlp[4].out_features, len(head.last_layer.weight_g)) == (2048, 256, 65536)
    for linear in head.mlp[::2]:
        assert not linear.bias.any()
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert {name for name, parameter in head.named_parameters() if not parameter.requires_grad} == {"last_layer.weight_g"}


# ------------------------------------------------------------------------------------------------------------------ network


@every_config
def test_features_are_what_the_model_pools(name):
    model = make_model(ViTModel, name)
    network = DINONetwork(model, make_head(pooled_size(model.config)))
    for grid in (None, [length + 1 for length in model.config.patch_grid]):
        pixel_values = make_images(model.config, grid=grid)
        with torch.no_grad():
            torch.testing.assert_close(network.features(pixel_values), model(pixel_values).pooler_output, rtol=1e-5, atol=1e-5)


def test_features_of_a_class_token_that_is_normed_after_pooling():
    model = make_model(ViTModel, "absolute", norm_before_pooling=False)
    pixel_values = make_images(model.config)
    with torch.no_grad():
        features = DINONetwork(model, make_head(32)).features(pixel_values)
        torch.testing.assert_close(features, model(pixel_values).pooler_output)


@every_config
def test_one_pass_is_each_crop_by_itself(name):
    model = make_dino(name)
    crops = make_crops(model.student.backbone.config)
    views = [view for crops in crops.values() for view in crops.unbind(dim=1)]
    sizes = [crops.transpose(0, 1).flatten(0, 1) for crops in crops.values()]
    with torch.no_grad():
        together = model.student.eval()(*sizes)
        apart = [model.student.head(model.student.backbone(view).pooler_output) for view in views]
    assert together.shape == (3 * 4, K)
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- student and teacher


@every_config
def test_every_parameter_of_the_student_learns_and_none_of_the_teacher(name):
    model = make_dino(name, normalize_last_layer=False)
    config = model.student.backbone.config
    model(**make_crops(config))["loss"].backward()
    assert parameters_without_gradient(model.student) == unused(config)
    assert not gradients(model.teacher)
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    frozen = {name for name, parameter in model.student.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"backbone.embeddings.mask_token"} if config.use_mask_token else set())


def unused(config):
    """Mask tokens take part where images are masked, a norm of patches alone where patches are read; nothing else is to be left out."""
    norm = {f"backbone.layernorm.{kind}" for kind in ("weight", "bias")} if config.separate_cls_norm else set()
    return norm | ({"backbone.embeddings.mask_token"} if config.use_mask_token else set())


def test_prototypes_of_length_1_do_not_change_it():
    model = make_dino()
    model(**make_crops(model.student.backbone.config))["loss"].backward()
    assert parameters_without_gradient(model.student) == {"head.last_layer.weight_g"}


def test_the_loss_is_of_the_outputs_of_both():
    """The views of a batch arrive at the loss view after view."""
    model = make_dino().eval()
    crops = make_crops(model.student.backbone.config)
    model.teacher_temperature = 0.07
    model.loss.center += torch.linspace(-0.1, 0.1, K)
    randomize(model.student.head, seed=3)
    with torch.no_grad():
        found = model(**crops)
        views = [*crops["pixel_values"].unbind(1), *crops["local_pixel_values"].unbind(1)]
        outputs = [model.student.head(model.student.backbone(view).pooler_output) for view in views]
        targets = [model.teacher.head(model.teacher.backbone(view).pooler_output) for view in views[:2]]
        targets = [torch.softmax((target - model.loss.center) / 0.07, dim=-1) for target in targets]
        losses = [
            nn.functional.cross_entropy(output / 0.1, target)
            for seen, target in enumerate(targets)
            for view, output in enumerate(outputs)
            if view != seen
        ]
    assert len(losses) == 6
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert found.keys() == {"loss", "target_entropy", "mean_target_entropy", "center_norm"}


def test_local_crops_are_not_needed():
    model = make_dino()
    crops = make_crops(model.student.backbone.config)
    both = model(pixel_values=crops["pixel_values"])["loss"]
    assert both.requires_grad
    assert both != model(**crops)["loss"]


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (3, 1, 3, 16, 16), (3, 3, 3, 16, 16)])
def test_other_than_two_global_crops_are_refused(shape):
    with pytest.raises(ValueError, match=r"two global crops per image, \(batch, 2, channels"):
        make_dino()(torch.zeros(shape))


def test_both_begin_as_the_backbone_which_stays_as_it_is():
    backbone = make_model(ViTModel, "offset", drop_path_rate=0.3).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    model = DINOModel(backbone, make_head(32), DINOLoss(K), drop_path_rate=0.2)
    for network in (model.student, model.teacher):
        for name, tensor in network.backbone.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, before[name].float()), name
    assert model.student.backbone.config.drop_path_rate == 0.2
    assert model.teacher.backbone.config.drop_path_rate == 0.0
    assert torch.equal(model.teacher.head.last_layer.weight_v, model.student.head.last_layer.weight_v)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter += 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert torch.equal(model.teacher.backbone.layernorm.bias, before["layernorm.bias"].float())
    assert backbone.config.drop_path_rate == 0.3


def test_the_teacher_stays_in_evaluation():
    """Stochastic depth changes the student's outputs, not the teacher's."""
    model = make_dino(drop_path_rate=0.5).train()
    assert all(module.training for module in model.student.modules())
    assert not any(module.training for module in model.teacher.modules())
    assert model.loss.training
    images = make_images(model.student.backbone.config)
    with torch.no_grad():
        assert torch.equal(model.teacher(images), model.teacher(images))
        assert not torch.equal(model.student(images), model.student(images))
        model.eval()
        assert torch.equal(model.student(images), model.student(images))
    assert model.train().loss.training


def test_activation_checkpointing_gives_the_same_gradients():
    model = make_dino(normalize_last_layer=False)
    crops = make_crops(model.student.backbone.config)
    found = []
    for _ in range(2):
        model.zero_grad()
        model(**crops)["loss"].backward()
        found.append(gradients(model))
        getattr(model, f"{CHECKPOINTING}_enable")()
    assert getattr(model.student.backbone, f"is_{CHECKPOINTING}")
    assert not getattr(model.teacher.backbone, f"is_{CHECKPOINTING}")
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


# ------------------------------------------------------------------------------------------------------ the teacher's updates


def test_the_teacher_is_a_moving_average_of_the_student():
    model = make_dino(normalize_last_layer=False)
    randomize(model.student, seed=5)
    expected = {name: tensor.double() for name, tensor in model.teacher.state_dict().items()}
    for momentum in (0.9, 0.996, 1.0):
        model.update_teacher(momentum)
        for name, tensor in model.student.state_dict().items():
            expected[name] = momentum * expected[name] + (1 - momentum) * tensor.double()
    assert expected.keys() == model.teacher.state_dict().keys()
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    model.update_teacher(0.0)
    for name, tensor in model.student.state_dict().items():
        torch.testing.assert_close(model.teacher.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("grid", ["its own", "another"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_teacher_keeps_for_a_size_is_made_again(name, grid):
    """Interpolated positions, and biases of relative ones, are kept in evaluation as long as parameters stay."""
    model = make_dino(name).train()
    config = model.student.backbone.config
    crops = make_crops(config)
    size = None if grid == "its own" else [length + 1 for length in config.patch_grid]
    images = make_images(config, grid=size)
    randomize(model.student, seed=5)
    with torch.no_grad():
        outputs = [model.teacher(images)]
        for _ in range(2):
            model(**crops)
            model.update_teacher(0.5)
            outputs.append(model.teacher(images))
            fresh = DINONetwork(ViTModel(make_config(name)), copy.deepcopy(model.teacher.head)).eval()
            fresh.load_state_dict(model.teacher.state_dict())
            torch.testing.assert_close(outputs[-1], fresh(images), rtol=1e-5, atol=1e-6)
    assert not any(torch.allclose(before, after, atol=1e-3) for before, after in itertools.pairwise(outputs))
