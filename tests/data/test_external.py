"""Rows that name files and URLs instead of holding images are not read, unless the user allows it."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitrail.data import read_images
from vitrail.data.external import RowPaths
from vitrail.data.labeled import load_labeled_images, load_training_images
from vitrail.errors import VitrailError

pytestmark = pytest.mark.usefixtures("cache_of_datasets")


@pytest.fixture
def hostile(tmp_path):
    """Parquet of an image next to it, and rows that name a file of this machine and a URL; and what `save_to_disk` makes of it."""
    Image.new("L", (4, 4), 7).save(tmp_path / "private.png")
    (tmp_path / "data").mkdir()
    Image.new("L", (4, 4), 5).save(tmp_path / "data" / "own.png")
    paths = [
        str(tmp_path / "data" / "own.png"),
        str(tmp_path / "private.png"),
        "http://127.0.0.1:9/a.png",
        f"{tmp_path}/data/../private.png",
    ]
    table = pa.table({"image": [{"bytes": None, "path": path} for path in paths], "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "data" / "rows.parquet")
    return tmp_path, paths


def test_rows_read_no_other_files_and_no_urls(hostile):
    folder, paths = hostile
    source = folder / "data" / "rows.parquet"
    refused = list(read_images(source).read())
    assert [entry.location for entry in refused] == [paths[0], None, None, None]
    assert all("allow_external=True" in entry.problem for entry in refused[1:])
    collection = read_images(source, allow_external=True)
    assert [entry.location for entry in collection.read()] == paths
    assert [entry.own_store for entry in collection.read()] == [False, False, True, False]
    assert collection.fingerprint != read_images(source).fingerprint
    assert [entry.location for entry in read_images(**collection.settings).read()] == paths


@pytest.mark.parametrize("load", [load_labeled_images, load_training_images])
def test_labeled_rows_neither(hostile, load):
    source = hostile[0] / "data" / "rows.parquet"
    with pytest.raises(VitrailError, match=r"rows\.parquet, row 1: its row names .*private\.png, .*allow_external=True"):
        load(source)
    assert len(load(source, allow_external=True).train) > 0


def test_objects_are_the_callers_own(hostile):
    dataset = datasets.Dataset.from_parquet(str(hostile[0] / "data" / "rows.parquet"))
    assert [entry.location for entry in read_images(dataset).read()] == hostile[1]


def test_paths_below_roots():
    paths = RowPaths(["hf://datasets/user/name@", "/data/photos"])
    inside = ["hf://datasets/user/name@1/a.png", "zip://a.png::hf://datasets/user/name@1/a.zip", "/data/photos/a.png"]
    outside = [
        "hf://datasets/user/other@1/a.png",
        "hf://x::file:///etc/a.png",
        "file:///etc/a.png::hf://datasets/user/name@1/a.zip",
        "file:///etc/a.png::/data/photos/a.zip",
        "/etc/a.png::/data/photos/a.zip",
        "http://host/a.png::zip://a.zip::hf://datasets/user/name@1/a.zip",
        "hf://datasets/user/name@1/../../other/a.png",
        "hf://datasets/user/name@1/%2e%2e/a.png",
        "/data/photos/../a.png",
        "/data/photos-2/a.png",
        "a.png",
    ]
    assert [path for path in inside + outside if paths.refusal(path) is None] == inside
