"""Commands about checkpoints: `vitrail list`, `convert`, `verify`, `export` and `info`."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..configuration.configuration_vit import ViTConfig
from ..configuration.sizes import size_name
from ..convert.export import FORMATS, export_model
from ..convert.families.registry import PUBLISHED_FAMILIES
from ..convert.report import ConversionRecord
from ..convert.sources import catalog
from ..convert.verification import verify as run_checks
from ..hub.saving import convert_checkpoint, keep_verification
from ..model_cards.descriptions import dense_class, dense_head, has_named_classes, pooled
from ..model_cards.lineages import lineage_of
from ..model_cards.model_folder import REPORT_NAME, read_report
from ..modeling.operation_counts import complexity
from .options import Branch, CheckpointOptions, Code, Head, ImageSize, Model, Overwrite
from .output import Result, load_model, warn


def list_checkpoints(
    family: Annotated[str | None, typer.Option(help=f"Only this family: {', '.join(PUBLISHED_FAMILIES)}.")] = None,
) -> Result:
    """List the official checkpoints, which every command takes by name."""
    rows = catalog.list_checkpoints(family)
    texts = [(row.family, row.name, f"{significant(row.params / 1e6)} M", row.license or "license not stated") for row in rows]
    family_width, name_width, number_width, _ = (max(map(len, column)) for column in zip(*texts, strict=True))
    lines = [
        f"{kind:{family_width}}  {name:{name_width}}  {number:>{number_width}}  {license}" for kind, name, number, license in texts
    ]
    record = [{"family": row.family, "name": row.name, "parameters": row.params, "license": row.license} for row in rows]
    return Result({"checkpoints": record}, lines)


def convert(
    model: Model,
    output_dir: Annotated[Path, typer.Argument(help="Folder to write.")],
    options: CheckpointOptions,
    code: Code = True,
    overwrite: Overwrite = False,
) -> Result:
    """Convert a checkpoint into a folder that AutoModel loads."""
    report = convert_checkpoint(model, output_dir, code=code, overwrite=overwrite, **asdict(options))
    warn(*report.warnings)
    root = f', under "{report.root}"' if report.root else ""
    lines = [
        f"{model}: {report.format}{root}, {report.coverage['converted']} tensors converted",
        *(f"  ignored: {name}" for name in report.coverage["ignored"]),
        f"written to {output_dir} (details in {output_dir / REPORT_NAME})",
    ]
    return Result({"output": str(output_dir)} | report.to_dict(), lines)


def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Folder or file to write, depending on the format.")],
    to: Annotated[str, typer.Option(help=f"Format: {', '.join(FORMATS)}.")],
    image_size: ImageSize = None,
    classifier: Annotated[
        bool, typer.Option("--classifier/--no-classifier", help="Export the classifier, or the encoder alone.")
    ] = True,
    batch_size: Annotated[
        int | None,
        typer.Option(help="onnx, openvino: the only batch size that the graph accepts.", min=1, show_default="any batch size"),
    ] = None,
    dynamic_size: Annotated[
        bool, typer.Option("--dynamic-size", help="onnx, openvino: accept any height and width that the patch size divides.")
    ] = False,
) -> Result:
    """Export a model to the format of a family, or to a graph for another engine."""
    warnings = export_model(
        model, output, to=to, image_size=image_size, classifier=classifier, batch_size=batch_size, dynamic_size=dynamic_size
    )
    for message in warnings:  # of a graph, also how closely it agrees with the model
        typer.echo(message, err=True)
    return Result({"output": str(output), "to": to, "warnings": warnings}, [f"written to {output}"])


def verify(
    model: Model,
    against: Annotated[str | None, typer.Option(help="Checkpoint that the model was converted from.")] = None,
    head: Head = None,
    branch: Branch = "teacher",
    image: Annotated[Path | None, typer.Option(help="Photograph to preprocess with both image processors.")] = None,
) -> Result:
    """Compare a model with its source and with other implementations; the exit code is 1 if a check fails."""
    loaded, image_processor, report = load_model(model, branch=branch)
    converted = Path(model).is_dir() and report.format == "vitrail"
    if converted:
        read_report(Path(model))  # raises before the checks, which take a while, if their table could not be kept
    source = against if against is not None or converted else model
    checks = run_checks(loaded, image_processor, against=source, head=head, branch=branch, image=image)
    if converted and not keep_verification(model, checks, against=against, head=head):
        warn("the table is not kept: a check failed, and the file that it compares with is not the recorded source of the model.")
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        status = {True: "ok", False: "FAILED", None: "-"}[check.passed]
        difference = "" if check.difference is None else f"{check.difference:.1e}"
        lines.append(f"{status:6}  {check.name:{width}}  {difference:7}  {check.against}")
        if check.note:
            lines.append(f"{'':8}{check.note}")
    passed = not any(check.passed is False for check in checks)
    record = {"model": model, "passed": passed, "checks": [check.to_dict() for check in checks]}
    return Result(record, lines, exit_code=0 if passed else 1)


def info(model: Model, options: CheckpointOptions) -> Result:
    """Show the architecture, the size and the preprocessing of a model."""
    loaded, image_processor, report = load_model(model, **asdict(options))
    config = loaded.config
    counts, size = complexity(loaded), size_name(config)
    (height, width), (patch_height, patch_width) = config.image_shape, config.patch_shape
    positions = config.position_embedding_type.replace("_", " ")
    rows = {
        "model": f"{type(loaded).__name__}, {str(loaded.dtype).removeprefix('torch.')}, from a {report.format} checkpoint",
        "size": f"{f'{size}: ' if size else ''}{config.num_hidden_layers} blocks, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.mlp_type} {config.intermediate_size}",
        "image": f"{height} x {width}, patches of {patch_height} x {patch_width}, {config.num_channels} channels",
        "tokens": f"{int(config.use_cls_token)} CLS, {config.num_register_tokens} registers, "
        f"{config.patch_grid[0] * config.patch_grid[1]} patches; {positions} positions",
        "pooling": pooled(config),
        "parameters": f"{significant(counts.parameters / 1e6)} M",
        "GMACs": f"{significant(counts.macs / 1e9)} ({significant(counts.macs_with_attention / 1e9)} with the products of attention)",
        "activations": f"{significant(counts.activations / 1e6)} M",
        "preprocessing": f"{image_processor.backend} backend, "
        f"size {dict(image_processor.size) if image_processor.do_resize else 'of the image'}, "
        f"crop {dict(image_processor.crop_size) if image_processor.do_center_crop else 'none'}, "
        f"mean {list(image_processor.image_mean)}, std {list(image_processor.image_std)}",
    }
    official = catalog.find_checkpoint(report.checkpoint or "")
    if official is not None and (note := lineage_of(official).pooling):
        rows["pooling"] += f". {note}".replace("`", "")
    if hasattr(loaded, "classifier"):
        rows["classes"] = f"{config.num_labels}, from {_classifier_input(config)}"
    if dense_class(config) is not None:
        rows["head"] = dense_head(config, has_named_classes(config))
    converted = _first_conversion(model)
    if converted is not None and converted.source is not None:
        rows["converted"] = f"from a {converted.format} checkpoint, {converted.source.name}"
        warn(*(message for message in converted.warnings if message not in report.warnings))
    record = {
        "class": type(loaded).__name__,
        "format": report.format,
        "checkpoint": report.checkpoint,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "converted": None if converted is None else {"format": converted.format, "warnings": converted.warnings},
        "size": size,
        **asdict(counts),
        "config": config.to_dict(),
        "image_processor": image_processor.to_dict(),
    }
    return Result(record, [f"{name:{max(map(len, rows))}}  {value}" for name, value in rows.items()])


def _first_conversion(model: str) -> ConversionRecord | None:
    """Return the record of the conversion from another format, for a folder that has one."""
    record = read_report(Path(model)) if Path(model).is_dir() else None
    return record.chain[-1] if record is not None else None


def _classifier_input(config: ViTConfig) -> str:
    layers, mean_patch = config.classifier_cls_layers, config.classifier_mean_patch
    if layers == 1 and not mean_patch:
        return f"the pooled features ({config.pooling})"
    return f"[CLS] of {layers} {'block' if layers == 1 else 'blocks'}{' and the mean patch' if mean_patch else ''}"


def significant(value: float) -> str:
    """Return a positive number with three significant digits, and never fewer than its whole ones: 0.0213, 4.25, 1,136."""
    return f"{value:,.{max(2 - math.floor(math.log10(value)), 0)}f}" if value else "0"
