"""What transformers' own common tests ask of a model, and the whole forward pass against its formulas, for a list of small models."""

import copy
import dataclasses
import inspect
import itertools
import math
import pickle
import typing

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.modeling import modeling_vit
from vitrail.modeling.modeling_vit import (
    ViTBackbone,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTLayer,
    ViTModel,
    ViTModelOutput,
    drop_path,
)

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": (16, 24),
    "patch_size": 4,
    "num_labels": 5,
}
ANTIALIAS = {"position_interpolation_antialias": True}
GOOGLE_POSITIONS = {"position_interpolation_mode": "bilinear", "position_interpolation_align_corners": True}
FC_NORM = {"pooling": "avg", "norm_before_pooling": False}
CONFIGS = {
    "absolute": {},
    "offset": {"image_size": 16, "position_interpolation_offset": 0.1, "layer_scale_init_value": 1e-5},
    "registers": {"image_size": 16, "num_register_tokens": 3, "use_mask_token": True, "layer_scale_init_value": 1.0, **ANTIALIAS},
    "google": {"hidden_act": "gelu_pytorch_tanh", "representation_size": 20, "layer_norm_eps": 1e-12, **GOOGLE_POSITIONS},
    "no_cls": {"use_cls_token": False, "num_register_tokens": 2, **FC_NORM},
    "no_cls_position": {"use_cls_position": False, "num_register_tokens": 1, "pooling": "cls+avg", "representation_size": 9},
    "swiglu": {"mlp_type": "swiglu", "qkv_bias": False, "intermediate_size": 24, "use_mask_token": True, "pooling": "avg"},
    "several_cls": {"classifier_cls_layers": 3},
    "several_cls_mean_patch": {"classifier_cls_layers": 2, "classifier_mean_patch": True, "num_register_tokens": 2},
    "cls_mean_patch": {"classifier_mean_patch": True, "pooling": "avg"},
    "rectangular_patches": {"image_size": (24, 16), "patch_size": (4, 8), "num_channels": 2},
    "residual_post": {"norm_position": "residual_post", "layer_scale_init_value": 0.1, "pooling": "cls+avg"},
    "relative_table": {"position_embedding_type": "relative_table", "use_mask_token": True, **FC_NORM},
    "relative_table_shared": {
        "position_embedding_type": "relative_table",
        "share_relative_position": True,
        "use_cls_token": False,
        "pooling": "avg",
    },
    "relative_mlp": {
        "position_embedding_type": "relative_mlp",
        "norm_position": "residual_post",
        "layer_scale_init_value": 1e-5,
        "use_cls_token": False,
        **FC_NORM,
    },
    "relative_mlp_shared": {
        "position_embedding_type": "relative_mlp",
        "share_relative_position": True,
        "relative_position_hidden_size": 16,
        "qkv_bias": False,
    },
}
HEADS = {
    ViTModel: set(),
    ViTForImageClassification: {"classifier.weight", "classifier.bias"},
    ViTForMaskedImageModeling: {"decoder.weight", "decoder.bias"},
    ViTBackbone: set(),
}

IMPORT_OF_THE_COMPILER = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
every_config = pytest.mark.parametrize("name", CONFIGS)
every_class = pytest.mark.parametrize("model_class", HEADS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small are slower on several threads."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def make_config(name, **fields):
    return ViTConfig(**{**SMALL, **CONFIGS[name], **fields})


def randomize(model, seed=0):
    """Fresh weights hide mistakes: norms are identities, LayerScale next to nothing. These have something to say everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def make_model(model_class, name, **fields):
    torch.manual_seed(0)
    return randomize(model_class(make_config(name, **fields))).eval()


def make_images(config, batch_size=2, grid=None, seed=0):
    """Images of the config's size, or of as many patches as `grid` says."""
    size = [length * patch for length, patch in zip(grid or config.patch_grid, config.patch_size, strict=True)]
    return torch.randn(batch_size, config.num_channels, *size, generator=torch.Generator().manual_seed(seed))


def make_mask(config, batch_size=2):
    mask = torch.zeros(batch_size, config.patch_grid[0] * config.patch_grid[1], dtype=torch.bool)
    mask[:, ::3] = True
    mask[1:, :2] = True
    return mask


def main_output(output):
    """What a model was run for: the first tensors of its output."""
    if "feature_maps" in output:
        return output["feature_maps"][-1]
    return next(output[key] for key in ("logits", "reconstruction", "last_hidden_state") if key in output)


@torch.no_grad()
def run(model, *inputs, **arguments):
    return main_output(model(*inputs, **arguments))


def parameters_without_gradient(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_list_covers_every_field_and_every_choice():
    elsewhere = {"apply_layernorm", "reshape_hidden_states", "initializer_range"}  # test_backbone_*, test_fresh_weights
    elsewhere |= {"hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"}  # test_dropout_*, test_drop_path_*
    for field in dataclasses.fields(ViTConfig):
        if field.name not in ViTConfig.__annotations__ or field.name.startswith("_") or field.name in elsewhere:
            continue
        values = {getattr(make_config(name), field.name) for name in CONFIGS}
        assert len(values) > 1 or field.name in SMALL, field.name
        annotation = ViTConfig.__annotations__[field.name]
        if typing.get_origin(annotation) is typing.Literal:
            assert values == set(typing.get_args(annotation)), field.name


# ---------------------------------------------------------------------------------------------------------------- formulas


def layer_norm(tokens, weights, name, eps):
    centred = tokens - tokens.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(tokens, weights, name):
    bias = weights.get(f"{name}.bias")
    return tokens @ weights[f"{name}.weight"].T + (0 if bias is None else bias)


def relative_bias(config, weights, name):
    """One pair of patches after the other."""
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


def attention(tokens, config, weights, name, bias):
    size = config.hidden_size // config.num_attention_heads
    qkv = linear(tokens, weights, f"{name}.qkv")
    heads = []
    for head in range(config.num_attention_heads):
        start = head * size
        query, key, value = (
            qkv[..., part * config.hidden_size + start : part * config.hidden_size + start + size] for part in range(3)
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(size)
        if bias is not None:
            scores = scores + bias[head]
        scores = scores.exp()
        heads.append(scores / scores.sum(-1, keepdim=True) @ value)
    return linear(torch.cat(heads, dim=-1), weights, f"{name}.proj")


def feed_forward(tokens, config, weights, name):
    if config.mlp_type == "swiglu":
        hidden = linear(tokens, weights, f"{name}.gate_up_proj")
        gate, up = hidden[..., : config.intermediate_size], hidden[..., config.intermediate_size :]
        return linear(gate / (1 + (-gate).exp()) * up, weights, f"{name}.down_proj")
    hidden = linear(tokens, weights, f"{name}.fc1")
    if config.hidden_act == "gelu":
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    else:
        hidden = hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3))) / 2
    return linear(hidden, weights, f"{name}.fc2")


def formulas(config, weights, images):
    """The forward pass at the config's own size, written down a second time: hidden states, tokens, pooled vector and logits."""
    eps, (height, width), (patch_height, patch_width) = config.layer_norm_eps, config.patch_grid, config.patch_size
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
        if config.position_embedding_type != "absolute":
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


# ------------------------------------------------------------------------------------------------------- saving and loading


@every_class
@every_config
def test_saved_and_loaded_is_the_same(name, model_class, tmp_path):
    model = make_model(model_class, name)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        assert torch.equal(run(loaded, images), run(model, images))


@pytest.mark.parametrize("name", ["registers", "relative_mlp"])
@pytest.mark.parametrize(("saved", "loaded"), list(itertools.permutations(HEADS, 2)))
def test_every_class_loads_every_folder_and_says_what_it_misses(name, saved, loaded, tmp_path):
    model = make_model(saved, name, use_mask_token=True)
    model.save_pretrained(tmp_path)
    other, info = loaded.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == HEADS[loaded]
    assert set(info["unexpected_keys"]) == HEADS[saved]
    assert not info["mismatched_keys"]
    assert not info["error_msgs"]
    encoders = [m if isinstance(m, ViTModel) else m.vit for m in (model, other)]
    for key, value in encoders[0].state_dict().items():
        assert torch.equal(encoders[1].state_dict()[key], value), key


def test_masked_image_modeling_makes_the_mask_token_and_says_so(tmp_path):
    config = make_config("absolute")
    ViTModel(config).save_pretrained(tmp_path)
    model, info = ViTForMaskedImageModeling.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"vit.embeddings.mask_token", "decoder.weight", "decoder.bias"}
    assert model.config.use_mask_token
    ViTForMaskedImageModeling(config)
    assert not config.use_mask_token


@pytest.mark.parametrize(
    "name", ["registers", "no_cls_position", "relative_table", "relative_mlp", "relative_mlp_shared", "swiglu"]
)
def test_a_missing_parameter_is_never_silent(name, tmp_path):
    torch.manual_seed(0)
    make_model(ViTForImageClassification, name).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for missing in (key for key in weights if "layers.0." not in key and "layers.1." not in key):
        rest = {key: value for key, value in weights.items() if key != missing}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        model, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {missing}
        check_fresh_weight(missing, model.get_parameter(missing), model.config)
        assert torch.equal(model.vit.layers[0].norm1.weight, weights["vit.layers.0.norm1.weight"])


def check_fresh_weight(name, parameter, config):
    if "norm" in name and name.endswith("weight"):
        assert torch.all(parameter == 1), name
    elif name.endswith(("bias", "mask_token")):
        assert torch.all(parameter == 0), name
    elif "layer_scale" in name:
        assert torch.all(parameter == config.layer_scale_init_value), name
    elif parameter.numel() > 1000:
        assert parameter.std().item() == pytest.approx(config.initializer_range, rel=0.1), name
        assert abs(parameter.mean().item()) < 0.1 * config.initializer_range, name
    else:
        assert 0 < parameter.abs().max() < 5 * config.initializer_range, name


@every_config
def test_fresh_weights(name):
    torch.manual_seed(0)
    model = ViTForImageClassification(make_config(name, initializer_range=0.01))
    for key, parameter in model.named_parameters():
        check_fresh_weight(key, parameter, model.config)


def test_another_number_of_classes_must_be_allowed(tmp_path):
    make_model(ViTForImageClassification, "absolute").save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatched"):
        ViTForImageClassification.from_pretrained(tmp_path, num_labels=7)
    model, info = ViTForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model(make_images(model.config)).logits.shape == (2, 7)


def test_fields_can_be_changed_while_loading(tmp_path):
    make_model(ViTModel, "absolute").save_pretrained(tmp_path)
    assert ViTModel.from_pretrained(tmp_path, drop_path_rate=0.2).layers[-1].drop_path_rate == 0.2
    assert ViTBackbone.from_pretrained(tmp_path, out_indices=[1, 2]).out_features == ["stage1", "stage2"]
    assert ViTModel.from_pretrained(tmp_path, dtype=torch.bfloat16).layernorm.weight.dtype == torch.bfloat16


@every_config
def test_weights_go_into_a_model_made_on_the_meta_device(name):
    model = make_model(ViTModel, name)
    for fill in ({"assign": False}, {"assign": True}):
        with torch.device("meta"):
            empty = ViTModel(model.config).eval()
        if not fill["assign"]:
            empty.to_empty(device="cpu")
        empty.load_state_dict(copy.deepcopy(model.state_dict()), **fill)
        for grid in (None, (3, 5)):
            images = make_images(model.config, grid=grid)
            assert torch.equal(run(empty, images), run(model, images))


@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_mlp_shared"])
@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(name, device_map, tmp_path):
    model = make_model(ViTForImageClassification, name)
    model.save_pretrained(tmp_path)
    loaded = ViTForImageClassification.from_pretrained(tmp_path, device_map=device_map).to("cpu")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        torch.testing.assert_close(run(loaded, images), run(model, images))


def clone_by_pickle(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("clone", [copy.deepcopy, clone_by_pickle])
@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_table_shared", "relative_mlp"])
def test_copies_are_equal_and_share_nothing(name, clone):
    model = make_model(ViTModel, name)
    images = make_images(model.config, grid=(3, 5))
    expected = run(model, images)  # fills the caches
    twin = clone(model)
    assert torch.equal(run(twin, images), expected)
    randomize(twin, seed=1)
    changed = run(twin, images)
    assert not torch.allclose(changed, expected)
    assert torch.equal(run(model, images), expected)
    fresh = ViTModel(model.config).eval()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(run(fresh, images), changed)


# ----------------------------------------------------------------------------------------------------------------- outputs


@every_class
def test_the_first_argument_is_pixel_values(model_class):
    assert next(iter(inspect.signature(model_class.forward).parameters.values())).name == "self"
    assert list(inspect.signature(model_class.forward).parameters)[1] == model_class.main_input_name == "pixel_values"


@every_class
def test_the_input_embedding_is_the_patch_embedding(model_class):
    model = make_model(model_class, "absolute")
    encoder = model if isinstance(model, ViTModel) else model.vit
    assert model.get_input_embeddings() is encoder.embeddings.patch_embeddings


@every_config
@torch.no_grad()
def test_shapes(name):
    model = make_model(ViTModel, name)
    config = model.config
    for grid in (config.patch_grid, (3, 5)):
        num_tokens = config.num_prefix_tokens + grid[0] * grid[1]
        output = model(make_images(config, grid=grid), output_hidden_states=True, output_attentions=True)
        assert isinstance(output, ViTModelOutput)
        assert output.last_hidden_state.shape == (2, num_tokens, 32)
        pooled_size = config.representation_size or 32 * (2 if config.pooling == "cls+avg" else 1)
        assert output.pooler_output.shape == (2, pooled_size)
        assert [hidden.shape for hidden in output.hidden_states] == [(2, num_tokens, 32)] * 4
        assert [weights.shape for weights in output.attentions] == [(2, 4, num_tokens, num_tokens)] * 3
        assert output.patch_grid == grid


@every_class
@torch.no_grad()
def test_optional_outputs(model_class):
    model = make_model(model_class, "several_cls_mean_patch")
    images = make_images(model.config)
    plain = model(images)
    assert plain.hidden_states is None
    assert plain.attentions is None
    full = model(images, output_hidden_states=True, output_attentions=True)
    assert len(full.hidden_states) == 4
    assert len(full.attentions) == 3
    torch.testing.assert_close(main_output(full), main_output(plain))
    by_tuple = model(images, output_hidden_states=True, output_attentions=True, return_dict=False)
    assert isinstance(by_tuple, tuple)
    torch.testing.assert_close(by_tuple, full.to_tuple())
    model.config.return_dict = False
    assert isinstance(model(images), tuple)


@every_class
@torch.no_grad()
def test_optional_outputs_asked_for_by_the_config(model_class):
    model = make_model(model_class, "several_cls_mean_patch", output_hidden_states=True)
    output = model(make_images(model.config))
    assert len(output.hidden_states) == 4
    assert output.attentions is None
    assert model(make_images(model.config), output_hidden_states=False).hidden_states is None
    model = make_model(model_class, "several_cls_mean_patch", output_attentions=True, attn_implementation="eager")
    output = model(make_images(model.config))
    assert len(output.attentions) == 3
    assert output.hidden_states is None


@pytest.mark.parametrize(("selection", "kept"), [([-2, 0], {0, 2}), (0, {0}), (1, {1}), ((3,), {3}), (-1, {3}), ([-4, 7], {0})])
@every_class
@torch.no_grad()
def test_hidden_states_can_be_selected(model_class, selection, kept):
    model = make_model(model_class, "several_cls_mean_patch", out_indices=[1, 2])
    images = make_images(model.config)
    everything = model(images, output_hidden_states=True)
    output = model(images, output_hidden_states=selection)
    assert len(output.hidden_states) == 4
    for index, hidden_states in enumerate(output.hidden_states):
        if index in kept:
            assert torch.equal(hidden_states, everything.hidden_states[index])
        else:
            assert hidden_states is None
    assert torch.equal(main_output(output), main_output(everything))


@every_class
@every_config
def test_an_image_gets_the_same_answer_alone_and_in_a_batch(name, model_class):
    model = make_model(model_class, name)
    images = make_images(model.config, batch_size=3)
    batched = run(model, images)
    for index in range(3):
        torch.testing.assert_close(run(model, images[index : index + 1]), batched[index : index + 1], atol=1e-5, rtol=1e-5)


@every_config
def test_the_order_of_patches_is_row_by_row(name):
    """A change of one patch's pixels is a change of that patch's token in the sequence that enters the first block."""
    model = make_model(ViTModel, name)
    config = model.config
    images = make_images(config, grid=(3, 5))
    changed = images.clone()
    changed[:, :, config.patch_size[0] :, 2 * config.patch_size[1] :][:, :, : config.patch_size[0], : config.patch_size[1]] += 1
    with torch.no_grad():
        before, after = (model.embeddings(pixels) for pixels in (images, changed))
    different = (before != after).any(-1).any(0).nonzero().flatten().tolist()
    assert different == [config.num_prefix_tokens + 5 * 1 + 2]


@pytest.mark.parametrize("name", ["absolute", "registers", "no_cls", "relative_table", "swiglu"])
@torch.no_grad()
def test_masked_patches_are_replaced_by_the_mask_token(name):
    model = make_model(ViTModel, name, use_mask_token=True)
    config = model.config
    images, mask = make_images(config), make_mask(config)
    visible = images.clone()
    height, width = config.patch_size
    for sample, patch in mask.nonzero().tolist():
        row, column = divmod(patch, config.patch_grid[1])
        visible[sample, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = 99.0
    masked = model.embeddings(images, mask)
    assert torch.equal(masked, model.embeddings(visible, mask))  # masked pixels are not seen
    prefix = config.num_prefix_tokens
    unmasked = model.embeddings(images)
    assert torch.equal(masked[:, :prefix], unmasked[:, :prefix])
    assert torch.equal(masked[:, prefix:][~mask], unmasked[:, prefix:][~mask])
    positions = torch.zeros_like(unmasked[0, prefix:])
    if config.position_embedding_type == "absolute":
        positions = model.embeddings.position_embeddings[0, -mask.shape[1] :]
    expected = model.embeddings.mask_token[0] + positions
    torch.testing.assert_close(masked[0, prefix:][mask[0]], expected[mask[0]])
    grid_shaped = mask.view(2, *config.patch_grid).int()
    assert torch.equal(model.embeddings(images, grid_shaped), masked)


@every_config
@torch.no_grad()
def test_masked_image_modeling_paints_patches_where_they_belong(name):
    model = make_model(ViTForMaskedImageModeling, name)
    config = model.config
    images = make_images(config)
    output = model(images)
    assert output.loss is None
    assert output.reconstruction.shape == images.shape
    height, width = config.patch_size
    tokens = model.vit(images).last_hidden_state[:, config.num_prefix_tokens :]
    painted = tokens @ model.decoder.weight.flatten(1).T + model.decoder.bias  # each token's pixels, channel by channel
    for patch in range(tokens.shape[1]):
        row, column = divmod(patch, config.patch_grid[1])
        pixels = output.reconstruction[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
        torch.testing.assert_close(pixels, painted[:, patch].view(2, config.num_channels, height, width))


@pytest.mark.parametrize("name", ["registers", "rectangular_patches", "no_cls"])
@torch.no_grad()
def test_masked_image_modeling_loss_is_the_mean_error_of_masked_pixels(name):
    model = make_model(ViTForMaskedImageModeling, name)
    images, mask = make_images(model.config), make_mask(model.config)
    output = model(images, bool_masked_pos=mask)
    height, width = model.config.patch_size
    errors = (output.reconstruction - images).abs().unfold(2, height, height).unfold(3, width, width)  # (B, C, h, w, ph, pw)
    masked = errors.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)[mask]
    assert output.loss.item() == pytest.approx(masked.mean().item(), rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- attention


@every_config
def test_eager_attention_equals_sdpa(name):
    model = make_model(ViTModel, name)
    assert model.config._attn_implementation == "sdpa"
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        model.set_attn_implementation("sdpa")
        by_sdpa = run(model, images)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(run(model, images), by_sdpa, atol=1e-4, rtol=1e-4)


@IMPORT_OF_THE_COMPILER
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_table_shared", "relative_mlp"])
def test_flex_attention_equals_sdpa(name):
    model = make_model(ViTModel, name)
    images = make_images(model.config, grid=(3, 5))
    by_sdpa = run(model, images)
    model.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):  # the same operator without the compiler
        torch.testing.assert_close(run(model, images), by_sdpa, atol=1e-4, rtol=1e-4)


@every_config
@torch.no_grad()
def test_attention_weights_under_sdpa(name):
    model = make_model(ViTModel, name)
    images = make_images(model.config)
    with_weights = model(images, output_attentions=True)
    assert model.config._attn_implementation == "sdpa"
    for weights in with_weights.attentions:
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))
    torch.testing.assert_close(with_weights.last_hidden_state, model(images).last_hidden_state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["relative_table", "relative_table_shared", "relative_mlp"])
def test_flash_attention_refuses_relative_positions(name):
    model = make_model(ViTModel, name)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match='attn_implementation="sdpa" or "flex_attention"'):
        model(make_images(model.config))


# ---------------------------------------------------------------------------------------------------------------- training


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
    assert positions
    assert not parameters_without_gradient(model) & positions.keys()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", ["registers", "relative_table", "relative_table_shared", "relative_mlp"])
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
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(backward(), expected)
    assert len(runs) == 3 + 6  # each block once more in the backward pass
    model.activation_checkpointing_disable()
    torch.testing.assert_close(backward(), expected)
    assert len(runs) == 3 + 6 + 3


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


def test_drop_path_is_the_identity_in_evaluation():
    tokens = torch.randn(4, 5, 6)
    assert drop_path(tokens, 0.5, training=False) is tokens
    assert drop_path(tokens, 0.0, training=True) is tokens
    model, plain = make_model(ViTModel, "absolute", drop_path_rate=0.9), make_model(ViTModel, "absolute")
    images = make_images(model.config)
    assert torch.equal(run(model, images), run(plain, images))


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    torch.manual_seed(0)
    kept = drop_path(torch.ones(20_000, 3, 2), 0.3, training=True)
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
            branch = twin.attention(branch, None, (1, 7), False)[0] if part == 1 else twin.mlp(branch)
            branch = branch if twin.pre_norm else norm(branch)
            hidden_states = hidden_states + factor * branch * (1 if scale is None else scale)
        return hidden_states[0]

    outputs, _ = layer(tokens, None, (1, 7), False)
    ways = [block(*factors) for factors in itertools.product((0, 2), repeat=2)]
    which = [[torch.allclose(output, way, atol=1e-4) for way in ways].index(True) for output in outputs]
    assert set(which) == {0, 1, 2, 3}


# ----------------------------------------------------------------------------------------------------- compilers and dtypes


@IMPORT_OF_THE_COMPILER
@pytest.mark.parametrize(
    ("name", "backend"),
    [("registers", "inductor"), ("offset", "eager"), ("relative_table", "eager"), ("relative_mlp_shared", "eager")],
)
def test_compiled_equals_eager(name, backend):
    torch._dynamo.reset()
    model = make_model(ViTForImageClassification, name, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        torch.testing.assert_close(run(compiled, images), run(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [None, (3, 5)])
@pytest.mark.parametrize("name", ["registers", "offset", "relative_table", "relative_mlp_shared"])
def test_exported_equals_eager(name, grid):
    model = make_model(ViTForImageClassification, name)
    images = make_images(model.config, grid=grid)
    batch = {0: torch.export.Dim("batch", min=2, max=8)}
    exported = torch.export.export(model, (images,), dynamic_shapes={"pixel_values": batch}, strict=False).module()
    for batch_size in (2, 5):
        images = make_images(model.config, batch_size=batch_size, grid=grid, seed=1)
        torch.testing.assert_close(run(exported, images), run(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@every_config
def test_half_precision_stays_near_float32(name, dtype, error):
    model = make_model(ViTForImageClassification, name)
    half = copy.deepcopy(model).to(dtype)
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        expected, logits = run(model, images), run(half, images)  # the images stay float32
        assert logits.dtype == dtype
        assert (logits.float() - expected).square().mean().sqrt() < error * expected.square().mean().sqrt()


@pytest.mark.parametrize("name", ["absolute", "relative_table", "relative_mlp"])
def test_autocast(name):
    model = make_model(ViTForImageClassification, name)
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        expected = run(model, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = run(model, images)
        assert (logits.float() - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()
        assert torch.equal(run(model, images), expected)


# -------------------------------------------------------------------------------------------------------------------- loss


def test_single_label_loss():
    model = make_model(ViTForImageClassification, "absolute")
    images, labels = make_images(model.config), torch.tensor([3, 1])
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert model.config.problem_type == "single_label_classification"


def test_multi_label_loss():
    model = make_model(ViTForImageClassification, "absolute", problem_type="multi_label_classification")
    images, labels = make_images(model.config), torch.tensor([[0.0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels))


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression_loss(num_labels):
    model = make_model(ViTForImageClassification, "absolute", num_labels=num_labels, problem_type="regression")
    images, labels = make_images(model.config), torch.randn(2, num_labels)
    output = model(images, labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits, labels))


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


# ------------------------------------------------------------------------------------------------------------------ helpers


@pytest.mark.parametrize(("reshape", "return_class_token", "norm"), list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize(
    ("n", "blocks"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2]), ([0, 2], [0, 2]), ((1,), [1]), ([-1], [2]), (range(2), [0, 1])]
)
@pytest.mark.parametrize("name", ["registers", "relative_table"])
@torch.no_grad()
def test_get_intermediate_layers(name, n, blocks, reshape, return_class_token, norm):
    model = make_model(ViTModel, name)
    images = make_images(model.config, grid=(3, 5))
    hidden_states = model(images, output_hidden_states=True).hidden_states
    expected = []
    for block in blocks:
        tokens = hidden_states[block + 1]
        if norm and model.config.norm_before_pooling:
            tokens = model.layernorm(tokens)
        patches = tokens[:, -15:]
        if reshape:
            patches = patches.reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
        expected.append((patches, tokens[:, 0]) if return_class_token else patches)
    outputs = model.get_intermediate_layers(images, n, reshape=reshape, return_class_token=return_class_token, norm=norm)
    assert isinstance(outputs, tuple)
    assert all(isinstance(output, tuple) == return_class_token for output in outputs)
    torch.testing.assert_close(outputs, tuple(expected), rtol=0, atol=0)
    if reshape and not return_class_token:
        assert all(output.is_contiguous() for output in outputs)


def test_get_intermediate_layers_without_arguments_gives_the_last_tokens():
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    (patches,) = model.get_intermediate_layers(images)
    assert torch.equal(patches, run(model, images)[:, 1:])


@torch.no_grad()
def test_blocks_after_the_last_one_asked_for_do_not_run():
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    runs = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: runs.append(index))
    model.get_intermediate_layers(images, [0, 1])
    assert runs == [0, 1]
    runs.clear()
    model.attention_maps(images, [0])
    assert runs == [0]


@pytest.mark.parametrize("n", [0, 4, 5, [3], [-4], [0, 3], []])
def test_get_intermediate_layers_names_a_block_that_is_not_there(n):
    model = make_model(ViTModel, "absolute")
    with pytest.raises(ValueError, match=r"There is no block .*choose among 0 to 2, or -3 to -1"):
        model.get_intermediate_layers(make_images(model.config), n)


def test_get_intermediate_layers_has_no_class_token_to_return():
    model = make_model(ViTModel, "no_cls")
    with pytest.raises(ValueError, match=r"this model has no \[CLS\] token"):
        model.get_intermediate_layers(make_images(model.config), return_class_token=True)


@pytest.mark.parametrize(("layers", "blocks"), [((-1,), [2]), ([0, 2], [0, 2]), ([2, 0], [2, 0]), (range(3), [0, 1, 2])])
@every_config
@torch.no_grad()
def test_attention_maps(name, layers, blocks):
    model = make_model(ViTModel, name)
    images, prefix = make_images(model.config, grid=(3, 5)), model.config.num_prefix_tokens
    attentions = model(images, output_attentions=True).attentions
    maps = model.attention_maps(images, layers)
    assert maps.shape == (2, len(blocks), 4, 3, 5)
    for index, block in enumerate(blocks):
        weights = attentions[block]
        received = weights[:, :, 0, prefix:] if model.config.use_cls_token else weights[:, :, prefix:, prefix:].mean(2)
        torch.testing.assert_close(maps[:, index], received.reshape(2, 4, 3, 5), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attention_maps_are_of_the_last_block_and_compute_no_other_weights(monkeypatch):
    model = make_model(ViTModel, "absolute")
    images = make_images(model.config)
    expected = model.attention_maps(images, [2])
    calls = []
    eager = modeling_vit.eager_attention_forward
    monkeypatch.setattr(modeling_vit, "eager_attention_forward", lambda *args, **kwargs: calls.append(1) or eager(*args, **kwargs))
    assert torch.equal(model.attention_maps(images), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("layers", [[3], [-4], [0, 3], ()])
def test_attention_maps_name_a_block_that_is_not_there(layers):
    model = make_model(ViTModel, "absolute")
    with pytest.raises(ValueError, match=r"There is no block .*choose among 0 to 2, or -3 to -1"):
        model.attention_maps(make_images(model.config), layers)


@every_config
@torch.no_grad()
def test_timms_two_methods_are_the_two_halves_of_the_model(name):
    model = make_model(ViTForImageClassification, name)
    images = make_images(model.config, grid=(3, 5))
    features = model.forward_features(images)
    outputs = model.vit(images)
    assert torch.equal(features, outputs.last_hidden_state)
    assert torch.equal(model.vit.forward_features(images), features)
    for pooled in (model.forward_head(features, pre_logits=True), model.vit.forward_head(features)):
        assert torch.equal(pooled, outputs.pooler_output)
    if model.config.classifier_cls_layers == 1:
        assert torch.equal(model.forward_head(features), model(images).logits)
    else:
        with pytest.raises(ValueError, match="This classifier reads several blocks"):
            model.forward_head(features)


# ---------------------------------------------------------------------------------------------------------------- backbone


@pytest.mark.parametrize("apply_layernorm", [True, False])
@pytest.mark.parametrize("reshape", [True, False])
@every_config
@torch.no_grad()
def test_backbone_feature_maps(name, reshape, apply_layernorm):
    fields = {"reshape_hidden_states": reshape, "apply_layernorm": apply_layernorm}
    model = make_model(ViTBackbone, name, out_indices=[0, 2, 3], **fields)
    config = model.config
    images = make_images(config, grid=(3, 5))
    output = model(images)
    assert model.channels == [32, 32, 32]
    hidden_states = model.vit(images, output_hidden_states=True).hidden_states
    expected = []
    for tokens in (hidden_states[0], hidden_states[2], hidden_states[3]):
        if apply_layernorm and config.norm_before_pooling:
            tokens = model.vit.layernorm(tokens)
        if reshape:
            tokens = tokens[:, config.num_prefix_tokens :].reshape(2, 3, 5, 32).permute(0, 3, 1, 2)
        expected.append(tokens)
    torch.testing.assert_close(output.feature_maps, tuple(expected), rtol=0, atol=0)


@torch.no_grad()
def test_backbone_stages_can_be_chosen_in_every_way():
    images = make_images(make_config("absolute"))
    everything = make_model(ViTBackbone, "absolute", out_indices=[0, 1, 2, 3])(images).feature_maps
    assert len(everything) == 4
    model = make_model(ViTBackbone, "absolute")
    assert torch.equal(model(images).feature_maps[0], everything[3])
    assert len(model(images).feature_maps) == 1
    for fields in ({"out_features": ["stage1", "stage3"]}, {"out_indices": [1, 3]}, {"out_indices": [1, -1]}):
        model = make_model(ViTBackbone, "absolute", **fields)
        assert model.out_features == ["stage1", "stage3"]
        torch.testing.assert_close(model(images).feature_maps, (everything[1], everything[3]), rtol=0, atol=0)
    model.out_indices = [0]
    torch.testing.assert_close(model(images).feature_maps, everything[:1], rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------------ errors


@every_class
@pytest.mark.parametrize("shape", [(2, 1, 16, 24), (3, 16, 24), (2, 16, 24, 3)])
def test_pixel_values_of_another_shape(model_class, shape):
    with pytest.raises(ValueError, match=r"takes \(batch, 3, height, width\)"):
        make_model(model_class, "absolute")(torch.zeros(shape))


@every_class
@pytest.mark.parametrize(
    ("size", "lower", "upper"),
    [((17, 24), "16x24", "20x24"), ((16, 23), "16x20", "16x24"), ((3, 5), "4x4", "4x8"), ((0, 8), "4x8", "0x8")],
)
def test_a_size_that_patches_do_not_divide(model_class, size, lower, upper):
    with pytest.raises(ValueError, match=f"of {size[0]}x{size[1]} pixels cannot be cut.*4x4.*{lower}.*{upper}"):
        make_model(model_class, "absolute")(torch.zeros(1, 3, *size))


def test_a_mask_needs_a_mask_token():
    model = make_model(ViTModel, "absolute")
    with pytest.raises(ValueError, match="set use_mask_token=True"):
        model(make_images(model.config), make_mask(model.config))
