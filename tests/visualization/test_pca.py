import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

import paths
import vitrail
from small_models import every_config, make_config, make_model, tiny_model
from vitrail.errors import VitrailError
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.processing.resizing import keep_aspect
from vitrail.visualization.pca import component_colors, find_foreground, plot_pca, principal_components

IMAGES = paths.IMAGES
PHOTOS = [IMAGES / "chelsea.jpg", IMAGES / "astronaut.jpg", IMAGES / "coffee.jpg"]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sklearn_scores(tokens, number):
    """Return the components of scikit-learn, with a positive largest weight whatever the version."""
    pca = PCA(n_components=number, svd_solver="full")
    scores = pca.fit_transform(np.asarray(tokens, dtype=np.float64))
    largest = np.abs(pca.components_).argmax(axis=1)
    return scores * np.sign(pca.components_[np.arange(number), largest])


def small_model(seed=0, **fields):
    model = tiny_model(seed=seed, **({"image_size": 32, "patch_size": 8} | fields))
    return model, vitrail.make_image_processor("dino", image_size=32)


@pytest.mark.parametrize("shape", [(300, 40), (20, 40), (4, 40)])
def test_components_equal_those_of_scikit_learn(shape):
    tokens = random(*shape) @ torch.diag(torch.linspace(3, 0.1, shape[1])) + 5
    np.testing.assert_allclose(principal_components(tokens, 3), sklearn_scores(tokens, 3), atol=1e-9)


def test_what_varies_by_rounding_alone_is_not_a_component():
    line = random(50, 1) * random(1, 20, seed=1) + 100
    scores = principal_components(line + 1e-6 * random(50, 20, seed=2), 3)
    assert scores[:, 0].std() > 1
    assert (scores[:, 1:] == 0).all()
    assert (principal_components(torch.ones(1, 20), 3) == 0).all()


def scene(height, width, *, inside, outside, seed):
    """Tokens of a disc in the middle and of what is around it, with some noise, and the disc."""
    y, x = np.mgrid[:height, :width]
    disc = np.hypot((y - height // 2) / height, (x - width // 2) / width) < 0.3
    tokens = 0.3 * random(height, width, 16, seed=seed)
    tokens[..., 0] += torch.from_numpy(np.where(disc, inside, outside))
    return tokens, disc


@pytest.mark.parametrize(("inside", "outside"), [(4, 0), (0, 4)])
def test_the_foreground_is_what_covers_less_of_the_borders(inside, outside):
    scenes = [scene(*size, inside=inside, outside=outside, seed=index) for index, size in enumerate(((12, 12), (9, 14)))]
    masks = find_foreground([tokens for tokens, _ in scenes])
    for mask, (_, disc) in zip(masks, scenes, strict=True):
        assert (mask == disc).all()


def test_the_foreground_may_be_most_of_the_image_or_touch_a_border():
    tokens, _ = scene(10, 10, inside=0, outside=0, seed=0)
    large = np.zeros((10, 10), dtype=bool)
    large[1:9, 1:] = True
    tokens[torch.from_numpy(large), 0] += 5
    (mask,) = find_foreground([tokens])
    assert (mask == large).all()


def test_two_sides_are_the_two_means_of_the_first_component():
    """One-dimensional k-means at its optimum minimizes the variance within both classes, as Otsu does."""
    for seed in range(5):
        tokens = random(14, 14, 20, seed=seed) * torch.linspace(4, 1, 20)
        (mask,) = find_foreground([tokens])
        scores = sklearn_scores(tokens.flatten(0, 1), 1)
        clusters = KMeans(2, n_init=20, random_state=0).fit_predict(scores).reshape(14, 14).astype(bool)
        assert (mask == clusters).all() or (mask == ~clusters).all()


def test_equal_patches_are_all_foreground_and_gray():
    for tokens in (torch.ones(3, 4, 8), torch.ones(3, 4, 8) + 1e-7 * random(3, 4, 8), random(1, 1, 8)):
        masks = find_foreground([tokens])
        assert masks[0].all()
        (colors,) = component_colors([tokens], masks)
        assert (colors == 0.5).all()


def test_colors_are_the_components_of_the_foreground():
    tokens = [random(6, 8, 30, seed=1) * torch.linspace(3, 1, 30), random(5, 5, 30, seed=2) * torch.linspace(3, 1, 30)]
    generator = np.random.default_rng(0)
    masks = [generator.random((6, 8)) < 0.6, generator.random((5, 5)) < 0.6]
    colors = component_colors(tokens, masks)
    assert [one.shape for one in colors] == [(6, 8, 3), (5, 5, 3)]
    for one, mask in zip(colors, masks, strict=True):
        assert (one[~mask] == 0).all()
        assert one.dtype == np.float32
    chosen = np.concatenate([one[mask] for one, mask in zip(colors, masks, strict=True)])
    scores = sklearn_scores(np.concatenate([one.numpy()[mask] for one, mask in zip(tokens, masks, strict=True)]), 3)
    low, high = np.percentile(scores, 1, axis=0), np.percentile(scores, 99, axis=0)
    np.testing.assert_allclose(chosen, np.clip((scores - low) / (high - low), 0, 1), atol=1e-6)
    assert (chosen.min(axis=0) == 0).all()
    assert (chosen.max(axis=0) == 1).all()


def test_one_outlier_does_not_take_all_colors():
    tokens = random(20, 20, 12)
    tokens[3, 3] += 1000
    (colors,) = component_colors([tokens], [np.ones((20, 20), dtype=bool)])
    assert (colors.reshape(-1, 3).std(axis=0) > 0.1).all()


def test_pictures_are_made_of_the_normed_tokens_of_the_last_block():
    model, processor = small_model()
    colors, masks, _ = plot_pca(model, processor, PHOTOS, foreground=False)
    with torch.no_grad():
        tokens = model(processor(PHOTOS, return_tensors="pt")["pixel_values"]).last_hidden_state[:, 1:]
    scores = sklearn_scores(tokens.flatten(0, 1), 3)
    low, high = np.percentile(scores, 1, axis=0), np.percentile(scores, 99, axis=0)
    expected = np.clip((scores - low) / (high - low), 0, 1).reshape(3, 4, 4, 3)
    np.testing.assert_allclose(np.stack(colors), expected, atol=1e-4)
    assert all(mask.all() for mask in masks)


def test_images_of_several_sizes_share_their_colors():
    model, processor = small_model()
    processor = keep_aspect(processor, 8)
    colors, masks, sheet = plot_pca(model, processor, PHOTOS)
    assert [one.shape for one in colors] == [(4, 6, 3), (4, 4, 3), (4, 6, 3)]
    assert all((one[~mask] == 0).all() for one, mask in zip(colors, masks, strict=True))
    assert 0 < sum(mask.sum() for mask in masks) < 64
    again, _, _ = plot_pca(model, processor, [PHOTOS[0], Image.open(PHOTOS[1]).convert("RGB"), np.asarray(Image.open(PHOTOS[2]))])
    for first, second in zip(colors, again, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4)
    assert sheet.width > 2 * 160


def test_the_sheet_shows_each_image_next_to_its_colors():
    model, processor = small_model()
    (colors,), _, sheet = plot_pca(model, processor, PHOTOS[:1], foreground=False)
    picture = np.asarray(sheet)[-6 - 160 : -6, -6 - 160 : -6].astype(float) / 255  # the last cell: 4x4 patches of 40 pixels
    middles = picture[20::40, 20::40]
    assert np.corrcoef(middles.flatten(), colors.flatten())[0, 1] > 0.9
    pixel_values = processor(PHOTOS[0], do_normalize=False, return_tensors="np")["pixel_values"][0]
    photo = np.asarray(sheet)[-6 - 160 : -6 : 5, 6 : 6 + 160 : 5].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(photo, pixel_values, atol=1 / 255)


@every_config
def test_every_model_has_pictures(name):
    config = make_config(name)
    model = make_model(ViTForImageClassification, name).to(torch.bfloat16)
    processor = vitrail.make_image_processor("dino", image_size=config.image_size, num_channels=config.num_channels)
    photos = [np.asarray(Image.open(photo))[..., : config.num_channels] for photo in PHOTOS]
    colors, masks, _ = plot_pca(model, processor, photos)
    for one, mask in zip(colors, masks, strict=True):
        assert one.shape == (*config.patch_grid, 3)
        assert mask.shape == config.patch_grid
        assert np.isfinite(one).all()


def test_no_image_is_refused():
    model, processor = small_model()
    with pytest.raises(VitrailError, match="at least one"):
        plot_pca(model, processor, [])
