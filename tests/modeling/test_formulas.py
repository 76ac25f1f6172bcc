"""The whole forward pass against its formulas, for a list of small models."""

import dataclasses
import itertools
import math
import typing

import pytest
import torch

from small_models import CONFIGS, TINY, VARIANT, every_config, make_config, make_images, make_model, run
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel


def test_the_list_covers_every_field_and_every_choice():
    elsewhere = {"apply_layernorm", "reshape_hidden_states", "return_register_tokens"}  # test_backbone_*, test_frameworks
    elsewhere |= {"initializer_range"}  # test_fresh_weights
    elsewhere |= {"hidden_dropout_prob", "attention_probs_dropout_prob"}  # test_dropout_*
    elsewhere |= {"drop_path_rate", "drop_path_schedule", "drop_path_mode"}  # test_drop_path_*
    elsewhere |= {"rope_theta", "rope_shift", "rope_jitter", "rope_rescale"}  # test_positions
    for field in dataclasses.fields(ViTConfig):
        if field.name.startswith(("dense_", "depth_", "segmentation_", "semantic_")):  # test_dense
            continue
        if field.name not in ViTConfig.__annotations__ or field.name.startswith("_") or field.name in elsewhere:
            continue
        values = {getattr(make_config(name), field.name) for name in CONFIGS}
        assert len(values) > 1 or field.name in TINY | VARIANT, field.name
        annotation = ViTConfig.__annotations__[field.name]
        if typing.get_origin(annotation) is typing.Literal:
            assert values == set(typing.get_args(annotation)), field.name


def layer_norm(tokens, weights, name, eps):
    centered = tokens - tokens.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(tokens, weights, name):
    bias = weights.get(f"{name}.bias")
    return tokens @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def relative_bias(config, weights, name):
    """Compute the bias of each pair of patches separately."""
    height, width = config.patch_grid
    prefix, num_patches = config.num_prefix_tokens, height * width
    num_tokens = prefix + num_patches
    bias = torch.zeros(config.num_attention_heads, num_tokens, num_tokens, dtype=torch.float64)
    for query, key in itertools.product(range(num_patches), repeat=2):
        rows, columns = query // width - key // width, query % width - key % width
        if config.position_embedding_type == "relative_table":
            value = weights[f"{name}.table"][(rows + height - 1) * (2 * width - 1) + columns + width - 1]
        else:
            offset = torch.tensor([math.copysign(math.log(1 + abs(x)), x) for x in (rows, columns)], dtype=torch.float64)
            value = linear(linear(offset, weights, f"{name}.fc1").clamp(min=0), weights, f"{name}.fc2")
        bias[:, prefix + query, prefix + key] = value
    if prefix and config.position_embedding_type == "relative_table":
        to_patch, to_cls, itself = weights[f"{name}.table"][-3:]
        bias[:, 0, 1:], bias[:, 1:, 0], bias[:, 0, 0] = to_patch[:, None], to_cls[:, None], itself
    return bias


def turn(head, config, periods):
    """Turn a head's queries or keys, one patch and one pair of features at a time."""
    turned, (height, width), quarter = head.clone(), config.patch_grid, len(periods)
    for row, column, feature in itertools.product(range(height), range(width), range(2 * quarter)):
        coordinate = (2 * row + 1) / height - 1 if feature < quarter else (2 * column + 1) / width - 1
        angle = 2 * math.pi * coordinate / periods[feature % quarter].item()
        token = config.num_prefix_tokens + row * width + column
        first, second = head[:, token, feature], head[:, token, feature + 2 * quarter]
        turned[:, token, feature] = first * math.cos(angle) - second * math.sin(angle)
        turned[:, token, feature + 2 * quarter] = second * math.cos(angle) + first * math.sin(angle)
    return turned


def attention(tokens, config, weights, name, bias):
    size = config.hidden_size // config.num_attention_heads
    qkv = linear(tokens, weights, f"{name}.qkv")
    heads = []
    for head in range(config.num_attention_heads):
        start = head * size
        query, key, value = (
            qkv[..., part * config.hidden_size + start : part * config.hidden_size + start + size] for part in range(3)
        )
        if config.position_embedding_type == "rotary":
            query, key = (turn(states, config, weights["rotary_position.periods"]) for states in (query, key))
        scores = query @ key.transpose(1, 2) / math.sqrt(size)
        if bias is not None:
            scores = scores + bias[head]
        scores = scores.exp()
        heads.append(scores / scores.sum(-1, keepdim=True) @ value)
    return linear(torch.cat(heads, dim=-1), weights, f"{name}.proj")


def feed_forward(tokens, config, weights, name):
    if config.mlp_type != "mlp":
        hidden = linear(tokens, weights, f"{name}.gate_up_proj")
        gate, up = hidden[..., : config.intermediate_size], hidden[..., config.intermediate_size :]
        share = 1 / (1 + (-gate).exp()) if config.mlp_type == "swiglu" else (1 + torch.erf(gate / math.sqrt(2))) / 2
        return linear(gate * share * up, weights, f"{name}.down_proj")
    hidden = linear(tokens, weights, f"{name}.fc1")
    if config.hidden_act == "gelu":
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    else:
        hidden = hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))) / 2
    return linear(hidden, weights, f"{name}.fc2")


def formulas(config, weights, images):
    """The forward pass at the config's own size, written down a second time: hidden states, tokens, pooled vector and logits."""
    eps, (height, width), (patch_height, patch_width) = config.layer_norm_eps, config.patch_grid, config.patch_shape
    patches = [
        images[:, :, row : row + patch_height, column : column + patch_width].flatten(1)
        for row in range(0, height * patch_height, patch_height)
        for column in range(0, width * patch_width, patch_width)
    ]
    projection = weights["embeddings.patch_embeddings.projection.weight"].flatten(1)
    patches = torch.stack(patches, dim=1) @ projection.T + weights["embeddings.patch_embeddings.projection.bias"]
    prefix = torch.zeros(len(images), 0, config.hidden_size, dtype=images.dtype)
    if config.use_cls_token:
        prefix = weights["embeddings.cls_token"].expand(len(images), -1, -1)
    if config.position_embedding_type == "absolute":
        positions = weights["embeddings.position_embeddings"]
        if config.use_cls_token and config.use_cls_position:
            prefix, positions = prefix + positions[:, :1], positions[:, 1:]
        patches = patches + positions
    if config.num_register_tokens:
        prefix = torch.cat([prefix, weights["embeddings.register_tokens"].expand(len(images), -1, -1)], dim=1)
    tokens = torch.cat([prefix, patches], dim=1)
    hidden_states, bias = [tokens], None
    for index in range(config.num_hidden_layers):
        name = f"layers.{index}"
        if config.position_embedding_type.startswith("relative"):
            owner = "" if config.share_relative_position else f"{name}.attention."
            bias = relative_bias(config, weights, f"{owner}relative_position")
        for part in (1, 2):
            branch = tokens
            if config.norm_position == "pre":
                branch = layer_norm(branch, weights, f"{name}.norm{part}", eps)
            if part == 1:
                branch = attention(branch, config, weights, f"{name}.attention", bias)
            else:
                branch = feed_forward(branch, config, weights, f"{name}.mlp")
            if config.norm_position == "residual_post":
                branch = layer_norm(branch, weights, f"{name}.norm{part}", eps)
            tokens = tokens + branch * weights.get(f"{name}.layer_scale{part}", 1)
        hidden_states.append(tokens)
    normed = [layer_norm(hidden, weights, "layernorm", eps) for hidden in hidden_states]
    if config.separate_cls_norm:
        for hidden, both in zip(hidden_states, normed, strict=True):
            both[:, : prefix.shape[1]] = layer_norm(hidden[:, : prefix.shape[1]], weights, "cls_layernorm", eps)
    tokens = normed[-1] if config.norm_before_pooling else tokens
    mean_patch = tokens[:, config.num_prefix_tokens :].sum(1) / (height * width)
    pooled = {"cls": tokens[:, 0], "avg": mean_patch, "cls+avg": torch.cat([tokens[:, 0], mean_patch], dim=1)}[config.pooling]
    if not config.norm_before_pooling:
        pooled = layer_norm(pooled, weights, "layernorm", eps)
    if config.representation_size:
        pooled = linear(pooled, weights, "representation").tanh()
    if config.classifier_cls_layers > 1 or config.classifier_mean_patch:
        features = [hidden[:, 0] for hidden in normed[-config.classifier_cls_layers :]]
        features = torch.cat(features + [mean_patch] * config.classifier_mean_patch, dim=1)
    else:
        features = pooled
    return hidden_states, tokens, pooled, linear(features, weights, "classifier")


@every_config
@torch.no_grad()
def test_equals_the_formulas(name):
    model = make_model(ViTForImageClassification, name).double()
    images = make_images(model.config).double()
    weights = {key.removeprefix("vit."): value for key, value in model.state_dict().items()}
    hidden_states, tokens, pooled, logits = formulas(model.config, weights, images)
    output = model.vit(images, output_hidden_states=True)
    close = {"atol": 1e-6, "rtol": 1e-6}
    torch.testing.assert_close(list(output.hidden_states), hidden_states, **close)
    torch.testing.assert_close(output.last_hidden_state, tokens, **close)
    torch.testing.assert_close(output.pooler_output, pooled, **close)
    torch.testing.assert_close(model(images).logits, logits, **close)


@torch.no_grad()
def test_no_operation_changes_what_a_hook_holds():
    for name in CONFIGS:
        model = make_model(ViTForImageClassification, name)
        held = []

        def hold(module, arguments, output):
            tensors = [tensor for tensor in (*arguments, output) if isinstance(tensor, torch.Tensor)]
            held.extend((tensor, tensor.clone()) for tensor in tensors)  # noqa: B023

        for module in model.modules():
            module.register_forward_hook(hold)
        model(make_images(model.config))
        model.vit.attention_maps(make_images(model.config))
        assert len(held) > 40
        for tensor, before in held:
            assert torch.equal(tensor, before), name


@torch.no_grad()
@pytest.mark.parametrize("observe", ["output of fc1", "input of the activation", "activation", "every module", "wrapped fc1"])
def test_gelu_overwrites_nothing_that_is_observed(observe):
    """Each way of observing alone: GELU runs in place only where nothing else can hold its input."""
    model = make_model(ViTModel, "absolute")
    mlp, held = model.layers[0].mlp, []

    def hold(tensor):
        held.append((tensor, tensor.clone()))

    if observe == "output of fc1":
        mlp.fc1.register_forward_hook(lambda module, arguments, output: hold(output))
    elif observe == "input of the activation":
        mlp.activation.register_forward_pre_hook(lambda module, arguments: hold(arguments[0]))
    elif observe == "activation":
        mlp.activation.register_forward_hook(lambda module, arguments, output: hold(arguments[0]))
    elif observe == "every module":
        remove = torch.nn.modules.module.register_module_forward_hook(
            lambda module, arguments, output: hold(output) if module is mlp.fc1 else None
        )
    else:
        forward = mlp.fc1.forward

        def wrapped(hidden_states):
            hold(forward(hidden_states))
            return held[-1][0]

        mlp.fc1.forward = wrapped
    model(make_images(model.config))
    if observe == "every module":
        remove.remove()
    ((tensor, before),) = held
    assert torch.equal(tensor, before)


@torch.no_grad()
def test_gelu_in_place_gives_the_same_numbers():
    for name in ("absolute", "google"):
        model = make_model(ViTModel, name)
        images = make_images(model.config)
        in_place = model(images).last_hidden_state
        for layer in model.layers:
            layer.mlp.fc1.register_forward_hook(lambda module, arguments, output: None)
        assert torch.equal(model(images).last_hidden_state, in_place)


def test_another_activation_is_used_with_and_without_gradients():
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    plain = run(model, images)
    model.layers[0].mlp.activation = torch.nn.ReLU()
    model.layers[1].mlp.activation.forward = torch.sin
    assert not torch.allclose(run(model, images), plain)
    torch.testing.assert_close(run(model, images), model(images).last_hidden_state)


@pytest.mark.filterwarnings("ignore")  # tracing reads every attribute, and makes constants of shapes
def test_torch_jit_trace_with_and_without_gradients():
    """torch checks a trace without gradients, so that no operation may depend on them."""
    for name in ("absolute", "relative_mlp"):
        model = make_model(ViTModel, name, return_dict=False)
        images = make_images(model.config)
        traced = torch.jit.trace(model, images, check_trace=True)
        torch.testing.assert_close(traced(images), model(images))


def test_what_a_caller_keeps_is_not_changed_in_place():
    for name in CONFIGS:
        model = make_model(ViTForImageClassification, name)
        images = make_images(model.config)
        with_gradients = model.vit(images, output_hidden_states=True).hidden_states
        with torch.no_grad():
            without = model.vit(images, output_hidden_states=True).hidden_states
        for one, other in zip(with_gradients, without, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
