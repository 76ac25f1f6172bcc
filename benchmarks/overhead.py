"""Images per second with a model that costs nearly nothing: all that is around a model, against a plain loop over a DataLoader.

JPEGs of 640 x 480 pixels, cut from the photographs on board; a model of one block, 64 hidden numbers and 49 patches, float32, on the CPU;
its [CLS] token. The model is loaded before; reading, decoding, resizing, the model and, for ours alone, writing Parquet files are
counted. The shorter side is resized to 256 pixels, bicubically, and cropped. The plain loop has torchvision's transforms and the default
DataLoader of 2 worker processes with batches of 64, and runs the same model; ours take batches of 32. The runs alternate, and their
medians are compared. `processor_ms` is the processor time for an image, of all processes. `difference` is the largest distance of a
feature from the plain loop's, in terms of the mean norm.
"""

import itertools
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .extract import cut_photographs
from .timing import interleaved

if TYPE_CHECKING:
    pass

NUMBER, COPIES, SIZE = 120, 25, (640, 480)
REPEATS = 5
BATCH_SIZE, WORKERS = 64, 2  # of the plain loop
OUR_BATCH_SIZE = 32  # of each thread; the default suits larger models
# Settings of the image processor
WAYS: dict[str, dict[str, Any]] = {
    "vitrail extract": {},
    "vitrail extract, backend torch": {"backend": "torch"},
}


def processor_seconds(run: Callable[[], None]) -> float:
    """The processor time of a run, of this process and of those that it starts and ends."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = sum(sum(resource.getrusage(one)[:2]) for one in whose)
    run()
    return sum(sum(resource.getrusage(one)[:2]) for one in whose) - before


def run() -> list[dict[str, Any]]:
    """One row for each way, with the ratio of its speed to the plain loop's."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    import vitrail
    from vitrail.features.store import StoredFeatures

    os.environ["ACCELERATE_USE_CPU"] = "true"  # as the plain loop does
    torch.manual_seed(0)
    config = vitrail.ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=256, patch_size=32)
    model = vitrail.ViTModel(config).eval()
    found: dict[str, np.ndarray] = {}
    shares: dict[str, float] = {}

    with tempfile.TemporaryDirectory() as temporary:
        folder, numbers = Path(temporary), itertools.count()
        files = cut_photographs(folder / "photographs", NUMBER, lambda index, photo: SIZE)
        copies = folder / "copies"
        copies.mkdir()
        for file, copy in itertools.product(files, range(COPIES)):
            os.link(file, copies / f"{copy}-{Path(file).name}")
        paths = sorted(map(str, copies.iterdir()))

        class Files(Dataset):
            transform = transforms.Compose(
                [
                    transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
                    transforms.CenterCrop(224),
                    transforms.ToTensor(),
                    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                ]
            )

            def __len__(self) -> int:
                return len(paths)

            def __getitem__(self, index: int) -> torch.Tensor:
                return self.transform(Image.open(paths[index]).convert("RGB"))

        def plain() -> None:
            loader = DataLoader(Files(), batch_size=BATCH_SIZE, num_workers=WORKERS)
            with torch.inference_mode():
                found["plain"] = torch.cat([model(pixel_values).last_hidden_state[:, 0] for pixel_values in loader]).numpy()

        def ours(way: str) -> Callable[[], None]:
            image_processor = vitrail.VitrailImageProcessor(**WAYS[way])

            def extract() -> None:
                output = folder / f"features-{next(numbers)}"
                done = vitrail.extract(
                    model, image_processor, copies, output, features=["cls"], batch_size=OUR_BATCH_SIZE, progress=False
                )
                found[way], shares[way] = StoredFeatures(output).vectors(), done.waiting

            return extract

        runs = {"plain": plain} | {way: ours(way) for way in WAYS}
        processor = {way: processor_seconds(run) for way, run in runs.items()}
        seconds = interleaved(runs, repeats=REPEATS)
    norm = np.linalg.norm(found["plain"], axis=1).mean()
    return [
        {
            "way": f"DataLoader of {WORKERS} workers, torchvision" if way == "plain" else way,
            "images_per_second": round(len(paths) / time),
            "times_plain": round(seconds["plain"] / time, 2),
            "processor_ms": round(1000 * processor[way] / len(paths), 1),
            "share_of_waiting": round(shares[way], 2) if way in shares else "",
            "difference": f"{np.linalg.norm(found[way] - found['plain'], axis=1).max() / norm:.0e}",
        }
        for way, time in seconds.items()
    ]
