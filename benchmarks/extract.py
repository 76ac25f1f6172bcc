"""Images per second from files to features: `vitrail.features.extraction` against transformers' pipeline and loops over timm.

240 JPEGs made from the three photographs on board, half of them 500 x 375 pixels and half of the photographs' own sizes; ViT-S/16 at 224
pixels in float32 on the CPU, the same random weights for all, exported to each format; the [CLS] token. All squash images to the model's
size, bilinearly, as transformers' ViT does. Models are loaded before; reading, decoding, resizing, the model and, for ours alone, writing
Parquet files are counted. The runs alternate, and their medians are compared. timm's rows are left out where it is not installed.
Ours also with the engine that `auto` selects, in float32 and in the precision that it selects, on every image 8 times, because building the
engine and comparing it with the model are counted too. The first of these runs also measures the engines; the following ones remember.

The suite `gpu` does the same on a GPU, with more copies of each image.
"""

import copy
import importlib.util
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from PIL import Image, ImageOps

if TYPE_CHECKING:
    import numpy as np

    import vitrail

    Run = Callable[[Sequence[str]], np.ndarray]  # the files' [CLS] tokens, (number of files, D)

PHOTOS = sorted(Path(__file__).parents[1].glob("tests/images/*.jpg"))
NUMBER = 240
REPEATS = 3
FARTHEST, FARTHEST_AUTO = 0.01, 0.3  # from our features in float32, in terms of their mean norm


@dataclass(frozen=True)
class Setup:
    """How much work ways are given, which is more where they are faster.

    device: of the models.
    batch_size, workers: of the peers; transformers' pipeline also runs with its default batch size of 1.
    copies: of each image; `alone` for peers that decode in the process of the model, `auto` for ours with the engine "auto".
    """

    device: str
    batch_size: int
    workers: int
    copies: int
    alone: int
    auto: int


CPU = Setup("cpu", batch_size=8, workers=2, copies=1, alone=1, auto=8)


@dataclass
class Way:
    """A way from files to features.

    copies: of each image.
    farthest: from our features in float32.
    engine, waiting: of ours alone, from its runs: the engine, and the shares of the time in which the model waited for images.
    """

    take: "Run"
    copies: int
    farthest: float = FARTHEST
    engine: str = ""
    waiting: list[float] = field(default_factory=list)


def cut_photographs(folder: Path, number: int, size_of: Callable[[int, Image.Image], tuple[int, int]]) -> list[str]:
    """Write random crops of the photographs, half of them mirrored, as JPEGs of the sizes of `size_of`; return the files in order."""
    folder.mkdir()
    chance = random.Random(0)
    for index, path in zip(range(number), itertools.cycle(PHOTOS), strict=False):
        with Image.open(path) as photo:
            width, height = photo.size
            part = chance.uniform(0.5, 1)
            left, top = chance.uniform(0, width * (1 - part)), chance.uniform(0, height * (1 - part))
            box = (left, top, left + width * part, top + height * part)
            crop = photo.resize(size_of(index, photo), Image.Resampling.BICUBIC, box=box)
        (ImageOps.mirror(crop) if chance.random() < 0.5 else crop).save(folder / f"{index:04d}.jpg", quality=90)
    return sorted(str(file) for file in folder.iterdir())


def own_or_small(index: int, photo: Image.Image) -> tuple[int, int]:
    """The sizes of the suite's JPEGs."""
    return photo.size if index % 2 else (500, 375)


def make_model() -> "vitrail.ViTModel":
    """A ViT-S/16 with random weights."""
    import torch

    import vitrail

    torch.manual_seed(0)
    return vitrail.ViTModel(vitrail.ViTConfig(**vitrail.SIZES["small"], patch_size=16)).eval()


def our_ways(model: "vitrail.ViTModel", setup: Setup, folder: Path) -> dict[str, Way]:
    """The model as it is, on a GPU also with the other backend of the image processor; and with `auto`."""
    import vitrail
    from vitrail.data import read_images
    from vitrail.features.extraction import extract
    from vitrail.features.store import StoredFeatures
    from vitrail.runtime.compiled import DEFAULT_RUNTIME, Runtime

    outputs = (folder / f"features-{number}" for number in itertools.count())

    def way(copies: int, *, runtime: Runtime = DEFAULT_RUNTIME, backend: str = "pil") -> Way:
        image_processor = vitrail.make_image_processor("google-hub", backend=backend)

        def take(files: Sequence[str]) -> "np.ndarray":
            output, images = next(outputs), read_images(Path(files[0]).parent)
            done = extract(model, image_processor, images, output, features=["cls"], progress=False, runtime=runtime)
            made.engine = f"{done.runtime['engine']}, {done.runtime['precision']}"
            if not runtime.is_auto:
                made.waiting.append(done.waiting)
            return StoredFeatures(output).vectors()

        made = Way(take, copies, FARTHEST_AUTO if runtime.is_auto else FARTHEST)
        return made

    return {
        "vitrail extract": way(setup.copies),
        **({} if setup.device == "cpu" else {"vitrail extract, --backend torch": way(setup.copies, backend="torch")}),
        "vitrail extract, auto": way(setup.auto, runtime=Runtime(None, "auto")),
        "vitrail extract, auto, --precision auto": way(setup.auto, runtime=Runtime("auto", "auto")),
    }


def transformers_pipelines(folder: Path, setup: Setup) -> dict[str, Way]:
    """One image at a time; in batches; and decoded by workers, which takes a list or a data set."""
    import numpy as np
    from transformers import pipeline

    extract = pipeline("image-feature-extraction", model=str(folder), device=setup.device)

    def way(copies: int, **options: int) -> Way:
        return Way(
            lambda files: np.stack([output[0, 0].numpy() for output in extract(files, return_tensors=True, **options)]), copies
        )

    name, batch_size, workers = "transformers pipeline, batch_size=", setup.batch_size, setup.workers
    return {
        f"{name}1": way(setup.alone, batch_size=1),
        f"{name}{batch_size}": way(setup.alone, batch_size=batch_size),
        f"{name}{batch_size}, num_workers={workers}": way(setup.copies, batch_size=batch_size, num_workers=workers),
    }


def timm_loops(folder: Path, setup: Setup) -> dict[str, Way]:
    """Images decoded in the loop itself, and by the workers of a DataLoader; on a GPU also in bfloat16."""
    import timm
    import torch
    from torch.utils.data import DataLoader, Dataset

    on_gpu = setup.device != "cpu"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().to(setup.device)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    class Files(Dataset):
        def __init__(self, files: Sequence[str]) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(self.files[index]).convert("RGB"))

    def run(num_workers: int, model: torch.nn.Module = model) -> "Run":
        dtype = next(model.parameters()).dtype

        def loop(files: Sequence[str]) -> "np.ndarray":
            loader = DataLoader(Files(files), batch_size=setup.batch_size, num_workers=num_workers, pin_memory=on_gpu)
            with torch.inference_mode():
                features = [model(pixel_values.to(setup.device, dtype, non_blocking=True)) for pixel_values in loader]
                return torch.cat(features).float().cpu().numpy()

        return loop

    name = f"timm, batch {setup.batch_size}"
    with_workers = f"{name}, DataLoader of {setup.workers} workers"
    ways = {name: Way(run(0), setup.alone), with_workers: Way(run(setup.workers), setup.copies)}
    if on_gpu:
        ways[f"{with_workers}, bfloat16"] = Way(run(setup.workers, copy.deepcopy(model).bfloat16()), setup.copies, FARTHEST_AUTO)
    return ways


def linked(files: Sequence[str], copies: int, folder: Path) -> list[str]:
    """Write a folder with as many copies of each file, as hard links; return them in order."""
    folder.mkdir()
    for file, number in itertools.product(files, range(copies)):
        os.link(file, folder / f"{Path(file).stem}-{number:04d}.jpg")
    return sorted(str(file) for file in folder.iterdir())


def measure(setup: Setup) -> list[dict[str, Any]]:
    """One row for each way, with the ratio of our speed to its."""
    import numpy as np
    from huggingface_hub import constants
    from transformers.utils import logging

    import vitrail

    logging.disable_progress_bar()
    model = make_model()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photographs = cut_photographs(folder / "photographs", NUMBER, own_or_small)
        vitrail.save(model, vitrail.make_image_processor("google-hub"), folder / "vitrail", code=False)
        vitrail.export_model(folder / "vitrail", folder / "transformers", to="transformers")
        ways = our_ways(model, setup, folder) | transformers_pipelines(folder / "transformers", setup)
        if importlib.util.find_spec("timm"):
            vitrail.export_model(folder / "vitrail", folder / "timm", to="timm")
            ways |= timm_loops(folder / "timm", setup)
        files = {
            copies: linked(photographs, copies, folder / f"{copies}-times") for copies in {way.copies for way in ways.values()}
        }
        features: dict[str, np.ndarray] = {}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with mock.patch.object(constants, "HF_HOME", str(folder / "home")):  # without measurements of earlier runs
            for _, (name, way) in itertools.product(range(REPEATS), ways.items()):
                start = time.perf_counter()
                features[name] = way.take(files[way.copies])[:: way.copies]
                seconds[name].append((time.perf_counter() - start) / way.copies)
    for name, found in features.items():
        difference = np.linalg.norm(found - features["vitrail extract"], axis=1).max() / np.linalg.norm(found, axis=1).mean()
        # torchvision resizes tensors, within 2 levels of Pillow
        assert difference < ways[name].farthest, f"{name} takes other features"
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "way": name,
            "engine": way.engine,
            "images_per_second": round(NUMBER / medians[name], 1),
            "of_runs": f"{NUMBER / max(seconds[name]):.1f} to {NUMBER / min(seconds[name]):.1f}",
            "vitrail_is_faster_by": round(medians[name] / medians["vitrail extract"], 2),
            "share_of_waiting": round(statistics.median(way.waiting), 3) if way.waiting else "",
        }
        for name, way in ways.items()
    ]


def run() -> list[dict[str, Any]]:
    """All of it on the CPU."""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as the others do
    return measure(CPU)
