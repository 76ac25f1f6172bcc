"""Every option and argument of the command line, once: its type, its help and, in the groups, its default.

A group is a dataclass of options that several commands share. `expand_groups` turns a parameter of such a type into the options
of the group, because typer reads options from the signature of a function.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ..processing.presets import PRESETS
from ..runtime.compiled import AUTO, Runtime

Value = TypeVar("Value")

CHOSEN = "chosen by the command"


def _parse_size(text: str) -> tuple[int, int]:
    try:
        sides = tuple(int(side) for side in text.split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise typer.BadParameter(f"found {text}; expected pixels, such as 480, or height and width, such as 480x640.")
    return sides[0], sides[-1]


def _parse_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"found {text}; expected the smallest and largest depth in meters, such as 0.001,80.") from None
    return low, high


# Every command
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Print the traceback of an error.")]

# Checkpoints
Model = Annotated[
    str,
    typer.Argument(
        help="Checkpoint: a folder, a file, a URL, a Hub id, or a name that `vitrail list` prints, such as dino-vits16."
    ),
]
Head = Annotated[str | None, typer.Option(help="Head published apart from the backbone: a file, a URL or a name, such as nyu_dpt.")]
HeadName = Annotated[str | None, typer.Option(help="Name of the classifier in a head file that contains several.")]
DepthRange = Annotated[
    tuple | None,
    typer.Option(
        parser=_parse_range,
        metavar="MIN,MAX",
        help="Smallest and largest depth of a depth head, in meters.",
        show_default="from the published head",
    ),
]
Branch = Annotated[
    str, typer.Option(help="Network of a training checkpoint: teacher (the averaged weights) or student (the trained ones).")
]
Prefix = Annotated[str | None, typer.Option(help="Keys and prefix of the network's names, if a file holds several networks.")]
Format = Annotated[str, typer.Option(help="Family of the checkpoint; auto detects it from names and shapes.")]
NumHeads = Annotated[int | None, typer.Option(help="Number of attention heads, if the checkpoint does not determine it.")]
PublishedPeriods = Annotated[
    bool,
    typer.Option("--published-periods", help="Use the rounded rotary periods of DINOv3's .pth files, which other formats lack."),
]
ImageSize = Annotated[
    tuple | None,
    typer.Option(
        parser=_parse_size,
        metavar="N or HxW",
        help="Image size of the model in pixels; the patch size must divide it.",
        show_default="from the model",
    ),
]
PatchSize = Annotated[
    tuple | None,
    typer.Option(
        parser=_parse_size,
        metavar="N or HxW",
        help="Patch size in pixels to resize the patch projection to.",
        show_default="from the model",
    ),
]
Preset = Annotated[
    str | None, typer.Option(help=f"Preprocessing: {', '.join(PRESETS)}.", show_default="from the checkpoint", metavar="NAME")
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Names of the classes: imagenet-1k, imagenet-21k, or a file with one per line or JSON.",
        show_default="from the checkpoint",
        metavar="NAME or FILE",
    ),
]
NumChannels = Annotated[int | None, typer.Option(help="Number of input channels to adapt the patch projection to.")]
ChannelRule = Annotated[str | None, typer.Option(help="How to adapt the patch projection: sum, repeat or average.")]
NumLabels = Annotated[int | None, typer.Option(help="Number of classes of a new, untrained classifier; 0 for the encoder alone.")]
Dtype = Annotated[
    str | None, typer.Option(help="Dtype of the weights: float32, bfloat16 or float16.", show_default="from the file")
]
Revision = Annotated[str | None, typer.Option(help="Revision of the Hub repository: a branch, tag or commit (push: a branch).")]
Code = Annotated[
    bool, typer.Option("--code/--no-code", help="Include the code that loads the model where vitrail is not installed.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a trained model in the output folder.")]

# Images
ImageFiles = Annotated[list[Path], typer.Argument(help="Image files.")]
ImageFile = Annotated[Path, typer.Argument(help="Image file.")]
SOURCES = (
    "Images: a folder (labels: one subfolder per class), a pattern, a .txt list of paths or URLs, .tar shards, Parquet, a Hub dataset, "
    "an fsspec URL, or digits."
)
Images = Annotated[str, typer.Argument(help=SOURCES)]
Data = Annotated[str, typer.Option(help=SOURCES)]
Split = Annotated[str | None, typer.Option(help="Split of the dataset, if it has several.")]
ImageColumn = Annotated[str | None, typer.Option(help="Image column, if the column types do not determine it.")]
LabelColumn = Annotated[str | None, typer.Option(help="Label, mask or depth column, if the column types do not determine it.")]
TrainSplit = Annotated[str | None, typer.Option(help="Training split, if the split names do not determine it.")]
ValidationSplit = Annotated[str | None, typer.Option(help="Validation split, if the split names do not determine it.")]
ValidationFraction = Annotated[float, typer.Option(help="Fraction of each class to hold out if there is no validation split.")]
DataRevision = Annotated[str | None, typer.Option(help="Revision of the Hub dataset: a branch, tag or commit.")]
AllowExternal = Annotated[
    bool,
    typer.Option(
        "--allow-external", help="Read files and URLs outside of the dataset if its rows, or a manifest of features, name them."
    ),
]
Points = Annotated[
    list[str],
    typer.Option(
        "--at", metavar="X,Y", help="Point in the first image, in pixels from its top left corner. Repeat it for more points."
    ),
]
KeepAspect = Annotated[
    bool, typer.Option("--keep-aspect", help="Keep the aspect ratio of each image instead of cropping or squashing.")
]
Backend = Annotated[
    str | None,
    typer.Option(
        help="How images are resized: pil, as torchvision does, or torch, faster and within 2 of 255 levels.",
        show_default="as the checkpoint",
    ),
]
JpegDraft = Annotated[
    bool, typer.Option("--jpeg-draft", help="Decode JPEG files at a reduced scale, not below the size to resize to.")
]

# Running a model
Precision = Annotated[
    str | None,
    typer.Option(
        help="Precision: float32, bfloat16, float16, float64 or int8; auto takes the fastest that stays close to float32.",
        show_default="dtype of the weights",
        metavar="P",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="Engine that runs the model: eager, compile, onnxruntime or openvino; auto measures the fastest, if there are many images.",
        metavar="E",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Number of images per forward pass, on each device.", min=1, show_default=CHOSEN)
]
NumWorkers = Annotated[
    int | None, typer.Option(help="Number of decoding processes (0: decode in this process).", min=0, show_default=CHOSEN)
]
Seed = Annotated[
    int, typer.Option(help="Random seed: validation split, initial weights, order and augmentation.", min=0, max=2**32 - 1)
]
CacheDir = Annotated[Path | None, typer.Option(help="Cache folder of the features.", show_default="HF_HOME/vitrail/features")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an unreadable image instead of skipping it.")]
Top = Annotated[int, typer.Option(help="Number of results, best first.", min=1)]

# Probes
Task = Annotated[str, typer.Option(help="What to probe: classification, segmentation or depth.")]
ReduceLabels = Annotated[
    bool, typer.Option("--reduce-labels", help="segmentation: ignore label 0, and lower the others by 1, as for ADE20K.")
]
DepthUnit = Annotated[
    float | None, typer.Option(help="depth: meters of one unit of integer depths.", show_default="0.001 for 16 bits", metavar="M")
]

# Results
Features = Annotated[Path, typer.Argument(help="Folder of features written by `vitrail extract`.")]
Column = Annotated[str | None, typer.Option(help="Column of vectors to compare, if there are several.")]
Exact = Annotated[bool, typer.Option("--exact", help="Compare all vectors, even if there is an index.")]
PictureFile = Annotated[Path, typer.Option(help="Picture to write: .png, .jpg or .webp.")]
ValuesDir = Annotated[
    Path | None, typer.Option("--values", metavar="FOLDER", help="Folder to write the values of each image to, at its full size.")
]
ValuesFormat = Annotated[str, typer.Option(help="Format of --values: png or npy.")]
ResultsFile = Annotated[Path | None, typer.Option(help="JSON file to write the results to.")]


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """How a checkpoint is read."""

    head: Head = None
    head_name: HeadName = None
    depth_range: DepthRange = None
    branch: Branch = "teacher"
    prefix: Prefix = None
    format: Format = "auto"
    num_heads: NumHeads = None
    published_periods: PublishedPeriods = False
    preset: Preset = None
    revision: Revision = None


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(ReadingOptions):
    """How a checkpoint is read and adapted."""

    image_size: ImageSize = None
    patch_size: PatchSize = None
    num_channels: NumChannels = None
    channel_rule: ChannelRule = None
    num_labels: NumLabels = None
    labels: Labels = None
    dtype: Dtype = None


LOADING = {field.name for field in dataclasses.fields(CheckpointOptions)}


@dataclasses.dataclass(frozen=True)
class RuntimeOptions:
    """Precision and engine of the model."""

    precision: Precision = None
    engine: Engine = AUTO

    def runtime(self) -> Runtime:
        """Return the runtime, or raise VitrailError if the engine does not support the precision."""
        return Runtime(self.precision, self.engine)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Columns and splits of a dataset, and the seed that draws the validation split."""

    image_column: ImageColumn = None
    label_column: LabelColumn = None
    train_split: TrainSplit = None
    validation_split: ValidationSplit = None
    validation_fraction: ValidationFraction = 0.2
    data_revision: DataRevision = None
    allow_external: AllowExternal = False
    seed: Seed = 0

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `load_labeled_images` and `load_training_images`."""
        arguments = dataclasses.asdict(self)
        return arguments | {"revision": arguments.pop("data_revision")}


@dataclasses.dataclass(frozen=True)
class DenseOptions:
    """What the numbers of masks and of maps of depth mean."""

    labels: Labels = None
    reduce_labels: ReduceLabels = False
    depth_unit: DepthUnit = None


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """How an evaluation computes and caches features."""

    batch_size: BatchSize = None
    num_workers: NumWorkers = None
    cache_dir: CacheDir = None
    strict: Strict = False


def given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None: the others keep the default of the function that receives them."""
    return {name: value for name, value in values.items() if value is not None}


def as_options(text: str, names: Collection[str]) -> str:
    """Return a message with its keyword arguments written as options: `--image-size 28x28` for `image_size=(28, 28)`.

    A truth value becomes a flag.

    names: the parameters of the command; arguments of `vitrail.load` that it lacks are options of `vitrail convert`.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match[1], "" if match[2] == "True" else match[2].strip("\"'")
        if name not in names and name not in LOADING:
            return match[0]
        words = [
            f"--{'no-' if value == 'False' else ''}{name.replace('_', '-')}",
            *([_written(value)] if value not in ("", "True", "False") else []),
        ]
        return " ".join(words) + ("" if name in names else " of `vitrail convert`")

    return re.sub(r"""(?<![\w?&./-])(\w+)=("[^"]*"|'[^']*'|\([\d.]+, [\d.]+\)|-?\w*(?:\.\w+)*)""", option, text)


def _written(value: str) -> str:
    """Return a pair as its option takes it: sizes as HxW, depths as MIN,MAX."""
    return re.sub(r"\((.*), (.*)\)", r"\1,\2" if "." in value else r"\1x\2", value)


def expand_groups(function: Callable[..., Value]) -> Callable[..., Value]:
    """Return `function` with the options of its groups in place of the groups, after its own options."""
    own, shared = [], []
    groups: dict[str, Any] = {}
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        group = hints[name]
        if not dataclasses.is_dataclass(group):
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=group))
            continue
        groups[name] = group
        types = get_type_hints(group, include_extras=True)
        shared += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in dataclasses.fields(group)
        ]

    def expanded(**values: Any) -> Value:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        return function(**values)

    set_signature(expanded, function, [*own, *shared])
    return expanded


def set_signature(wrapper: Callable, function: Callable, parameters: list[inspect.Parameter]) -> None:
    """Give `wrapper` the name and documentation of `function`, and the parameters that typer reads."""
    wrapper.__name__, wrapper.__doc__ = function.__name__, function.__doc__
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
