"""Cards of converted models, exported ones and official checkpoints; test_official.py covers all of the latter."""

import ast
import dataclasses
import json
import re
import shutil

import jinja2.meta
import pytest
import torch
from huggingface_hub import ModelCard

import deterministic
import paths
import vitrail
from small_models import tiny_config
from small_run import KNN, MODEL, make_run
from vitrail.configuration.class_names import dataset_labels
from vitrail.convert.export import to_format, write_exported
from vitrail.convert.report import Check, ConversionRecord, ConversionReport, FileRecord, SourceFile
from vitrail.convert.sources.catalog import find_checkpoint, official_config, official_image_processor
from vitrail.errors import CorruptFileError, VitrailError
from vitrail.hub.saving import keep_verification
from vitrail.model_cards.card import OPTIONAL, TEMPLATE, folder_card, official_card, render_model_card
from vitrail.model_cards.citations import PAPERS
from vitrail.model_cards.descriptions import counts, preprocessing
from vitrail.model_cards.model_folder import hash_weights
from vitrail.model_cards.provenance import linked
from vitrail.model_cards.records import MeasuredResults, PretrainingRecord

PHOTO = paths.IMAGES / "chelsea.jpg"
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 224, "patch_size": 16}
CONFIG = tiny_config(**SMALL)
PROCESSOR = vitrail.make_image_processor("dino")


def record_of(name, **fields):
    """The record of a conversion of an official checkpoint, without converting it."""
    row = find_checkpoint(name)
    source = SourceFile("weights.pth", row.url, row.hub_id, 1000, lambda: "ab" * 32)
    report = ConversionReport(row.family, source, catalog_name=row.name, coverage={"converted": 150, "ignored": []})
    return dataclasses.replace(report.record(), **fields)


def records(options):
    """The options of `render_model_card`, with the contents of JSON files as the records that they hold."""
    kinds = {"pretraining": PretrainingRecord, "results": MeasuredResults}
    return {
        name: kinds[name].from_dict(value, f"{name}.json") if name in kinds and value else value for name, value in options.items()
    }


def converted(name, *, fields=(), processor=None, report=(), classifies=None, **options):
    """The card of an official checkpoint after its conversion, or of one that was changed."""
    row = find_checkpoint(name)
    config = official_config(row)
    if row.has_classifier and "num_labels" not in dict(fields):
        labels = dataset_labels("imagenet-1k" if config.num_labels == 1000 else "imagenet-21k")
        config = vitrail.ViTConfig(**config.to_dict() | {"id2label": dict(enumerate(labels))})
    config = vitrail.ViTConfig(**config.to_dict() | dict(fields))
    return render_model_card(
        config,
        processor or official_image_processor(row),
        record_of(name, **dict(report)),
        classifies=row.has_classifier if classifies is None else classifies,
        name="user/name",
        **records(options),
    )


def section(card, heading):
    """The text under a heading."""
    return re.search(rf"^## {heading}\n\n(.*?)(?=\n## |\Z)", card.text, re.MULTILINE | re.DOTALL)[1]


def code_blocks(card):
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


def rows(text):
    """The cells of the tables in a text, by their first one."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


# ----------------------------------------------------------------------------------------------------- official checkpoints


@pytest.mark.parametrize(
    ("name", "results"),
    [  # facebookresearch/dino, README.md; facebookresearch/dinov2, MODEL_CARD.md and README.md; google-research/vision_transformer,
        # README.md, 2020-10-29; huggingface/pytorch-image-models, results/results-imagenet.csv
        ("dino-vits8", {"k-NN top-1": "78.3 %", "linear top-1": "79.7 %"}),
        ("dinov2_vits14", {"k-NN top-1": "79.0 %", "linear top-1": "81.1 %"}),
        ("dinov2_vitg14_reg", {"k-NN top-1": "83.7 %", "linear top-1": "87.1 %"}),
        ("google-npz-l16-in21k-ft-in1k-224", {"top-1": "82.7 %"}),
        ("timm/vit_relpos_base_patch16_clsgap_224.sw_in1k", {"top-1": "82.758 %", "top-5": "96.178 %"}),
        ("facebook/dino-vits8", {}),
        ("google/vit-large-patch16-224", {}),
    ],
)
def test_results_are_the_publishers(name, results):
    text = section(official_card(find_checkpoint(name)), "Published results")
    found = {metric: cells[0] for metric, cells in rows(text).items() if cells[0].endswith("%")}
    assert found == results
    assert ("not measured by Vitrail" in text) == bool(results)
    assert ("reports none" in text) == (not results)


@pytest.mark.parametrize(
    ("name", "params", "macs", "with_attention"),
    [  # timm's model cards on the Hub, and, with attention, results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv (1000 classes)
        ("timm/vit_base_patch16_224.orig_in21k", "85.8", "16.9", None),
        ("timm/vit_large_patch32_224.orig_in21k", "305.5", "15.3", None),
        ("timm/vit_base_patch16_224.augreg_in1k", "86.6", "16.9", "17.6"),
        ("timm/vit_relpos_base_patch16_clsgap_224.sw_in1k", "86.4", None, "17.6"),
        ("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "5.7", None, "1.3"),
        ("timm/vit_base_patch32_384.augreg_in1k", "88.3", None, "13.1"),
        ("timm/vit_relpos_medium_patch16_rpn_224.sw_in1k", "38.7", None, "8.0"),
    ],
)
def test_sizes_are_those_that_timm_publishes(name, params, macs, with_attention):
    row = find_checkpoint(name)
    card = official_card(row)
    architecture = rows(section(card, "Architecture"))
    size = row.architecture["image_size"]
    found = re.fullmatch(r"([\d.]+) \(([\d.]+)\)", architecture[f"GMACs at {size} x {size}"][0])
    assert f"{int(architecture['Parameters'][0].replace(',', '')) / 1e6:.1f}" == params
    assert f"with {params} million parameters" in card.text
    assert macs in (None, found[1])
    assert with_attention in (None, found[2])


def test_a_model_that_is_evaluated_at_another_size_reports_both_costs():
    architecture = rows(section(official_card(find_checkpoint("facebook/dinov2-small")), "Architecture"))
    assert architecture["Tokens"] == ["1,370: [CLS], 37 x 37 patches"]
    assert architecture["GMACs at 518 x 518"][0].startswith("29.5 ")
    assert "GMACs at 224 x 224" in architecture
    assert "(1, 257, 384): [CLS], 16 x 16 patches" in code_blocks(official_card(find_checkpoint("facebook/dinov2-small")))[0]


def test_the_same_weights_in_another_format_report_what_differs():
    text = section(official_card(find_checkpoint("facebook/dino-vits8")), "Model description")
    table = rows(text)
    assert table["Epsilon of LayerNorm"] == ["1e-12", "1e-6"]
    assert table["Positions at other sizes"] == ["interpolated: bicubic", "interpolated: bicubic, 0.1 added to the target grid"]
    assert table["Filter"] == ["bilinear", "bicubic"]
    assert table["Crop"] == ["none", "the central 224 x 224 pixels"]
    assert set(table) == {"Setting", "---", "Epsilon of LayerNorm", "Positions at other sizes", "Resize", "Filter", "Crop"}
    assert "[`dino-vits8`](https://github.com/facebookresearch/dino/blob/7c446df/README.md)" in text
    assert "[`timm/vit_small_patch8_224.dino`](https://huggingface.co/timm/vit_small_patch8_224.dino)" in text


def test_google_and_the_hub_differ_in_gelu_epsilon_and_interpolation():
    table = rows(section(official_card(find_checkpoint("google/vit-large-patch16-224")), "Model description"))
    assert table["MLP"] == ["4096 wide, GELU", "4096 wide, GELU (tanh approximation)"]
    assert table["Epsilon of LayerNorm"] == ["1e-12", "1e-6"]
    assert table["Positions at other sizes"] == ["interpolated: bicubic", "interpolated: bilinear, with aligned corners"]
    assert len(table) == 2 + 3


def test_a_card_of_the_catalog_claims_no_run_of_the_weights():
    verified = section(official_card(find_checkpoint("dino-vits16")), "Verification")
    assert "tests do not run published weights" in verified
    assert "vitrail verify model/ --against dino-vits16" in verified
    assert not rows(verified)


def test_published_heads_are_reported_by_the_name_that_loads_them():
    usage = section(official_card(find_checkpoint("dinov2-vits14")), "Usage")
    assert '`head="linear_1layer"` reads [CLS] and the mean patch' in usage
    assert '`head="linear_4layer"` reads [CLS] of the last 4 blocks and the mean patch' in usage
    assert "head=" not in section(official_card(find_checkpoint("facebook/dinov2-small")), "Usage")


def test_a_class_token_that_is_not_pooled_is_pointed_out():
    assert (
        "do not use [CLS] as the feature" in official_card(find_checkpoint("timm/vit_relpos_base_patch16_clsgap_224.sw_in1k")).text
    )
    assert "do not use [CLS] as the feature" not in official_card(find_checkpoint("timm/vit_relpos_base_patch16_224.sw_in1k")).text


def test_a_head_of_zeros_is_not_a_classifier():
    card = official_card(find_checkpoint("imagenet21k/ViT-B_16"))
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert rows(section(card, "Architecture"))["Parameters"] == [
        "86,389,248; 103,186,515 in the file, including a head of zeros that is left out"
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("facebookresearch/dino@7c446df:README.md", "https://github.com/facebookresearch/dino/blob/7c446df/README.md"),
        ("a/b:src/x_y.py; eps: Hub config.json", "https://github.com/a/b/blob/main/src/x_y.py"),
        ("Hub a/b@fc5da87:preprocessor_config.json (this)", "https://huggingface.co/a/b/blob/fc5da87/preprocessor_config.json"),
        ("DINO paper, arXiv 2104.14294", "https://arxiv.org/abs/2104.14294"),
        ("Hub tag", "https://huggingface.co/facebook/dino-vits8"),
        ("computed from the architecture; README says 85M", None),
    ],
)
def test_sources_become_links(source, expected):
    text = linked(source, find_checkpoint("facebook/dino-vits8"))
    assert re.findall(r"\]\((.*?)\)", text) == ([expected] if expected else [])
    assert expected is not None or text == source


def test_citations_name_every_author():
    papers = {number: paper for number, paper in PAPERS.items() if not number.startswith("10.")}  # the others are programs
    authors = {number: re.search(r"author=\{(.*)\},\n", paper.bibtex)[1].split(" and ") for number, paper in papers.items()}
    # as the papers list them
    assert {number: len(names) for number, names in authors.items()} == {
        "1412.6550": 6,
        "2010.11929": 12,
        "2012.12877": 6,
        "2104.10972": 4,
        "2104.14294": 7,
        "2106.01548": 3,
        "2106.10270": 6,
        "2111.06377": 6,
        "2111.09883": 12,
        "2203.07845": 10,
        "2204.07118": 3,
        "2211.07636": 9,
        "2212.08013": 10,
        "2301.08243": 8,
        "2303.15343": 4,
        "2304.07193": 26,
        "2309.16588": 4,
        "2407.07726": 35,
        "2412.03555": 18,
        "2502.14786": 14,
        "2604.12012": 19,
        "2508.10104": 26,
        "2603.22387": 11,
        "2607.05247": 9,
    }
    for number, paper in papers.items():
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
        assert all(name.count(", ") == 1 for name in authors[number])
        assert f"arXiv:{number}" in paper.bibtex
        assert paper.url.endswith(number)


# ------------------------------------------------------------------------------------------------------------ converted models


def test_a_converted_checkpoint_has_the_facts_of_the_catalog():
    card = converted("dino-vits16")
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["vitrail", "vit", "vision", "custom_code", "dino"],
        "datasets": ["imagenet-1k"],
        "model-index": card.data.to_dict()["model-index"],
    }
    assert [result.metric_value for result in card.data.eval_results] == [74.5, 77.0]
    assert card.data.model_name == "name"
    assert ", the published checkpoint [`dino-vits16`]" in card.text
    assert "not stated*" not in card.text.lower()
    assert rows(section(card, "Conversion"))["File"] == [
        f"[`weights.pth`]({find_checkpoint('dino-vits16').url}), 1,000 bytes, SHA-256 `{'ab' * 32}`"
    ]


def test_nothing_is_guessed_about_a_model_of_unknown_origin():
    report = ConversionReport(
        "dino", SourceFile("mine.pth", None, None, 5, lambda: "00"), coverage={"converted": 4, "ignored": ["head.*"]}
    )
    card = render_model_card(
        vitrail.ViTConfig(), vitrail.make_image_processor("dino"), report.record(), classifies=False, name="mine/"
    )
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "dino" not in card.data.tags
    for heading in ("Model description", "Training", "Intended uses and limitations", "Published results", "License"):
        assert "not stated" in section(card, heading).lower(), heading
    assert "apache" not in card.text
    assert "self-distillation" not in card.text
    assert "## Sources" not in card.text
    assert rows(section(card, "Conversion"))["Ignored"] == ["`head.*`"]
    assert card.text.startswith("\n# mine\n")


@pytest.mark.parametrize("checks", [None, [], [Check("a", "b", 0.0, True)]])
def test_a_model_that_was_not_converted_does_not_mention_a_conversion(checks):
    record = None if checks is None else ConversionRecord(verification=checks)
    card = render_model_card(vitrail.ViTConfig(), vitrail.make_image_processor("dino"), record, classifies=True, name="mine")
    assert "## Conversion" not in card.text
    assert "converted it" not in card.text
    assert card.data.pipeline_tag == "image-classification"
    assert ("has not been run" in section(card, "Verification")) == (not checks)


CHANGES = {
    "another image size": ("dino-vits16", {"fields": {"image_size": 384}}, "Image"),
    "one channel": ("dino-vits16", {"fields": {"num_channels": 1}}, "Image"),
    "another preparation": ("dino-vits16", {"processor": vitrail.make_image_processor("google")}, "Resize"),
    "a fresh classifier": ("dino-vits16", {"fields": {"num_labels": 10}, "classifies": True}, "Classifier"),
    "a fresh classifier of the same size": (
        "timm/vit_base_patch16_224.augreg_in1k",
        {"fields": {"num_labels": 1000}},
        "Classifier",
    ),
    "the student": ("dino-vits16", {"report": {"root": "student"}}, "Network of the training run"),
    "someone's head": (
        "dino-vits16",
        {
            "fields": {"num_labels": 1000, "classifier_cls_layers": 4},
            "classifies": True,
            "report": {"head": FileRecord("head.pth", None, None, 3, "11")},
        },
        "Classifier",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_results_are_not_claimed_for_a_model_that_was_changed(change):
    name, options, difference = CHANGES[change]
    card = converted(name, **options)
    assert "model-index" not in card.data.to_dict()
    assert difference in rows(section(card, "Model description"))
    assert "as published:" in section(card, "Model description")
    text = section(card, "Published results")
    assert text.startswith("None")
    assert not rows(text)
    assert card.data.license == "apache-2.0"  # which a change does not take away


def test_the_published_head_is_not_a_change():
    head = FileRecord("head.pth", find_checkpoint("dino-vits16").head_urls["linear"], None, 3, "11")
    fields = {"id2label": dict(enumerate(dataset_labels("imagenet-1k"))), "classifier_cls_layers": 4}
    card = converted("dino-vits16", fields=fields, classifies=True, report={"head": head})
    assert [result.metric_value for result in card.data.eval_results] == [74.5, 77.0]
    assert card.data.pipeline_tag == "image-classification"
    assert "one of 1,000 classes of ImageNet-1k" in card.text
    assert "head.pth" in rows(section(card, "Conversion"))["File of the classifier"][0]


CHECKS = [
    Check("round trip", "dino.pth (dino)", 0.0, True, "150 tensors equal bit for bit"),
    Check("features at 224x224", "transformers 5.23.0", 1.24e-6, True),
    Check("features at 256x176", "transformers 5.23.0", 0.5, None, "known: by its own rule | <b>"),
]


def test_a_license_that_the_hub_does_not_know_has_its_name_its_page_and_its_terms():
    card = converted("dinov3-vits16")
    link = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "dinov3-license", link)
    text = section(card, "License")
    assert text.startswith(f"[DINOv3 License]({link}) (`dinov3-license`). ")
    assert "does so under this license and adds a copy of it" in text
    assert "acknowledge DINOv3" in text


def test_the_vector_that_the_original_takes_is_named():
    """timm pools the patches of DINOv3, which was trained with [CLS]; the patches of `clsgap` models were trained so."""
    name = "timm-vit_small_patch16_dinov3.lvd1689m"
    assert rows(section(converted(name), "Architecture"))["`pooler_output`"][0].startswith("the mean of the patch tokens")
    assert "The original takes [CLS] for the whole image" in section(converted(name), "Intended uses and limitations")
    trained_so = section(converted("timm-vit_relpos_base_patch16_clsgap_224.sw_in1k"), "Intended uses and limitations")
    assert "do not use [CLS] as the feature of an image" in trained_so


def test_the_table_of_verify_is_shown():
    text = section(converted("dino-vits16", report={"verification": CHECKS}), "Verification")
    table = rows(text)
    assert table["round trip"] == ["dino.pth (dino)", "0", "passed", "150 tensors equal bit for bit"]
    assert table["features at 224x224"] == ["transformers 5.23.0", "1.2e-06", "passed", ""]
    assert table["features at 256x176"][1:] == ["5.0e-01", "for information", r"known: by its own rule \| &lt;b&gt;"]
    assert "2 of 3 checks passed and none failed" in text


def test_a_check_that_failed_cannot_be_overlooked():
    failed = Check("features at 224x224", "transformers 5.23.0", 0.1, False)
    text = section(converted("dino-vits16", report={"verification": [failed, CHECKS[0]]}), "Verification")
    assert text.startswith("**1 of the checks of `vitrail verify` FAILED.")
    assert rows(text)["features at 224x224"][2] == "**FAILED**"


def test_verify_has_not_been_run():
    text = section(converted("dino-vits16"), "Verification")
    assert "has not been run on this model" in text
    assert "vitrail verify user/name --against dino-vits16" in text


# ------------------------------------------------------------------------------------------------------------------- layouts


def test_the_code_that_is_carried_needs_trust_and_no_vitrail():
    with_code, without = converted("dino-vits16"), converted("dino-vits16", carries_code=False)
    assert "custom_code" in with_code.data.tags
    assert code_blocks(with_code)[0].count('"user/name", trust_remote_code=True') == 2
    assert "import vitrail" not in code_blocks(with_code)[0]
    assert "custom_code" not in without.data.tags
    assert "trust_remote_code" not in without.text
    assert "import vitrail" in code_blocks(without)[0]


@pytest.mark.parametrize(("format", "library"), [("transformers", "transformers"), ("timm", "timm")])
def test_exports_are_loaded_by_their_own_library(format, library):
    warning = "at other image sizes, it interpolates <otherwise>"
    card = converted("dino-vits16", format=format, warnings=[warning])
    assert card.data.library_name == library
    assert "custom_code" not in card.data.tags
    block = code_blocks(card)[0]
    assert f"import {library}" in block or f"from {library} import" in block
    assert "vitrail" not in block
    assert "trust_remote_code" not in card.text
    assert "- at other image sizes, it interpolates &lt;otherwise&gt;" in section(card, "Usage")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/name", "hf-hub:user/name"),
        ("user/name/", "local-dir:user/name/"),
        ("folder", "local-dir:folder"),
        ("./a/b", "local-dir:./a/b"),
        ("/a/b", "local-dir:/a/b"),
    ],
)
def test_timm_receives_a_hub_id_or_a_folder(name, expected):
    config, processor = official_config(find_checkpoint("dino-vits16")), vitrail.make_image_processor("dino")
    card = render_model_card(config, processor, None, classifies=False, name=name, format="timm")
    assert f'timm.create_model("{expected}", pretrained=True)' in code_blocks(card)[0]


LAYOUTS = ["vitrail", "transformers", "timm"]
MODELS = {
    "features": (vitrail.ViTModel, {}),
    "classes": (vitrail.ViTForImageClassification, {"num_labels": 5}),
    "another size than is prepared": (vitrail.ViTModel, {"image_size": 96}),
    "DINOv2": (vitrail.ViTModel, {"patch_size": 14, "image_size": 518, "layer_scale_init_value": 1.0, "intermediate_size": 128}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_code_runs_and_its_shapes_are_right(tmp_path, monkeypatch, layout, kind):
    if layout == "timm":
        pytest.importorskip("timm")
    model_class, fields = MODELS[kind]
    model = model_class(tiny_config(**SMALL | fields)).eval()
    processor = vitrail.make_image_processor("dino")
    monkeypatch.chdir(tmp_path)
    shutil.copy(PHOTO, "photo.jpg")
    if layout == "vitrail":
        vitrail.save(model, processor, "model")
    else:
        write_exported(to_format(model, processor, layout), "model")
    classifies = model_class is vitrail.ViTForImageClassification
    options = {"classifies": classifies, "name": "model", "format": layout, "carries_code": False}
    (block,) = code_blocks(render_model_card(model.config, processor, None, **options))
    names: dict = {}
    exec(block, names)
    shown = re.findall(r"^ *(?:(\w+) = )?(\S.*?)  # \(([\d, ]+)\)", block, re.MULTILINE)
    assert len(shown) >= 1
    for name, expression, shape in shown:
        assert ", ".join(map(str, eval(name or expression, names).shape)) == shape, expression


@pytest.mark.parametrize("name", ['a"b', "a\\b", "it's a folder", "$(touch x)", "a`b|c"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_name_cannot_break_the_code(name, layout):
    card = render_model_card(
        vitrail.ViTConfig(), vitrail.make_image_processor("dino"), None, classifies=False, name=name, format=layout
    )
    (block,) = code_blocks(card)
    strings = [node.value for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Constant)]
    assert (f"local-dir:{name}" if layout == "timm" else name) in strings


def test_images_that_the_patch_does_not_divide_are_not_a_hindrance():
    """A preparation that keeps the size of each image also works: the card then omits the number of tokens."""
    for processor in (
        vitrail.make_image_processor("dino", image_size=230),
        vitrail.make_image_processor("full-image", patch_size=16),
    ):
        card = render_model_card(tiny_config(**SMALL), processor, None, classifies=False, name="x")
        assert "outputs.last_hidden_state  # (1, tokens, 32)\n" in code_blocks(card)[0]
        assert [name for name in rows(section(card, "Architecture")) if name.startswith("GMACs")] == ["GMACs at 224 x 224"]
        assert "with 56,640 parameters" in card.text  # 24,608 + 32 + 197 * 32 + 3 * 8,544 + 64


def test_names_of_other_people_cannot_break_the_tables():
    source = SourceFile("a|b`c\n<script>.pth", None, None, 1, lambda: "00")
    report = ConversionReport("timm", source, coverage={"converted": 1, "ignored": []}, warnings=["left out: x|y\n<img src=z>"])
    card = render_model_card(vitrail.ViTConfig(), vitrail.make_image_processor("dino"), report.record(), classifies=False, name="x")
    table = rows(section(card, "Conversion"))
    assert table["File"][0].startswith(r"`a\|b'c <script>.pth`,")  # as code
    assert table["Note"] == [r"left out: x\|y &lt;img src=z&gt;"]


def shuffled(value):
    """The content is the same in another order of keys."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


def test_a_card_is_the_same_whenever_it_is_rendered():
    record = record_of("dino-vits16", verification=CHECKS)
    again = ConversionRecord.from_dict(shuffled(record.to_dict()), "conversion.json")
    options = {"classifies": False, "name": "user/name"}
    config, processor = official_config(find_checkpoint("dino-vits16")), vitrail.make_image_processor("dino")
    cards = {str(render_model_card(config, processor, each, **options)) for each in (record, again, record)}
    assert len(cards) == 1
    assert str(ModelCard(cards.pop())) == str(render_model_card(config, processor, record, **options))


# ------------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_has_a_card(tmp_path):
    """From the file of a golden case to the card, with the numbers of verify."""
    case = deterministic.case("dinov2_chunked_teacher_tiny")
    deterministic.write_checkpoint(case, tmp_path / "teacher.pth")
    vitrail.convert_checkpoint(tmp_path / "teacher.pth", tmp_path / "model")
    model, processor, _ = vitrail.load(tmp_path / "model")
    before = folder_card(tmp_path / "model")
    assert before.text.startswith("\n# model\n")
    assert 'from_pretrained("model", trust_remote_code=True)' in before.text
    keep_verification(tmp_path / "model", [Check("round trip", "teacher.pth", 0.0, True, "all equal")])
    after = folder_card(tmp_path / "model", name="user/name")
    assert rows(section(after, "Verification"))["round trip"] == ["teacher.pth", "0", "passed", "all equal"]
    assert rows(section(after, "Architecture"))["Parameters"] == [f"{model.num_parameters():,}"]
    assert rows(section(after, "Conversion"))["Format"] == [f'dinov2, under "{case["file"]["root"]}" in the file']
    steps = rows(section(after, "Preprocessing"))
    assert {step: [value] for step, value in preprocessing(processor).items()}.items() <= steps.items()


def test_a_card_does_not_mention_other_weights(tmp_path):
    """Origin, checks and published results no longer apply when the weights in a folder change."""
    deterministic.write_checkpoint(deterministic.dino_vits16(), tmp_path / "dino.pth")
    model, processor, report = vitrail.load(tmp_path / "dino.pth")
    report.catalog_name = "dino-vits16"
    vitrail.save(model, processor, tmp_path / "model", report=report)
    keep_verification(tmp_path / "model", [Check("round trip", "dino.pth", 0.0, True)])
    before = folder_card(tmp_path / "model")
    assert before.data.eval_results
    assert "dino.pth" in before.text
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(tmp_path / "model")
    after = folder_card(tmp_path / "model")
    assert not after.data.eval_results
    assert "dino.pth" not in after.text
    keep_verification(tmp_path / "model", [Check("reload", "this model", 0.0, True)])
    text = (tmp_path / "model" / "README.md").read_text()
    assert "this model" in text
    assert "dino.pth" not in text


@pytest.mark.parametrize(
    ("name", "content"), [("conversion.json", b"{bad"), ("conversion.json", b"[]"), ("preprocessor_config.json", b'{"a": "\xe9"}')]
)
def test_damaged_files_are_named(tmp_path, name, content):
    vitrail.save(vitrail.ViTModel(CONFIG), PROCESSOR, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(VitrailError, match=name.replace(".", r"\.")):
        folder_card(tmp_path / "model")


def test_results_of_somebody_else_are_not_read(tmp_path):
    vitrail.save(vitrail.ViTModel(CONFIG), PROCESSOR, tmp_path / "model")
    for content in ("{bad", "[]", '{"accuracy": 0.9}'):
        (tmp_path / "model" / "results.json").write_text(content)
        assert "Measured" not in folder_card(tmp_path / "model").text


def test_titles_are_plain_text():
    card = render_model_card(CONFIG, PROCESSOR, None, classifies=False, name="<b>a</b>/<script>alert(1)<script>")
    assert "\n# &lt;script&gt;alert(1)&lt;script&gt;\n" in card.text


def test_a_classifier_is_distinguished_from_an_encoder(tmp_path):
    for model_class, tag in (
        (vitrail.ViTModel, "image-feature-extraction"),
        (vitrail.ViTForImageClassification, "image-classification"),
    ):
        model_class(tiny_config(**SMALL)).save_pretrained(tmp_path)
        vitrail.make_image_processor("dino").save_pretrained(tmp_path)
        assert folder_card(tmp_path).data.pipeline_tag == tag


def test_the_code_is_trusted_only_where_the_folder_carries_it(tmp_path):
    vitrail.ViTModel(tiny_config(**SMALL)).save_pretrained(tmp_path)
    vitrail.make_image_processor("dino").save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for auto_map in ({"AutoModel": "modeling_vit.ViTModel"}, None):
        (tmp_path / "config.json").write_text(
            json.dumps({**content, "auto_map": auto_map} if auto_map else without(content, "auto_map"))
        )
        assert ("trust_remote_code=True" in folder_card(tmp_path).text) == (auto_map is not None)


def without(content, name):
    return {key: value for key, value in content.items() if key != name}


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(VitrailError, match="vitrail convert"):
        folder_card(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(VitrailError, match="vitrail convert"):
        folder_card(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vitrail", "hidden_size": 32, "num_attention_heads": 2}))
    with pytest.raises(VitrailError, match=r"no preprocessor_config\.json"):
        folder_card(tmp_path)


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (vitrail.ViTModel, {}),
        (vitrail.ViTModel, {"position_embedding_type": "relative_mlp", "share_relative_position": True}),
        (vitrail.ViTModel, {"position_embedding_type": "relative_mlp", "mlp_type": "swiglu"}),
        (vitrail.ViTForImageClassification, {"classifier_cls_layers": 3, "classifier_mean_patch": True, "num_labels": 7}),
        (vitrail.ViTForImageClassification, {"num_hidden_layers": 1, "num_register_tokens": 2, "representation_size": 8}),
    ],
)
def test_counts_of_a_small_depth_give_those_of_the_model(model_class, fields):
    model = model_class(tiny_config(**SMALL | fields))
    classifies = model_class is vitrail.ViTForImageClassification
    assert counts(model.config, classifies=classifies, size=(96, 48)) == vitrail.complexity(model, (96, 48))
    assert counts(model.config, classifies=classifies, size=(96, 48)).parameters == sum(map(torch.numel, model.parameters()))


# -------------------------------------------------------------------------------------------------------- training by vitrail


def trained(**options):
    """The card of a new model after a run of DINO."""
    return render_model_card(
        CONFIG, PROCESSOR, None, **records({"classifies": False, "name": "user/name", "pretraining": make_run()} | options)
    )


def test_training_from_scratch_is_reported():
    card = trained()
    text = section(card, "Training")
    assert text.startswith(
        "Vitrail trained it without labels by DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)), from scratch, on the 12,345 "
        "images of"
    )
    assert "3 epochs with a batch size of 512, 1,234 updates, in 1:02:03 with one process, in bfloat16" in text
    assert (
        "with the recipe dino (facebookresearch/dino, main_dino.py) and the seed 7. These are the weights of the teacher." in text
    )
    assert text.endswith("![Training curves](pretraining.png)\n")
    for absent in ("k-nn", "not stated", "before that", "the encoder"):
        assert absent not in text.lower()
    assert "changes" not in card.text
    assert "model-index" not in card.data.to_dict()
    assert card.text.count("caron2021emerging") == 1


def test_the_accuracy_of_neighbors_is_reported():
    text = section(trained(pretraining=make_run(knn=KNN)), "Training")
    assert (
        "A weighted k-NN vote (k = 20) of 800 labeled training images classifies 81.2 % of 200 validation images correctly."
    ) in text


def test_the_start_model_and_random_weights_are_compared():
    comparison = {
        "start": {"knn": 0.75, "logistic": 0.8},
        "result": {"knn": 0.8125, "logistic": None},
        "random": {"knn": 0.25, "logistic": 0.5},
    }
    text = section(trained(pretraining=make_run(knn=KNN, model=MODEL, comparison=comparison)), "Training")
    sentence = (
        "On these images, the k-NN vote is right for 75.0 % with the features of the model that the training started from, for 81.2 % "
        "with those of the teacher, and for 25.0 % with random weights."
    )
    assert sentence in text
    assert "logistic" not in text
    comparison["result"]["logistic"] = 0.85
    text = section(trained(pretraining=make_run(knn=KNN, model=MODEL, comparison=comparison)), "Training")
    assert f"{sentence} On these images, logistic regression is right for 80.0 % " in text


def test_the_time_of_a_resumed_run_and_its_processes():
    """The time covers the last part alone, so the card omits it."""
    text = section(trained(pretraining=make_run(resumed_from="checkpoint-10", processes=4)), "Training")
    assert "1:02:03" not in text
    assert "1,234 updates, with 4 processes, in bfloat16" in " ".join(text.split())


def test_an_export_has_no_curves_next_to_it():
    text = section(trained(format="transformers"), "Training")
    assert "without labels by DINO" in text
    assert "pretraining.png" not in text
    assert "pretraining.json" not in text


def test_what_it_learned_from_is_not_denied_elsewhere():
    limits = section(trained(), "Intended uses and limitations")
    assert "reproduces the biases of its training images" in limits
    assert "depend on its training" not in limits


@pytest.mark.parametrize(
    ("teacher", "named", "license"),
    [
        (MODEL, "`dino-vits16`", "check whether the license of that checkpoint applies to this model: `apache-2.0`."),
        ({"checkpoint": "dinov3-vits16"}, "`dinov3-vits16`", "this model: [DINOv3 License](https://ai.meta.com/"),
        ({"name": "mine.pth"}, "`mine.pth`", "The license of the model that it learned from is *not stated*"),
        ({"name": None}, "a model of unknown origin", "The license of the model that it learned from is *not stated*"),
    ],
)
def test_a_distillation_names_its_teacher_and_the_license(teacher, named, license):
    run = make_run(task="Distillation without labels", teacher=teacher)
    card = trained(pretraining=run)
    method = "by distillation ([Romero et al. 2014](https://arxiv.org/abs/1412.6550))"
    assert f"{method} of {named}, from scratch, on" in section(card, "Training")
    assert "the weights of the student." in section(card, "Training")
    assert license in section(card, "License")
    assert "learned from" not in section(trained(), "License")
    assert card.text.count("romero2014fitnets") == 1


def test_training_that_goes_on_from_a_published_checkpoint_is_a_change():
    card = converted("dino-vits16", pretraining=make_run(model=MODEL))
    assert card.text.count("caron2021emerging") == 1
    table = rows(section(card, "Model description"))
    assert table["Weights"] == ["trained further, see [Training](#training)", "as published"]
    assert set(table) == {"Setting", "---", "Weights"}
    assert "model-index" not in card.data.to_dict()  # whose numbers are of the published weights
    assert section(card, "Published results").startswith("None")
    text = section(card, "Training")
    assert "by DINO ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)), from `dino-vits16`, on" in text
    before = section(converted("dino-vits16"), "Training").strip()
    assert before not in ("", "*Not stated.*")
    assert f"\n\nBefore that: {before}" in text


RESULTS = {
    "task": "linear probe",
    "accuracy": 0.75,
    "top_5_accuracy": 1.0,
    "mean_per_class_accuracy": 0.625,
    "best_head": {"features": "[CLS]", "learning_rate": 0.01},
    "recipe": {"name": "plain", "source": "this test", "epochs": 4},
    "fine_tuning": None,
    "heads": [{}, {}],
    "unreadable_images": [],
    "data": {"source": "digits", "fingerprint": "00", "train_images": 1000, "validation_images": 20, "labels": ["a", "b"]},
}


def test_a_classifier_on_top_of_what_was_trained_without_labels():
    card = trained(classifies=True, results=RESULTS, pretraining=make_run(knn=KNN))
    text = section(card, "Training")
    assert text.startswith(
        "[Measured results](#measured-results) describes the training of its classifier. Vitrail trained the encoder without"
    )
    assert "not stated" not in text.lower()
    assert [result.metric_value for result in card.data.eval_results] == [0.75, 0.625]
    only_results = section(trained(classifies=True, results=RESULTS, pretraining=None), "Training")
    assert "Training of the encoder: *not stated*." in only_results
    assert "DINO" not in only_results
    assert section(trained(pretraining=None), "Training") == "*Not stated.*\n"


HOSTILE = "a`b|<script>alert(1)</script>\n# c"


def hostile(content):
    """Return a record in which each string is one that would break a card."""
    if isinstance(content, dict):
        return {key: hostile(value) for key, value in content.items()}
    if isinstance(content, list):
        return [hostile(value) for value in content]
    return HOSTILE if isinstance(content, str) else content


def test_no_string_of_a_record_breaks_the_card():
    """Whoever writes the files of a folder, its card has no HTML, no heading and no column of theirs."""
    source = dataclasses.asdict(FileRecord("name", "https://host/file", None, 1, "ab"))
    coverage, check = (
        {"converted": 1, "ignored": ["name"]},
        {"name": "a", "against": "b", "difference": 0.0, "passed": True, "note": "c"},
    )
    content = {
        "format": "dino",
        "source": source,
        "root": "teacher",
        "coverage": coverage,
        "warnings": ["a"],
        "verification": [check],
    }
    content |= {"versions": {"vitrail": "1"}, "head": source | {"url": "javascript:alert(1)"}, "weights_sha256": "00"}
    record = ConversionRecord.from_dict(hostile(content | {"origin": content}), "conversion.json")
    run, results = hostile(make_run(model=MODEL, knn=KNN)), hostile(RESULTS | {"fine_tuning": {"epochs": 1, "source": "a"}})
    options = records({"pretraining": run, "results": results})
    card = render_model_card(CONFIG, PROCESSOR, record, classifies=True, name=HOSTILE, warnings=[HOSTILE], **options)
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", re.sub(r"\\`", "", card.text), flags=re.DOTALL)
    assert "<script" not in outside_code
    assert "`" not in outside_code
    assert "javascript:" not in outside_code
    assert "\n# c" not in card.text
    assert all(len(row) == 1 for row in rows(section(card, "Conversion")).values())
    assert all(len(row) == 4 for row in rows(section(card, "Verification")).values())
    known = [re.escape(line) for line in card.text.splitlines() if line.startswith("#")]
    assert len(known) == len(re.findall(r"^#{1,2} ", card.text, re.MULTILINE))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("conversion.json", ("coverage",), 3),
        ("conversion.json", ("coverage", "converted"), "many"),
        ("conversion.json", ("source", "bytes"), None),
        ("conversion.json", ("versions", "vitrail"), 1),
        ("results.json", ("accuracy",), "high"),
        ("results.json", ("best_head",), None),
        ("results.json", ("data", "labels"), [1]),
        ("results.json", ("recipe", "name"), {}),
        ("pretraining.json", ("epochs",), True),
        ("pretraining.json", ("knn",), []),
        ("pretraining.json", ("data", "source"), 0.5),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, name, path, value):
    for file, text in (("config.json", CONFIG), ("preprocessor_config.json", PROCESSOR)):
        (tmp_path / file).write_text(text.to_json_string())
    content = {
        "conversion.json": dataclasses.asdict(record_of("dino-vits16", versions={"vitrail": "1"})),
        "results.json": RESULTS,
        "pretraining.json": make_run(knn=KNN),
    }[name]
    content = json.loads(json.dumps(content | {"weights_sha256": "00"}))
    (tmp_path / name).write_text(json.dumps(content))
    folder_card(tmp_path, weights_sha256="00")
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(CorruptFileError, match=rf"{re.escape(name)}: {': '.join(path)}.* is of type"):
        folder_card(tmp_path, weights_sha256="00")


def test_training_is_reported_of_the_weights_that_it_made(tmp_path):
    """Weights that replace them get no such report, and a file of that name from elsewhere is not read."""
    model = vitrail.ViTModel(CONFIG)
    vitrail.save(model, PROCESSOR, tmp_path / "model")
    run = make_run() | {"weights_sha256": hash_weights(tmp_path / "model")}
    (tmp_path / "model" / "pretraining.json").write_text(json.dumps(run))
    assert "without labels by DINO" in folder_card(tmp_path / "model").text
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(tmp_path / "model")
    assert "DINO" not in section(folder_card(tmp_path / "model"), "Training")
    for content in ("{bad", "[]", '{"epochs": 3}'):
        (tmp_path / "model" / "pretraining.json").write_text(content)
        assert "DINO" not in section(folder_card(tmp_path / "model"), "Training")


# ------------------------------------------------------------------------------------------------------------------- template


def test_an_unknown_variable_of_the_template_is_an_error():
    strict = TEMPLATE.environment.from_string("{{ misspelled }}")
    with pytest.raises(jinja2.UndefinedError, match="misspelled"):
        strict.render()


def test_every_optional_fact_is_a_variable_of_the_template():
    source = (paths.CHECKOUT / "model_cards" / "template.md.jinja").read_text(encoding="utf-8")
    assert jinja2.meta.find_undeclared_variables(TEMPLATE.environment.parse(source)) >= set(OPTIONAL)


@pytest.mark.parametrize(
    ("model_class", "fields", "expected"),
    [
        (
            vitrail.ViTForSemanticSegmentation,
            {"num_labels": 150, "dense_layers": [0, 1]},
            (
                "image-segmentation",
                "one of 150 classes for each pixel",
                "AutoModelForSemanticSegmentation",
                "post_process_semantic",
            ),
        ),
        (
            vitrail.ViTForDepthEstimation,
            {"depth_range": (0.001, 80)},
            ("depth-estimation", "in meters from 0.001 to 80", "AutoModelForDepthEstimation", "outputs.predicted_depth"),
        ),
    ],
)
def test_a_dense_head_is_described(model_class, fields, expected, tmp_path):
    model = model_class(tiny_config(**fields))
    vitrail.save(model, vitrail.make_image_processor("dinov2", image_size=32), tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    task, *texts = expected
    assert card.data.pipeline_tag == task
    for text in (*texts, "the model pads them", f"| Parameters | {sum(map(torch.numel, model.parameters())):,} |"):
        assert text in card.text, text
    assert "It has no classifier" not in card.text
