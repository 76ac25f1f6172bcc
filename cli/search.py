"""Commands that search stored features: `vitrail index`, `similar` and `duplicates`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..utils.optional import check_packages
from ..utils.text import count
from .features import PACKAGES
from .images import save_picture
from .options import AllowExternal, Column, Exact, Features, ImageFile, Model, ReadingOptions, Top
from .output import PICTURES, Result, check_output, load_model, warn


def index(folder: Features, column: Column = None) -> Result:
    """Build the index that `similar` and `duplicates` use, beside the features, or add the rows that it lacks.

    After an interruption, the same command continues.
    """
    check_packages(PACKAGES, extra="features")
    check_packages(("faiss",), extra="search")
    from ..features import indexing as job
    from ..features.store import StoredFeatures

    built = job.build_index(StoredFeatures(folder), column=column)
    record = built.record
    lines = [
        f"{built.folder}: {count(record.rows, 'vector')}, {built.added} of them added",
        f"recall@10 {record.recall:.3f} against exact search, on {count(record.recall_queries, 'row')}; a search reads {record.probes} of "
        f"{count(record.num_lists, 'list')}",
    ]
    names = ("library", "library_version", "metric", "column", "rows", "num_lists", "probes", "recall", "recall_queries")
    content = {name: getattr(record, name) for name in names}
    return Result({"index": str(built.folder), "added": built.added} | content, lines)


def similar(
    model: Model,
    folder: Features,
    query: ImageFile,
    reading_options: ReadingOptions,
    output: Annotated[Path | None, typer.Option(help="Contact sheet to write: .png, .jpg or .webp.")] = None,
    top: Top = 15,
    column: Column = None,
    exact: Exact = False,
    allow_external: AllowExternal = False,
) -> Result:
    """Find the stored images most similar to a query image, by the cosine of their features.

    The index of `vitrail index` is used if there is one; otherwise all vectors are compared.
    """
    check_packages(PACKAGES, extra="features")
    if output is not None:
        check_output(output, PICTURES)
    from ..features.store import StoredFeatures
    from ..visualization import similar as job
    from ..visualization.stored_images import is_local

    stored = StoredFeatures(folder)
    loaded, _, _ = load_model(model, **asdict(reading_options))
    draw = output is not None
    found = job.search_images(loaded, stored, query, top=top, column=column, exact=exact, draw=draw, allow_external=allow_external)
    neighbors = found.neighbors
    if neighbors.warning is not None:
        warn(neighbors.warning)
    if output is not None and found.sheet is not None:
        save_picture(found.sheet, output)
        source = stored.manifest.settings["collection"]["source"]
        if not (allow_external or is_local(source)):
            warn(f"the images are at {source}: --allow-external reads them for the contact sheet.")
    images = [
        {"id": number, "path": path, "cosine": cosine}
        for (number, path), cosine in zip(found.paths.items(), neighbors.cosines.tolist(), strict=True)
    ]
    lines = [f"{rank:4d}  {image['cosine']:6.3f}  {image['path']}" for rank, image in enumerate(images, start=1)]
    lines.append(f"{count(len(stored), 'vector')}, {neighbors.method}")
    if output is not None:
        lines.append(f"{output}: {query.name} and its {count(len(images), 'nearest image')}")
    written = None if output is None else str(output)
    return Result({"query": str(query), "output": written, "search": neighbors.method, "images": images}, lines)


def duplicates(
    folder: Features,
    threshold: Annotated[float, typer.Option(help="Smallest cosine of a pair.")] = 0.96,
    column: Column = None,
    exact: Exact = False,
    output: Annotated[Path | None, typer.Option(help="Table of pairs to write: .csv or .parquet.")] = None,
) -> Result:
    """List near-duplicates: pairs of stored images whose features have a large cosine, and the groups that the pairs form.

    The index of `vitrail index` is used if there is one; otherwise all vectors are compared with each other.
    """
    check_packages((*PACKAGES, "scipy"), extra="features")
    from ..features import duplicates as job
    from ..features.search import search_method
    from ..features.store import StoredFeatures

    if output is not None:
        check_output(output, job.FORMATS)
    stored = StoredFeatures(folder)
    found = job.find_duplicates(stored, threshold=threshold, column=column, exact=exact)
    if found.warning is not None:
        warn(found.warning)
    table = found.table(stored)
    if output is not None:
        job.write_pairs(table, output)
    pairs = table.to_pylist()
    paths = {pair["id"]: pair["path"] for pair in pairs} | {pair["other_id"]: pair["other_path"] for pair in pairs}
    lines = []
    for number, group in enumerate(found.groups, start=1):
        lines += [f"group {number}: {count(len(group), 'image')}", *(f"  {paths[one]}" for one in group.tolist())]
    images = count(sum(map(len, found.groups)), "image")
    lines.append(
        f"{count(len(pairs), 'pair')} with a cosine of at least {threshold} in {count(len(found.groups), 'group')} of {images}; "
        f"{count(len(stored), 'vector')}, {search_method(found.index)}"
    )
    lines += [] if output is None else [f"{output}: {count(len(pairs), 'pair')}"]
    record = {
        "threshold": threshold,
        "output": None if output is None else str(output),
        "search": search_method(found.index),
        "pairs": pairs,
        "groups": [[{"id": one, "path": paths[one]} for one in group.tolist()] for group in found.groups],
    }
    return Result(record, lines)
