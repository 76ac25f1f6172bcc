"""Features of frozen models on disk: extracted once, resumed after an interruption, memory-mapped by all that read them.

A folder belongs to one choice of weights, image processor, images and views, and is named by their digest. While features are extracted, it
holds the folder `extraction`, which `vitrail.features.extraction` writes. In the end it holds

    tokens.npy     (V, N, T, D) float32: V views of N images, each T token vectors
    labels.npy     (N,) int64; -1 where the images have none
    rows.npy       (N,) int64, ascending: rows of the dataset, without those of unreadable images
    manifest.json  the settings of the features, the SHA-256 of the arrays, and the unreadable images; written last

The arrays are compared with their SHA-256 before they are used; features that are damaged are extracted again.
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import constants
from transformers.utils import logging

from ..data.image_sources import read_images
from ..data.reader import TrainingViews
from ..errors import CorruptFileError, UnreadableImageError, VitrailError
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from ..processing.resizing import output_grid
from ..runtime.compiled import DEFAULT_RUNTIME, Agreement, CompiledModel, Runtime
from ..runtime.selection import begun_runtime
from ..runtime.workers import InferenceWorkers
from ..utils.hashing import sha256
from ..utils.processes import start_processes
from ..utils.run_folder import RunFolder
from .extraction import run_job
from .feature_types import FeatureType, classifier_features, feature_outputs, vector_size
from .job import Job
from .manifest import CacheManifest, UnreadableImage
from .store import FeatureFolder, StoredFeatures

FORMAT = 4  # in the key; another number for whatever changes the features, or how they are kept
CHUNK = 512  # forward passes whose features make one file: an interruption loses at most this many, for each process
NUM_CLS_LAYERS = 4  # that are kept of every model, so that all evaluations share the cache
MANIFEST, EXTRACTION, JOINED = "manifest.json", "extraction", "joined"
TOKENS, LABELS, ROWS = ARRAYS = ("tokens.npy", "labels.npy", "rows.npy")
PATCHES = ("patches",)  # the features of `patch_features`
NOT_IN_KEY = ("vitrail", "model", "collection", "shard_size")  # settings that do not change the features

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class CachedFeatures:
    """Features of a dataset's images, in the form that linear classifiers read.

    tokens: (V, N, T, D) float32, memory-mapped: V views of N images.
    labels: (N,) int64; -1 where the images have none.
    rows: (N,) int64, ascending: rows of the dataset, without those of unreadable images.
    unreadable: the images that are left out.
    num_cls_layers: number of tokens that are [CLS] of the last blocks, oldest first, which the mean patch of the last block follows;
        0 if the one token is `pooler_output`, or the tokens are those of all patches.
    runtime: the precision and the engine that ran the model.
    key: a digest of everything that determines the features, and the name of their folder.
    """

    tokens: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    unreadable: tuple[UnreadableImage, ...]
    num_cls_layers: int
    runtime: dict[str, str]
    key: str


def default_cache_dir() -> Path:
    """Return the default folder for features, in the Hub's own cache folder."""
    return Path(constants.HF_HOME) / "vitrail" / "features"


@dataclass(frozen=True)
class FeatureCache:
    """A folder of cached features, and the settings for computing missing ones. Of the settings, only `runtime` changes the features.

    batch_size: views that the model takes at a time, on each device.
    num_workers: processes that decode images; 0 to decode in this process.
    strict: refuse unreadable images, instead of leaving them out.
    progress: show bars.
    runtime: precision and engine. Where one of them is "auto", features that are in the folder are taken whatever computed them, and for
        others the fastest is measured on the first images, once for each model.
    calibration: (N, C, H, W), preprocessed images that int8 takes its scales from; see `vitrail.data.reader.sample_images`. Without them,
        the precision "auto" does not choose int8.
    runner: "local", or "ray" for a Ray cluster whose machines all see the folder.
    """

    folder: Path = field(default_factory=default_cache_dir)
    batch_size: int = 32
    num_workers: int = 0
    strict: bool = False
    progress: bool = True
    runtime: Runtime = DEFAULT_RUNTIME
    calibration: torch.Tensor | None = None
    runner: str = "local"
    _compiled: dict[Any, CompiledModel] = field(default_factory=dict, init=False, repr=False, compare=False)
    _selected: dict[Any, Runtime] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))  # a string is welcome, and the dataclass is frozen

    def compile(self, vit: ViTModel, feature_types: Sequence[FeatureType], *, num_streams: int = 1) -> CompiledModel:
        """Return the model compiled for its features and for calls from `num_streams` threads; compiled again if its weights change."""
        key = (vit, tuple(feature_types), num_streams)
        if key not in self._compiled or not self._compiled[key].is_current:
            self._compiled[key] = CompiledModel(
                feature_outputs(vit, feature_types).eval(),
                self._selected.get(vit, self.runtime),
                batch_size=self.batch_size,
                calibration=self.calibration,
                num_streams=num_streams,
            )
        return self._compiled[key]

    @property
    def agreement(self) -> dict[str, Agreement]:
        """How closely the features match the float32 model; empty if none were computed, or by the model as it is."""
        for (_, feature_types, _), compiled in self._compiled.items():
            if compiled.agreement:
                return dict(zip([one.column for one in feature_types], compiled.agreement, strict=True))
        return {}

    def features(
        self,
        model: ViTPreTrainedModel,
        image_processor: VitrailImageProcessor,
        images: datasets.Dataset,
        *,
        num_cls_layers: int = NUM_CLS_LAYERS,
        views: TrainingViews | None = None,
    ) -> CachedFeatures:
        """Return the features of a dataset, extracted first if they are not in the cache.

        All processes that accelerate has started share the extraction. Another run that needs the same features waits for them.

        Args:
            model: on the device where it is to run; it is left in evaluation mode.
            images: with the columns "image" and "label", identified by its `_fingerprint`, as `load_labeled_images` makes it.
            num_cls_layers: number of last blocks whose [CLS] is read, or all blocks if there are fewer. With 0, and for a model whose
                classifier cannot read tokens (without [CLS], with a norm after pooling, or with a representation layer),
                `pooler_output` is read.
            views: training views; None for the one view of the image processor.

        Raises:
            UnreadableImageError: `strict`, and an image is unreadable.
            VitrailError: no image can be used, or the image processor has no size for training views.
        """
        feature_types = classifier_features(model.base_model.config, num_cls_layers)
        labels = np.asarray(images["label"][:], dtype=np.int64)
        return self._features(model, image_processor, images, feature_types, labels, views)

    def patch_features(
        self, model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, images: datasets.Dataset
    ) -> CachedFeatures:
        """Return all patch tokens of each image after the final norm, row by row of the grid, as `features` does.

        Args:
            image_processor: makes images of one size.
            images: with the column "image", identified by its `_fingerprint`.

        Raises VitrailError if they do not fit on the disk of the folder.
        """
        return self._features(model, image_processor, images, tuple(map(FeatureType, PATCHES)), np.full(len(images), -1), None)

    def _features(
        self,
        model: ViTPreTrainedModel,
        image_processor: VitrailImageProcessor,
        images: datasets.Dataset,
        feature_types: Sequence[FeatureType],
        labels: np.ndarray,
        views: TrainingViews | None,
    ) -> CachedFeatures:
        job = Job(
            model,
            image_processor,
            read_images(images, image_column="image"),
            self.folder,
            features=tuple(map(str, feature_types)),
            shard_size=max(1, CHUNK // (views.number if views else 1)),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            runtime=self.runtime,
            calibration=self.calibration,
            views=views,
            strict=self.strict,
        )
        if self.runtime.is_auto:
            job.runtime = self._select(job)
        settings = _settings(job, job.runtime)
        folder = self.folder / _key(settings)
        self._fill(folder, job, settings, labels)
        features = _read(folder)
        if self.strict and features.unreadable:
            raise UnreadableImageError(features.unreadable[0].path, features.unreadable[0].reason)
        return features

    def resume(self, model: ViTPreTrainedModel, settings: Mapping[str, Any]) -> None:
        """Take the precision and the engine that a run was begun with for a model, where they are "auto".

        settings: of the run; `runtime` is that of its features. They are empty if no run was begun.
        """
        found = settings.get("runtime")
        if self.runtime.is_auto and isinstance(found, Mapping) and (begun := begun_runtime(model, self.runtime, found)):
            self._selected[model.base_model] = begun

    def _select(self, job: Job) -> Runtime:
        """Return the runtime of a model: that of features in the folder, finished or begun, or the fastest one."""
        processes = start_processes()
        if processes.is_main_process and job.vit not in self._selected:
            folders = {one: self.folder / _key(_settings(job, one)) for one in job.candidates}
            finished = [one for one, folder in folders.items() if (folder / MANIFEST).exists()]
            begun = [one for one, folder in folders.items() if (folder / EXTRACTION / MANIFEST).exists()]
            if finished or begun:
                job.runtime = (finished or begun)[0]
            elif self.runner == "ray":  # whose machines may differ from this one
                job.runtime = job.candidates[0]
            else:
                job.select_runtime(num_processes=processes.num_processes, progress=self.progress)
            if job.compiled is not None:
                self._compiled[job.vit, tuple(job.feature_types), job.compiled.num_streams] = job.compiled
            self._selected[job.vit] = job.runtime
        self._selected[job.vit] = broadcast_object_list([self._selected.get(job.vit)])[0]
        return self._selected[job.vit]

    def _fill(self, folder: Path, job: Job, settings: dict[str, Any], labels: np.ndarray) -> None:
        """Extract the features into their folder, unless they are there."""
        processes = start_processes()
        main = processes.is_main_process
        # A finished folder is not locked, because it may be read-only
        finished = processes.num_processes == 1 and not (folder / EXTRACTION).exists() and _is_whole(folder, settings)
        with RunFolder(folder, settings_name=MANIFEST).lock(wait=True) if main and not finished else contextlib.nullcontext():
            if main and not finished and not _is_whole(folder, settings) and (folder / MANIFEST).exists():
                logger.warning(f"the features in {folder} are damaged, and are extracted again.")
                (folder / MANIFEST).unlink()
            processes.wait_for_everyone()  # behind the lock, all of them see the same files
            if not (folder / MANIFEST).exists():
                with _completing(folder):
                    self._extract(folder, job)
                    if main:
                        _join(folder, job, settings, labels)
            if main:
                shutil.rmtree(folder / EXTRACTION, ignore_errors=True)
        processes.wait_for_everyone()

    def _extract(self, folder: Path, job: Job) -> None:
        if job.features == PATCHES:
            _check_space(folder, job)
        job.folder = FeatureFolder(folder / EXTRACTION)
        if self.runner == "local":
            num_streams = InferenceWorkers(job.vit.device).number
            job.compiled = self.compile(job.vit, job.feature_types, num_streams=num_streams)
        run_job(job, runner=self.runner, progress=self.progress)


@contextlib.contextmanager
def _completing(folder: Path) -> Iterator[None]:
    """Raise a VitrailError that names the folder, if a file in it cannot be written or is damaged."""
    try:
        yield
    except (CorruptFileError, pa.ArrowException, OSError) as error:
        raise VitrailError(
            f"the features in {folder} cannot be completed: {error}. Fix the cause and run the same command to resume, or remove that "
            "folder to extract them from the beginning."
        ) from error


def _settings(job: Job, runtime: Runtime) -> dict[str, Any]:
    """Return everything that determines the features, if this runtime computes them."""
    settings = {name: value for name, value in job.settings_of(runtime).items() if name not in NOT_IN_KEY}
    return settings | {"format": FORMAT}


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _num_patches(job: Job) -> int:
    """Return the number of patches of each image."""
    return math.prod(output_grid(job.image_processor, job.vit.config.patch_shape))


def _check_space(folder: Path, job: Job) -> None:
    """Raise VitrailError if the patch tokens of all images do not fit on the disk, as they are extracted, and joined."""
    num_images = job.collection.num_rows or 0
    needed = 2 * 4 * num_images * _num_patches(job) * job.vit.config.hidden_size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise VitrailError(
            f"the patch tokens of {num_images} images take {needed / 1e9:.3g} GB, and the disk of {folder} has {free / 1e9:.3g} GB free: "
            "choose another cache folder, fewer images, or a smaller image size"
        )


def _join(folder: Path, job: Job, settings: dict[str, Any], labels: np.ndarray) -> None:
    """Make arrays of the extracted files; the manifest, which marks the folder as complete, comes last."""
    stored = StoredFeatures(folder / EXTRACTION)
    rows = stored.ids()  # of the one partition of a dataset
    num_views = job.views.number if job.views else 1
    size = vector_size(job.feature_types[-1], job.vit.config)
    num_cls_layers = len(job.feature_types[0].layers)
    num_tokens = _num_patches(job) if job.features == PATCHES else num_cls_layers + 1
    joined = folder / EXTRACTION / JOINED
    joined.mkdir(exist_ok=True)
    shape = (num_views, len(rows), num_tokens, size)
    _write_array(joined / TOKENS, shape, _token_batches(stored, job.columns, shape))
    np.save(joined / LABELS, labels[rows])
    np.save(joined / ROWS, rows)
    CacheManifest(
        settings=settings,
        num_cls_layers=num_cls_layers,
        unreadable=[UnreadableImage(row=error["id"], path=error["path"], reason=error["reason"]) for error in stored.errors()],
        sha256={name: sha256(joined / name) for name in ARRAYS},
    ).write(joined / MANIFEST)
    for name in (*ARRAYS, MANIFEST):
        (joined / name).replace(folder / name)


def _token_batches(stored: StoredFeatures, columns: Sequence[str], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield the tokens of the images in order, (V, B, T, D)."""
    num_views, _, _, size = shape
    for batch in stored.batches(columns):
        arrays = [batch.column(name).flatten().to_numpy(zero_copy_only=False) for name in columns]
        values = [array.reshape(len(batch), num_views, -1, size) for array in arrays]
        yield np.concatenate(values, axis=2).swapaxes(0, 1)


def _write_array(path: Path, shape: tuple[int, ...], batches: Iterator[np.ndarray]) -> None:
    """Write a float32 array, (V, N, …), from parts of it, (V, B, …).

    It is written and not memory-mapped, because a full disk is an error of a write, but ends a process that writes to a mapped page.
    """
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        begin, row_bytes, start = file.tell(), 4 * math.prod(shape[2:]), 0
        for batch in batches:
            for view, values in enumerate(batch):
                file.seek(begin + (view * shape[1] + start) * row_bytes)
                file.write(np.ascontiguousarray(values, dtype="<f4").data)
            start += batch.shape[1]


def _is_whole(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a folder holds features of these settings, and its arrays are as they were written."""
    try:
        manifest = CacheManifest.read(folder / MANIFEST)
        found = {name: sha256(folder / name) for name in ARRAYS}
    except (FileNotFoundError, CorruptFileError):
        return False
    return (manifest.settings, manifest.sha256) == (json.loads(json.dumps(settings)), found)


def _read(folder: Path) -> CachedFeatures:
    manifest = CacheManifest.read(folder / MANIFEST)
    return CachedFeatures(
        tokens=np.load(folder / TOKENS, mmap_mode="r"),
        labels=np.load(folder / LABELS),
        rows=np.load(folder / ROWS),
        unreadable=tuple(manifest.unreadable),
        num_cls_layers=manifest.num_cls_layers,
        runtime={name: manifest.settings[name] for name in ("precision", "engine")},
        key=folder.name,
    )
