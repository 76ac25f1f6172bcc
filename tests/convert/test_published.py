"""Every row of the catalog loads: its names and shapes, from a source that is not this package's rules, go through detection, config,
rules and model on the meta device. To be quick, files have two blocks and ten classes; their sums with all of them are those of the row.

Names and shapes of transformers' repositories come from transformers' own classes; of timm's from timm 1.0.31
(tests/golden/timm_shapes.json), as do those of MAE's, DeiT's and I-JEPA's files, which timm publishes in its own format; of DINO's,
DINOv2's, DINOv3's and Google's files from the golden cases, which list those of one size.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

import deterministic
from paths import CHECKOUT
from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.convert import detection as detect
from vitrail.convert.adaptation import complete_periods
from vitrail.convert.families.family import Family, RawCheckpoint
from vitrail.convert.families.rules import Coverage
from vitrail.convert.loading import convert_family
from vitrail.convert.sources.catalog import Checkpoint, checkpoints, official_config
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from vitrail.processing.image_processing_vit import VitrailImageProcessor
from vitrail.utils.weight_files import CheckpointFile

Shapes = dict[str, list[int]]

FORMATS = {
    "dino-pth": "dino",
    "dinov2-pth": "dinov2",
    "dinov3-pth": "dinov3",
    "google-npz": "google",
    "mae-pth": "mae",
    "deit-pth": "deit",
    "ijepa-pth": "ijepa",
    "timm-hub": "timm",
    "transformers-hub": "transformers",
}
CONTAINERS = {
    "dino-pth": "torch",
    "dinov2-pth": "torch",
    "dinov3-pth": "torch",
    "google-npz": "npz",
    "mae-pth": "torch",
    "deit-pth": "torch",
    "ijepa-pth": "torch",
    "timm-hub": "safetensors",
    "transformers-hub": "safetensors",
}

# ------------------------------------------------------------------------------------------------- names and shapes of the files


def resized(case: str, sizes: dict[int, int], depth: int) -> Shapes:
    """The names and shapes of a golden case, for another size: each length of an axis is replaced, and the first block repeated."""
    shapes: Shapes = {}
    for name, spec in deterministic.case(case)["checkpoint"].items():
        block = re.search(r"(?<=blocks\.|rblock_)\d+", name)
        shape = [sizes.get(length, length) for length in spec["shape"]]
        if block is None:
            shapes[name] = shape
        elif block[0] == "0":
            shapes |= {name[: block.start()] + str(index) + name[block.end() :]: shape for index in range(depth)}
    return shapes


def sizes_of(architecture: dict[str, Any], case: dict[str, int]) -> dict[int, int]:
    """Map the lengths of a case's axes, by their meaning, to new lengths."""
    width, mlp, heads = (architecture[name] for name in ("embed_dim", "mlp_dim", "heads"))
    grid = architecture["image_size"] // architecture["patch"]
    lengths = {"width": width, "qkv": 3 * width, "mlp": mlp, "gate and up": 2 * mlp, "heads": heads, "head": width // heads}
    lengths |= {"patch": architecture["patch"], "positions": grid**2 + 1, "classes": architecture["num_classes"]}
    return {length: lengths[what] for what, length in case.items()}


def dino_file(row: Checkpoint) -> Shapes:
    case = {"width": 384, "qkv": 1152, "mlp": 1536, "patch": 8, "positions": 785}
    return resized("dino_vits8", sizes_of(dict(row.architecture), case), row.architecture["depth"])


def dinov2_file(row: Checkpoint) -> Shapes:
    a = dict(row.architecture)
    if a["ffn"] == "swiglu":
        case = {"width": 128, "qkv": 384, "mlp": 344, "gate and up": 688, "positions": 1370}
        shapes = resized("dinov2_swiglu_tiny", sizes_of(a, case), a["depth"])
        return shapes | ({"register_tokens": [1, a["registers"], a["embed_dim"]]} if a["registers"] else {})
    case = {"width": 384, "qkv": 1152, "mlp": 1536, "positions": 1370}
    return resized("dinov2_vits14_reg4" if a["registers"] else "dinov2_vits14", sizes_of(a, case), a["depth"])


def dinov3_file(row: Checkpoint) -> Shapes:
    a = dict(row.architecture)
    if not a["qkv_bias"]:
        return resized("dinov3_vit7b16_two_blocks", {}, a["depth"])  # which includes the norm of local crops
    case = {"width": 384, "qkv": 1152, "mlp": 1536}
    shapes = resized("dinov3_vits16plus" if a["ffn"] == "swiglu" else "dinov3_vits16", sizes_of(a, case), a["depth"])
    norm = {f"local_cls_norm.{kind}": [a["embed_dim"]] for kind in ("weight", "bias")}
    return shapes | (norm if row.training_data == ("SAT-493M",) else {})


# Number of tensors in each file: facebookresearch/dinov3, state_dict() of the models of hub/backbones.py
DINOV3_NAMES = {
    "dinov3-vits16": 188,
    "dinov3-vits16plus": 212,
    "dinov3-vitb16": 188,
    "dinov3-vitl16": 368,
    "dinov3-vitl16-sat493m": 370,
    "dinov3-vitl16plus": 416,
    "dinov3-vith16plus": 552,
    "dinov3-vit7b16": 610,
    "dinov3-vit7b16-sat493m": 610,
}


def test_dinov3_files_have_the_tensors_of_the_original():
    rows = [row for row in checkpoints() if row.family == "dinov3"]
    assert {row.name: len(dinov3_file(row)) for row in rows} == DINOV3_NAMES


def google_file(row: Checkpoint) -> Shapes:
    a = dict(row.architecture)
    if a["pre_logits"]:
        case = {"width": 768, "mlp": 3072, "patch": 32, "positions": 50, "heads": 12, "head": 64, "classes": 218}
        return resized("google_b32_in21k", sizes_of(a, case), a["depth"])
    case = {"width": 384, "mlp": 1536, "patch": 16, "positions": 197, "heads": 6, "head": 64, "classes": 1000}
    return resized("google_s16_augreg", sizes_of(a, case), a["depth"])


TIMM = deterministic.case("timm_shapes")


def timm_shapes(name: str, architecture: dict[str, Any]) -> Shapes:
    """The names and shapes of a model of timm, with the depth and the number of classes of an architecture."""
    entry = TIMM["rows"][name]
    shapes: Shapes = {}
    for name, shape in zip(TIMM["names"][entry["names"]], entry["shapes"], strict=True):
        shape = [architecture["num_classes"], *shape[1:]] if name.startswith("head.") else shape
        shapes |= {name.format(index): shape for index in range(architecture["depth"] if "{}" in name else 1)}
    return shapes


def timm_file(row: Checkpoint) -> Shapes:
    return timm_shapes(row.hub_id, row.architecture)


def mae_file(row: Checkpoint) -> Shapes:
    """timm's published file of the same weights has the names of the original; fine-tuning renames the norm and adds a classifier."""
    size = {768: "base_patch16", 1024: "large_patch16", 1280: "huge_patch14"}[row.architecture["embed_dim"]]
    shapes = timm_shapes(f"timm/vit_{size}_224.mae", row.architecture)
    if not row.architecture["num_classes"]:
        return shapes
    width = row.architecture["embed_dim"]
    head = {"head.weight": [row.architecture["num_classes"], width], "head.bias": [row.architecture["num_classes"]]}
    return {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: s for name, s in shapes.items()} | head


def deit_file(row: Checkpoint) -> Shapes:
    """timm's published file of the same weights; models_v2.py of DeiT III calls LayerScale gamma_1 and gamma_2."""
    (timm,) = (other for other in checkpoints() if other.same_weights_as == row.name)
    return {
        re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): shape for name, shape in timm_shapes(timm.hub_id, row.architecture).items()
    }


def ijepa_file(row: Checkpoint) -> Shapes:
    """timm's names are those of I-JEPA's encoder: checkpoint_filter_fn in timm/models/vision_transformer.py renames none."""
    return timm_shapes(row.aliases[0], row.architecture)


def transformers_model(row: Checkpoint) -> transformers.PreTrainedModel:
    """transformers' own model of a row, on the meta device."""
    a = row.architecture
    sizes = {"hidden_size": a["embed_dim"], "num_hidden_layers": a["depth"], "num_attention_heads": a["heads"]}
    sizes |= {"image_size": a["image_size"], "patch_size": a["patch"], "layer_norm_eps": a["layer_norm_eps"]}
    sizes |= {"num_labels": a["num_classes"]} if a["num_classes"] else {}
    with torch.device("meta"):
        if a["model_type"] == "vit":
            vit = transformers.ViTConfig(**sizes, intermediate_size=a["mlp_dim"])
            if a["num_classes"]:
                return transformers.ViTForImageClassification(vit)
            return transformers.ViTModel(vit, add_pooling_layer=a["pre_logits"])
        if a["model_type"] == "dinov3_vit":  # as convert_dinov3_vit_to_hf.py makes them
            gated = {"use_gated_mlp": True, "hidden_act": "silu"} if a["ffn"] == "swiglu" else {}
            biases = {"query_bias": a["qkv_bias"], "value_bias": a["qkv_bias"]}
            sizes |= {"intermediate_size": a["mlp_dim"], "num_register_tokens": a["registers"]}
            return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, **gated, **biases))
        swiglu = {"use_swiglu_ffn": a["ffn"] == "swiglu"}
        if a["model_type"] == "dinov2":
            dinov2 = transformers.Dinov2Config(**sizes, **swiglu)
            return (transformers.Dinov2ForImageClassification if a["num_classes"] else transformers.Dinov2Model)(dinov2)
        registers = transformers.Dinov2WithRegistersConfig(**sizes, **swiglu, num_register_tokens=a["registers"])
        if a["num_classes"]:
            return transformers.Dinov2WithRegistersForImageClassification(registers)
        return transformers.Dinov2WithRegistersModel(registers)


FILES = {
    "dino-pth": dino_file,
    "dinov2-pth": dinov2_file,
    "dinov3-pth": dinov3_file,
    "google-npz": google_file,
    "mae-pth": mae_file,
    "deit-pth": deit_file,
    "ijepa-pth": ijepa_file,
    "timm-hub": timm_file,
}


def in_file(format: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """The content of a file: MAE's and DeiT's training code saves the model under a key, I-JEPA's all of its networks."""
    if format == "ijepa-pth":
        network = {f"module.{name}": tensor for name, tensor in tensors.items()}
        predictor = {"module.predictor_pos_embed": torch.empty(1, 2, 2), "module.mask_token": torch.empty(1, 1, 2)}
        return {"encoder": dict(network), "predictor": predictor, "target_encoder": network, "epoch": 300}
    return {"model": tensors, "epoch": 799} if format in ("mae-pth", "deit-pth") else tensors


# Tensors whose numbers decide something; these hold one number, seen everywhere
LOOKED_AT = ("rope_embed.periods", "head/kernel", "head/bias", "pooler.dense.bias")


def stand_in(name: str, shape: list[int], value: float) -> torch.Tensor:
    return torch.full((), value).expand(shape) if name in LOOKED_AT else torch.empty(shape, device="meta")


def reduced(row: Checkpoint) -> Checkpoint:
    """The row with two blocks, and ten classes if there are any."""
    a = row.architecture
    return dataclasses.replace(row, architecture={**a, "depth": 2, "num_classes": min(a["num_classes"], 10)})


def has_zero_head(row: Checkpoint) -> bool:
    return "head is zero" in (row.notes or "")


# -------------------------------------------------------------------------------------------------------------------- loading


@dataclasses.dataclass
class Published:
    """A row, and what became of its file."""

    row: Checkpoint
    raw: RawCheckpoint
    family: Family
    config: ViTConfig
    tensors: dict[str, torch.Tensor]
    coverage: Coverage
    warnings: list[str]
    image_processor: VitrailImageProcessor
    model: ViTPreTrainedModel


def publish(row: Checkpoint, folder: Path) -> Published:
    """Write a row's config.json, and read it with the names and shapes of the row's file."""
    config: dict | None = None
    if row.format == "transformers-hub":
        theirs = transformers_model(row)
        config = json.loads(theirs.config.to_json_string())
        shapes = {name: list(tensor.shape) for name, tensor in revert_weight_conversion(theirs, theirs.state_dict()).items()}
    else:
        shapes = FILES[row.format](row)
        config = TIMM["rows"][row.hub_id]["config"] if row.format == "timm-hub" else None
    content = {name: stand_in(name, shape, 0.0 if has_zero_head(row) else 1.0) for name, shape in shapes.items()}
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    file = folder / "model.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            detect, "read_checkpoint", lambda path: CheckpointFile(path, CONTAINERS[row.format], in_file(row.format, content))
        )
        raw = detect.open_checkpoint(file)
    family = detect.find_family(raw, "auto" if row.hub_id else row.family)
    fields, warnings = family.configure(raw, None), []
    tensors, coverage = convert_family(raw, family, warnings)
    complete_periods(tensors, fields, published=False)
    if "classifier.weight" in tensors:
        fields["num_labels"] = len(tensors["classifier.weight"])
    vit_config = ViTConfig(**fields)
    with torch.device("meta"):
        model = (ViTForImageClassification if "classifier.weight" in tensors else ViTModel)(vit_config)
    return Published(row, raw, family, vit_config, tensors, coverage, warnings, family.image_processor(raw, vit_config), model)


def has_its_family(published: Published) -> None:
    assert published.family.name == FORMATS[published.row.format]


def has_the_architecture_of_the_catalog(published: Published) -> None:
    a, config = published.row.architecture, published.config
    expected = {
        "hidden_size": a["embed_dim"],
        "num_hidden_layers": a["depth"],
        "num_attention_heads": a["heads"],
        "intermediate_size": a["mlp_dim"],
        "mlp_type": a["ffn"],
        "patch_size": a["patch"],
        "image_size": a["image_size"],
        "num_register_tokens": a["registers"],
        "use_cls_token": a["class_token"],
        "use_mask_token": a.get("mask_token", False),
        "use_cls_position": a.get("class_position", True),
        "position_embedding_type": {"absolute": "absolute", "rotary": "rotary"}.get(a["position"], "relative_mlp"),
        "share_relative_position": a["position"].endswith("shared"),
        "norm_position": {"pre-norm": "pre", "residual post-norm": "residual_post"}[a.get("block", "pre-norm")],
        "norm_before_pooling": not a.get("fc_norm", False),
        "pooling": "avg" if a["pooling"] == "avg" else "cls",
        "classifier_mean_patch": a["pooling"] == "cls+avg",
        "classifier_cls_layers": 1,
        "representation_size": a["embed_dim"] if a["pre_logits"] else None,
        "layer_norm_eps": a["layer_norm_eps"],
        "hidden_act": "gelu_pytorch_tanh" if published.row.family == "google" else a.get("hidden_act", "gelu"),
    }
    if "rel_pos_hidden" in a:
        expected["relative_position_hidden_size"] = a["rel_pos_hidden"]
    for ours, theirs in (("offset", "pos_interpolate_offset"), ("antialias", "pos_interpolate_antialias")):
        if a[theirs] is not None:
            expected[f"position_interpolation_{ours}"] = a[theirs]
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.layer_scale_init_value is not None) == a["layer_scale"]


def has_the_config_that_the_catalog_gives(published: Published) -> None:
    row, described = published.row, official_config(published.row).to_dict()
    config = published.config.to_dict()
    assert (described.pop("layer_scale_init_value") is None) == (
        config.pop("layer_scale_init_value") is None
    )  # of fresh weights only
    assert described == config, row.name


def has_a_place_for_every_name(published: Published) -> None:
    coverage, row = published.coverage, published.row
    assert (coverage.unexpected, coverage.missing) == ([], [])
    assert len(coverage.converted) + len(coverage.ignored) == len(published.raw.tensors)
    local_norm = [name for name in published.raw.tensors if name.startswith("local_cls_norm.")]
    assert coverage.ignored == (["head/kernel", "head/bias"] if has_zero_head(row) else local_norm)
    assert bool(local_norm) == ("local_cls_norm" in (row.notes or ""))
    assert any("zeros" in warning for warning in published.warnings) == has_zero_head(row)
    assert isinstance(published.model, ViTForImageClassification) == (
        row.architecture["num_classes"] > 0 and not has_zero_head(row)
    )


def has_tensors_that_fit_the_model(published: Published) -> None:
    model = published.model
    prefix = "vit." if isinstance(model, ViTForImageClassification) else ""
    converted = {
        name if name.startswith("classifier.") else prefix + name: tuple(tensor.shape) for name, tensor in published.tensors.items()
    }
    assert converted == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def prepares_images_as_the_catalog_states(published: Published) -> None:
    row, processor = published.row, published.image_processor
    if row.name.startswith("facebook-dino-"):
        return  # the preprocessor_config.json of these repositories contains what their config.json lacks
    if row.name == "dinov3-vit7b16-sat493m":
        return  # the file has the names and shapes of the other ViT-7B; under its name in the catalog the row counts
    if row.architecture.get("model_type") == "dinov3_vit":
        return  # nor does it state the 224 pixels, and the mean and std of satellite images
    expected = row.preprocessing
    square = {"height": expected["crop_size"], "width": expected["crop_size"]}
    if expected["resize_mode"] == "shortest_edge":
        assert dict(processor.size) == {"shortest_edge": expected["size"]}
        assert (processor.do_center_crop, dict(processor.crop_size)) == (True, square)
    else:
        assert dict(processor.size) == {"height": expected["size"], "width": expected["size"]}
        assert not processor.do_center_crop
    assert processor.resample == {"bilinear": 2, "bicubic": 3}[expected["interpolation"]]
    assert (list(processor.image_mean), list(processor.image_std)) == (expected["mean"], expected["std"])


CHECKS = (
    has_its_family,
    has_the_architecture_of_the_catalog,
    has_the_config_that_the_catalog_gives,
    has_a_place_for_every_name,
    has_tensors_that_fit_the_model,
    prepares_images_as_the_catalog_states,
)


@pytest.mark.parametrize("row", checkpoints(), ids=lambda row: row.name)
def test_row(row, tmp_path):
    published = publish(reduced(row), tmp_path)
    for check in CHECKS:
        check(published)


def test_the_files_have_the_parameters_of_the_catalog():
    """All blocks and classes; tests/convert/sources/test_catalog.py counts those of every row from its sizes."""
    apart = re.compile(r".*bias_mask|.*periods|local_cls_norm.*")  # of DINOv3: not parameters, or of its training alone
    files = {row.name: FILES[row.format](row) for row in checkpoints() if row.format in FILES}
    counts = {row: sum(math.prod(shapes[name]) for name in shapes if not apart.fullmatch(name)) for row, shapes in files.items()}
    assert counts == {row.name: row.params for row in checkpoints() if row.name in counts}


@pytest.mark.parametrize("row", [row for row in checkpoints() if row.head_urls], ids=lambda row: row.name)
def test_published_heads_read_what_the_catalog_states(row):
    family = next(family for family in detect.FAMILIES if family.name == row.family)
    width, before = row.architecture["embed_dim"], "linear." if row.family == "dino" else ""
    for recipe in (recipe for recipe in row.head_recipe.values() if "task" not in recipe):
        head = {f"{before}weight": torch.empty(1000, recipe["in_features"], device="meta"), f"{before}bias": torch.empty(1000)}
        _, fields = family.head_rules(RawCheckpoint(head, "torch"), width)
        reads = fields.get("classifier_cls_layers", 1), fields.get("classifier_mean_patch", False)
        assert reads == (recipe["n_last_blocks"], recipe["avgpool"])


def test_all_rows_are_covered():
    assert len(checkpoints()) == 321
    for page in ("README.md", "docs/guides/hub.md"):
        counts = re.findall(
            r"the (\d+) (?:checkpoints|official)|All (\d+) checkpoints", (CHECKOUT / page).read_text(encoding="utf-8")
        )
        assert counts
        assert {max(pair) for pair in counts} == {"321"}
    of_timm = {row.hub_id or row.aliases[0] for row in checkpoints() if row.format in ("timm-hub", "ijepa-pth")}
    assert of_timm == TIMM["rows"].keys()
    assert all(TIMM["rows"][row.hub_id]["depth"] == row.architecture["depth"] for row in checkpoints() if row.format == "timm-hub")
