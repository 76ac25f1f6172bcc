import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import paths
import vitrail
from small_models import every_class, every_config, make_config, make_images, make_model, tiny_model, with_random_weights
from vitrail.errors import VitrailError
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.processing.resizing import keep_aspect
from vitrail.visualization.attention import attention_rollout, plot_attention

IMAGES = paths.IMAGES
PHOTO = IMAGES / "chelsea.jpg"


def small_model(**fields):
    model = tiny_model(**({"num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8} | fields))
    return model, vitrail.make_image_processor("dino", image_size=32, num_channels=model.config.num_channels)


@pytest.fixture
def transformers_vit(tmp_path):
    """A model of transformers' own, and the same as ours."""
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=64, image_size=32, patch_size=8,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = with_random_weights(transformers.ViTModel(config, add_pooling_layer=False))
    theirs.save_pretrained(tmp_path)
    ours, _, _ = vitrail.load(tmp_path)
    return theirs, ours.base_model


def rolled_out(attentions, num_prefix_tokens, queries):
    """Rollout as the paper has it, with whole matrices, in float64: (A, L, L) of each block, first block first."""
    product = None
    for weights in attentions:
        matrix = 0.5 * (weights.double().numpy().mean(axis=0) + np.eye(weights.shape[-1]))
        matrix /= matrix.sum(axis=-1, keepdims=True)
        product = matrix if product is None else matrix @ product
    return product[queries].mean(axis=0)[num_prefix_tokens:]


def test_rollout_equals_that_of_transformers_attention(transformers_vit):
    theirs, ours = transformers_vit
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attentions = theirs(pixel_values, output_attentions=True).attentions
    assert ours.config._attn_implementation == "sdpa"
    rollout = attention_rollout(ours, pixel_values)
    assert rollout.shape == (2, 4, 4)
    for image in range(2):
        expected = rolled_out([weights[image] for weights in attentions], 1, slice(0, 1))
        np.testing.assert_allclose(rollout[image].flatten(), expected, atol=1e-7)
    assert rollout.std() / rollout.mean() > 0.05  # nothing uniform


@every_config
@every_class
def test_rollout_of_every_model_at_another_size(name, model_class):
    config = make_config(name)
    model = make_model(model_class, name)
    grid = (config.patch_grid[0] + 1, config.patch_grid[1] + 2)
    pixel_values = make_images(config, grid=grid)
    with torch.no_grad():
        attentions = model.base_model(pixel_values, output_attentions=True).attentions
    prefix = config.num_prefix_tokens
    queries = slice(0, 1) if config.use_cls_token else slice(prefix, None)
    rollout = attention_rollout(model, pixel_values)
    assert rollout.shape == (2, *grid)
    expected = rolled_out([weights[1] for weights in attentions], prefix, queries)
    np.testing.assert_allclose(rollout[1].flatten(), expected, atol=1e-6)


def test_rollout_leaves_the_model_as_it_was():
    model, _ = small_model()
    attention_rollout(model, torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="cannot be cut"):
        attention_rollout(model, torch.zeros(1, 3, 33, 32))
    assert not any(layer.attention._forward_hooks for layer in model.layers)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32), output_attentions=True).attentions[0].shape == (1, 4, 17, 17)


def test_heads_and_means_equal_transformers_attention(transformers_vit):
    theirs, ours = transformers_vit
    processor = vitrail.make_image_processor("dino", image_size=32)
    with torch.no_grad():
        attentions = theirs(processor(PHOTO, return_tensors="pt")["pixel_values"], output_attentions=True).attentions
    expected = np.stack([attentions[block][0, :, 0, 1:].reshape(3, 4, 4) for block in (2, 0)])
    (heads,), _ = plot_attention(ours, processor, [PHOTO], layers=(2, -4))
    (means,), _ = plot_attention(ours, processor, [PHOTO], layers=(2, -4), show="mean")
    np.testing.assert_allclose(heads, expected, atol=1e-6)
    np.testing.assert_allclose(means, expected.mean(axis=1), atol=1e-6)


def test_the_attention_implementation_and_dtype_do_not_matter():
    model, processor = small_model()
    for show in ("heads", "rollout"):
        (expected,), _ = plot_attention(model, processor, [PHOTO], show=show)
        model.set_attn_implementation("eager")
        (eager,), _ = plot_attention(model, processor, [PHOTO], show=show)
        np.testing.assert_allclose(eager, expected, atol=1e-6)
        model.set_attn_implementation("sdpa")
        (half,), picture = plot_attention(model.to(torch.bfloat16), processor, [PHOTO], show=show)
        assert half.dtype == np.float32
        np.testing.assert_allclose(half, expected, atol=2e-3)
        assert np.asarray(picture).std() > 0
        model.float()


@every_config
def test_every_model_has_pictures(name):
    config = make_config(name)
    model = make_model(ViTModel, name)
    processor = vitrail.make_image_processor("dino", image_size=config.image_size, num_channels=config.num_channels)
    images = [Image.open(PHOTO).convert("L")] if config.num_channels == 1 else [PHOTO]
    if config.num_channels == 2:
        images = [np.asarray(Image.open(PHOTO))[..., :2]]
    for show, shape in (("heads", (1, 4)), ("mean", (1,)), ("rollout", ())):
        (maps,), _ = plot_attention(model, processor, images, show=show)
        assert maps.shape == (*shape, *config.patch_grid)
        assert (maps > 0).all()
        assert maps.sum() <= np.prod(shape) * (1 + 1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_shows_what_the_model_sees(channels):
    model, processor = small_model(num_channels=channels)
    _, picture = plot_attention(model, processor, [PHOTO])
    pixel_values = processor(PHOTO, return_tensors="pt")["pixel_values"]
    bottom = picture.height // 2 - 3  # of the first of two rows; its cells are five times as large as the images
    seen = np.asarray(picture)[bottom - 160 : bottom : 5, 6:166:5].astype(float) / 255
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
    np.testing.assert_allclose(seen[..., :channels].transpose(2, 0, 1), pixel_values[0] * std + mean, atol=0.51 / 255)


def test_images_of_several_sizes():
    model, processor = small_model()
    images = [PHOTO, Image.open(IMAGES / "astronaut.jpg").convert("RGB"), np.asarray(Image.open(IMAGES / "coffee.jpg"))]
    maps, _ = plot_attention(model, keep_aspect(processor, 8), images, layers=(0, 1))
    assert [one.shape for one in maps] == [(2, 4, 4, 6), (2, 4, 4, 4), (2, 4, 4, 6)]
    (alone,), _ = plot_attention(model, keep_aspect(processor, 8), images[2:], layers=(0, 1))
    np.testing.assert_allclose(maps[2], alone, atol=1e-6)


def test_each_image_is_shown_once_next_to_its_blocks():
    model, processor = small_model()
    _, picture = plot_attention(model, processor, [PHOTO, IMAGES / "coffee.jpg"], layers=(0, 1, 2))
    cells = np.asarray(picture)[6:, 6:].reshape(6, -1, 5, 166, 3)  # rows of a photo and four heads, 160 pixels wide
    empty = (cells == 255).all(axis=(1, 3, 4))
    assert empty.tolist() == [[False] * 5, [True] + [False] * 4, [True] + [False] * 4] * 2


def test_what_cannot_be_drawn_is_refused():
    model, processor = small_model()
    for options, words in (
        ({"show": "everything"}, "heads, mean, rollout"),
        ({"style": "cubist"}, "overlay, grid"),
        ({"show": "rollout", "layers": (1,)}, "omit layers"),
    ):
        with pytest.raises(VitrailError, match=words):
            plot_attention(model, processor, [PHOTO], **options)
    with pytest.raises(VitrailError, match="at least one"):
        plot_attention(model, processor, [])
    with pytest.raises(ValueError, match=r"no block \[3\]"):
        plot_attention(model, processor, [PHOTO], layers=(3,))
