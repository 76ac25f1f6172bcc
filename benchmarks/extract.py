"""Images per second from files to features: `vitrail.features.extraction` against transformers' pipeline and loops over timm.

240 JPEGs made from the three photographs on board, half of them 500 x 375 pixels and half of the photographs' own sizes; ViT-S/16 at 224
pixels in float32 on the CPU, the same random weights for all, exported to each format; the [CLS] token. All squash images to the model's
size, bilinearly, as transformers' ViT does. Models are loaded before; reading, decoding, resizing, the model and, for ours alone, writing
Parquet files are counted. The runs alternate, and their medians are compared. timm's rows are left out where it is not installed.
Then with the engine that `auto` selects, in float32 and in the precision that it selects, on every image 8 times, because building the
engine and comparing it with the model are counted too. The first of these runs also measures the engines; the following ones remember.
"""

import importlib.util
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

if TYPE_CHECKING:
    import numpy as np

    Run = Callable[[Sequence[str]], np.ndarray]  # the files' [CLS] tokens, (number of files, D)

PHOTOS = sorted(Path(__file__).parents[1].glob("tests/images/*.jpg"))
NUMBER = 240
REPEATS = 3
BATCH_SIZE = 8
WORKERS = 2
PRECISIONS, TIMES = (None, "auto"), 8  # that the engine auto runs in; number of copies of each image
FARTHEST, FARTHEST_AUTO = 0.01, 0.3  # from our features in float32, in terms of their mean norm


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


def transformers_pipelines(folder: Path) -> "dict[str, Run]":
    """One image at a time; in batches; and decoded by workers, which takes a list or a data set."""
    import numpy as np
    from transformers import pipeline

    extract = pipeline("image-feature-extraction", model=str(folder), device="cpu")

    def run(**options: int) -> "Run":
        return lambda files: np.stack([output[0, 0].numpy() for output in extract(files, return_tensors=True, **options)])

    return {
        "transformers pipeline, batch_size=1": run(batch_size=1),
        f"transformers pipeline, batch_size={BATCH_SIZE}": run(batch_size=BATCH_SIZE),
        f"transformers pipeline, batch_size={BATCH_SIZE}, num_workers={WORKERS}": run(batch_size=BATCH_SIZE, num_workers=WORKERS),
    }


def timm_loops(folder: Path) -> "dict[str, Run]":
    """Images decoded in the loop itself, and by the workers of a DataLoader."""
    import timm
    import torch
    from torch.utils.data import DataLoader, Dataset

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    class Files(Dataset):
        def __init__(self, files: Sequence[str]) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(self.files[index]).convert("RGB"))

    def run(num_workers: int) -> "Run":
        def loop(files: Sequence[str]) -> "np.ndarray":
            loader = DataLoader(Files(files), batch_size=BATCH_SIZE, num_workers=num_workers)
            with torch.inference_mode():
                return torch.cat([model(pixel_values) for pixel_values in loader]).numpy()

        return loop

    return {f"timm, batch {BATCH_SIZE}": run(0), f"timm, batch {BATCH_SIZE}, DataLoader of {WORKERS} workers": run(WORKERS)}


def run() -> list[dict[str, Any]]:
    """One row for each way, with the ratio of our speed to its."""
    import numpy as np
    import torch
    from huggingface_hub import constants
    from transformers.utils import logging

    import vitrail
    from vitrail.data import read_images
    from vitrail.features.extraction import extract
    from vitrail.features.store import StoredFeatures
    from vitrail.runtime.compiled import DEFAULT_RUNTIME, Runtime

    logging.disable_progress_bar()
    os.environ["ACCELERATE_USE_CPU"] = "true"  # as the others do
    torch.manual_seed(0)
    config = vitrail.ViTConfig(**vitrail.SIZES["small"], patch_size=16)
    model, image_processor = vitrail.ViTModel(config).eval(), vitrail.make_image_processor("google-hub")
    waiting = []
    selected: dict[str, str] = {}

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        constants.HF_HOME = str(folder / "home")  # without measurements of earlier runs
        pictures = folder / "pictures"
        files = cut_photographs(pictures, NUMBER, lambda index, photo: photo.size if index % 2 else (500, 375))
        outputs = (folder / f"features-{number}" for number in itertools.count())

        copies = folder / "copies"
        copies.mkdir()
        for file, copy in itertools.product(files, range(TIMES)):
            os.link(file, copies / f"{Path(file).stem}-{copy}.jpg")

        def ours(collection: Path, name: str, runtime: Runtime = DEFAULT_RUNTIME) -> np.ndarray:
            output = next(outputs)
            images = read_images(collection)
            done = extract(model, image_processor, images, output, features=["cls"], progress=False, runtime=runtime)
            if runtime is DEFAULT_RUNTIME:
                waiting.append(done.waiting)
            selected[name] = f"{done.runtime['engine']}, {done.runtime['precision']}"
            return StoredFeatures(output).vectors()

        runs: dict[str, Run] = {"vitrail extract": lambda files: ours(pictures, "vitrail extract")}
        engines = {f"vitrail extract, auto{f', --precision {one}' if one else ''}": Runtime(one, "auto") for one in PRECISIONS}
        vitrail.save(model, image_processor, folder / "vitrail", code=False)
        vitrail.export_model(folder / "vitrail", folder / "transformers", to="transformers")
        runs |= transformers_pipelines(folder / "transformers")
        if importlib.util.find_spec("timm"):
            vitrail.export_model(folder / "vitrail", folder / "timm", to="timm")
            runs |= timm_loops(folder / "timm")

        runs |= {name: lambda files, name=name: ours(copies, name, engines[name])[::TIMES] for name in engines}

        features: dict[str, np.ndarray] = {}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _, (name, take) in itertools.product(range(REPEATS), runs.items()):
            start = time.perf_counter()
            features[name] = take(files)
            seconds[name].append(time.perf_counter() - start)
    for name, found in features.items():
        difference = np.linalg.norm(found - features["vitrail extract"], axis=1).max() / np.linalg.norm(found, axis=1).mean()
        # torchvision resizes tensors, within 2 levels of Pillow
        assert difference < (FARTHEST_AUTO if name in engines else FARTHEST), f"{name} takes other features"
    seconds = {name: [taken / (TIMES if name in engines else 1) for taken in times] for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "way": name,
            "engine": selected.get(name, ""),
            "images_per_second": round(NUMBER / median, 1),
            "of_runs": f"{NUMBER / max(seconds[name]):.1f} to {NUMBER / min(seconds[name]):.1f}",
            "vitrail_is_faster_by": round(median / medians["vitrail extract"], 2),
            "share_of_waiting": round(statistics.median(waiting), 3) if name == "vitrail extract" else "",
        }
        for name, median in medians.items()
    ]
