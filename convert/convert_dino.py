"""DINO's own .pth files (Caron et al., arXiv 2104.14294; github.com/facebookresearch/dino, vision_transformer.py, eval_linear.py)."""

from ..errors import UnsupportedCheckpointError
from .family import Family, Shapes, attention_heads, count_blocks, square_grid
from .rules import Deinterleave, Rule

RULES = (
    Rule("cls_token", "embeddings.cls_token"),
    Rule("pos_embed", "embeddings.position_embeddings"),
    Rule("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
    Rule("patch_embed.proj.bias", "embeddings.patch_embeddings.projection.bias"),
    Rule("blocks.{layer}.norm1.weight", "layers.{layer}.norm1.weight"),
    Rule("blocks.{layer}.norm1.bias", "layers.{layer}.norm1.bias"),
    Rule("blocks.{layer}.attn.qkv.weight", "layers.{layer}.attention.qkv.weight"),
    Rule("blocks.{layer}.attn.qkv.bias", "layers.{layer}.attention.qkv.bias"),
    Rule("blocks.{layer}.attn.proj.weight", "layers.{layer}.attention.proj.weight"),
    Rule("blocks.{layer}.attn.proj.bias", "layers.{layer}.attention.proj.bias"),
    Rule("blocks.{layer}.norm2.weight", "layers.{layer}.norm2.weight"),
    Rule("blocks.{layer}.norm2.bias", "layers.{layer}.norm2.bias"),
    Rule("blocks.{layer}.mlp.fc1.weight", "layers.{layer}.mlp.fc1.weight"),
    Rule("blocks.{layer}.mlp.fc1.bias", "layers.{layer}.mlp.fc1.bias"),
    Rule("blocks.{layer}.mlp.fc2.weight", "layers.{layer}.mlp.fc2.weight"),
    Rule("blocks.{layer}.mlp.fc2.bias", "layers.{layer}.mlp.fc2.bias"),
    Rule("norm.weight", "layernorm.weight"),
    Rule("norm.bias", "layernorm.bias"),
)

# DINO's projection head, in full training checkpoints: its outputs are no classes
IGNORED = (r"head\.mlp\.\d+\.(weight|bias)", r"head\.last_layer\.(weight_g|weight_v|parametrizations\.weight\.original[01])")

# What the linear classifier reads, by its width in units of the model's: eval_linear.py, --n_last_blocks and --avgpool_patchtokens
HEAD_FIELDS: dict[int, dict] = {
    1: {},
    2: {"classifier_mean_patch": True},  # ViT-B: one [CLS] and the mean patch
    3: {"classifier_cls_layers": 3},
    4: {"classifier_cls_layers": 4},  # ViT-S: four [CLS]
}


def recognises(shapes: Shapes) -> bool:
    """[CLS], absolute positions, a fused qkv, and none of DINOv2's LayerScale, mask token and registers."""
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
    return all(name in shapes for name in needed) and not any(
        name in shapes for name in ("blocks.0.ls1.gamma", "mask_token", "register_tokens", "dist_token")
    )


def configure(shapes: Shapes, num_heads: int | None) -> dict:
    """The fields of ViTConfig for a backbone of these shapes."""
    hidden_size, num_channels, *patch_size = shapes["patch_embed.proj.weight"]
    grid = square_grid(shapes["pos_embed"][1] - 1, "pos_embed")
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_blocks(shapes),
        "num_attention_heads": attention_heads(hidden_size, num_heads),
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "image_size": tuple(grid * side for side in patch_size),
        "patch_size": tuple(patch_size),
        "num_channels": num_channels,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "layer_norm_eps": 1e-6,
        "position_interpolation_offset": 0.1,
    }


def head_rules(shapes: Shapes, hidden_size: int) -> tuple[tuple[Rule, ...], dict]:
    """Rules and config fields of a linear-evaluation file (`{"state_dict": {"module.linear.weight", …}}`)."""
    weight = shapes.get("linear.weight")
    if weight is None or weight[1] % hidden_size or weight[1] // hidden_size not in HEAD_FIELDS:
        found = f"linear.weight of shape {tuple(weight)}" if weight else ", ".join(list(shapes)[:5])
        raise UnsupportedCheckpointError(
            f"The head file holds {found}, but a linear head for this backbone has linear.weight of shape (classes, n * {hidden_size}), "
            f"n one of {', '.join(map(str, HEAD_FIELDS))}: take the *_linearweights.pth that belongs to the backbone."
        )
    parts = weight[1] // hidden_size
    # The original joins [CLS] and mean patch element by element; ours one after the other
    weight_rule = Rule("linear.weight", "classifier.weight", *([Deinterleave()] if parts == 2 else []))
    return (weight_rule, Rule("linear.bias", "classifier.bias")), HEAD_FIELDS[parts]


DINO = Family(
    name="dino",
    rules=RULES,
    ignored=IGNORED,
    recognises=recognises,
    configure=configure,
    head_rules=head_rules,
    image_processor="dino",
)
