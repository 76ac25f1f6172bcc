"""Commands that run a model on a few images: `vitrail embed`, `classify`, `attention` and `pca`."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from ..errors import VitrailError
from ..features.embedding import classify_image, extract_features
from ..modeling.modeling_vit import ViTForImageClassification, ViTPreTrainedModel
from ..modeling.modeling_vit_dense import resize
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import at_size, output_size
from ..processing.resizing import keep_aspect as make_keep_aspect
from ..runtime.compiled import AUTO, DEFAULT_RUNTIME, NUM_CALIBRATION, Runtime, precision_of
from ..runtime.optimization import OptimizedModel, optimize
from ..runtime.selection import find_candidates
from ..runtime.trials import Workload
from ..utils.atomic import replaced, to_json, write_text
from ..utils.progress import show_line
from ..utils.text import count
from ..visualization.attention import plot_attention
from ..visualization.pca import plot_pca
from .options import BatchSize, ImageFiles, ImageSize, KeepAspect, Labels, Model, PictureFile, ReadingOptions, RuntimeOptions, Top
from .output import PICTURES, Result, check_output, load_model, warn

BATCH_SIZE = 8


def check_files(images: Sequence[Path]) -> None:
    """Raise VitrailError for a folder among image files."""
    for image in images:
        if image.is_dir():
            raise VitrailError(
                f"{image} is a folder; expected image files, such as {image}/*.jpg. `vitrail extract` takes folders of any size."
            )


def save_picture(picture: Image.Image, output: Path) -> None:
    """Write a picture whole or not at all."""
    with replaced(output) as temporary:
        picture.save(temporary)


def embed(
    model: Model,
    images: ImageFiles,
    output: Annotated[Path, typer.Option(help=".safetensors file to write.")],
    reading_options: ReadingOptions,
    runtime_options: RuntimeOptions,
    batch_size: BatchSize = None,
) -> Result:
    """Write the pooled features of images."""
    check_files(images)
    check_output(output, (".safetensors",))
    runtime, batch_size = runtime_options.runtime(), batch_size or BATCH_SIZE
    loaded, image_processor, _ = load_model(model, **asdict(reading_options))
    runner = _optimized_for(loaded.base_model, image_processor, images, runtime=runtime, batch_size=batch_size)
    features = extract_features(runner, image_processor, images, batch_size=batch_size)
    with replaced(output) as temporary:
        save_file({"features": features}, temporary, metadata={"images": json.dumps([str(image) for image in images])})
    rows, columns = features.shape
    record = {"output": str(output), "images": [str(image) for image in images], "shape": [rows, columns], "dtype": "float32"}
    lines = [f"{output}: features ({rows}, {columns}) float32"]
    return with_agreement(Result(record, lines), runner)


def classify(
    model: Model,
    files: Annotated[list[Path], typer.Argument(help="Image files, and folders of them.")],
    reading_options: ReadingOptions,
    runtime_options: RuntimeOptions,
    top: Top = 5,
    labels: Labels = None,
    output: Annotated[Path | None, typer.Option(help="File to write: .json, or .csv with a row for each label.")] = None,
) -> Result:
    """Print the most probable labels of images."""
    if output is not None:
        check_output(output, (".json", ".csv"))
    runtime, images = runtime_options.runtime(), _image_files(files)
    loaded, image_processor, _ = load_model(model, **asdict(reading_options), labels=labels)
    if not isinstance(loaded, ViTForImageClassification):
        raise VitrailError(
            f"{model} has no classifier: convert the backbone again with --head FILE, train one with `vitrail probe`, or choose a model "
            "that has one."
        )
    runner = _optimized_for(loaded, image_processor, images, runtime=runtime, batch_size=1)
    lines, records = [], []
    for image in images:
        try:
            found = classify_image(runner, image_processor, image, top=top)
        except ValueError as error:
            if len(images) == 1:
                raise
            warn(f"skipped: {image}: {error}")
            continue
        records.append({"image": str(image), "labels": [{"label": label, "probability": value} for label, value in found]})
        lines += [str(image)] if len(images) > 1 else []
        lines += [f"{value:6.1%}  {label}" for label, value in found]
    result = with_agreement(Result({"images": records}, lines), runner)
    if output is not None:
        write_text(output, _table(records) if output.suffix.lower() == ".csv" else to_json(result.record) + "\n")
        result = Result(result.record, [*result.lines, f"written to {output}: {count(len(records), 'image')}"])
    return result


def _image_files(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and the images in folders."""
    from ..data.image_sources import find_source

    files: list[Path] = []
    for path in paths:
        found = find_source(path) if path.is_dir() else None
        if found is not None and found.kind != "images":
            raise VitrailError(f"{path} holds {found.kind}, and no image files: expected image files, or folders of them.")
        files += [path] if found is None else map(Path, found.listing.locations())
    return files


def _table(records: Sequence[dict[str, Any]]) -> str:
    """Return CSV with a row for each label of each image."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("image", "label", "probability"))
    writer.writerows((record["image"], *label.values()) for record in records for label in record["labels"])
    return stream.getvalue()


def attention(
    model: Model,
    images: ImageFiles,
    output: PictureFile,
    reading_options: ReadingOptions,
    layers: Annotated[
        str | None,
        typer.Option(help="Blocks: all, or a list such as 3,7,11 (0: the first, -1: the last).", show_default="the last"),
    ] = None,
    show: Annotated[
        str, typer.Option(help="heads: every head of the blocks; mean: their mean; rollout: attention through all blocks.")
    ] = "heads",
    style: Annotated[
        str, typer.Option(help="overlay: attention over the image; grid: attention alone, patch by patch.")
    ] = "overlay",
    image_size: ImageSize = None,
    keep_aspect: KeepAspect = False,
) -> Result:
    """Draw the attention of a model in images."""
    check_files(images)
    check_output(output, PICTURES)
    loaded, image_processor, _ = load_model(model, **asdict(reading_options))
    number = loaded.config.num_hidden_layers
    chosen = None if layers is None else _parse_layers(layers, number)
    image_processor = resized(image_processor, loaded.config.patch_shape, image_size, keep_aspect)
    maps, picture = plot_attention(loaded, image_processor, images, layers=chosen, show=show, style=style)
    save_picture(picture, output)
    blocks = list(range(number)) if show == "rollout" else [block % number for block in chosen or (-1,)]
    listed = "" if show == "rollout" else f" of block {', '.join(map(str, blocks))}"
    record = {"output": str(output), "show": show, "blocks": blocks, "patch_grids": [list(one.shape[-2:]) for one in maps]}
    return Result(record, [f"{output}: {show}{listed} on {_grids(maps)} patches"])


def pca(
    model: Model,
    images: ImageFiles,
    output: PictureFile,
    reading_options: ReadingOptions,
    foreground: Annotated[
        bool, typer.Option("--foreground/--no-foreground", help="Color only the foreground, which is detected first.")
    ] = True,
    image_size: ImageSize = None,
    keep_aspect: KeepAspect = False,
) -> Result:
    """Draw patch features as colors: the principal components over all images, so that similar patches have similar colors."""
    check_files(images)
    check_output(output, PICTURES)
    loaded, image_processor, _ = load_model(model, **asdict(reading_options))
    image_processor = resized(image_processor, loaded.config.patch_shape, image_size, keep_aspect)
    _, masks, picture = plot_pca(loaded, image_processor, images, foreground=foreground)
    save_picture(picture, output)
    share = float(sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks))
    if not all(mask.any() for mask in masks):
        warn("an image has no foreground and is black; --no-foreground colors every patch.")
    record = {"output": str(output), "patch_grids": [list(mask.shape) for mask in masks], "foreground": share}
    return Result(record, [f"{output}: {_grids(masks)} patches, {share:.0%} of them foreground"])


def optimized(
    model: ViTPreTrainedModel,
    images: Sequence[Path],
    inputs_of: Callable[[Path], list[torch.Tensor]],
    runtime: Runtime,
    *,
    batch_size: int,
    num_inputs: int,
    one_size: bool,
) -> ViTPreTrainedModel | OptimizedModel:
    """Return the model itself, or the model optimized for its inputs.

    Args:
        inputs_of: returns what the model receives for an image, (1, C, H, W) each.
        num_inputs: the number of inputs for all images.
        one_size: whether all inputs have the same height and width.
    """
    if runtime.is_auto and (not one_size or Workload(batch_size, num_images=num_inputs).is_small):
        first = find_candidates(model, runtime, one_size=one_size)[0]
        unchanged = runtime.precision in (None, AUTO) and first == Runtime(precision_of(model))
        runtime = DEFAULT_RUNTIME if unchanged else first
    if runtime == DEFAULT_RUNTIME:
        return model
    number = NUM_CALIBRATION if runtime.precision == "int8" or runtime.is_auto else batch_size
    optimized = optimize(
        model,
        precision=runtime.precision,
        engine=runtime.engine,
        examples=_examples(images, inputs_of, number),
        batch_size=min(batch_size, num_inputs),
        num_images=num_inputs,
    )
    show_line(optimized.report.selection, wanted=optimized.report.selection != "")
    return optimized


def _examples(images: Sequence[Path], inputs_of: Callable[[Path], list[torch.Tensor]], number: int) -> torch.Tensor:
    """Return the inputs for the first readable images, at the size of the first: up to `number` inputs."""
    inputs: list[torch.Tensor] = []
    for image in images:
        try:
            inputs += inputs_of(image)
        except ValueError:  # the run reports it
            if image == images[-1] and not inputs:
                raise
        if len(inputs) >= number:
            break
    return torch.cat([resize(one, inputs[0].shape[-2:]) for one in inputs[:number]])


def _optimized_for(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, images: Sequence[Path], *, runtime: Runtime, batch_size: int
) -> ViTPreTrainedModel | OptimizedModel:
    return optimized(
        model,
        images,
        lambda image: [image_processor(image, return_tensors="pt")["pixel_values"]],
        runtime,
        batch_size=batch_size,
        num_inputs=len(images),
        one_size=output_size(image_processor) is not None,
    )


def with_agreement(result: Result, runner: ViTPreTrainedModel | OptimizedModel) -> Result:
    if not isinstance(runner, OptimizedModel):
        return Result({**result.record, "optimization": None}, result.lines)
    return Result({**result.record, "optimization": runner.report.to_dict()}, [*result.lines, str(runner.report)])


def _parse_layers(text: str, number: int) -> Sequence[int]:
    if text == "all":
        return range(number)
    try:
        return [int(block) for block in text.split(",")]
    except ValueError as error:
        raise VitrailError(f"found --layers {text}; expected all, or a list of blocks such as 3,7,11") from error


def resized(
    image_processor: VitrailImageProcessor, patch_size: tuple[int, int], size: tuple[int, int] | None, keep_aspect: bool = False
) -> VitrailImageProcessor:
    """Return a copy of an image processor for the options --image-size and --keep-aspect."""
    if size is not None:
        image_processor = at_size(image_processor, patch_size, size)
    return make_keep_aspect(image_processor, patch_size) if keep_aspect else image_processor


def _grids(maps: Sequence[np.ndarray]) -> str:
    return ", ".join(sorted({"x".join(map(str, one.shape[-2:])) for one in maps}))
