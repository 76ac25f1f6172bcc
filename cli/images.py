"""Commands that run a model on a few images: `vitrail embed`, `attention`, `classify`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from safetensors.torch import save_file

from ..convert.load import load
from ..errors import VitrailError
from ..features.embed import classify_image, extract_features
from ..features.maps import attention_picture
from ..modeling.modeling_vit import ViTForImageClassification

ModelArgument = Annotated[str, typer.Argument(help="A folder that vitrail wrote, or any checkpoint.")]


PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_output(output: Path, suffixes: tuple[str, ...]) -> None:
    """Says before any work is done that a file cannot be written."""
    if output.suffix.lower() not in suffixes:
        raise VitrailError(f"{output} ends in none of {', '.join(suffixes)}: choose a name that does.")
    if output.is_dir():
        raise VitrailError(f"{output} is a folder: give the name of a file.")
    if not output.parent.is_dir():
        raise VitrailError(f"There is no folder {output.parent} to write {output.name} into: make it first.")


def embed(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    batch_size: Annotated[int, typer.Option(help="Images that run at a time.", min=1)] = 8,
) -> None:
    """Write the pooled features of images."""
    check_output(output, (".safetensors",))
    loaded, image_processor, _ = load(model)
    features = extract_features(loaded, image_processor, images, batch_size=batch_size)
    temporary = output.with_name(f".{output.name}.part")
    save_file({"features": features}, temporary, metadata={"images": json.dumps([str(image) for image in images])})
    temporary.replace(output)
    rows, columns = features.shape
    Console(highlight=False, soft_wrap=True).print(f"{output}: features ({rows}, {columns}) float32", markup=False)


def attention(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    output: Annotated[Path, typer.Option(help="The picture to write; its name ends in .png, .jpg or .webp.")],
    layer: Annotated[int, typer.Option(help="The block: 0 is the first, -1 the last.")] = -1,
) -> None:
    """Draw what each head of a block attends to, over the image."""
    check_output(output, PICTURES)
    loaded, image_processor, _ = load(model)
    maps, picture = attention_picture(loaded, image_processor, image, layer=layer)
    temporary = output.with_name(f".{output.stem}.part{output.suffix}")
    picture.save(temporary)
    temporary.replace(output)
    Console(highlight=False, soft_wrap=True).print(
        f"{output}: {len(maps)} heads of block {layer % loaded.config.num_hidden_layers}", markup=False
    )


def classify(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    top: Annotated[int, typer.Option(help="How many labels to print.", min=1)] = 5,
) -> None:
    """Print the most probable labels of an image."""
    loaded, image_processor, _ = load(model)
    if not isinstance(loaded, ViTForImageClassification):
        raise VitrailError(
            f"{model} has no classifier: convert the backbone again with --head FILE, or choose a model that has one."
        )
    for label, probability in classify_image(loaded, image_processor, image, top=top):
        Console(highlight=False, soft_wrap=True).print(f"{probability:6.1%}  {label}", markup=False)
