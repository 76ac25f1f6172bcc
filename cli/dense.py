"""Commands that draw a value for each pixel or patch: `vitrail segment`, `depth` and `patches`."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from ..errors import VitrailError
from ..modeling.modeling_vit import ViTPreTrainedModel
from ..processing.image_processing_vit import DECODE_ERRORS, VitrailImageProcessor, upright_size
from ..runtime.compiled import Runtime
from ..runtime.trials import Workload
from ..visualization.depth import plot_depth, write_depth
from ..visualization.patch_similarity import most_similar, plot_patch_similarity
from ..visualization.pictures import write_values
from ..visualization.segmentation import class_shares, percent, plot_segmentation, segmentation_inputs
from ..visualization.whole_images import HEADS, read_whole
from .images import check_files, optimized, resized, save_picture, with_agreement
from .options import ImageFiles, ImageSize, Model, PictureFile, Points, ReadingOptions, RuntimeOptions, ValuesDir, ValuesFormat
from .output import PICTURES, Result, check_output, load_model

VALUES = ("png", "npy")
NUM_CLASSES = 5  # that a line names


def segment(
    model: Model,
    images: ImageFiles,
    output: PictureFile,
    reading_options: ReadingOptions,
    runtime_options: RuntimeOptions,
    windows: Annotated[
        bool,
        typer.Option("--windows/--no-windows", help="Slide windows over each image, as the head's recipe says; or take one pass."),
    ] = True,
    image_size: ImageSize = None,
    values: ValuesDir = None,
    values_format: ValuesFormat = "png",
) -> Result:
    """Draw the class of each pixel over images, with a legend; --values writes the classes as numbers."""
    check_files(images)
    check_output(output, PICTURES)
    runtime, paths = runtime_options.runtime(), _values_paths(images, values, values_format)
    loaded, image_processor = _load_dense(model, "segmentation", reading_options, image_size)
    runner = _optimized(
        loaded,
        images,
        lambda image: segmentation_inputs(loaded, image_processor, image, windows=windows),
        runtime,
        window=loaded.config.segmentation_window if windows else None,
    )
    maps, picture = plot_segmentation(runner, image_processor, images, windows=windows)
    _write_values(write_values, maps, paths)
    save_picture(picture, output)
    records, lines = [], [f"{output}: classes of {len(images)} images" if len(images) > 1 else f"{output}: classes"]
    for image, classes in zip(images, maps, strict=True):
        found = [(loaded.config.id2label[index], share) for index, share in class_shares(classes)]
        records.append({"image": str(image), "classes": [{"label": label, "share": share} for label, share in found]})
        more = f", and {len(found) - NUM_CLASSES} more" if len(found) > NUM_CLASSES else ""
        lines.append(f"{image}: {', '.join(f'{label} {percent(share)}' for label, share in found[:NUM_CLASSES])}{more}")
    return with_agreement(_with_values(Result({"output": str(output), "images": records}, lines), paths), runner)


def depth(
    model: Model,
    images: ImageFiles,
    output: PictureFile,
    reading_options: ReadingOptions,
    runtime_options: RuntimeOptions,
    image_size: ImageSize = None,
    values: ValuesDir = None,
    values_format: ValuesFormat = "png",
) -> Result:
    """Draw the depth of each pixel of images, with a scale in meters; --values writes the depths: millimeters as 16-bit .png, or .npy."""
    check_files(images)
    check_output(output, PICTURES)
    runtime, paths = runtime_options.runtime(), _values_paths(images, values, values_format)
    loaded, image_processor = _load_dense(model, "depth", reading_options, image_size)
    runner = _optimized(loaded, images, lambda image: [read_whole(loaded, image_processor, image).prepared], runtime)
    maps, picture = plot_depth(runner, image_processor, images)
    _write_values(write_depth, maps, paths)
    save_picture(picture, output)
    records, lines = [], [f"{output}: depth of {len(images)} images" if len(images) > 1 else f"{output}: depth"]
    for image, one in zip(images, maps, strict=True):
        low, median, high = (float(value) for value in np.quantile(one, (0, 0.5, 1)))
        records.append({"image": str(image), "min": low, "median": median, "max": high})
        lines.append(f"{image}: {low:.2f} to {high:.2f} m, median {median:.2f} m")
    return with_agreement(_with_values(Result({"output": str(output), "images": records}, lines), paths), runner)


def patches(
    model: Model,
    images: ImageFiles,
    output: PictureFile,
    at: Points,
    reading_options: ReadingOptions,
    image_size: ImageSize = None,
) -> Result:
    """Draw how similar each patch is to the patches at points of the first image: the cosine of their features."""
    check_files(images)
    check_output(output, PICTURES)
    points = [_parse_point(text) for text in at]
    loaded, image_processor, _ = load_model(model, **asdict(reading_options))
    image_processor = resized(image_processor, loaded.config.patch_shape, image_size)
    maps, picture = plot_patch_similarity(loaded, image_processor, images, points)
    save_picture(picture, output)
    records, lines = [], [f"{output}: cosines with the patches at {', '.join(at)}"]
    for image, cosines in zip(images[1:], maps[1:], strict=True):
        for text, one in zip(at, cosines, strict=True):
            x, y = most_similar(one)
            records.append({"image": str(image), "at": text, "cosine": float(one.max()), "place": [x, y]})
            lines.append(
                f"{image}: {text} is most similar at {x:.0%} of the width and {y:.0%} of the height, cosine {one.max():.3f}"
            )
    record = {"output": str(output), "patch_grids": [list(one.shape[1:]) for one in maps], "most_similar": records}
    return Result(record, lines)


def _load_dense(
    model: str, task: str, reading_options: ReadingOptions, image_size: tuple[int, int] | None
) -> tuple[Any, VitrailImageProcessor]:
    """Return a model with the head of a task, and its image processor for the option --image-size."""
    kind, example = HEADS[task]
    loaded, image_processor, _ = load_model(model, **asdict(reading_options))
    if not isinstance(loaded, kind):
        raise VitrailError(f"{model} has no {task} head: add a head with --head, for example {example}.")
    return loaded, resized(image_processor, loaded.config.patch_shape, image_size)


def _optimized(
    model: ViTPreTrainedModel,
    images: Sequence[Path],
    inputs_of: Callable[[Path], list[torch.Tensor]],
    runtime: Runtime,
    *,
    window: int | None = None,
) -> Any:
    """Return the model itself, or the model optimized for its inputs.

    Args:
        inputs_of: returns what the model receives for an image, (1, C, H, W) each.
        window: the side of the windows that slide over images; None for whole images.
    """
    num_inputs, one_size = len(images), True
    if runtime.is_auto and not Workload(1, num_images=len(images)).is_small:
        inputs = inputs_of(images[0])
        sizes = {tuple(one.shape[-2:]) for one in inputs}
        num_inputs *= len(inputs)
        one_size = len(sizes) == 1 and (sizes == {(window, window)} or _have_one_size(images))
    return optimized(model, images, inputs_of, runtime, batch_size=1, num_inputs=num_inputs, one_size=one_size)


def _have_one_size(images: Sequence[Path]) -> bool:
    """Whether all images have the same size, according to their headers."""
    sizes = set()
    for image in images:
        try:
            with Image.open(image) as photo:
                sizes.add(upright_size(photo))
        except DECODE_ERRORS:  # the run reports it
            return False
    return len(sizes) == 1


def _parse_point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise VitrailError(f"found --at {text}; expected the pixels x,y, such as 120,80.") from None
    return x, y


def _values_paths(images: Sequence[Path], folder: Path | None, values_format: str) -> list[Path]:
    """Return the files of values to write, one for each image, or none; raise VitrailError before any work if they cannot be written."""
    if values_format not in VALUES:
        raise VitrailError(f"found --values-format {values_format}; expected {' or '.join(VALUES)}.")
    if folder is None:
        return []
    if folder.exists() and not folder.is_dir():
        raise VitrailError(f"{folder} is a file; expected a folder for --values.")
    paths = [folder / f"{image.stem}.{values_format}" for image in images]
    twice = sorted({path.name for path in paths if paths.count(path) > 1})
    if twice:
        raise VitrailError(f"The values of several images would be {folder / twice[0]}: give images of different names.")
    return paths


def _write_values(write: Callable[[np.ndarray, Path], None], maps: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
    for values, path in zip(maps, paths, strict=False):  # no paths without --values
        path.parent.mkdir(parents=True, exist_ok=True)
        write(values, path)


def _with_values(result: Result, paths: Sequence[Path]) -> Result:
    record: dict[str, Any] = {**result.record, "values": [str(path) for path in paths]}
    return Result(record, [*result.lines, *([f"values: {', '.join(map(str, paths))}"] if paths else [])])
