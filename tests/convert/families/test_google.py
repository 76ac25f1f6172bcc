"""Google's .npz files: two numberings, flax's prefixes, kernels by head, heads of zeros, the tanh layer."""

import numpy as np
import pytest
import torch

import vitrail
from vitrail.errors import ConversionError, UnsupportedCheckpointError

WIDTH, HEADS, GRID, PATCH, CLASSES = 24, 3, 4, 8, 5
PUBLISHED = {"attention": "MultiHeadDotProductAttention_1", "mlp": "MlpBlock_3", "norm": "LayerNorm_2"}
NEWER = {"attention": "MultiHeadDotProductAttention_0", "mlp": "MlpBlock_0", "norm": "LayerNorm_1"}


def tiny(numbering=PUBLISHED, *, pre_logits=False, head="trained", depth=2):
    """The arrays of a ViT that vit_jax wrote, each drawn by itself, so that the numbering changes none."""
    attention, mlp, norm = (numbering[part] for part in ("attention", "mlp", "norm"))
    width = WIDTH // HEADS
    shapes = {
        "cls": (1, 1, WIDTH),
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/posembed_input/pos_embedding": (1, GRID**2 + 1, WIDTH),
        "Transformer/encoder_norm/scale": (WIDTH,),
        "Transformer/encoder_norm/bias": (WIDTH,),
    }
    for index in range(depth):
        block = f"Transformer/encoderblock_{index}"
        for part in ("query", "key", "value"):
            shapes[f"{block}/{attention}/{part}/kernel"] = (WIDTH, HEADS, width)
            shapes[f"{block}/{attention}/{part}/bias"] = (HEADS, width)
        shapes |= {
            f"{block}/{attention}/out/kernel": (HEADS, width, WIDTH),
            f"{block}/{attention}/out/bias": (WIDTH,),
            f"{block}/LayerNorm_0/scale": (WIDTH,),
            f"{block}/LayerNorm_0/bias": (WIDTH,),
            f"{block}/{norm}/scale": (WIDTH,),
            f"{block}/{norm}/bias": (WIDTH,),
            f"{block}/{mlp}/Dense_0/kernel": (WIDTH, 40),
            f"{block}/{mlp}/Dense_0/bias": (40,),
            f"{block}/{mlp}/Dense_1/kernel": (40, WIDTH),
            f"{block}/{mlp}/Dense_1/bias": (WIDTH,),
        }
    if pre_logits:
        shapes |= {"pre_logits/kernel": (WIDTH, 16), "pre_logits/bias": (16,)}
    if head is not None:
        shapes |= {"head/kernel": (16 if pre_logits else WIDTH, CLASSES), "head/bias": (CLASSES,)}
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal(shape, dtype=np.float32) * 0.2 for name, shape in shapes.items()}
    if head == "zeros":
        arrays |= {name: np.zeros_like(arrays[name]) for name in ("head/kernel", "head/bias")}
    return arrays


def save(arrays, path, prefix=""):
    np.savez(path, **{prefix + name: array for name, array in arrays.items()})
    return path


def same_weights(model, other):
    weights = other.state_dict()
    return model.state_dict().keys() == weights.keys() and all(
        torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items()
    )


@pytest.fixture
def published(tmp_path):
    return vitrail.load(save(tiny(), tmp_path / "ViT.npz"))[0]


def test_the_shapes_give_the_architecture(published):
    config = published.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size) == (
        WIDTH,
        2,
        HEADS,
        40,
    )
    assert (config.image_size, config.patch_size, config.num_labels) == (32, 8, CLASSES)
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)


@pytest.mark.parametrize("numbering", [PUBLISHED, NEWER], ids=["published", "newer"])
@pytest.mark.parametrize("prefix", ["", "opt/target/", "params/"])
def test_numberings_and_prefixes_give_the_same_model(published, tmp_path, numbering, prefix):
    model, _, report = vitrail.load(save(tiny(numbering), tmp_path / "file.npz", prefix))
    assert report.format == "google"
    assert same_weights(model, published)


def test_kernels_by_head_become_rows(published):
    """flax: (in, heads, width) for query, key and value, and (heads, width, in) for the output; torch: (out, in)."""
    arrays = tiny()
    block = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    attention = published.vit.layers[1].attention
    tokens = np.random.default_rng(1).standard_normal((3, WIDTH), dtype=np.float32)
    expected = [
        np.einsum("nD,Dad->nad", tokens, arrays[f"{block}/{part}/kernel"]) + arrays[f"{block}/{part}/bias"]
        for part in ("query", "key", "value")
    ]
    with torch.no_grad():
        found = attention.qkv(torch.from_numpy(tokens)).view(3, 3, HEADS, -1).permute(1, 0, 2, 3)
        torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)), atol=1e-6, rtol=1e-5)
        output = np.einsum("nad,adD->nD", expected[2], arrays[f"{block}/out/kernel"]) + arrays[f"{block}/out/bias"]
        torch.testing.assert_close(attention.proj(found[2].flatten(1)), torch.from_numpy(output), atol=1e-5, rtol=1e-5)


def test_patches_are_projected_as_flax_does(published):
    arrays = tiny()
    images = np.random.default_rng(1).standard_normal((1, 32, 32, 3), dtype=np.float32)  # NHWC
    patches = images.reshape(1, 4, 8, 4, 8, 3)
    expected = np.einsum("bhpwqc,pqcD->bhwD", patches, arrays["embedding/kernel"]) + arrays["embedding/bias"]
    with torch.no_grad():
        found = published.vit.embeddings.patch_embeddings(torch.from_numpy(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, torch.from_numpy(expected).flatten(1, 2), atol=1e-5, rtol=1e-5)


def test_a_head_of_zeros_is_dropped_with_a_warning(tmp_path):
    model, _, report = vitrail.load(save(tiny(head="zeros", pre_logits=True), tmp_path / "in21k.npz"))
    assert isinstance(model, vitrail.ViTModel)
    assert [warning for warning in report.warnings if "zeros" in warning and "no classifier" in warning]
    assert set(report.coverage["ignored"]) == {"head/kernel", "head/bias"}


@pytest.mark.parametrize("name", ["head/kernel", "head/bias"])
def test_a_head_that_is_partly_zero_stays(tmp_path, name):
    arrays = tiny()
    model, _, report = vitrail.load(save(arrays | {name: np.zeros_like(arrays[name])}, tmp_path / "file.npz"))
    assert isinstance(model, vitrail.ViTForImageClassification)
    assert report.warnings == []


def test_a_file_without_a_head_is_an_encoder(tmp_path):
    assert isinstance(vitrail.load(save(tiny(head=None), tmp_path / "file.npz"))[0], vitrail.ViTModel)


@pytest.mark.parametrize("head", ["trained", "zeros"])
def test_pre_logits_are_a_tanh_layer_before_the_head(tmp_path, head):
    arrays = tiny(pre_logits=True, head=head)
    model, _, _ = vitrail.load(save(arrays, tmp_path / "in21k.npz"))
    assert model.config.representation_size == 16
    encoder = getattr(model, "vit", model)
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = encoder(pixel_values)
        pre_logits = np.tanh(outputs.last_hidden_state[:, 0].numpy() @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
        torch.testing.assert_close(outputs.pooler_output, torch.from_numpy(pre_logits), atol=1e-6, rtol=1e-5)
        if head == "trained":
            logits = pre_logits @ arrays["head/kernel"] + arrays["head/bias"]
            torch.testing.assert_close(model(pixel_values).logits, torch.from_numpy(logits), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_positions_are_stretched_from_corner_to_corner(published):
    """scipy.ndimage.zoom of order 1, which the original calls: linear, the corners staying where they are."""
    embedding = tiny()["Transformer/posembed_input/pos_embedding"][0]
    grid = embedding[1:].reshape(GRID, GRID, WIDTH)
    for axis, length in ((0, 7), (1, 6)):
        places = np.linspace(0, GRID - 1, length)
        grid = np.apply_along_axis(lambda values, places=places: np.interp(places, np.arange(GRID), values), axis, grid)
    expected = np.concatenate((embedding[:1], grid.reshape(-1, WIDTH)))
    found = published.vit.embeddings.positions((7, 6))[0]
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5)


def test_images_are_squashed_and_scaled_to_one(published, tmp_path):
    _, processor, _ = vitrail.load(save(tiny(), tmp_path / "ViT.npz"))
    pixel_values = processor(np.full((30, 50, 3), 255, np.uint8), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 32, 32)
    assert (pixel_values == 1).all()


# ------------------------------------------------------------------------------------------------------------------ bad files


def test_a_part_of_attention_that_is_absent_is_named(tmp_path):
    arrays = tiny()
    del arrays["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"]
    with pytest.raises(ConversionError, match=r"encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"):
        vitrail.load(save(arrays, tmp_path / "file.npz"))


def test_a_head_file_is_refused(tmp_path):
    source = save(tiny(head=None), tmp_path / "file.npz")
    torch.save({"weight": torch.zeros(5, WIDTH), "bias": torch.zeros(5)}, tmp_path / "head.pth")
    with pytest.raises(UnsupportedCheckpointError, match=r"family google contain their classifier.*head="):
        vitrail.load(source, head=tmp_path / "head.pth")
