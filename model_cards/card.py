"""Model cards, rendered from template.md.jinja: the same model always gives the same bytes."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration.configuration_vit import ViTConfig
from ..convert.families.family import RawCheckpoint, make_config
from ..convert.families.registry import EXPORT_FORMATS
from ..convert.families.vitrail import VITRAIL
from ..convert.report import ConversionRecord
from ..convert.sources.catalog import Checkpoint, find_checkpoint, official_config, official_image_processor
from ..errors import VitrailError
from ..modeling.modeling_vit_dense import ViTForDepthEstimation
from ..processing.image_processing_vit import VitrailImageProcessor
from ..utils.atomic import read_json
from .citations import PAPERS
from .conversion_section import conversion_table, converted_from, verification
from .descriptions import architecture, dense_class, differences, escape, has_named_classes, markdown_table, preprocessing, trusted
from .evaluation_section import measured_facts, measured_results
from .facts import checkpoint_facts, model_facts, original_facts, published_facts, settings, usage_facts
from .licenses import license_of
from .lineages import DATASETS, FAMILY_CARDS, lineage_of
from .model_folder import (
    CONFIG_NAME,
    PREPROCESSOR_CONFIG_NAME,
    PRETRAINING_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    hash_weights,
    is_model_folder,
    read_report,
)
from .pretraining_section import pretraining_facts, training_method
from .provenance import checkpoint_link, eval_results, load_name
from .records import DenseResults, MeasuredResults, PretrainingRecord, read_pretraining, read_results

# Every value is escaped but what is marked as Markdown
TEMPLATE = jinja2.Environment(undefined=jinja2.StrictUndefined, finalize=escape).from_string(
    Path(__file__).with_name("template.md.jinja").read_text(encoding="utf-8")
)
# Variables of the template that only some cards have
OPTIONAL = (
    *(
        "about",
        "changes",
        "checkpoint",
        "comparison",
        "conversion",
        "dense_heads",
        "conversion_of",
        "encoder_only",
        "export_warnings",
        "files",
        "heads",
        "images",
    ),
    *("license_note", "limits", "measured", "notes", "original", "original_differences", "original_has_results", "pretraining"),
    *("published", "relatives", "sources", "training", "uses", "verification"),
)


def official_card(checkpoint: Checkpoint) -> ModelCard:
    """Return the card of an official checkpoint, from the catalog alone: no weights are read."""
    config, image_processor = official_config(checkpoint), official_image_processor(checkpoint)
    name, classifies = load_name(checkpoint), checkpoint.has_classifier
    facts = model_facts(config, image_processor, checkpoint, classifies=classifies, official=True)
    facts |= usage_facts(config, image_processor, classifies=classifies, name=name)
    facts |= checkpoint_facts(checkpoint) | original_facts(checkpoint) | published_facts(checkpoint)
    facts["comparison"] = trusted(asdict(FAMILY_CARDS[checkpoint.family]))
    data = _metadata(checkpoint, name, "official", task=_pipeline(config, classifies), carries_code=False, changed=False)
    return _render(data, title=name, layout="official", facts=facts)


def render_model_card(
    config: ViTConfig,
    image_processor: VitrailImageProcessor,
    record: ConversionRecord | None,
    *,
    classifies: bool,
    name: str,
    format: str = "vitrail",
    carries_code: bool = True,
    warnings: Sequence[str] = (),
    results: MeasuredResults | DenseResults | None = None,
    pretraining: PretrainingRecord | None = None,
) -> ModelCard:
    """Return the card of a model.

    Args:
        record: the content of conversion.json, from `ConversionReport.record()`; None for a model that was not converted.
        classifies: whether the model has a classifier.
        name: the name that the code in the card loads: "user/name" on the Hub, or else a folder.
        format: the layout of the repository: "vitrail", or an export format with a library.
        carries_code: whether the code of the model is in the repository.
        warnings: the warnings of the export.
        results: of results.json, where vitrail trained the classifier.
        pretraining: of pretraining.json, where vitrail trained the encoder without labels.
    """
    record = record or ConversionRecord()
    own_layout = format == VITRAIL.name
    carries_code = carries_code and own_layout
    checkpoint = find_checkpoint(record.checkpoint or "")
    title = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    facts = model_facts(config, image_processor, checkpoint, classifies=classifies, official=False)
    facts |= usage_facts(
        config,
        image_processor,
        classifies=classifies,
        name=name,
        carries_code=carries_code,
        export=None if own_layout else EXPORT_FORMATS[format],
    )
    facts |= {
        "conversion_of": converted_from(record),
        "conversion": conversion_table(record),
        "verification": verification(record),
        "against": trusted(shlex.quote(load_name(checkpoint))) if checkpoint else "SOURCE",
        "export_warnings": list(warnings),
        "citations": trusted(PAPERS["2010.11929"].bibtex),
        "measured": measured_facts(results, pictures=own_layout) if results else None,
        "pretraining": pretraining_facts(pretraining, pictures=own_layout) if pretraining else None,
    }
    changes: list[tuple[str, str, str]] = []
    if checkpoint is not None:
        facts |= checkpoint_facts(checkpoint)
        changes = _changes(config, image_processor, record, checkpoint, classifies, results, pretraining)
        if changes:
            facts["changes"] = markdown_table(("Setting", "here", checkpoint_link(checkpoint)), changes)
        else:
            facts |= original_facts(checkpoint) | published_facts(checkpoint)
    method = training_method(pretraining.task) if pretraining else None
    if method is not None and PAPERS[method.paper].bibtex not in facts["citations"]:
        facts["citations"] = trusted(f"{facts['citations']}\n\n{PAPERS[method.paper].bibtex}")
    data = _metadata(
        checkpoint,
        title,
        format,
        task=_pipeline(config, classifies),
        carries_code=carries_code,
        changed=bool(changes),
        measured=measured_results(results) if results else [],
    )
    return _render(data, title=title, layout=format, facts=facts)


def folder_card(folder: str | os.PathLike, *, name: str | None = None, weights_sha256: str | None = None) -> ModelCard:
    """Return the card of a folder that vitrail wrote, from its JSON files; records of other weights are ignored.

    Args:
        folder: a folder with config.json and preprocessor_config.json, and conversion.json for a converted model.
        name: the name that the code in the card loads; the folder's name by default.
        weights_sha256: the SHA-256 of the weights, where it is known or the weights are elsewhere.

    Raises:
        VitrailError: vitrail did not write the folder.
    """
    folder = Path(folder)
    if not is_model_folder(folder):
        raise VitrailError(
            f'{folder} has no {CONFIG_NAME} with the model type "{ViTConfig.model_type}"; expected a folder that vitrail wrote. Convert '
            "the checkpoint first, with `vitrail convert`."
        )
    if not (folder / PREPROCESSOR_CONFIG_NAME).is_file():
        raise VitrailError(
            f"{folder} has no {PREPROCESSOR_CONFIG_NAME}, which the card describes: save the image processor there, with "
            "image_processor.save_pretrained."
        )
    content, preprocessor = (read_json(folder / file) for file in (CONFIG_NAME, PREPROCESSOR_CONFIG_NAME))
    raw = RawCheckpoint({}, "safetensors", config=content, preprocessor_config=preprocessor)
    config = make_config(VITRAIL.configure(raw, None))
    config.architectures = content.get("architectures")
    if weights_sha256 is None and any((folder / record).is_file() for record in (REPORT_NAME, RESULTS_NAME, PRETRAINING_NAME)):
        weights_sha256 = hash_weights(folder)  # once for all records
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
    known = dict.fromkeys(OPTIONAL) | dict(facts) | {"title": title, "layout": layout, "card_data": trusted(data.to_yaml())}
    return ModelCard(TEMPLATE.render(known))


def _metadata(
    checkpoint: Checkpoint | None,
    title: str,
    layout: str,
    *,
    task: str,
    carries_code: bool,
    changed: bool,
    measured: Sequence[EvalResult] = (),
) -> ModelCardData:
    """Return the metadata for the Hub: known facts only, and the publisher's results only for an unchanged model."""
    tags = ["vitrail", "vit", "vision"] + ["custom_code"] * carries_code
    datasets: list[str | None] = []
    results = list(measured)
    license = license_of(checkpoint)
    if checkpoint is not None:
        tags += [*lineage_of(checkpoint).tags, *([checkpoint.family] if layout == "official" else [])]
        datasets = [DATASETS[name].hub_id for name in dict.fromkeys(checkpoint.training_data)]
        results += [] if changed else eval_results(checkpoint)
    return ModelCardData(
        license="other" if license else checkpoint.license if checkpoint else None,
        license_name=checkpoint.license if checkpoint and license else None,
        license_link=license.link if license else None,
        library_name=EXPORT_FORMATS[layout].library if layout in EXPORT_FORMATS else "transformers",
        pipeline_tag=task,
        tags=tags,
        datasets=[name for name in datasets if name] or None,
        model_name=title if results else None,
        eval_results=results or None,
    )


def _pipeline(config: ViTConfig, classifies: bool) -> str:
    """Return the Hub's name for what a model does."""
    found = dense_class(config)
    if found is not None:
        return "depth-estimation" if found is ViTForDepthEstimation else "image-segmentation"
    return "image-classification" if classifies else "image-feature-extraction"


def _changes(
    config: ViTConfig,
    image_processor: VitrailImageProcessor,
    record: ConversionRecord,
    checkpoint: Checkpoint,
    classifies: bool,
    results: MeasuredResults | DenseResults | None,
    pretraining: PretrainingRecord | None,
) -> list[tuple[str, str, str]]:
    """Return the differences from the published checkpoint: property, value here, value there."""
    here = architecture(config, classifies=classifies, named_classes=has_named_classes(config)) | preprocessing(image_processor)
    there = settings(checkpoint)
    heads = [entry.head for entry in record.chain if entry.head]
    if results is None and any(head.url in checkpoint.head_urls.values() for head in heads):
        here["Classifier"] = there["Classifier"]  # published for this backbone
        here.pop("Head", None)
    if any(entry.root == "student" for entry in record.chain):
        here["Network of the training run"], there["Network of the training run"] = "student", "teacher"
    if results is not None and classifies:
        here["Classifier"] += ", trained as described below"
    trained = ["trained further, see [Training](#training)"] if pretraining is not None else []
    trained += ["fine-tuned"] if results is not None and results.fine_tuning is not None else []
    if trained:
        here["Weights"], there["Weights"] = ", then ".join(trained), "as published"
    return differences(here, there)
