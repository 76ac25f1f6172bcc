"""`vitrail report`: a self-contained HTML page about stored features.

The page contains report.css, report.js, its pictures and its data, and its content security policy forbids every network request. Paths
and labels are data of the user: the template escapes them, and the script inserts them as text.
"""

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from ...convert.loading import load
from ...errors import VitrailError, one_line
from ...features.neighbors import nearest_in_chunks, unit_rows
from ...features.search import unit_chunks
from ...features.store import StoredFeatures
from ...modeling.modeling_vit import ViTPreTrainedModel
from ...processing.image_processing_vit import VitrailImageProcessor
from ...utils.text import public_name
from ...version import __version__
from ..pictures import preprocess
from ..similar import check_same_model
from ..stored_images import map_images, thumbnail
from .drawing import heat_uri, histogram, jpeg_uri
from .patch_norms import OUTLIER, PatchNorms, compute_patch_norms
from .projection import project

TEMPLATES = Path(__file__).parent

NUM_NEIGHBORS = 6  # per image
MAX_PARTITIONS = 4  # of the collection: archives have to be read from their beginning
NORM_IMAGES = 32  # images whose patch norms are computed
NORM_MAPS = 6  # images whose patch norms are drawn
MAX_ERRORS = 1000  # listed unreadable images
MAX_COLORS = 8  # of labels; report.css and report.js have the same number

THUMBNAIL, PHOTO = 96, 224  # pixels, longer side
MAP = (960, 600)  # pixels, before it is scaled
MAP_MARGIN = 30
MAX_STRETCH = 1.5  # of one axis of the map relative to the other


@dataclass(frozen=True)
class Report:
    """A page, the number of images in its map, and warnings about what it cannot show."""

    html: str
    num_images: int
    warnings: list[str]


@dataclass(frozen=True)
class _Relations:
    """The images of the page and their relations; without vectors there are no positions, neighbors and method.

    ids: of all images that the page names; the images of the map and the gallery come first.
    shown: number of images in the map and the gallery.
    searched: number of images among which neighbors were searched.
    positions: position on the map of each shown image.
    neighbors: of each shown image, pairs of an index into `ids` and a cosine.
    method: projection method of the positions.
    """

    ids: list[int]
    shown: int
    searched: int
    positions: list[list[float]] | None = None
    neighbors: list[list[tuple[int, float]]] | None = None
    method: str | None = None


@dataclass(frozen=True)
class _Pictures:
    """Pictures by id: thumbnails as data URIs, and preprocessed images for the patch norms; or the reason why there are none."""

    thumbnails: dict[int, str]
    preprocessed: dict[int, tuple[torch.Tensor, Image.Image]]
    problem: str | None = None


def make_report(
    folder: str | os.PathLike[str], *, model: str | None = None, num_images: int = 400, seed: int = 0, allow_external: bool = False
) -> Report:
    """Return an HTML page about the features in a folder that `extract` wrote.

    Args:
        model: checkpoint of the model, as `load` takes it; by default the model that is recorded in the folder.
        num_images: number of images in the map and the gallery; a random sample if there are more.
        allow_external: fetch the recorded model and images where they are not local, and read files that rows of a dataset name.
            Whoever wrote the folder chose them.

    Raises VitrailError if the folder contains no finished features, or if the features belong to another model. If the recorded model or
    the images no longer exist, the page has warnings instead.
    """
    stored = StoredFeatures(folder)
    loaded, no_model = _load_model(stored, model, allow_external)
    relations = _relate(stored, num_images, seed)
    paths = stored.paths_of(relations.ids)
    path_of = {number: paths[number] for number in relations.ids}
    drawn = list(path_of)[: relations.shown]
    pictures = _open_pictures(stored, path_of, set(drawn[:NORM_IMAGES]), loaded, allow_external)
    gone = len(drawn) - len(pictures.thumbnails.keys() & set(drawn))
    warnings = [warning for warning in (pictures.problem, no_model) if warning]
    if gone and not pictures.problem:
        warnings.append(f"{gone} of the {len(drawn)} images no longer exist and have no pictures.")
    labels = _count_labels(stored)
    names = sorted(labels, key=lambda name: (-labels[name], name))
    html = _render(
        facts=_facts(stored),
        data=_data(stored, relations, path_of, pictures.thumbnails, names),
        relations=relations,
        map_size=MAP,
        labels=[(name, labels[name]) for name in names[:MAX_COLORS]],
        others=sum(labels[name] for name in names[MAX_COLORS:]),
        norms=_norm_facts(loaded, pictures.preprocessed, path_of) if loaded is not None and pictures.preprocessed else None,
        no_norms=no_model or pictures.problem or "none of the sampled images exists any more.",
        outlier=OUTLIER,
        errors=_error_facts(stored),
        warnings=warnings,
    )
    return Report(html, len(drawn), warnings)


def _load_model(stored: StoredFeatures, given: str | None, allow_external: bool) -> tuple[ViTPreTrainedModel | None, str | None]:
    """Return the model of the features, or the reason why it is not available."""
    name = stored.manifest.settings["model"]
    if not (given or name):
        return None, "the norms of patch tokens need the model, which was not recorded with the features: pass it with --model."
    shown = public_name(name)
    if not (given or allow_external or os.path.exists(name)):
        reason = "which is not on this machine: pass it with --model, or fetch it with --allow-external."
        return None, f"the norms of patch tokens need the model, {shown}, {reason}"
    try:
        model, _, _ = load(given or name)
        check_same_model(model, stored)
    except (ValueError, OSError, StrictDataclassError) as error:
        if given is not None:
            raise
        reason = one_line(str(error)).replace(name, shown)
        return None, f"the norms of patch tokens need the model, {shown}: {reason} If the model has moved, pass it with --model."
    return model, None


def _count_labels(stored: StoredFeatures) -> Counter[str]:
    labels: Counter[str] = Counter()
    if stored.has_labels:
        for batch in stored.batches(["label"]):
            counted = batch.column("label").drop_null().value_counts()
            labels.update({str(one["values"]): one["counts"] for one in counted.to_pylist()})
    return labels


def _relate(stored: StoredFeatures, number: int, seed: int) -> _Relations:
    """Sample images and compute their positions and neighbors; only a few partitions are sampled, because their images are read again."""
    generator = np.random.default_rng(seed)
    files = [shard for shard in stored.manifest.shards if shard.file is not None]
    partitions = generator.permutation(np.unique([shard.partition for shard in files]))[:MAX_PARTITIONS]
    searched = [shard for shard in files if shard.partition in partitions]
    num_searched = sum(shard.rows for shard in searched)
    rows = generator.choice(num_searched, min(number, num_searched), replace=False)
    if not stored.vector_columns:
        return _Relations(stored.ids_at(rows, searched).tolist(), len(rows), num_searched)
    shown, vectors = stored.sample(rows, shards=searched)
    queries = unit_rows(vectors, 0, len(shown), "cpu")
    cosines, found = nearest_in_chunks(queries, unit_chunks(stored, stored.vector_column(), shards=searched), k=NUM_NEIGHBORS + 1)
    near = [
        [(number, round(cosine, 4)) for number, cosine in zip(numbers, values, strict=True) if number != own][:NUM_NEIGHBORS]
        for own, numbers, values in zip(shown.tolist(), found.tolist(), cosines.tolist(), strict=True)
    ]
    ids = list(dict.fromkeys([*shown.tolist(), *(number for pairs in near for number, _ in pairs)]))
    index_of = {number: index for index, number in enumerate(ids)}
    positions, method = project(vectors, seed=seed)
    return _Relations(
        ids,
        len(shown),
        num_searched,
        _fit(positions),
        [[(index_of[number], cosine) for number, cosine in pairs] for pairs in near],
        method,
    )


def _fit(positions: np.ndarray) -> list[list[float]]:
    """Scale positions (n, 2) to fill the map, in pixels; one axis may be stretched by up to `MAX_STRETCH`."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    scale = (np.array(MAP) - 2 * MAP_MARGIN) / np.maximum(high - low, 1e-9)
    scale = np.minimum(scale, MAX_STRETCH * scale.min())
    return ((positions - (low + high) / 2) * scale + np.array(MAP) / 2).round(1).tolist()


def _open_pictures(
    stored: StoredFeatures, path_of: Mapping[int, str], measured: set[int], model: ViTPreTrainedModel | None, allow_external: bool
) -> _Pictures:
    settings = stored.manifest.settings
    image_processor = VitrailImageProcessor.from_dict(settings["image_processor"])

    def draw(number: int, image: Image.Image) -> tuple[str, tuple[torch.Tensor, Image.Image] | None]:
        preprocessed = preprocess(model, image_processor, image) if model is not None and number in measured else None
        return jpeg_uri(thumbnail(image, THUMBNAIL), THUMBNAIL), preprocessed

    try:
        results = map_images(draw, stored, path_of, allow_external=allow_external)
    except (VitrailError, OSError) as error:
        source = settings["collection"]["source"]
        reason = one_line(str(error)).replace(source, public_name(source))
        return _Pictures({}, {}, f"there are no pictures, because the images cannot be read any more: {reason}")
    thumbnails = {number: picture for number, (picture, _) in results.items()}
    return _Pictures(thumbnails, {number: inputs for number, (_, inputs) in results.items() if inputs is not None})


def _data(
    stored: StoredFeatures, relations: _Relations, path_of: Mapping[int, str], thumbnails: Mapping[int, str], names: Sequence[str]
) -> dict[str, Any]:
    """Return the data of the script; labels are indices into `names`."""
    columns = ["label"] if stored.has_labels else []
    labels = {row["id"]: row.get("label") for row in stored.rows(relations.ids, columns).to_pylist()}
    number_of = {name: number for number, name in enumerate(names)}
    label_of = [number_of.get(str(labels[number])) for number in relations.ids]
    return {
        "items": [
            {"path": path, "label": label, "picture": thumbnails.get(number)}
            for (number, path), label in zip(path_of.items(), label_of, strict=True)
        ],
        "labels": names,
        "shown": relations.shown,
        "points": relations.positions,
        "neighbors": relations.neighbors,
    }


def _facts(stored: StoredFeatures) -> dict[str, Any]:
    """Return the facts at the top of the page."""
    shards = [shard for shard in stored.manifest.shards if shard.file is not None]
    names = stored.dataset.schema.names
    columns = [_vector_facts(stored, name) for name in stored.vector_columns]
    columns += [_tensor_facts(stored, name) for name in names if f"{name}_shape" in names]
    numbers = {"rows": len(stored), "files": len(shards), "bytes": sum(shard.bytes for shard in shards), "columns": columns}
    settings = stored.manifest.settings
    names_of = {"model": public_name(settings["model"]), "source": public_name(settings["collection"]["source"])}
    return settings | names_of | numbers


def _vector_facts(stored: StoredFeatures, name: str) -> dict[str, Any]:
    norms = np.concatenate([np.linalg.norm(vectors, axis=1) for _, vectors in stored.chunks(name)])
    low, median, high = np.percentile(norms, (5, 50, 95)).tolist()
    return {"name": name, "kind": f"vectors of {stored.vector_size(name)}", "norms": {"low": low, "median": median, "high": high}}


def _tensor_facts(stored: StoredFeatures, name: str) -> dict[str, Any]:
    shape = stored.dataset.head(1, columns=[f"{name}_shape"]).column(0)[0].as_py()
    return {"name": name, "kind": f"tensors, the first {' by '.join(map(str, shape))}", "norms": None}


def _norm_facts(
    model: ViTPreTrainedModel, preprocessed: Mapping[int, tuple[torch.Tensor, Image.Image]], path_of: Mapping[int, str]
) -> dict[str, Any]:
    """Return the facts about the norms of patch tokens: the numbers, the histogram, and the maps with the largest norms."""
    norms = compute_patch_norms(model, [pixel_values for pixel_values, _ in preprocessed.values()])
    images = [(path_of[number], photo, one) for (number, (_, photo)), one in zip(preprocessed.items(), norms.maps, strict=True)]
    images.sort(key=lambda image: -image[2].max())
    return {
        "norms": norms,
        "largest": float(norms.all.max()),
        "registers": model.config.num_register_tokens,
        "histogram": histogram(norms.all, norms.threshold),
        "maps": [_map_facts(path, photo, one, norms) for path, photo, one in images[:NORM_MAPS]],
        "scale": heat_uri(np.linspace(0, 1, 64)[None]),
    }


def _map_facts(path: str, photo: Image.Image, patches: np.ndarray, norms: PatchNorms) -> dict[str, Any]:
    return {
        "path": path,
        "photo": jpeg_uri(photo, PHOTO),
        "heat": heat_uri(patches / norms.all.max()),
        "size": photo.size,
        "low": float(patches.min()),
        "high": float(patches.max()),
        "outliers": int((patches > norms.threshold).sum()),
    }


def _error_facts(stored: StoredFeatures) -> dict[str, Any]:
    """Return the unreadable images and the number of images per reason; reasons that differ in numbers alone count as one."""
    listed: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    for errors in stored.error_batches():
        reasons.update(re.sub(r"\d+", "…", error["reason"]) for error in errors)
        listed += errors[: MAX_ERRORS - len(listed)]
    return {"listed": listed, "number": reasons.total(), "reasons": reasons.most_common()}


def _render(**content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"thousands": "{:,}".format, "short": _short, "size": _size, "percent": _percent}
    style, script = ((TEMPLATES / f"report.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    return environment.get_template("report.html.jinja").render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
        version=__version__,
        **content,
    )


def _policy_hash(text: str) -> str:
    """Return the hash by which a content security policy allows a style or a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _short(value: float) -> str:
    """Format a number with three significant digits: 0.0123, 1.23, 123, 12,300."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{float(f'{value:.3g}'):,.0f}"


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 999.5:
            return f"{_short(number)} {unit}"
        number /= 1000
    return f"{_short(number)} GB"


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
