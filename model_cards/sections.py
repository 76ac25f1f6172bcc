"""What the template of a model card is filled with: of the model itself, of the code that loads it, and of an official checkpoint."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..configuration.configuration_vit import ViTConfig
from ..convert.families.transformers import export_model_type
from ..convert.sources.catalog import Checkpoint, official_config, official_image_processor
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_size
from .citations import PAPERS, TIMM
from .descriptions import (
    architecture,
    architecture_name,
    by,
    counts,
    differences,
    has_named_classes,
    markdown_table,
    preparation,
    tokens,
)
from .lineages import lineage_of, trained_on, training
from .provenance import checkpoint_link, files, linked, original_of, published_metrics, published_table, relatives, sources_table

IMAGENET = {1000: " of ImageNet-1k", 21843: " of ImageNet-21k"}


def model_facts(
    config: ViTConfig, image_processor: VitrailImageProcessor, checkpoint: Checkpoint | None, *, classifies: bool, official: bool
) -> dict[str, Any]:
    """What follows from config and image processor; `official`: they are those of the checkpoint in the catalogue."""
    prepared = _prepared(config, image_processor)
    sizes = dict.fromkeys([config.image_size, *([prepared] if prepared else [])])
    counted = {size: counts(config, classifies=classifies, size=size) for size in sizes}
    parameters = counted[config.image_size].parameters
    named = official or has_named_classes(config)
    rows = architecture(config, classifies=classifies, named_classes=named) | {"Parameters": f"{parameters:,}"}
    if official and checkpoint is not None and checkpoint.params != parameters:
        rows["Parameters"] += f"; {checkpoint.params:,} in the file, with a head of zeros that is left out"
    for size, count in counted.items():
        rows[f"GMACs at {by(size)}"] = f"{_giga(count.macs)} ({_giga(count.macs_with_attention)})"
    height, width = config.patch_size
    return {
        "size": architecture_name(config),
        "parameters": f"{parameters / 1e6:,.1f} million" if parameters >= 1e6 else f"{parameters:,}",
        "trained": trained_on(checkpoint) if checkpoint else "",
        "classes": f"{config.num_labels:,} classes{IMAGENET.get(config.num_labels, '') * (named and checkpoint is not None)}"
        if classifies
        else None,
        "num_labels": config.num_labels,
        "hidden_size": config.hidden_size,
        "pooled_width": config.pooled_size,
        "patch": by(config.patch_size),
        "multiple": height if height == width else by(config.patch_size),
        "native": by(config.image_size),
        "prepared": by(prepared) if prepared else None,
        "relative_positions": config.position_embedding_type != "absolute",
        "pools_patches": config.use_cls_token and config.pooling == "avg",
        "resized_with_tensorflow": checkpoint is not None and checkpoint.format == "google-npz",
        "architecture": markdown_table(("Property", "Value"), rows.items()),
        "preparation": markdown_table(("Step", "Setting"), preparation(image_processor).items()),
    }


def _giga(count: int) -> str:
    return f"{count / 1e9:,.1f}" if count >= 1e8 else f"{count / 1e9:.1g}"


def _prepared(config: ViTConfig, image_processor: VitrailImageProcessor) -> tuple[int, int] | None:
    """Height and width of every prepared image, where the patch divides them."""
    size = output_size(image_processor)
    fits = size is not None and not any(length % patch for length, patch in zip(size, config.patch_size, strict=True))
    return size if fits else None


# ------------------------------------------------------------------------------------------------------------- how to load it


def usage_facts(
    config: ViTConfig, image_processor: VitrailImageProcessor, *, classifies: bool, name: str, layout: str, carries_code: bool
) -> dict[str, Any]:
    """What the code of a card needs; `name` is a Hub id, user/name, or else a folder."""
    prepared = _prepared(config, image_processor)
    where = "hf-hub" if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else "local-dir"
    fixed_size = layout == "transformers" and export_model_type(config) == "vit"
    count, which = tokens(config, config.image_size)
    return {
        "name_in_shell": shlex.quote(name),
        "name_in_python": json.dumps(name, ensure_ascii=False),
        "name_in_timm": json.dumps(f"{where}:{name}", ensure_ascii=False),
        "mode": "L" if config.num_channels == 1 else "RGB",
        "auto_class": "AutoModelForImageClassification" if classifies else "AutoModel",
        "carries_code": carries_code,
        "trust": ", trust_remote_code=True" if carries_code else "",
        "interpolate": ", interpolate_pos_encoding=True" if fixed_size and prepared != config.image_size else "",
        "outputs": "\n".join(_outputs(config, prepared, classifies=classifies, layout=layout)),
        "native_tokens": f"(1, {count}, {config.hidden_size}): {which}",
    }


def _outputs(config: ViTConfig, prepared: tuple[int, int] | None, *, classifies: bool, layout: str) -> list[str]:
    """Lines of code that show what a model gives, with shapes."""
    if classifies:
        lines = [
            f"outputs.logits  # (1, {config.num_labels})",
            "model.config.id2label[outputs.logits.argmax(-1).item()]  # the most probable class",
        ]
        ours = f"model.vit(**inputs).pooler_output  # (1, {config.pooled_size}): features of the image"
        return lines if layout == "transformers" else [*lines, ours]
    count, which = tokens(config, prepared or config.image_size)
    shape = f"(1, {count}, {config.hidden_size}): {which}" if prepared else f"(1, tokens, {config.hidden_size})"
    pooled = f"outputs.pooler_output  # (1, {config.pooled_size}): the image"
    if layout == "transformers" and export_model_type(config) == "vit" and config.representation_size is None:
        pooled = f"outputs.last_hidden_state[:, 0]  # (1, {config.hidden_size}): [CLS], the image"  # its pooler is of zeros
    return [pooled, f"outputs.last_hidden_state  # {shape}"]


# ----------------------------------------------------------------------------------------------------- an official checkpoint


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the catalogue knows of a checkpoint, beside its settings and results."""
    lineage = lineage_of(checkpoint)
    recipes = {name: recipe for name, recipe in checkpoint.head_recipe.items() if name in checkpoint.head_urls}
    citations = [PAPERS[number].bibtex for number in checkpoint.paper] + [TIMM.bibtex] * (checkpoint.family == "timm")
    return {
        "checkpoint": checkpoint_link(checkpoint),
        "about": lineage.about,
        "files": files(checkpoint),
        "relatives": relatives(checkpoint),
        "notes": [note[0].upper() + note[1:] + "." for note in (checkpoint.notes or "").split("; ") if note],
        "training": training(checkpoint),
        "uses": lineage.uses,
        "limits": lineage.limits,
        "heads": ", ".join(f'`head="{name}"` reads {_reads(recipe)}' for name, recipe in recipes.items()),
        "licence": f"`{checkpoint.license}`. Source: {linked(checkpoint.sources['license'] or '', checkpoint)}.",
        "citations": "\n\n".join(citations),
        "sources": sources_table(checkpoint),
    }


def _reads(recipe: Mapping[str, Any]) -> str:
    blocks = recipe["n_last_blocks"]
    return ("[CLS]" if blocks == 1 else f"[CLS] of the last {blocks} blocks") + " and the mean patch" * recipe["avgpool"]


def original_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The format in which the same weights were first published, and in what it runs otherwise."""
    original = original_of(checkpoint)
    if original is None:
        return {}
    link, found = checkpoint_link(original), differences(settings(checkpoint), settings(original))
    return {
        "original": link,
        "encoder_only": checkpoint.has_classifier and not original.has_classifier,
        "original_differences": markdown_table(("Setting", "here", link), found) if found else None,
        "original_has_results": bool(published_metrics(original)),
    }


def settings(checkpoint: Checkpoint) -> dict[str, str]:
    """Everything that decides what a checkpoint answers, beside its weights."""
    described = architecture(official_config(checkpoint), classifies=checkpoint.has_classifier)
    return described | preparation(official_image_processor(checkpoint))


def published_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The publisher's results, where it reports any."""
    if not published_metrics(checkpoint):
        return {}
    remark = ""
    if checkpoint.family == "dino":
        remark = ' The linear one belongs to the backbone with the classifier `head="linear"`.'
    if checkpoint.family == "dinov2":
        remark = ' The linear one belongs to the backbone with the classifier `head="linear_1layer"`'
        # its README has two tables, which agree on the models without registers
        remark += ", to which a second table there gives 0.1 to 0.2 less." if checkpoint.architecture["registers"] else "."
    source = linked(checkpoint.sources["metrics"] or "", checkpoint)
    return {"published": {"source": source, "remark": remark, "table": published_table(checkpoint)}}
