import pytest

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.configuration.sizes import SIZES, size_name

# width, blocks, heads, MLP width and kind. Dosovitskiy et al. (arXiv 2010.11929), table 1; Touvron et al. (arXiv 2012.12877), table 1;
# Oquab et al. (arXiv 2304.07193), table 16: SwiGLU with 2/3 of 4 * 1536 units, that is 4096. DINOv3's: facebookresearch/dinov3,
# hub/backbones.py: SwiGLU with 2/3 of 6 (plus) or 3 (7B) times the width.
PUBLISHED = {
    "tiny": (192, 12, 3, 768, "mlp"),
    "small": (384, 12, 6, 1536, "mlp"),
    "small_plus": (384, 12, 6, 1536, "swiglu"),
    "medium": (512, 12, 8, 2048, "mlp"),
    "base": (768, 12, 12, 3072, "mlp"),
    "large": (1024, 24, 16, 4096, "mlp"),
    "large_plus": (1024, 24, 16, 4096, "swiglu"),
    "huge": (1280, 32, 16, 5120, "mlp"),
    "huge_plus": (1280, 32, 20, 5120, "swiglu"),
    "giant": (1536, 40, 24, 4096, "swiglu"),
    "7b": (4096, 40, 32, 8192, "swiglu"),
}
HEAD_WIDTH = {"huge": 80, "7b": 128}


def test_sizes_are_the_published_ones():
    assert {name: tuple(size.values()) for name, size in SIZES.items()} == PUBLISHED


@pytest.mark.parametrize("name", SIZES)
def test_a_size_makes_a_config_that_knows_its_name(name):
    config = ViTConfig(**SIZES[name], patch_size=8)
    assert config.hidden_size // config.num_attention_heads == HEAD_WIDTH.get(name, 64)
    assert size_name(config) == name


def test_the_default_config_is_base():
    assert size_name(ViTConfig()) == "base"


def test_other_sizes_have_no_name():
    assert size_name(ViTConfig(num_hidden_layers=11)) is None
    assert size_name(ViTConfig(num_attention_heads=6)) is None
    assert size_name(ViTConfig(**{**SIZES["giant"], "intermediate_size": 6144})) is None
