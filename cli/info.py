"""`vitrail info`."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..configuration.sizes import size_name
from ..convert.loading import load
from ..modeling.complexity import complexity


def info(model: Annotated[str, typer.Argument(help="A folder that vitrail wrote, or any checkpoint.")]) -> None:
    """Show what a model is, how large it is and what images it takes."""
    loaded, image_processor, report = load(model)
    config = loaded.config
    counts = complexity(loaded)
    (height, width), (patch_height, patch_width) = config.image_size, config.patch_size
    positions = config.position_embedding_type.replace("_", " ")
    rows = {
        "model": f"{type(loaded).__name__}, from a {report.format} checkpoint",
        "size": f"{size_name(config) or 'unnamed'}: {config.num_hidden_layers} blocks, {config.hidden_size} wide, "
        f"{config.num_attention_heads} heads, {config.mlp_type} {config.intermediate_size}",
        "image": f"{height} x {width}, patches of {patch_height} x {patch_width}, {config.num_channels} channels",
        "tokens": f"{int(config.use_cls_token)} [CLS], {config.num_register_tokens} registers, "
        f"{config.patch_grid[0] * config.patch_grid[1]} patches; {positions} positions",
        "pooling": config.pooling,
        "parameters": f"{counts.parameters / 1e6:.1f} M",
        "GMACs": f"{counts.macs / 1e9:.1f} (with the products of attention {counts.macs_with_attention / 1e9:.1f})",
        "activations": f"{counts.activations / 1e6:.1f} M",
        "preprocessing": f"{image_processor.backend} backend, size {dict(image_processor.size)}, "
        f"crop {dict(image_processor.crop_size) if image_processor.do_center_crop else 'none'}, "
        f"mean {list(image_processor.image_mean)}, std {list(image_processor.image_std)}",
    }
    if hasattr(loaded, "classifier"):
        rows["classes"] = str(config.num_labels)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table, markup=False)
