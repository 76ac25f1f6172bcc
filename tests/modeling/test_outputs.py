"""Shapes, chosen outputs, masks, batches, attention implementations."""

import copy
import inspect

import pytest
import torch

from small_models import (
    IMPORT_OF_THE_COMPILER,
    every_class,
    every_config,
    every_plain_class,
    main_output,
    make_images,
    make_mask,
    make_model,
    run,
)
from vitrail.modeling.modeling_vit import ViTForMaskedImageModeling, ViTModel, ViTModelOutput

# --------------------------------------------------------------------------------------------------------------- outputs


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


@every_plain_class
@every_config
def test_an_image_gets_the_same_output_alone_and_in_a_batch(name, model_class):
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
    changed[:, :, config.patch_shape[0] :, 2 * config.patch_shape[1] :][:, :, : config.patch_shape[0], : config.patch_shape[1]] += 1
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
    height, width = config.patch_shape
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
    height, width = config.patch_shape
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
    height, width = model.config.patch_shape
    errors = (output.reconstruction - images).abs().unfold(2, height, height).unfold(3, width, width)  # (B, C, h, w, ph, pw)
    masked = errors.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)[mask]
    assert output.loss.item() == pytest.approx(masked.mean().item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- attention


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


# ----------------------------------------------------------------------------------------------------------------- on a GPU


@every_config
@torch.no_grad()
def test_models_on_cuda(name, cuda):
    model = make_model(ViTModel, name)
    moved = copy.deepcopy(model).to(cuda)
    for grid in (model.config.patch_grid, (3, 5)):
        images = make_images(model.config, grid=grid)
        torch.testing.assert_close(moved(images.to(cuda)).last_hidden_state.cpu(), run(model, images), rtol=1e-3, atol=1e-3)


@every_class
@torch.no_grad()
def test_heads_on_cuda(model_class, cuda):
    model = make_model(model_class, "registers")
    images = make_images(model.config)
    torch.testing.assert_close(run(copy.deepcopy(model).to(cuda), images.to(cuda)).cpu(), run(model, images), rtol=1e-3, atol=1e-3)
