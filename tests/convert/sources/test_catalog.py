import dataclasses
import json
import re
from collections import Counter

import pytest

from vitrail.configuration.published_heads import published_range
from vitrail.configuration.sizes import size_name
from vitrail.convert.sources.catalog import (
    Checkpoint,
    checkpoint_names,
    checkpoints,
    find_checkpoint,
    official_config,
    official_image_processor,
)
from vitrail.model_cards.licenses import OTHER_LICENSES
from vitrail.processing.presets import make_image_processor

ROWS = checkpoints()
MASKED_AND_LABELED = {"mae-pth": 6, "deit-pth": 20, "ijepa-pth": 4}
HUB = {"timm-hub": 204, "transformers-hub": 39}  # rows by the format of a Hub repository


def num_parameters(row: Checkpoint) -> int:
    """Counts the parameters of a ViT from its sizes, layer by layer, as in Table 1 of arXiv 2010.11929 and its successors."""
    a = row.architecture
    d, mlp, classes = a["embed_dim"], a["mlp_dim"], a["num_classes"]
    count = 3 * a["patch"] ** 2 * d + d  # patch embedding
    count += d * (a["class_token"] + a["registers"] + a.get("mask_token", False))
    if a["position"] == "absolute":
        has_row_for_class = a["class_token"] and a.get("class_position", True)
        num_patches = (a["image_size"] // a["patch"]) ** 2
        count += d * (num_patches + has_row_for_class + a["registers"] * a.get("register_positions", False))
    elif a["position"] != "rotary":  # an MLP from 2 coordinates to one bias per head, in each block or once for all
        hidden, heads = a["rel_pos_hidden"], a["heads"]
        count += (3 * hidden + hidden * heads + heads) * (1 if a["position"].endswith("shared") else a["depth"])
    attention = 3 * d * d + (2 + a.get("key_bias", True)) * d * a["qkv_bias"] + d * d + d
    ffn = {"mlp": d * mlp + mlp + mlp * d + d, "swiglu": 2 * (d * mlp + mlp) + mlp * d + d}[a["ffn"]]
    count += a["depth"] * (attention + ffn + 2 * 2 * d + 2 * d * a["layer_scale"])
    count += 2 * d  # the last norm
    count += (d * d + d) * a["pre_logits"]
    if classes:
        count += (2 * d if a["pooling"] == "cls+avg" else d) * classes + classes
    return count


def test_all_official_checkpoints_are_there():
    counts = Counter(row.format for row in ROWS)
    assert counts == Counter({"dino-pth": 4, "dinov2-pth": 8, "dinov3-pth": 9, "google-npz": 27, **MASKED_AND_LABELED, **HUB})
    assert checkpoints() is ROWS  # read once


def test_parameters_follow_from_the_architecture():
    assert {row.name: row.params for row in ROWS} == {row.name: num_parameters(row) for row in ROWS}


@pytest.mark.parametrize(
    ("name", "params"),
    [  # as torchvision documents its vit_b_16, vit_b_32 and vit_l_16 (num_params of IMAGENET1K_V1)
        ("google-npz-b16-in21k-ft-in1k-224", 86567656),
        ("timm/vit_base_patch32_224.augreg_in21k_ft_in1k", 88224232),
        ("google-npz-l16-in21k-ft-in1k-224", 304326632),
    ],
)
def test_parameters_agree_with_torchvision(name, params):
    row = find_checkpoint(name)
    assert row is not None
    assert row.params == params


@pytest.mark.parametrize(
    ("name", "knn", "linear"),  # arXiv 2104.14294, Table 2
    [("dino-vits16", 74.5, 77.0), ("dino-vits8", 78.3, 79.7), ("dino-vitb16", 76.1, 78.2), ("dino-vitb8", 77.4, 80.1)],
)
def test_metrics_are_those_of_the_dino_paper(name, knn, linear):
    row = find_checkpoint(name)
    assert row is not None
    assert (row.metrics["imagenet_knn_top1"], row.metrics["imagenet_linear_top1"]) == (knn, linear)
    assert "2104.14294" in row.paper


def test_every_name_is_unique():
    names = [name for row in ROWS for name in (row.name, row.hub_id, *row.aliases) if name]
    assert len(names) == len(set(names)) == len(checkpoint_names())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dino-vits8", "dino-vits8"),
        ("dino_vits8", "dino-vits8"),  # torch.hub's name
        ("dinov2_vitb14_reg", "dinov2-vitb14-reg4"),
        ("dinov3_vitl16", "dinov3-vitl16"),
        ("dinov3_vitl16_pretrain_sat493m", "dinov3-vitl16-sat493m"),  # the name of the file
        ("facebook/dino-vits8", "facebook-dino-vits8"),
        ("imagenet21k/ViT-B_16", "google-npz-b16-in21k"),  # a path in Google's bucket
        ("imagenet21k+imagenet2012/ViT-B_16", "google-npz-b16-in21k-ft-in1k-384"),
        ("ViT-B_16-224", "google-npz-b16-in21k-ft-in1k-224"),
        ("vit_small_patch16_224.dino", "timm-vit_small_patch16_224.dino"),
        ("timm/vit_small_patch16_224.dino", "timm-vit_small_patch16_224.dino"),
        (
            "vit_giant_patch16_gap_224.in22k_ijepa",
            "ijepa-vitg16-in22k",
        ),  # timm's name of a file that is not in a repository of timm
        ("deit_3_huge_224_21k_v1", "deit3-huge-224-21k"),
    ],
)
def test_find_checkpoint(name, expected):
    row = find_checkpoint(name)
    assert row is not None
    assert row.name == expected


@pytest.mark.parametrize("name", ["", "dino", "DINO-VITS8", "ViT-B_16"])  # the last is the stem of two official files
def test_no_guess_is_made(name):
    assert find_checkpoint(name) is None


def is_sound(row: Checkpoint) -> None:
    assert row.hub_id or row.url
    assert (row.hub_id is not None) == row.format.endswith("-hub")
    assert row.format.startswith(row.family)
    assert row.sha256 is None or (row.hub_id is None and re.fullmatch(r"[0-9a-f]{64}", row.sha256))
    for url in filter(None, [row.url, row.full_checkpoint_url, *row.head_urls.values()]):
        assert re.fullmatch(r"https://[\w.]+/\S+", url)
    assert row.head_urls.keys() <= row.head_recipe.keys()  # on the Hub the head is in the file itself
    assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for number in row.paper)
    assert row.training_data
    assert row.license in ("apache-2.0", "mit", "cc-by-nc-4.0", *OTHER_LICENSES, None)
    assert (row.license == "dinov3-license") == (row.paper[0] == "2508.10104")
    assert set(row.metrics) == {"imagenet_knn_top1", "imagenet_linear_top1", "imagenet_top1", "imagenet_top5"}
    assert all(value is None or 50 < value < 100 for value in row.metrics.values())
    widths = (32,) if "test_vit" in row.name else (64, 72, 80, 88, 96, 128)
    assert row.architecture["embed_dim"] / row.architecture["heads"] in widths
    assert (row.architecture["position"] == "rotary") == ("periods" in row.architecture)
    assert row.architecture["image_size"] % row.architecture["patch"] == 0
    assert {"size", "resize_mode", "crop_size", "crop_pct", "interpolation", "mean", "std"} == set(row.preprocessing)


@pytest.mark.parametrize("row", [row for row in ROWS if row.head_recipe], ids=lambda row: row.name)
def test_heads_read_what_the_recipe_states(row):
    for recipe in (recipe for recipe in row.head_recipe.values() if "task" not in recipe):
        assert recipe["in_features"] == row.architecture["embed_dim"] * (recipe["n_last_blocks"] + recipe["avgpool"])


def test_depth_heads_have_the_range_of_their_file():
    depths = {
        row.head_urls[name]: recipe for row in ROWS for name, recipe in row.head_recipe.items() if recipe.get("task") == "depth"
    }
    assert len(depths) == 4 * 6 + 2
    for url, recipe in depths.items():
        assert published_range(url.rpartition("/")[2]) == tuple(recipe["depth_range"]), url


@pytest.mark.parametrize("row", [row for row in ROWS if row.same_weights_as], ids=lambda row: row.name)
def test_same_weights_have_the_same_sizes(row):
    original = find_checkpoint(row.same_weights_as)
    assert original is not None
    assert original.same_weights_as is None
    sizes = ["patch", "registers", "embed_dim", "depth", "heads", "mlp_dim"]
    for size in sizes + ["image_size"] * (row.architecture["position"] != "rotary"):  # any size, with rotary positions
        assert row.architecture[size] == original.architecture[size], size


def names_the_sources_of_what_is_known(row: Checkpoint) -> None:
    fields = ["hub_id", "url", "head_urls", "head_recipe", "hub_safetensors", "same_weights_as", "architecture"]
    fields += ["access", "sha256", "params", "preprocessing", "training_data", "license", "paper"]
    if any(value is not None for value in row.metrics.values()):
        fields.append("metrics")
    for field in fields:
        if getattr(row, field) not in (None, {}):
            assert row.sources.get(field), field


def has_a_public_provenance(row: Checkpoint) -> None:
    """A reader must be able to look it up: no private path, tool or machine."""
    text = json.dumps(dataclasses.asdict(row))
    assert not re.search(r"corpus|snapshot|find_string|\bseed\b|\bseen\b|\.txt\b|\.\./|[\s\"]/\w|file:|localhost", text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row):
    is_sound(row)
    names_the_sources_of_what_is_known(row)
    has_a_public_provenance(row)


def test_vitrail_knows_the_sizes_of_dinov3():
    rows = [row for row in ROWS if row.architecture["position"] == "rotary"]
    assert {row.name: size_name(official_config(row)) for row in rows} == {row.name: row.architecture["size"] for row in rows}


def test_only_heads_that_are_published_as_zeros_are_not_classifiers():
    without = {row.name for row in ROWS if row.architecture["num_classes"] and not row.has_classifier}
    assert without == {row.name for row in ROWS if "head is zero" in (row.notes or "")}
    assert len(without) == 5


def test_the_image_processor_of_a_row():
    """DINO's evaluation, and the Hub's preprocessor_config.json of google/vit-large-patch16-224."""
    cropping = official_image_processor(find_checkpoint("dino-vits8"))
    assert cropping.to_dict() == make_image_processor("dino").to_dict()
    squashing = official_image_processor(find_checkpoint("google/vit-large-patch16-224"))
    assert (dict(squashing.size), squashing.do_center_crop, int(squashing.resample)) == ({"height": 224, "width": 224}, False, 2)
    assert list(squashing.image_mean) == list(squashing.image_std) == [0.5, 0.5, 0.5]
