"""Features of a frozen model on disk: extracted once, resumed after an interruption, memory-mapped by all that read them.

A folder belongs to one choice of weights, image processor, images and views, and is called by the digest of these. While features are
extracted it holds chunks of rows, each a file that is complete or absent; in the end it holds

    parts.npy      (V, N, P, D) float32: V views of N images, each P vectors
    labels.npy     (N,) int64
    rows.npy       (N,) int64, ascending: the rows of the dataset, without those of bad images
    manifest.json  what the features are of, and the bad images; written last
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from huggingface_hub.utils import WeakFileLock
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import UnreadableImageError, VitrailError
from ..modeling.fingerprint import config_fields, weights_digest
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..runtime.compiled import CompiledModel
from ..utils.atomic import replaced
from ..utils.progress import progress_bar
from .feature_types import num_readable_layers
from .token_features import ExtractedChunk, ImageViews, Parts, UnreadableImage, extract_chunks, parts_programs

FORMAT = 2  # of the folder; another number for whatever changes the features, or how they are kept
CHUNK = 512  # forward passes whose features make one file: at most so many are lost by an interruption, for each process
MANIFEST, CHUNKS = "manifest.json", "chunks"


@dataclass(frozen=True)
class Features:
    """What a linear classifier reads of the images of a dataset.

    parts: (V, N, P, D) float32, memory-mapped: V views of N images.
    labels: (N,) int64.
    rows: (N,) int64, ascending: which rows of the dataset; those of bad images are left out.
    bad: the images that are left out.
    num_cls_layers: how many of the parts are [CLS] of the last blocks, oldest first; 0 where the one part is `pooler_output`.
    has_mean_patch: whether the last part is the mean patch of the last block.
    runtime: the precision and the engine that ran the model.
    key: a digest of all that the features follow from, which is the name of their folder.
    """

    parts: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    bad: tuple[UnreadableImage, ...]
    num_cls_layers: int
    has_mean_patch: bool
    runtime: dict[str, str]
    key: str


def cached_features(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    dataset: datasets.Dataset,
    *,
    cache_dir: str | os.PathLike[str],
    num_cls_layers: int = 4,
    programs_of: Callable[[ViTModel, int], CompiledModel] = parts_programs,
    views: int = 0,
    seed: int = 0,
    resample: int = Image.Resampling.BICUBIC,
    batch_size: int = 32,
    num_workers: int = 0,
    strict: bool = False,
    progress: bool = True,
) -> Features:
    """The features of a dataset, from the cache or extracted into it, by one process or by all that accelerate has started.

    Another process that wants the same features waits until they are there. The model is left in evaluation mode.

    Args:
        model: on the device where it is to run.
        dataset: with the columns "image" and "label", known by its `_fingerprint`, as `load_labeled_images` makes it.
        num_cls_layers: [CLS] of so many last blocks, or of all if there are fewer. With 0, and from a model whose classifier cannot
            read tokens (without [CLS], with a norm after pooling, or with a representation layer), `pooler_output` instead.
        programs_of: how the model is run, from its encoder and the number of [CLS] tokens; see `parts_programs`.
        views: draws of the training augmentation for each image; 0 for the one view of the image processor.
        seed, resample: of these draws, and Pillow's filter for them.
        batch_size: views that the model takes at a time.
        num_workers: processes that decode images; 0 to do it in this one.
        strict: refuse bad images, instead of leaving them out.

    Raises:
        UnreadableImageError: with `strict`, for the first bad image.
        VitrailError: no image can be used, or the image processor has no size for training views.
    """
    vit = model.base_model.eval()
    programs = programs_of(vit, num_readable_layers(vit.config, num_cls_layers))
    images = ImageViews(dataset, image_processor, views=views, seed=seed, resample=resample)
    contents = _contents(programs, images)
    folder = Path(cache_dir) / hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:32]
    processes = PartialState(cpu=programs.device.type == "cpu")
    # Where nothing is to be written there is no lock either: the folder may be one that can only be read
    finished = processes.num_processes == 1 and (folder / MANIFEST).exists() and not (folder / CHUNKS).exists()
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / ".lock") if processes.is_main_process and not finished else contextlib.nullcontext():
        processes.wait_for_everyone()  # behind the lock all of them see the same files
        if not (folder / MANIFEST).exists():
            chunks = _chunks(folder, len(dataset), views)
            own = list(chunks)[processes.process_index :: processes.num_processes]
            missing = [chunk for chunk in own if not chunks[chunk].exists()]
            rows, done = sum(map(len, own)), sum(map(len, own)) - sum(map(len, missing))
            with progress_bar("features", rows, done=done, wanted=progress and processes.is_main_process) as advance:
                for extracted in extract_chunks(
                    programs,
                    images,
                    missing,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    advance=advance,
                ):
                    _check(extracted.bad, strict=strict)
                    _write_chunk(chunks[extracted.chunk], extracted)
            processes.wait_for_everyone()
            if processes.is_main_process:
                _join(folder, chunks.values(), labels=np.asarray(dataset["label"][:], dtype=np.int64), contents=contents)
        if processes.is_main_process:
            shutil.rmtree(folder / CHUNKS, ignore_errors=True)
    processes.wait_for_everyone()
    features = _read(folder)
    _check(features.bad, strict=strict)
    return features


def _contents(programs: CompiledModel, images: ImageViews) -> dict[str, Any]:
    """Everything that the features follow from."""
    parts, calibration = programs.module, programs.calibration
    assert isinstance(parts, Parts)
    return {
        "format": FORMAT,
        "weights": weights_digest(parts.vit),
        "config": config_fields(parts.vit),
        "image_processor": json.loads(images.image_processor.to_json_string()),
        "images": images.dataset._fingerprint,
        "num_cls_layers": parts.num_cls_layers,
        "runtime": asdict(programs.runtime),
        "calibration": None if calibration is None else hashlib.sha256(calibration.numpy().tobytes()).hexdigest(),
        "views": images.views,
        **({"seed": images.seed, "resample": int(images.resample)} if images.views else {}),
    }


def _chunks(folder: Path, num_rows: int, views: int) -> dict[range, Path]:
    """The ranges of rows that are extracted together, and the file of each."""
    size = max(1, CHUNK // max(views, 1))
    ranges = [range(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    return {rows: folder / CHUNKS / f"{rows.start:09d}-{rows.stop:09d}.safetensors" for rows in ranges}


def _check(bad: Iterable[UnreadableImage], *, strict: bool) -> None:
    for image in bad if strict else ():
        raise UnreadableImageError(image.path, image.reason)


def _write_chunk(path: Path, extracted: ExtractedChunk) -> None:
    path.parent.mkdir(exist_ok=True)
    bad = json.dumps([asdict(image) for image in extracted.bad])
    with replaced(path) as temporary:
        save_file({"rows": extracted.rows, "parts": np.ascontiguousarray(extracted.parts)}, temporary, metadata={"bad": bad})


def _join(folder: Path, chunks: Collection[Path], *, labels: np.ndarray, contents: dict[str, Any]) -> None:
    """Makes one array of the chunks; the manifest, which says that all is there, comes last."""
    all_rows, bad = [np.zeros(0, dtype=np.int64)], []
    for path in chunks:
        with safe_open(path, framework="numpy") as chunk:
            all_rows.append(chunk.get_tensor("rows"))
            bad += json.loads(chunk.metadata()["bad"])
            num_views, _, *shape = chunk.get_slice("parts").get_shape()
    rows = np.concatenate(all_rows)
    if not len(rows):
        first = f"; {bad[0]['path']}: {bad[0]['reason']}" if bad else ""
        raise VitrailError(f"None of the {len(labels)} images can be used{first}.")
    joined = folder / CHUNKS / "joined"
    joined.mkdir(exist_ok=True)
    parts = np.lib.format.open_memmap(joined / "parts.npy", mode="w+", dtype=np.float32, shape=(num_views, len(rows), *shape))
    ends = np.cumsum([len(chunk_rows) for chunk_rows in all_rows])
    for path, start, end in zip(chunks, ends[:-1], ends[1:], strict=True):
        with safe_open(path, framework="numpy") as chunk:
            parts[:, start:end] = chunk.get_tensor("parts")
    parts.flush()
    np.save(joined / "labels.npy", labels[rows])
    np.save(joined / "rows.npy", rows)
    (joined / MANIFEST).write_text(json.dumps(contents | {"bad": bad}, indent=1) + "\n", encoding="utf-8")
    for name in ("parts.npy", "labels.npy", "rows.npy", MANIFEST):
        (joined / name).replace(folder / name)


def _read(folder: Path) -> Features:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Features(
        parts=np.load(folder / "parts.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
        rows=np.load(folder / "rows.npy"),
        bad=tuple(UnreadableImage(**image) for image in manifest["bad"]),
        num_cls_layers=manifest["num_cls_layers"],
        has_mean_patch=manifest["num_cls_layers"] > 0,
        runtime=manifest["runtime"],
        key=folder.name,
    )
