"""Google's .npz files: github.com/google-research/vision_transformer; Dosovitskiy et al., arXiv 2010.11929; Steiner et al., 2106.10270."""

from collections.abc import Sequence
from typing import Any

from ...processing.presets import image_processor_for
from .family import Family, RawCheckpoint
from .formats import ORIGINAL_HOLDS, Export, without_mask_token, write_npz
from .plain_vit import square_grid
from .rules import Concatenate, FlattenHeads, Permute, Rule, Transpose

ANCHOR = "embedding/kernel"
BLOCK = "Transformer/encoderblock_{}"
# Published files number the sub-layers of a block consecutively; newer flax numbers each kind separately
ATTENTION = ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")
MLP = ("MlpBlock_3", "MlpBlock_0")
SECOND_NORM = ("LayerNorm_2", "LayerNorm_1")
# flax's GELU is the tanh approximation; the code resizes positions with the corners kept in place
FLAX_FIELDS: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "position_interpolation_mode": "bilinear",
    "position_interpolation_align_corners": True,
}

HOLDS = ORIGINAL_HOLDS | {"num_register_tokens": (0,), "mlp_type": ("mlp",), "layer_scale_init_value": (None,)}


def numbering(raw: RawCheckpoint) -> int:
    """Return 0 for the published numbering of sub-layers, 1 for the numbering of newer flax."""
    return int(f"{BLOCK.format(0)}/{MLP[1]}/Dense_0/kernel" in raw.tensors)


def heads(raw: RawCheckpoint) -> int:
    """Return the number of attention heads, which is an axis of the query kernel."""
    return raw.shape(f"{BLOCK.format(0)}/{ATTENTION[numbering(raw)]}/query/kernel", 3)[1]


def table(num_heads: int, which: int = 0) -> Sequence[Rule]:
    """Return the rules for a number of heads and a numbering of sub-layers."""
    source, target = BLOCK.replace("{}", "{layer}"), "layers.{layer}"
    attention = f"{source}/{ATTENTION[which]}"
    query_key_value = ("query", "key", "value")
    rules = [
        Rule("cls", "embeddings.cls_token"),
        Rule("Transformer/posembed_input/pos_embedding", "embeddings.position_embeddings"),
        Rule(ANCHOR, "embeddings.patch_embeddings.projection.weight", Permute((3, 2, 0, 1))),  # (h, w, in, out)
        Rule("embedding/bias", "embeddings.patch_embeddings.projection.bias"),
        Rule(
            [f"{attention}/{part}/kernel" for part in query_key_value],  # each (D, A, d)
            f"{target}.attention.qkv.weight",
            FlattenHeads(num_heads, axis=1),
            Transpose(),
            Concatenate(3),
        ),
        Rule(
            [f"{attention}/{part}/bias" for part in query_key_value],  # each (A, d)
            f"{target}.attention.qkv.bias",
            FlattenHeads(num_heads, axis=0),
            Concatenate(3),
        ),
        Rule(
            f"{attention}/out/kernel", f"{target}.attention.proj.weight", FlattenHeads(num_heads, axis=0), Transpose()
        ),  # (A, d, D)
        Rule(f"{attention}/out/bias", f"{target}.attention.proj.bias"),
    ]
    for name, ours in ((f"{source}/LayerNorm_0", f"{target}.norm1"), (f"{source}/{SECOND_NORM[which]}", f"{target}.norm2")):
        rules += [Rule(f"{name}/scale", f"{ours}.weight"), Rule(f"{name}/bias", f"{ours}.bias")]
    rules += [Rule("Transformer/encoder_norm/scale", "layernorm.weight"), Rule("Transformer/encoder_norm/bias", "layernorm.bias")]
    for name, ours in (
        (f"{source}/{MLP[which]}/Dense_0", f"{target}.mlp.fc1"),
        (f"{source}/{MLP[which]}/Dense_1", f"{target}.mlp.fc2"),
        ("pre_logits", "representation"),
        ("head", "classifier"),
    ):
        rules += [Rule(f"{name}/kernel", f"{ours}.weight", Transpose()), Rule(f"{name}/bias", f"{ours}.bias")]
    return rules


def recognizes(raw: RawCheckpoint) -> bool:
    """Return True for flax's names of an encoder block and a patch embedding."""
    return ANCHOR in raw.tensors and f"{BLOCK.format(0)}/LayerNorm_0/scale" in raw.tensors


def configure(raw: RawCheckpoint, num_heads: int | None) -> dict[str, Any]:
    """Return the fields of ViTConfig."""
    which = numbering(raw)
    patch_height, patch_width, num_channels, hidden_size = raw.shape(ANCHOR, 4)
    grid = square_grid(raw.shape("Transformer/posembed_input/pos_embedding", 3)[1] - 1, "pos_embedding")
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": raw.count_blocks(BLOCK.format("")),
        "num_attention_heads": num_heads or heads(raw),
        "intermediate_size": raw.shape(f"{BLOCK.format(0)}/{MLP[which]}/Dense_0/kernel", 2)[1],
        "image_size": (grid * patch_height, grid * patch_width),
        "patch_size": (patch_height, patch_width),
        "num_channels": num_channels,
        "layer_norm_eps": 1e-6,
        "representation_size": raw.shape("pre_logits/kernel", 2)[1] if "pre_logits/kernel" in raw.tensors else None,
    } | FLAX_FIELDS


def drops(raw: RawCheckpoint) -> dict[str, str]:
    """Return the head of an ImageNet-21k file, which was published as zeros."""
    head = [name for name in ("head/kernel", "head/bias") if name in raw.tensors]
    if head and not any(raw.tensors[name].any() for name in head):
        return dict.fromkeys(head, "the head holds only zeros, as published: it is dropped, and the model has no classifier")
    return {}


GOOGLE = Family(
    name="google",
    containers=("npz",),
    recognizes=recognizes,
    rules=lambda raw: table(heads(raw), numbering(raw)),
    export_rules=lambda config, tensors: table(config.num_attention_heads),
    ignored=(),
    configure=configure,
    anchors=(ANCHOR,),
    image_processor=lambda raw, config: image_processor_for(config, "google"),
    prefixes=("opt/target/", "params/"),  # flax's optimizer and training state
    drops=drops,
    export=Export(lambda config: HOLDS, without_mask_token, write_npz, suffixes=(".npz",)),
    catalog_format="google-npz",
    official_fields=lambda architecture: FLAX_FIELDS,
)
