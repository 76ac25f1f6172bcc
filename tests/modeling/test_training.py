"""Gradients, checkpointing, dropout, stochastic depth, losses."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainingArguments

from small_models import (
    every_config,
    gradients,
    make_config,
    make_images,
    make_mask,
    make_model,
    parameters_without_gradient,
    randomize,
    run,
)
from vitrail.modeling.modeling_vit import (
    ViTBackbone,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTLayer,
    ViTModel,
    drop_path,
)
from vitrail.utils.compat import CHECKPOINTING

# -------------------------------------------------------------------------------------------------------------- training


@every_config
def test_the_gradient_reaches_every_parameter(name):
    config = make_config(name)
    images, mask = make_images(config), make_mask(config)

    model = make_model(ViTForImageClassification, name).train()
    model(images, labels=torch.tensor([0, 1])).loss.backward()
    assert parameters_without_gradient(model) == ({"vit.embeddings.mask_token"} if config.use_mask_token else set())

    model = make_model(ViTModel, name, use_mask_token=True).train()
    output = model(images, mask)
    (output.last_hidden_state.square().sum() + output.pooler_output.square().sum()).backward()
    assert parameters_without_gradient(model) == set()

    pooling_only = {key for key, _ in model.named_parameters() if key.startswith("representation")}
    if not config.norm_before_pooling:
        pooling_only |= {"layernorm.weight", "layernorm.bias"}
    if config.separate_cls_norm:  # decoder and maps read patches alone
        pooling_only |= {"cls_layernorm.weight", "cls_layernorm.bias"}

    model = make_model(ViTForMaskedImageModeling, name).train()
    model(images, mask).loss.backward()
    assert parameters_without_gradient(model) == {f"vit.{key}" for key in pooling_only}

    model = make_model(ViTBackbone, name, use_mask_token=False).train()
    model(images).feature_maps[0].square().sum().backward()
    unread_by_maps = {f"vit.{key}" for key in pooling_only}
    assert parameters_without_gradient(model) == unread_by_maps


@every_config
def test_the_gradient_reaches_positions_through_interpolation(name):
    model = make_model(ViTModel, name).train()
    model(make_images(model.config, grid=(5, 7))).last_hidden_state.square().sum().backward()
    positions = {
        key: parameter for key, parameter in model.named_parameters() if "position_embeddings" in key or "relative_position" in key
    }
    assert positions or model.config.position_embedding_type == "rotary"  # which has no parameters
    assert not parameters_without_gradient(model) & positions.keys()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["registers", "relative_table", "relative_table_shared", "relative_mlp", "rotary"])
def test_gradient_checkpointing_gives_the_same_gradients(name, use_reentrant):
    model = make_model(ViTForImageClassification, name, drop_path_rate=0.3, hidden_dropout_prob=0.1).train()
    images, labels = make_images(model.config), torch.tensor([0, 1])
    runs = []
    for layer in model.vit.layers:
        layer.mlp.register_forward_hook(lambda *_: runs.append(1))

    def backward():
        model.zero_grad()
        torch.manual_seed(0)
        loss = model(images, labels=labels).loss
        loss.backward()
        return loss.detach(), gradients(model)

    expected = backward()
    assert len(runs) == 3
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": use_reentrant})
    torch.testing.assert_close(backward(), expected)
    assert len(runs) == 3 + 6  # each block once more in the backward pass
    getattr(model, f"{CHECKPOINTING}_disable")()
    torch.testing.assert_close(backward(), expected)
    assert len(runs) == 3 + 6 + 3


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # of the frozen blocks, rightly
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["absolute", "relative_table"])
def test_gradient_checkpointing_behind_frozen_blocks(name, use_reentrant):
    model = make_model(ViTForImageClassification, name).train()
    model.vit.embeddings.requires_grad_(False)
    model.vit.layers[0].requires_grad_(False)
    images, labels = make_images(model.config), torch.tensor([0, 1])
    model(images, labels=labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": use_reentrant})
    model(images, labels=labels).loss.backward()
    assert any(name.startswith("vit.layers.1") for name in expected)
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_mlp"])
def test_hidden_states_and_attentions_keep_their_gradients(name):
    model = make_model(ViTModel, name).train()
    output = model(make_images(model.config), output_hidden_states=True, output_attentions=True)
    for kept in (*output.hidden_states, *output.attentions):
        kept.retain_grad()
    output.pooler_output.sum().backward()
    assert all(hidden_states.grad is not None for hidden_states in output.hidden_states)
    assert all(weights.grad is not None for weights in output.attentions)


@every_config
def test_evaluation_is_deterministic_and_training_mode_alone_changes_nothing(name):
    """Without dropout and drop path, the relative MLP's own dropout is the only randomness."""
    model = make_model(ViTModel, name)
    images = make_images(model.config)
    expected = run(model, images)
    assert torch.equal(run(model, images), expected)
    trained = run(model.train(), images)
    if model.config.position_embedding_type == "relative_mlp":
        assert not torch.allclose(trained, expected)
    else:
        torch.testing.assert_close(trained, expected)


@pytest.mark.parametrize("name", ["absolute", "registers", "swiglu", "residual_post"])
@torch.no_grad()
def test_dropout_of_everything_leaves_only_biases(name):
    model = make_model(ViTModel, name, hidden_dropout_prob=1.0)
    images = make_images(model.config)
    expected = run(make_model(ViTModel, name), images)
    assert torch.equal(run(model, images), expected)  # not in evaluation
    output = model.train()(images, output_hidden_states=True)
    assert not output.hidden_states[0].any()
    if model.config.norm_position == "pre":
        assert not output.hidden_states[-1].any()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_dropout_acts_in_training_only(implementation):
    model = make_model(ViTModel, "absolute", attention_probs_dropout_prob=0.5)
    model.set_attn_implementation(implementation)
    images = make_images(model.config)
    expected = run(make_model(ViTModel, "absolute"), images)
    torch.testing.assert_close(run(model, images), expected, atol=1e-4, rtol=1e-4)
    model.train()
    assert not torch.allclose(run(model, images), expected, atol=1e-2)
    assert not torch.equal(run(model, images), run(model, images))


def test_drop_path_rates_grow_linearly():
    model = ViTModel(make_config("absolute", num_hidden_layers=5, drop_path_rate=0.4))
    assert [layer.drop_path_rate for layer in model.layers] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [layer.drop_path_rate for layer in ViTModel(make_config("absolute")).layers] == [0.0, 0.0, 0.0]
    assert len(ViTModel(make_config("absolute", num_hidden_layers=1, drop_path_rate=0.4)).layers) == 1


def test_drop_path_schedule_may_be_constant():
    model = ViTModel(make_config("absolute", num_hidden_layers=3, drop_path_rate=0.4, drop_path_schedule="constant"))
    assert [layer.drop_path_rate for layer in model.layers] == [0.4, 0.4, 0.4]


@pytest.mark.parametrize("name", ["absolute", "residual_post", "registers"])
@torch.no_grad()
def test_drop_path_of_a_batch_leaves_out_a_fixed_number_of_images(name):
    """DINOv2's block.py: int(B * (1 - rate)) images get B / that number times their branch, and the others nothing."""
    config = make_config(name, drop_path_mode="batch")
    layer = randomize(ViTLayer(config, drop_path_rate=0.3)).train()
    whole = copy.deepcopy(layer).eval()
    tokens, grid = torch.randn(5, config.num_prefix_tokens + 4, config.hidden_size), (2, 2)
    norms, scales = (whole.norm1, whole.norm2), (whole.layer_scale1, whole.layer_scale2)
    expected = tokens.clone()
    torch.manual_seed(3)
    for branch, norm, scale in zip(
        (lambda x: whole.attention(x, None, None, grid, False)[0], whole.mlp), norms, scales, strict=True
    ):
        residual = branch(norm(expected)) if whole.pre_norm else norm(branch(expected))
        kept = torch.zeros(5, 1, 1)
        kept[torch.randperm(5)[:3]] = 5 / 3
        expected = expected + kept * residual * (1 if scale is None else scale)
    torch.manual_seed(3)
    output, _ = layer(tokens, None, None, grid, False)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    _, weights = layer(tokens, None, None, grid, True)
    assert len(weights) == 5  # where weights are asked for, all branches are computed


def test_drop_path_is_the_identity_in_evaluation():
    tokens = torch.randn(4, 5, 6)
    assert drop_path(tokens, 0.0) is tokens
    model, plain = make_model(ViTModel, "absolute", drop_path_rate=0.9), make_model(ViTModel, "absolute")
    images = make_images(model.config)
    assert torch.equal(run(model, images), run(plain, images))


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    torch.manual_seed(0)
    kept = drop_path(torch.ones(20_000, 3, 2), 0.3)
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    values, counts = kept[:, 0, 0].unique(return_counts=True)
    assert values.tolist() == pytest.approx([0.0, 1 / 0.7])
    assert counts[0].item() / 20_000 == pytest.approx(0.3, abs=0.015)  # 4.6 standard deviations
    assert kept.mean().item() == pytest.approx(1.0, abs=0.022)


@pytest.mark.parametrize("name", ["absolute", "residual_post", "registers"])
@torch.no_grad()
def test_drop_path_acts_on_each_branch_of_a_block(name):
    """An image leaves a block, at rate 1/2, with either branch dropped or doubled: four ways, and all of them happen."""
    torch.manual_seed(0)
    layer = randomize(ViTLayer(make_config(name), drop_path_rate=0.5)).train()
    tokens = torch.randn(1, 7, 32).expand(64, -1, -1)

    def block(attention_factor, mlp_factor):
        twin = copy.deepcopy(layer)
        twin.drop_path_rate = 0.0
        twin.attention.register_forward_hook(lambda _, __, output: (output[0], None))
        hidden_states = tokens[:1]
        for factor, part in ((attention_factor, 1), (mlp_factor, 2)):
            norm, scale = getattr(twin, f"norm{part}"), getattr(twin, f"layer_scale{part}")
            branch = norm(hidden_states) if twin.pre_norm else hidden_states
            branch = twin.attention(branch, None, None, (1, 7), False)[0] if part == 1 else twin.mlp(branch)
            branch = branch if twin.pre_norm else norm(branch)
            hidden_states = hidden_states + factor * branch * (1 if scale is None else scale)
        return hidden_states[0]

    outputs, _ = layer(tokens, None, None, (1, 7), False)
    ways = [block(*factors) for factors in itertools.product((0, 2), repeat=2)]
    which = [[torch.allclose(output, way, atol=1e-4) for way in ways].index(True) for output in outputs]
    assert set(which) == {0, 1, 2, 3}


# ------------------------------------------------------------------------------------------------------------------ loss


def test_single_label_loss():
    model = make_model(ViTForImageClassification, "absolute")
    images, labels = make_images(model.config), torch.tensor([3, 1])
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_class_indices_of_any_integer_type(dtype):
    model = make_model(ViTForImageClassification, "absolute")
    images, labels = make_images(model.config), torch.tensor([3, 1])
    torch.testing.assert_close(model(images, labels=labels.to(dtype)).loss, model(images, labels=labels).loss)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_multi_label_loss(dtype, problem_type):
    model = make_model(ViTForImageClassification, "absolute", problem_type=problem_type)
    images, labels = make_images(model.config), torch.tensor([[0.0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])
    output = model(images, labels=labels.to(dtype))
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels))
    output.loss.backward()
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression_loss(num_labels):
    model = make_model(ViTForImageClassification, "absolute", num_labels=num_labels, problem_type="regression")
    images, labels = make_images(model.config), torch.randn(2, num_labels)
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits, labels))


@pytest.mark.parametrize("switch", ["output_hidden_states", "output_attentions"])
def test_evaluation_by_the_trainer_keeps_logits_alone(tmp_path, switch):
    model = make_model(ViTForImageClassification, "absolute", **{switch: True})
    data = [{"pixel_values": image, "labels": 1} for image in make_images(model.config)]
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert trainer.predict(data).predictions.shape == (2, 5)


@every_config
@torch.no_grad()
def test_no_classes_means_the_features_themselves(name):
    model = make_model(ViTForImageClassification, name, num_labels=0)
    assert isinstance(model.classifier, nn.Identity)
    images = make_images(model.config)
    logits = model(images).logits
    assert logits.shape == (2, model.config.classifier_input_size)
    outputs = model.vit(images, output_hidden_states=True)
    assert torch.equal(logits, model.classifier_input(outputs))
