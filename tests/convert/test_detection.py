"""Files are detected by names and shapes alone. Every error message states what is wrong with a file, the cause and the remedy."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vitrail
from vitrail.convert.detection import FAMILIES, find_family
from vitrail.convert.families.family import RawCheckpoint
from vitrail.errors import ConversionError, CorruptFileError, SourceNotFoundError, UnsupportedCheckpointError

WIDTH, GRID, PATCH, DEPTH = 64, 4, 8, 2


def vit(**changes):
    """DINO's names, which timm has too. A change of None takes a tensor away; `__` in a name stands for a dot."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, GRID**2 + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
        shapes |= {f"{block}.norm{which}.{kind}": (WIDTH,) for which in (1, 2) for kind in ("weight", "bias")}
    shapes |= {name.replace("__", "."): shape for name, shape in changes.items()}
    return {name: torch.zeros(shape) for name, shape in shapes.items() if shape is not None}


def flax(**changes):
    """The arrays of Google's .npz; `__` in a name stands for a slash."""
    shapes = {
        "cls": (1, 1, WIDTH),
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        "Transformer/posembed_input/pos_embedding": (1, GRID**2 + 1, WIDTH),
        "Transformer/encoderblock_0/LayerNorm_0/scale": (WIDTH,),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel": (WIDTH, 1, WIDTH),
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": (WIDTH, 4 * WIDTH),
    }
    shapes |= {name.replace("__", "/"): shape for name, shape in changes.items()}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def hub(model_type, **fields):
    """The config.json and some tensors of one of transformers' models."""
    return {"model_type": model_type, **fields}, {"embeddings.cls_token": torch.zeros(1, 1, WIDTH)}


def pth(content):
    return lambda folder: torch.save(content, folder / "file.pth") or folder / "file.pth"


def npz(arrays):
    return lambda folder: np.savez(folder / "file.npz", **arrays) or folder / "file.npz"


def folder_of(tensors, config):
    """A folder as the Hub has them; `config` is what config.json holds, as a dictionary or as it is."""

    def write(folder):
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return folder

    return write


TIMM = {"architecture": "vit_small_patch16_224"}

# The fault, how such a file is written, the error, and the required words of its message: what was found, and the remedy
BAD = {
    "distillation token, timm": (
        folder_of(vit(dist_token=(1, 1, WIDTH)), TIMM),
        UnsupportedCheckpointError,
        ["distillation token (DeiT)", "dist_token", "trained without distillation"],
    ),
    "distillation token, transformers": (
        folder_of({"deit.embeddings.distillation_token": torch.zeros(1, 1, WIDTH)}, {"model_type": "deit"}),
        UnsupportedCheckpointError,
        ["distillation token (DeiT)", "trained without distillation"],
    ),
    "norm before the first block, timm": (
        folder_of(vit(norm_pre__weight=(WIDTH,)), TIMM),
        UnsupportedCheckpointError,
        ["norm before the first block (CLIP, PE)", "norm_pre.weight", "use transformers or timm"],
    ),
    "norm before the first block, CLIP": (
        pth({"vision_model.pre_layrnorm.weight": torch.zeros(WIDTH)}),
        UnsupportedCheckpointError,
        ["norm before the first block (CLIP, PE)", "use transformers or timm"],
    ),
    "query and key norms": (
        folder_of(vit(blocks__0__attn__q_norm__weight=(64,), blocks__1__attn__q_norm__weight=(64,)), TIMM),
        UnsupportedCheckpointError,
        ["norms of queries and keys", "blocks.{0..1}.attn.q_norm.weight", "use timm"],
    ),
    "attention pooling, timm": (
        folder_of(vit(attn_pool__latent=(1, 1, WIDTH)), TIMM),
        UnsupportedCheckpointError,
        ["attention pooling", "attn_pool.latent", "pools [CLS] or the mean"],
    ),
    "attention pooling, flax": (
        npz(flax(MAPHead_0__probe=(1, 1, WIDTH))),
        UnsupportedCheckpointError,
        ["attention pooling", "MAPHead_0/probe", "pools [CLS] or the mean"],
    ),
    "hybrid stem, timm": (
        folder_of(vit(patch_embed__backbone__stem__conv__weight=(8, 3, 7, 7)), TIMM),
        UnsupportedCheckpointError,
        ["convolutional stem (ResNet hybrids, ViTamin)", "patch_embed.backbone.stem.conv.weight", "plain ViT"],
    ),
    "hybrid stem, flax": (
        npz(flax(conv_root__kernel=(7, 7, 3, 8), block1__unit1__conv1__kernel=(1, 1, 8, 8))),
        UnsupportedCheckpointError,
        ["convolutional stem (ResNet hybrids, ViTamin)", "plain ViT"],
    ),
    "rotary positions": (
        pth(vit(rope__freqs=(16,))),
        UnsupportedCheckpointError,
        ["rotary positions (EVA-02", "rope.freqs", "use transformers or timm"],
    ),
    "EVA's biases": (
        folder_of(vit(blocks__0__attn__q_bias=(WIDTH,), blocks__0__attn__v_bias=(WIDTH,)), TIMM),
        UnsupportedCheckpointError,
        ["biases of queries and values apart (timm's EVA", "blocks.0.attn.q_bias", "use timm"],
    ),
    "a shard of FSDP": (
        pth({"model": {"student.backbone._fsdp_wrapped_module._flat_param": torch.zeros(8)}}),
        UnsupportedCheckpointError,
        ["one shard of an FSDP run", "_flat_param", "teacher_checkpoint.pth"],
    ),
    "another model type of transformers": (
        folder_of(*reversed(hub("pixio"))),
        UnsupportedCheckpointError,
        ["not recognized as any of: vitrail, transformers, google, dinov3, dinov2", "embeddings.cls_token", '"pixio"'],
    ),
    "timm's names next to another config.json": (
        folder_of(vit(), {"model_type": "clip"}),
        UnsupportedCheckpointError,
        ["not recognized", "blocks.{0..1}.attn.qkv.weight", '"clip"'],
    ),
    "a convolutional network of timm": (
        folder_of(
            {"conv1.weight": torch.zeros(8, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1)},
            {"architecture": "resnet50"},
        ),
        UnsupportedCheckpointError,
        ["not recognized", "holds 2 tensors", "conv1.weight", '"resnet50"'],
    ),
    "config.json is not valid JSON": (
        folder_of(vit(), "<html>401 Unauthorized</html>"),
        CorruptFileError,
        ["config.json is not valid JSON", "download it again"],
    ),
    "config.json is a list": (
        folder_of(vit(), "[1, 2]"),
        CorruptFileError,
        ["config.json", "list", "download it again"],
    ),
    "config.json in another encoding": (
        lambda folder: (folder_of(vit(), TIMM)(folder) / "config.json").write_bytes(b"\xff\xfe{}") and folder,
        CorruptFileError,
        ["config.json is not valid JSON", "download it again"],
    ),
    "attention pooling by name only": (
        folder_of(vit(), TIMM | {"global_pool": "map"}),
        UnsupportedCheckpointError,
        ['global_pool="map"', 'expected "token" or "avg"'],
    ),
    "positions that are no square, DINO": (
        pth(vit(pos_embed=(1, 16, WIDTH))),
        UnsupportedCheckpointError,
        ["pos_embed holds positions of 15 patches", "not a square number", "published checkpoints have a square grid"],
    ),
    "positions that are no square, flax": (
        npz(flax(Transformer__posembed_input__pos_embedding=(1, 16, WIDTH))),
        UnsupportedCheckpointError,
        ["pos_embedding holds positions of 15 patches", "not a square number"],
    ),
    "a table that is no square": (
        folder_of(
            vit(
                cls_token=None,
                pos_embed=None,
                **{f"blocks__{i}__attn__rel_pos__relative_position_bias_table": (48, 1) for i in (0, 1)},
            ),
            TIMM,
        ),
        UnsupportedCheckpointError,
        ["relative_position_bias_table", "48", "not a square number"],
    ),
    "integers": (
        pth({name: tensor.to(torch.int8) for name, tensor in vit().items()}),
        UnsupportedCheckpointError,
        ["is torch.int8", "quantized"],
    ),
    "no heads to tell": (
        pth({name: tensor[..., :40] if tensor.shape[-1] == WIDTH else tensor[:40] for name, tensor in vit().items()}),
        UnsupportedCheckpointError,
        ["hidden size 40 is not a multiple of 64", "num_heads="],
    ),
    "several names too many": (
        folder_of(vit(extra__0__weight=(1,), extra__1__weight=(1,), head_dist__weight=(1,)), TIMM),
        ConversionError,
        [
            "3 unexpected keys",
            "extra.{0..1}.weight",
            "head_dist.weight",
            "Use the file as it was published",
        ],
    ),
    "several names too few": (
        folder_of(vit(blocks__1__norm1__bias=None, norm__weight=None), TIMM),
        ConversionError,
        [
            "2 missing keys",
            "layers.1.norm1.bias",
            "layernorm.weight",
            "Use the file as it was published",
        ],
    ),
    "a block too few in the middle": (
        pth({name.replace("blocks.1.", "blocks.3."): tensor for name, tensor in vit().items()}),
        UnsupportedCheckpointError,
        ["blocks up to blocks.3", "no blocks.{1..2}"],
    ),
    "a number of 5000 digits": (
        pth(vit(**{f"blocks__{'9' * 5000}__norm1__bias": (WIDTH,)})),
        ConversionError,
        ["1 unexpected keys: layers.9999", "…"],
    ),
    "a number out of reach": (
        pth(vit(blocks__4__norm1__bias=(WIDTH,), blocks__999999999__norm1__bias=(WIDTH,))),
        UnsupportedCheckpointError,
        ["no blocks.{2..3}"],
    ),
    "control characters": (
        folder_of(vit() | {"a\x1b[31m\nb": torch.zeros(1)}, TIMM),
        CorruptFileError,
        ["a tensor with the name 'a\\x1b[31m\\nb', in which a character is not printable"],
    ),
    "very many names": (
        folder_of(vit(**{f"extra{'x' * n}__weight": (1,) for n in range(30)}), TIMM),
        ConversionError,
        ["30 unexpected keys", "and 22 more groups"],
    ),
    "a weight without axes": (
        pth(vit(blocks__0__mlp__fc1__weight=())),
        UnsupportedCheckpointError,
        ["blocks.0.mlp.fc1.weight has the shape ()", "expected 2 axes"],
    ),
    "patches of no pixels": (
        pth(vit(patch_embed__proj__weight=(WIDTH, 3, 0, 0))),
        UnsupportedCheckpointError,
        ["none of them empty"],
    ),
    "no positions": (pth(vit(pos_embed=(1, 0, WIDTH))), UnsupportedCheckpointError, ["pos_embed has the shape (1, 0, 64)"]),
    "the position of [CLS] alone": (pth(vit(pos_embed=(1, 1, WIDTH))), UnsupportedCheckpointError, ["image_size is (0, 0)"]),
    "a kernel with other axes": (
        npz(flax(Transformer__encoderblock_0__MlpBlock_3__Dense_0__bias=(4 * WIDTH,), pre_logits__kernel=(WIDTH,))),
        UnsupportedCheckpointError,
        ["pre_logits/kernel has the shape (64,)"],
    ),
    "too many channels": (
        pth(vit() | {"patch_embed.proj.weight": torch.zeros(WIDTH, 5000, 1, 1)}),
        UnsupportedCheckpointError,
        ["num_channels is 5000", "at most 4096"],
    ),
    "a quantized folder": (
        folder_of(vit(), {"model_type": "vitrail", "quantization_config": {"quant_method": "torchao"}}),
        UnsupportedCheckpointError,
        ["quantized (quantization_config in config.json)", "from_pretrained"],
    ),
    "names with braces": (
        folder_of(
            {"{layer}": torch.zeros(1), "a{x}{x}": torch.zeros(1), "{0}": torch.zeros(1), "}": torch.zeros(1)},
            {"model_type": "vitrail"},
        ),
        ConversionError,
        ["4 unexpected keys: ", "a{x}{x}", "{0}", "{layer}", "}"],
    ),
    "NaN in config.json": (
        folder_of(vit(), {"model_type": "vitrail", "of_another_program": [float("nan")]}),
        CorruptFileError,
        ["config.json contains NaN or infinity; expected finite numbers"],
    ),
    "parallel blocks": (
        folder_of(vit(blocks__0__attns__0__qkv__weight=(1,)), TIMM),
        UnsupportedCheckpointError,
        ["parallel attention and MLP", '"vit_small_patch16_224"'],
    ),
    "SwiGLU in two parts": (folder_of(vit(blocks__0__mlp__fc1_g__weight=(1,)), TIMM), UnsupportedCheckpointError, ["AIMv2"]),
    "BEiT": (
        folder_of(
            vit(blocks__0__attn__q_bias=(WIDTH,), blocks__0__attn__relative_position_bias_table=(732, 12)),
            {"architecture": "beit_base_patch16_224"},
        ),
        UnsupportedCheckpointError,
        ["BEiT's relative positions", "use transformers or timm"],
    ),
    "CaiT": (
        folder_of(vit(blocks__0__gamma_1=(WIDTH,), blocks_token_only__0__gamma_1=(WIDTH,)), TIMM),
        UnsupportedCheckpointError,
        ["class attention (CaiT)"],
    ),
    "no final norm": (
        folder_of(vit(norm__weight=None, norm__bias=None), TIMM),
        UnsupportedCheckpointError,
        ["no final norm (RADIO, InternViT)", "use timm"],
    ),
    "RMSNorm": (
        folder_of(vit(**{f"blocks__{i}__norm{j}__bias": None for i in (0, 1) for j in (1, 2)}), TIMM),
        UnsupportedCheckpointError,
        ["norms without a bias (RMSNorm)", "use timm"],
    ),
    "SAM": (
        folder_of(
            vit(blocks__0__attn__rel_pos_h=(27, 64), neck__0__weight=(WIDTH, WIDTH, 1, 1)), {"architecture": "samvit_base_patch16"}
        ),
        UnsupportedCheckpointError,
        ["windowed attention and a neck (SAM)"],
    ),
    "BEiT-3": (
        folder_of(vit(blocks__0__attn__norm__weight=(WIDTH,)), {"architecture": "beit3_base_patch16_224"}),
        UnsupportedCheckpointError,
        ["norms inside attention and MLP (BEiT-3)"],
    ),
    "NaFlexViT": (
        folder_of(
            {"embeds.proj.weight": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}, {"architecture": "naflexvit"}
        ),
        UnsupportedCheckpointError,
        ["NaFlexViT's embeddings"],
    ),
    "a folder of torch.distributed.checkpoint": (
        lambda folder: (folder / ".metadata").write_bytes(b"x") and folder,
        UnsupportedCheckpointError,
        ["torch.distributed.checkpoint.format_utils.dcp_to_torch_save(", "'weights.pth'), and pass that file"],
    ),
    "a file of torch.distributed.checkpoint": (
        lambda folder: (folder / "__0_0.distcp").write_bytes(b"x") and folder / "__0_0.distcp",
        UnsupportedCheckpointError,
        ["dcp_to_torch_save("],
    ),
    "a block too few": (
        pth({name: tensor for name, tensor in vit().items() if not name.startswith("blocks.0.")}),
        UnsupportedCheckpointError,
        ["not recognized", "blocks.1.attn.qkv.weight"],
    ),
    "no MLP in the first block": (
        folder_of(vit(blocks__0__mlp__fc1__weight=None), TIMM),
        UnsupportedCheckpointError,
        ["no blocks.0.mlp.fc1.weight", "Check that the file is complete"],
    ),
    "another width in one place": (
        folder_of(vit(norm__bias=(WIDTH + 1,)), TIMM),
        ConversionError,
        ["another shape", "layernorm.bias (file (65,), model (64,))"],
    ),
    "nothing but an optimizer": (
        pth({"optimizer": {"state": {}}, "epoch": 3}),
        UnsupportedCheckpointError,
        ["holds no tensors", "optimizer, epoch"],
    ),
    "a list": (pth([torch.zeros(1)]), UnsupportedCheckpointError, ["holds a list", "state dict"]),
    "a folder without weights": (
        lambda folder: (folder / "config.json").write_text("{}") and folder,
        SourceNotFoundError,
        ["model.safetensors", "config.json", "Pass the path of the weight file"],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_refused_with_cause_and_remedy(tmp_path, what):
    write, error, parts = BAD[what]
    with pytest.raises(error) as caught:
        vitrail.load(write(tmp_path))
    assert type(caught.value) is error
    for part in parts:
        assert part in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


# -------------------------------------------------------------------------------------------------------------------- format=


def test_an_unknown_format_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(
        UnsupportedCheckpointError,
        match=r'Unknown format "dinov4"; expected auto, vitrail, transformers, google, dinov3, dinov2, dino, mae, deit, ijepa, timm',
    ):
        vitrail.load(pth(vit())(tmp_path), format="dinov4")


def test_the_architecture_determines_the_heads_of_timms_test_models(tmp_path):
    """64 wide with 2 heads, where published models have one head for 64."""
    model, _, report = vitrail.load(folder_of(vit(), {"architecture": "test_vit"})(tmp_path))
    assert model.config.num_attention_heads == 2
    assert not any("heads assumed" in warning for warning in report.warnings)


def test_a_format_that_the_file_is_not_of_is_refused(tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match=r"not recognized as google\. It holds 30 tensors"):
        vitrail.load(pth(vit())(tmp_path), format="google")


def test_what_the_model_cannot_represent_is_refused_whatever_the_format(tmp_path):
    with pytest.raises(UnsupportedCheckpointError, match="distillation token"):
        vitrail.load(pth(vit(dist_token=(1, 1, WIDTH)))(tmp_path), format="timm")


@pytest.mark.parametrize(
    ("tensors", "container", "found"),
    [
        (vit(), "torch", "dino"),
        (vit(), "safetensors", "timm"),  # DINO publishes pickles only
        (vit(head__weight=(5, WIDTH), head__bias=(5,)), "torch", "timm"),
        (vit(mask_token=(1, WIDTH), blocks__0__ls1__gamma=(WIDTH,)), "torch", "dinov2"),
        (vit(blocks__0__ls1__gamma=(WIDTH,)), "torch", "timm"),
        (vit(reg_token=(1, 4, WIDTH)), "torch", "timm"),
        (vit(cls_token=None), "torch", "timm"),
        ({name: torch.from_numpy(array) for name, array in flax().items()}, "npz", "google"),
    ],
)
def test_names_and_container_determine_the_family(tensors, container, found):
    assert find_family(RawCheckpoint(tensors, container)).name == found


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "vitrail"}, "vitrail"),
        *[
            ({"model_type": kind}, "transformers")
            for kind in ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers", "dinov3_vit")
        ],
        ({"architecture": "vit_base_patch16_224"}, "timm"),
    ],
)
def test_config_json_determines_the_family(config, found):
    assert find_family(RawCheckpoint(vit(), "torch", config=config)).name == found


def test_a_given_format_goes_before_what_would_be_found(tmp_path):
    """The format decides for one file whether positions are interpolated by DINO's rule or by timm's rule."""
    path = pth(vit())(tmp_path)
    for format, offset, antialias in (("auto", 0.1, False), ("dino", 0.1, False), ("timm", 0.0, True)):
        model, _, report = vitrail.load(path, format=format)
        assert report.format == ("dino" if format == "auto" else format)
        assert model.config.position_interpolation_offset == offset
        assert model.config.position_interpolation_antialias == antialias


def test_a_given_format_opens_containers_in_which_it_is_not_looked_for(tmp_path):
    save_file(vit(), tmp_path / "dino.safetensors")
    assert vitrail.load(tmp_path / "dino.safetensors")[2].format == "timm"
    assert vitrail.load(tmp_path / "dino.safetensors", format="dino")[2].format == "dino"


def test_no_two_families_have_one_name():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) == 10


# ------------------------------------------------------------------------------------------------------------------- wrappers


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "module._orig_mod.", "_orig_mod.module.backbone."])
@pytest.mark.parametrize("root", [None, "state_dict", "model", "teacher"])
def test_wrappers_are_taken_off(tmp_path, prefix, root):
    tensors = {prefix + name: tensor for name, tensor in vit().items()}
    model, _, report = vitrail.load(pth({root: tensors} if root else tensors)(tmp_path))
    assert (report.format, report.root) == ("dino", root)
    assert model.config.num_hidden_layers == DEPTH
