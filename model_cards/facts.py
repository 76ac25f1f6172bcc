"""The variables of the template of a model card: about the model, the code that loads it, and an official checkpoint."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..convert.families.formats import Export
from ..convert.sources.catalog import Checkpoint, official_config, official_image_processor
from ..modeling.modeling_vit_dense import ViTForSemanticSegmentation
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_size
from .citations import PAPERS
from .descriptions import (
    architecture,
    architecture_name,
    counts,
    dense_class,
    dense_task,
    differences,
    format_size,
    has_named_classes,
    markdown_table,
    preprocessing,
    tokens,
    trusted,
)
from .licenses import license_text
from .lineages import DATASETS, FAMILY_CARDS, lineage_of, trained_on, training
from .provenance import checkpoint_link, files, linked, original_of, published_metrics, published_table, relatives, sources_table

IMAGENET = {1000: " of ImageNet-1k", 21843: " of ImageNet-21k"}


def model_facts(
    config: ViTConfig, image_processor: VitrailImageProcessor, checkpoint: Checkpoint | None, *, classifies: bool, official: bool
) -> dict[str, Any]:
    """Return the facts from config and image processor; `official`: they are those of the checkpoint in the catalog."""
    prepared = _prepared(config, image_processor)
    sizes = dict.fromkeys([config.image_shape, *([prepared] if prepared else [])])
    counted = {size: counts(config, classifies=classifies, size=size) for size in sizes}
    parameters = counted[config.image_shape].parameters
    named = official or has_named_classes(config)
    rows = architecture(config, classifies=classifies, named_classes=named) | {"Parameters": f"{parameters:,}"}
    if official and checkpoint is not None and checkpoint.params != parameters:
        if checkpoint.params < parameters:
            reason = "which has no biases of keys: they are zero"
        elif checkpoint.architecture.get("zero_head"):
            reason = "including a head of zeros that is left out"
        else:
            reason = "including positions of registers, which are added"
        rows["Parameters"] += f"; {checkpoint.params:,} in the file, {reason}"
    if official and checkpoint is not None:
        rows |= _periods(checkpoint)
    for size, count in counted.items():
        rows[f"GMACs at {format_size(size)}"] = f"{_giga(count.macs)} ({_giga(count.macs_with_attention)})"
    height, width = config.patch_shape
    facts = {
        "size": architecture_name(config),
        "parameters": f"{parameters / 1e6:,.1f} million" if parameters >= 1e6 else f"{parameters:,}",
        "trained": trained_on(checkpoint) if checkpoint else "",
        "classes": f"{config.num_labels:,} classes{IMAGENET.get(config.num_labels, '') * (named and checkpoint is not None)}"
        if classifies
        else None,
        "dense": dense_task(config),
        "num_labels": config.num_labels,
        "hidden_size": config.hidden_size,
        "pooled_width": config.pooled_size,
        "patch": format_size(config.patch_shape),
        "multiple": height if height == width else format_size(config.patch_shape),
        "native": format_size(config.image_shape),
        "prepared": format_size(prepared) if prepared else None,
        "relative_positions": config.position_embedding_type.startswith("relative"),
        "rotary_positions": config.position_embedding_type == "rotary",
        "pools_patches": config.use_cls_token and config.pooling == "avg",
        "original_pools_cls": checkpoint is not None and checkpoint.architecture.get("original_pooling") == "cls",
        "preprocessing_note": FAMILY_CARDS[checkpoint.family].preprocessing if checkpoint else "",
        "architecture": markdown_table(("Property", "Value"), rows.items()),
        "preprocessing": markdown_table(("Step", "Setting"), preprocessing(image_processor).items()),
    }
    return dict(trusted(facts))


def _periods(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the row about the origin of the rotary periods, which the config does not show."""
    periods, original = checkpoint.architecture.get("periods"), original_of(checkpoint)
    if periods is None:
        return {}
    if periods == "published":
        return {"Rotary periods": "those of the file, which its publisher rounded to bfloat16"}
    rounded = ". The original's are rounded to bfloat16, which changes outputs by 1e-3 to 3e-3" if original else ""
    return {"Rotary periods": f"computed in float32, because the file holds none{rounded}"}


def _giga(count: int) -> str:
    return f"{count / 1e9:,.1f}" if count >= 1e8 else f"{count / 1e9:.1g}"


def _prepared(config: ViTConfig, image_processor: VitrailImageProcessor) -> tuple[int, int] | None:
    """Return the height and width of every preprocessed image, where the patch divides them."""
    size = output_size(image_processor)
    fits = size is not None and not any(length % patch for length, patch in zip(size, config.patch_shape, strict=True))
    return size if fits else None


# ------------------------------------------------------------------------------------------------------------------- usage


def usage_facts(
    config: ViTConfig,
    image_processor: VitrailImageProcessor,
    *,
    classifies: bool,
    name: str,
    carries_code: bool = False,
    export: Export | None = None,
) -> dict[str, Any]:
    """Return the facts for the code of a card.

    Args:
        name: a Hub id, user/name, or else a folder.
        export: the format of the repository; None for vitrail's own classes.
    """
    prepared = _prepared(config, image_processor)
    where = "hf-hub" if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else "local-dir"
    fixed_size = export is not None and export.fixed_size(config)
    count, which = tokens(config, config.image_shape)
    facts = {
        "name_in_shell": shlex.quote(" ".join(name.split())),
        "name_in_python": _in_python(name),
        "name_in_timm": _in_python(f"{where}:{name}"),
        "mode": "L" if config.num_channels == 1 else "RGB",
        "auto_class": _auto_class(config, classifies),
        "carries_code": carries_code,
        "trust": ", trust_remote_code=True" if carries_code else "",
        "interpolate": ", interpolate_pos_encoding=True" if fixed_size and prepared != config.image_shape else "",
        "outputs": "\n".join(_outputs(config, prepared, export, classifies=classifies)),
        "native_tokens": f"(1, {count}, {config.hidden_size}): {which}",
    }
    return dict(trusted(facts))


def _auto_class(config: ViTConfig, classifies: bool) -> str:
    dense = dense_class(config)
    return f"Auto{dense.__name__.replace('ViT', 'Model')}" if dense else f"AutoModel{'ForImageClassification' * classifies}"


def _in_python(name: str) -> str:
    """Return a string literal, without the characters that would end inline code in Markdown, or begin HTML."""
    literal = json.dumps(name, ensure_ascii=False)
    return literal.replace("`", "\\u0060").replace("<", "\\u003c")


def _outputs(config: ViTConfig, prepared: tuple[int, int] | None, export: Export | None, *, classifies: bool) -> list[str]:
    """Return lines of code that show the outputs of a model, with shapes."""
    if dense_task(config) is not None:
        return _dense_outputs(config)
    if classifies:
        lines = [
            f"outputs.logits  # (1, {config.num_labels})",
            "model.config.id2label[outputs.logits.argmax(-1).item()]  # the most probable class",
        ]
        ours = f"model.vit(**inputs).pooler_output  # (1, {config.pooled_size}): features of the image"
        return lines if export else [*lines, ours]
    count, which = tokens(config, prepared or config.image_shape)
    shape = f"(1, {count}, {config.hidden_size}): {which}" if prepared else f"(1, tokens, {config.hidden_size})"
    pooled = f"outputs.pooler_output  # (1, {config.pooled_size}): the image"
    if export and not export.pools(config):
        pooled = f"outputs.last_hidden_state[:, 0]  # (1, {config.hidden_size}): [CLS], the image"
    return [pooled, f"outputs.last_hidden_state  # {shape}"]


def _dense_outputs(config: ViTConfig) -> list[str]:
    """Return lines of code that show the outputs of a model for segmentation or depth."""
    if dense_class(config) is ViTForSemanticSegmentation:
        return [
            "image_processor.post_process_semantic_segmentation(outputs, [(480, 640)])[0]  # (480, 640): the class of each pixel",
            "model.segment(**inputs)  # probabilities with the sliding windows of the original evaluation",
        ]
    return ["outputs.predicted_depth  # (1, height, width): the depth of each pixel, in meters"]


# ----------------------------------------------------------------------------------------------------- an official checkpoint


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts of the catalog about a checkpoint, except settings and results."""
    lineage = lineage_of(checkpoint)
    recipes = {name: recipe for name, recipe in checkpoint.head_recipe.items() if name in checkpoint.head_urls}
    classifiers = {name: recipe for name, recipe in recipes.items() if "task" not in recipe}
    software = FAMILY_CARDS[checkpoint.family].citation
    citations = [PAPERS[key].bibtex for key in (*checkpoint.paper, *([software] if software else []))]
    facts = {
        "checkpoint": checkpoint_link(checkpoint),
        "about": lineage.about,
        "files": files(checkpoint),
        "relatives": relatives(checkpoint),
        "notes": [note[0].upper() + note[1:] + "." for note in (checkpoint.notes or "").split("; ") if note],
        "training": training(checkpoint),
        "uses": lineage.uses,
        "limits": [*lineage.limits, *([lineage.pooling] if lineage.pooling else [])],
        "heads": ", ".join(f'`head="{name}"` reads {_input_of(recipe)}' for name, recipe in classifiers.items()),
        "dense_heads": ", ".join(f'`head="{name}"`' for name in recipes if name not in classifiers),
        "images": DATASETS[checkpoint.training_data[0]].images,
        "license_note": f"{license_text(checkpoint)}. Source: {linked(checkpoint.sources['license'] or '', checkpoint)}."
        if checkpoint.license
        else None,
        "citations": "\n\n".join(citations),
        "sources": sources_table(checkpoint),
    }
    return dict(trusted(facts))


def _input_of(recipe: Mapping[str, Any]) -> str:
    blocks = recipe["n_last_blocks"]
    return ("[CLS]" if blocks == 1 else f"[CLS] of the last {blocks} blocks") + " and the mean patch" * recipe["avgpool"]


def original_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts about the first publication of the same weights in another format."""
    original = original_of(checkpoint)
    if original is None:
        return {}
    link = checkpoint_link(original)
    found = differences(settings(checkpoint) | _periods(checkpoint), settings(original) | _periods(original))
    facts = {
        "original": link,
        "encoder_only": checkpoint.has_classifier and not original.has_classifier,
        "original_differences": markdown_table(("Setting", "here", link), found) if found else None,
        "original_has_results": bool(published_metrics(original)),
    }
    return dict(trusted(facts))


def settings(checkpoint: Checkpoint) -> dict[str, str]:
    """Return everything that decides the outputs of a checkpoint together with its weights."""
    described = architecture(official_config(checkpoint), classifies=checkpoint.has_classifier)
    return described | preprocessing(official_image_processor(checkpoint))


def published_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the facts about the publisher's results, where there are any."""
    if not published_metrics(checkpoint):
        return {}
    family = FAMILY_CARDS[checkpoint.family]
    note = family.results + family.results_with_registers * (checkpoint.architecture["registers"] > 0)
    source = linked(checkpoint.sources["metrics"] or "", checkpoint)
    return dict(trusted({"published": {"source": source, "note": note, "table": published_table(checkpoint)}}))
