"""Model cards: what a model is, how to use it, what was verified of it, and where each fact comes from.

The sentences stand in model_cards/template.md.jinja; this file and `sections.py` find what goes into them. A card is the same, byte for
byte, wherever and whenever it is rendered.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration.configuration_vit import ViTConfig
from ..convert.families.family import RawCheckpoint, make_config
from ..convert.families.vitrail import VITRAIL
from ..convert.model_folder import (
    CONFIG_NAME,
    PREPROCESSOR_CONFIG_NAME,
    PRETRAINING_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    hash_weights,
    is_model_folder,
    read_pretraining,
    read_report,
    read_results,
)
from ..convert.sources.catalog import Checkpoint, find_checkpoint, official_config, official_image_processor
from ..errors import VitrailError
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import read_json
from .citations import PAPERS
from .conversion_section import conversion_table, converted_from, plain, reports, verification
from .descriptions import architecture, differences, has_named_classes, markdown_table, preparation
from .evaluation_section import measured_facts, measured_results
from .lineages import COMPARISONS, DATASETS, lineage_of
from .pretraining_section import pretraining_facts
from .provenance import checkpoint_link, eval_results, load_name
from .sections import checkpoint_facts, model_facts, original_facts, published_facts, settings, usage_facts

TEMPLATE = Path(__file__).parent / "template.md.jinja"
DINO = "2104.14294"  # arXiv's number of the paper by which vitrail trains encoders
# Which library loads a repository, by its layout: the word that the Hub knows
LIBRARIES = {"official": "transformers", "vitrail": "transformers", "transformers": "transformers", "timm": "timm"}


def official_card(checkpoint: Checkpoint) -> ModelCard:
    """The card of an official checkpoint, from the catalogue alone: no weights are read."""
    config, image_processor = official_config(checkpoint), official_image_processor(checkpoint)
    name, classifies = load_name(checkpoint), checkpoint.has_classifier
    facts = model_facts(config, image_processor, checkpoint, classifies=classifies, official=True)
    facts |= usage_facts(config, image_processor, classifies=classifies, name=name, layout="official", carries_code=False)
    facts |= checkpoint_facts(checkpoint) | original_facts(checkpoint) | published_facts(checkpoint)
    facts["comparison"] = COMPARISONS[checkpoint.format]
    data = _metadata(checkpoint, name, "official", classifies=classifies, carries_code=False, changed=False)
    return _render(data, title=name, layout="official", facts=facts)


def render_model_card(
    config: ViTConfig,
    image_processor: VitrailImageProcessor,
    report: Mapping[str, Any] | None,
    *,
    classifies: bool,
    name: str,
    format: str = "vitrail",
    carries_code: bool = True,
    warnings: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
    pretraining: Mapping[str, Any] | None = None,
) -> ModelCard:
    """The card of a model of ours.

    Args:
        report: what conversion.json says: `ConversionReport.to_dict()`, and the table of `vitrail verify` under "verification" where it
            was run. None for a model that was not converted.
        classifies: whether the model has a classifier.
        name: what the code in the card loads: "user/name" on the Hub, or else a folder.
        format: what the repository is laid out for: "vitrail", "transformers" or "timm".
        carries_code: whether the code of the model lies beside the weights.
        warnings: what an export to another layout does otherwise.
        results: what results.json says, where vitrail has trained the classifier.
        pretraining: what pretraining.json says, where vitrail has trained the encoder without labels.
    """
    report = report or {}
    carries_code = carries_code and format == "vitrail"
    checkpoint = find_checkpoint(report.get("checkpoint") or "")
    title = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    facts = model_facts(config, image_processor, checkpoint, classifies=classifies, official=False)
    facts |= usage_facts(config, image_processor, classifies=classifies, name=name, layout=format, carries_code=carries_code)
    facts |= {
        "conversion_of": converted_from(report),
        "conversion": conversion_table(report),
        "verification": verification(report),
        "against": shlex.quote(load_name(checkpoint)) if checkpoint else "SOURCE",
        "export_notices": [plain(warning) for warning in warnings],
        "citations": PAPERS["2010.11929"].bibtex,
        "measured": measured_facts(results, pictures=format == "vitrail") if results else None,
        "pretraining": pretraining_facts(pretraining, pictures=format == "vitrail") if pretraining else None,
    }
    changes: list[tuple[str, str, str]] = []
    if checkpoint is not None:
        facts |= checkpoint_facts(checkpoint)
        changes = _changes(config, image_processor, report, checkpoint, classifies, results, pretraining)
        if changes:
            facts["changes"] = markdown_table(("Setting", "here", checkpoint_link(checkpoint)), changes)
        else:
            facts |= original_facts(checkpoint) | published_facts(checkpoint)
    if pretraining and PAPERS[DINO].bibtex not in facts["citations"]:
        facts["citations"] += "\n\n" + PAPERS[DINO].bibtex
    data = _metadata(
        checkpoint,
        title,
        format,
        classifies=classifies,
        carries_code=carries_code,
        changed=bool(changes),
        measured=measured_results(results) if results else [],
    )
    return _render(data, title=title, layout=format, facts=facts)


def folder_card(folder: str | os.PathLike, *, name: str | None = None, weights_sha256: str | None = None) -> ModelCard:
    """The card of a folder that vitrail wrote, from its JSON files; what they say of other weights than lie there now is left out.

    Args:
        folder: with config.json and preprocessor_config.json, and conversion.json if the model was converted.
        name: what the code in the card loads; without it, the folder's own name.
        weights_sha256: of the weights, where they lie elsewhere or it is known.

    Raises:
        VitrailError: the folder is not one that vitrail wrote.
    """
    folder = Path(folder)
    if not is_model_folder(folder):
        raise VitrailError(
            f"{folder} is no folder of a model that vitrail wrote: it has no {CONFIG_NAME} that says so. Convert the checkpoint first, "
            "with `vitrail convert`."
        )
    if not (folder / PREPROCESSOR_CONFIG_NAME).is_file():
        raise VitrailError(
            f"{folder} has no {PREPROCESSOR_CONFIG_NAME}, so that its card could not say how images are prepared: save the image "
            "processor there."
        )
    content, preprocessor = (read_json(folder / file) for file in (CONFIG_NAME, PREPROCESSOR_CONFIG_NAME))
    raw = RawCheckpoint({}, "safetensors", config=content, preprocessor_config=preprocessor)
    config = make_config(VITRAIL.configure(raw, None))
    if weights_sha256 is None and any((folder / record).is_file() for record in (REPORT_NAME, RESULTS_NAME, PRETRAINING_NAME)):
        weights_sha256 = hash_weights(folder)  # once for all
    return render_model_card(
        config,
        VITRAIL.image_processor(raw, config),
        read_report(folder, weights_sha256),
        classifies="ViTForImageClassification" in (content.get("architectures") or ()),
        name=name or folder.resolve().name,
        carries_code="auto_map" in content,
        results=read_results(folder, weights_sha256),
        pretraining=read_pretraining(folder, weights_sha256),
    )


def _render(data: ModelCardData, *, title: str, layout: str, facts: Mapping[str, Any]) -> ModelCard:
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **{**facts, "title": plain(title), "layout": layout})


def _metadata(
    checkpoint: Checkpoint | None,
    title: str,
    layout: str,
    *,
    classifies: bool,
    carries_code: bool,
    changed: bool,
    measured: Sequence[EvalResult] = (),
) -> ModelCardData:
    """What the Hub reads: only what is known, and the publisher's results only for a model that nobody changed."""
    tags = ["vitrail", "vit", "vision"] + ["custom_code"] * carries_code
    datasets: list[str | None] = []
    results = list(measured)
    if checkpoint is not None:
        tags += [*lineage_of(checkpoint).tags, *([checkpoint.family] if layout == "official" else [])]
        datasets = [DATASETS[name].hub_id for name in checkpoint.training_data]
        results += [] if changed else eval_results(checkpoint)
    return ModelCardData(
        license=checkpoint.license if checkpoint else None,
        library_name=LIBRARIES[layout],
        pipeline_tag="image-classification" if classifies else "image-feature-extraction",
        tags=tags,
        datasets=[name for name in datasets if name] or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _changes(
    config: ViTConfig,
    image_processor: VitrailImageProcessor,
    report: Mapping[str, Any],
    checkpoint: Checkpoint,
    classifies: bool,
    results: Mapping[str, Any] | None,
    pretraining: Mapping[str, Any] | None,
) -> list[tuple[str, str, str]]:
    """In what a model differs from the published checkpoint that it was made of: what, here, there."""
    here = architecture(config, classifies=classifies, named_classes=has_named_classes(config)) | preparation(image_processor)
    there = settings(checkpoint)
    heads = [report["head"] for report in reports(report) if report.get("head")]
    if results is None and any(head["url"] in checkpoint.head_urls.values() for head in heads):
        here["Classifier"] = there["Classifier"]  # published for this very backbone
    if any(report.get("root") == "student" for report in reports(report)):
        here["Network of the training run"], there["Network of the training run"] = "student", "teacher"
    if results is not None and classifies:
        here["Classifier"] += ", trained as measured below"
    trained = ["trained further by DINO, see [Training](#training)"] if pretraining is not None else []
    trained += ["fine-tuned"] if results is not None and results["fine_tuning"] is not None else []
    if trained:
        here["Weights"], there["Weights"] = ", then ".join(trained), "as published"
    return differences(here, there)
