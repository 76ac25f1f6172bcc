"""`vitrail report`: one page of HTML that shows stored features, complete in itself.

report.html.jinja, report.css and report.js stand beside this file; the page carries them, its pictures and its data, and asks no network
for anything: its content security policy forbids it. Paths and labels are a user's data: the template escapes them, and the script writes
them as text.
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
from ...errors import VitrailError
from ...features.neighbors import nearest, unit_rows
from ...features.store import StoredFeatures
from ...modeling.modeling_vit import ViTPreTrainedModel
from ...processing.image_processing_vit import VitrailImageProcessor
from ...version import __version__
from ..pictures import preprocess
from ..similar import CHUNK, check_same_model
from ..stored_images import map_images, thumbnail
from .drawing import heat_uri, histogram, jpeg_uri
from .patch_norms import OUTLIER, PatchNorms, patch_norms
from .projection import project

TEMPLATES = Path(__file__).parent

NUM_NEIGHBORS = 6  # of each image
MAX_PARTS = 4  # of a collection that are read through: those of archives can only be read from their beginning
NORM_IMAGES = 32  # whose patch tokens are measured
NORM_MAPS = 6  # that are drawn
MAX_ERRORS = 1000  # that are listed
MAX_COLORS = 8  # of labels, as many as report.css and report.js have

THUMBNAIL, PHOTO = 96, 224  # pixels of the longer side
MAP = (960, 600)  # pixels, before it is scaled
MAP_MARGIN = 30
MAX_STRETCH = 1.5  # of one direction of the map against the other


@dataclass(frozen=True)
class Report:
    """A page: its text, how many images its map shows, and what could not be shown, with the reasons."""

    html: str
    num_images: int
    warnings: list[str]


@dataclass(frozen=True)
class _Relations:
    """Images and what lies between them.

    rows: of all images that the page names, first those that are shown.
    shown: how many of them are.
    searched: how many images were searched for neighbours.
    places: of those that are shown, on the map. None where there are no vectors, as the others.
    neighbours: of each that is shown, pairs of an index into `rows` and a cosine.
    method: how the places were found.
    """

    rows: list[int]
    shown: int
    searched: int
    places: list[list[float]] | None = None
    neighbours: list[list[tuple[int, float]]] | None = None
    method: str | None = None


@dataclass(frozen=True)
class _Pictures:
    """By id: data URIs of the images that are there, and what the model sees of those that are measured; or why there are none."""

    thumbnails: dict[int, str]
    seen: dict[int, tuple[torch.Tensor, Image.Image]]
    problem: str | None = None


def make_report(folder: str | os.PathLike[str], *, model: str | None = None, num_images: int = 400, seed: int = 0) -> Report:
    """A page about the features that `vitrail extract` wrote into a folder.

    Args:
        model: what `load` takes; without it, the name that the folder has of its model.
        num_images: how many images the map and the gallery show, drawn by chance where there are more.

    Raises VitrailError if the folder holds no finished features, or `model` is not the one that they are of. A model or images that are
    no longer where the folder says are no error: the page says what it cannot show.
    """
    stored = StoredFeatures(folder)
    loaded, no_model = _load_model(stored, model)
    relations = _relate(stored, num_images, seed)
    ids, paths = stored.ids(), stored.paths()
    path_of = {int(ids[row]): paths[row] for row in relations.rows}
    drawn = list(path_of)[: relations.shown]
    pictures = _open_pictures(stored, path_of, set(drawn[:NORM_IMAGES]), loaded)
    gone = len(drawn) - len(pictures.thumbnails.keys() & set(drawn))
    warnings = [warning for warning in (pictures.problem, no_model) if warning]
    if gone and not pictures.problem:
        warnings.append(f"{gone} of the {len(drawn)} images are not there any more, and have no pictures.")
    labels = Counter(str(label) for label in stored.labels() or () if label is not None)
    names = sorted(labels, key=lambda name: (-labels[name], name))
    html = _render(
        facts=_facts(stored),
        data=_data(stored, relations, path_of, pictures.thumbnails, names),
        relations=relations,
        map_size=MAP,
        labels=[(name, labels[name]) for name in names[:MAX_COLORS]],
        others=sum(labels[name] for name in names[MAX_COLORS:]),
        norms=_norm_facts(loaded, pictures.seen, path_of) if loaded is not None and pictures.seen else None,
        no_norms=no_model or pictures.problem or "none of the images that were drawn is there any more.",
        outlier=OUTLIER,
        errors=_error_facts(stored),
        warnings=warnings,
    )
    return Report(html, len(drawn), warnings)


def _load_model(stored: StoredFeatures, given: str | None) -> tuple[ViTPreTrainedModel | None, str | None]:
    """The model of the features, or why it is not to be had."""
    name = stored.manifest["settings"]["model"]
    if not (given or name):
        return (
            None,
            "the norms of patch tokens need the model, which was not named when its features were taken: say where it is with --model.",
        )
    try:
        model, _, _ = load(given or name)
        check_same_model(model, stored)
    except (ValueError, OSError, StrictDataclassError) as error:
        if given is not None:
            raise
        reason = " ".join(str(error).split())
        return None, f"the norms of patch tokens need the model, {name}: {reason} If it lies elsewhere now, say where with --model."
    return model, None


def _relate(stored: StoredFeatures, number: int, seed: int) -> _Relations:
    """Draws images by chance, and finds their places and neighbours; of few parts, where there are many, which have to be read again."""
    generator = np.random.default_rng(seed)
    parts = stored.ids() >> 32
    searched = np.flatnonzero(np.isin(parts, generator.permutation(np.unique(parts))[:MAX_PARTS]))
    shown = generator.permutation(searched)[:number]
    if not stored.vector_columns:
        return _Relations(shown.tolist(), len(shown), len(searched))
    vectors = stored.vectors()
    queries = unit_rows(vectors[shown], 0, len(shown), "cpu")
    bank = vectors if len(searched) == len(vectors) else vectors[searched]
    cosines, found = nearest(queries, bank, k=NUM_NEIGHBORS + 1, chunk=CHUNK, device="cpu")
    near = [
        [(row, round(cosine, 4)) for row, cosine in zip(rows, values, strict=True) if row != own][:NUM_NEIGHBORS]
        for own, rows, values in zip(shown.tolist(), searched[found.numpy()].tolist(), cosines.tolist(), strict=True)
    ]
    rows = list(dict.fromkeys([*shown.tolist(), *(row for of_one in near for row, _ in of_one)]))
    index_of = {row: index for index, row in enumerate(rows)}
    places, method = project(vectors[shown], seed=seed)
    return _Relations(
        rows,
        len(shown),
        len(searched),
        _fit(places),
        [[(index_of[row], cosine) for row, cosine in of_one] for of_one in near],
        method,
    )


def _fit(places: np.ndarray) -> list[list[float]]:
    """Places (n, 2) in the pixels of the map, which they fill; one direction is stretched a little where that helps."""
    low, high = places.min(axis=0), places.max(axis=0)
    scale = (np.array(MAP) - 2 * MAP_MARGIN) / np.maximum(high - low, 1e-9)
    scale = np.minimum(scale, MAX_STRETCH * scale.min())
    return ((places - (low + high) / 2) * scale + np.array(MAP) / 2).round(1).tolist()


def _open_pictures(
    stored: StoredFeatures, path_of: Mapping[int, str], measured: set[int], model: ViTPreTrainedModel | None
) -> _Pictures:
    settings = stored.manifest["settings"]
    image_processor = VitrailImageProcessor.from_dict(settings["image_processor"])

    def look_at(number: int, image: Image.Image) -> tuple[str, tuple[torch.Tensor, Image.Image] | None]:
        seen = preprocess(model, image_processor, image) if model is not None and number in measured else None
        return jpeg_uri(thumbnail(image, THUMBNAIL), THUMBNAIL), seen

    try:
        made = map_images(look_at, stored, path_of)
    except (VitrailError, OSError) as error:
        reason = " ".join(str(error).split())
        return _Pictures({}, {}, f"there are no pictures, because the images cannot be opened any more: {reason}")
    thumbnails = {number: picture for number, (picture, _) in made.items()}
    return _Pictures(thumbnails, {number: seen for number, (_, seen) in made.items() if seen is not None})


def _data(
    stored: StoredFeatures, relations: _Relations, path_of: Mapping[int, str], thumbnails: Mapping[int, str], names: Sequence[str]
) -> dict[str, Any]:
    """What the script draws; labels are indices into `names`."""
    labels = stored.labels()
    number_of = {name: number for number, name in enumerate(names)}
    label_of = [None if labels is None else number_of.get(str(labels[row])) for row in relations.rows]
    return {
        "items": [
            {"path": path, "label": label, "picture": thumbnails.get(number)}
            for (number, path), label in zip(path_of.items(), label_of, strict=True)
        ],
        "labels": names,
        "shown": relations.shown,
        "points": relations.places,
        "neighbours": relations.neighbours,
    }


def _facts(stored: StoredFeatures) -> dict[str, Any]:
    """What the head of the page says."""
    shards = [shard for shard in stored.manifest["shards"] if shard["file"] is not None]
    names = stored.dataset.schema.names
    columns = [_vector_facts(stored, name) for name in stored.vector_columns]
    columns += [_tensor_facts(stored, name) for name in names if f"{name}_shape" in names]
    numbers = {"rows": len(stored), "files": len(shards), "bytes": sum(shard["bytes"] for shard in shards), "columns": columns}
    return stored.manifest["settings"] | numbers


def _vector_facts(stored: StoredFeatures, name: str) -> dict[str, Any]:
    vectors = stored.vectors(name)
    low, median, high = np.percentile(np.linalg.norm(vectors, axis=1), (5, 50, 95)).tolist()
    return {"name": name, "kind": f"vectors of {vectors.shape[1]}", "norms": {"low": low, "median": median, "high": high}}


def _tensor_facts(stored: StoredFeatures, name: str) -> dict[str, Any]:
    shape = stored.dataset.head(1, columns=[f"{name}_shape"]).column(0)[0].as_py()
    return {"name": name, "kind": f"tensors, the first {' by '.join(map(str, shape))}", "norms": None}


def _norm_facts(
    model: ViTPreTrainedModel, seen: Mapping[int, tuple[torch.Tensor, Image.Image]], path_of: Mapping[int, str]
) -> dict[str, Any]:
    """What the page says of the norms of patch tokens: the numbers, the histogram, and the maps with the largest norms."""
    norms = patch_norms(model, [pixel_values for pixel_values, _ in seen.values()])
    images = [(path_of[number], photo, one) for (number, (_, photo)), one in zip(seen.items(), norms.maps, strict=True)]
    images.sort(key=lambda image: -image[2].max())
    return {
        "norms": norms,
        "largest": float(norms.all.max()),
        "registers": model.config.num_register_tokens,
        "histogram": histogram(norms.all, norms.threshold),
        "maps": [_map_facts(path, photo, one, norms) for path, photo, one in images[:NORM_MAPS]],
        "scale": heat_uri(np.linspace(0, 1, 64)[None]),
    }


def _map_facts(path: str, photo: Image.Image, of_patches: np.ndarray, norms: PatchNorms) -> dict[str, Any]:
    return {
        "path": path,
        "photo": jpeg_uri(photo, PHOTO),
        "heat": heat_uri(of_patches / norms.all.max()),
        "size": photo.size,
        "low": float(of_patches.min()),
        "high": float(of_patches.max()),
        "outliers": int((of_patches > norms.threshold).sum()),
    }


def _error_facts(stored: StoredFeatures) -> dict[str, Any]:
    """The images that could not be used, and how often each reason; other numbers in it do not make it another reason."""
    errors = stored.errors()
    reasons = Counter(re.sub(r"\d+", "…", error["reason"]) for error in errors)
    return {"listed": errors[:MAX_ERRORS], "number": len(errors), "reasons": reasons.most_common()}


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
    """How a content security policy names the only style or script that it lets in."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _short(value: float) -> str:
    """With three digits that count: 0.0123, 1.23, 123, 12,300."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{float(f'{value:.3g}'):,.0f}"


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 999.5:
            return f"{_short(number)} {unit}"
        number /= 1000
    return f"{_short(number)} GB"


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
