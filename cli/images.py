"""Commands that run a model on a few images: `vitrail embed`, `attention`, `pca`, `classify`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from ..convert.loading import load
from ..errors import VitrailError
from ..features.embedding import classify_image, extract_features
from ..modeling.modeling_vit import ViTForImageClassification
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.presets import keep_aspect as make_keep_aspect
from ..runtime.compiled import Runtime
from ..runtime.optimization import OptimizedModel
from ..utils.atomic import replaced
from ..visualization.attention import plot_attention
from ..visualization.pca import plot_pca
from ..visualization.pictures import at_size
from .runtime import EngineOption, PrecisionOption, run_by

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(output: Path, suffixes: tuple[str, ...]) -> None:
    """Says before any work is done that a file cannot be written."""
    if output.suffix.lower() not in suffixes:
        raise VitrailError(f"{output} ends in none of {', '.join(suffixes)}: choose a name that does.")
    if output.is_dir():
        raise VitrailError(f"{output} is a folder: give the name of a file.")
    if not output.parent.is_dir():
        raise VitrailError(f"There is no folder {output.parent} to write {output.name} into: make it first.")


def save_picture(picture: Image.Image, output: Path) -> None:
    """Writes a picture whole or not at all."""
    with replaced(output) as temporary:
        picture.save(temporary)


def _parse_size(text: str) -> tuple[int, int]:
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise typer.BadParameter(f"found {text}; write pixels as 480, or height and width as 480x640.")
    return sides[0], sides[-1]


def _parse_layers(text: str, number: int) -> Sequence[int]:
    if text == "all":
        return range(number)
    try:
        return [int(block) for block in text.split(",")]
    except ValueError as error:
        raise VitrailError(f"Found --layers {text}: write blocks as 3,7,11, or all.") from error


ModelArgument = Annotated[str, typer.Argument(help="A folder that vitrail wrote, or any checkpoint.")]
PictureOption = Annotated[Path, typer.Option(help="The picture to write; its name ends in .png, .jpg or .webp.")]
SizeOption = Annotated[
    tuple | None,
    typer.Option(
        parser=_parse_size,
        metavar="N or HxW",
        help="Pixels of the images that the model sees, for a finer grid of patches, which must divide them.",
    ),
]
AspectOption = Annotated[
    bool, typer.Option("--keep-aspect", help="Keep the shape of each image instead of cropping or squashing it to the model's.")
]


def embed(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    batch_size: Annotated[int, typer.Option(help="Images that run at a time.", min=1)] = 8,
    precision: PrecisionOption = None,
    engine: EngineOption = "eager",
) -> None:
    """Write the pooled features of images."""
    check_output(output, (".safetensors",))
    runtime = Runtime(precision, engine)
    loaded, image_processor, _ = load(model)
    runner = run_by(runtime, loaded.base_model, image_processor, images, batch_size=batch_size)
    features = extract_features(runner, image_processor, images, batch_size=batch_size)
    with replaced(output) as temporary:
        save_file({"features": features}, temporary, metadata={"images": json.dumps([str(image) for image in images])})
    rows, columns = features.shape
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{output}: features ({rows}, {columns}) float32", markup=False)
    if isinstance(runner, OptimizedModel):
        console.print(str(runner.report), markup=False)


def attention(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    output: PictureOption,
    layers: Annotated[
        str | None, typer.Option(help="Blocks, as 3,7,11 or all: 0 is the first, -1 the last.", show_default="the last")
    ] = None,
    show: Annotated[
        str, typer.Option(help="heads: each one of these blocks; mean: over the heads; rollout: through all blocks.")
    ] = "heads",
    style: Annotated[str, typer.Option(help="overlay: laid over the image; grid: alone, patch by patch.")] = "overlay",
    size: SizeOption = None,
    keep_aspect: AspectOption = False,
) -> None:
    """Draw what a model attends to in images."""
    check_output(output, PICTURES)
    loaded, image_processor, _ = load(model)
    number = loaded.config.num_hidden_layers
    blocks = None if layers is None else _parse_layers(layers, number)
    image_processor = _prepare(image_processor, loaded.config.patch_size, size, keep_aspect)
    maps, picture = plot_attention(loaded, image_processor, images, layers=blocks, show=show, style=style)
    save_picture(picture, output)
    of = "" if show == "rollout" else f" of block {', '.join(str(block % number) for block in blocks or (-1,))}"
    Console(highlight=False, soft_wrap=True).print(f"{output}: {show}{of} on {_grids(maps)} patches", markup=False)


def pca(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files, which share their colours.")],
    output: PictureOption,
    foreground: Annotated[
        bool, typer.Option("--foreground/--no-foreground", help="Find the foreground first, and colour nothing else.")
    ] = True,
    size: SizeOption = None,
    keep_aspect: AspectOption = False,
) -> None:
    """Draw patch features in colours that say which are alike: principal components over all images."""
    check_output(output, PICTURES)
    loaded, image_processor, _ = load(model)
    image_processor = _prepare(image_processor, loaded.config.patch_size, size, keep_aspect)
    _, masks, picture = plot_pca(loaded, image_processor, images, foreground=foreground)
    save_picture(picture, output)
    share = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
    Console(highlight=False, soft_wrap=True).print(
        f"{output}: {_grids(masks)} patches, {share:.0%} of them foreground", markup=False
    )
    if not all(mask.any() for mask in masks):
        Console(highlight=False, soft_wrap=True).print("an image without foreground is black: --no-foreground colours all")


def _prepare(
    image_processor: VitrailImageProcessor, patch_size: tuple[int, int], size: tuple[int, int] | None, aspect: bool
) -> VitrailImageProcessor:
    if size is not None:
        image_processor = at_size(image_processor, patch_size, size)
    return make_keep_aspect(image_processor, patch_size) if aspect else image_processor


def _grids(maps: Sequence[np.ndarray]) -> str:
    return ", ".join(sorted({"x".join(map(str, one.shape[-2:])) for one in maps}))


def classify(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    top: Annotated[int, typer.Option(help="How many labels to print.", min=1)] = 5,
    precision: PrecisionOption = None,
    engine: EngineOption = "eager",
) -> None:
    """Print the most probable labels of an image."""
    runtime = Runtime(precision, engine)
    loaded, image_processor, _ = load(model)
    if not isinstance(loaded, ViTForImageClassification):
        raise VitrailError(
            f"{model} has no classifier: convert the backbone again with --head FILE, or choose a model that has one."
        )
    runner = run_by(runtime, loaded, image_processor, [image], batch_size=1)
    console = Console(highlight=False, soft_wrap=True)
    for label, probability in classify_image(runner, image_processor, image, top=top):
        console.print(f"{probability:6.1%}  {label}", markup=False)
    if isinstance(runner, OptimizedModel):
        console.print(str(runner.report), markup=False)
