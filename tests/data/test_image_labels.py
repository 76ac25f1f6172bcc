"""Labels of the images in a folder: `extract` and the evaluations read the same."""

import json

import pytest
from PIL import Image

from vitrail.data import read_images
from vitrail.data.labeled import load_labeled_images
from vitrail.errors import VitrailError

pytestmark = pytest.mark.usefixtures("cache_of_datasets")


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name)
    return folder


def evaluated(folder, **options):
    """The labels of images by path, as the evaluations read them."""
    images = load_labeled_images(folder, **options)
    rows = [
        (row["image"]["path"], images.label_names[row["label"]]) for split in (images.train, images.validation) for row in split
    ]
    return {path.removeprefix(f"{folder}/"): label for path, label in rows}


def extracted(folder, **options):
    return {entry.path: str(entry.label) for entry in read_images(folder, **options).read() if entry.label is not None}


NAMES = [f"{split}/{label}/{number}.png" for split in ("train", "val") for label in ("cat", "dog") for number in (1, 2)]


def test_folders_of_splits_are_not_labels(tmp_path):
    write(tmp_path, [*NAMES, "outside.png", "train/beside.png"])
    assert extracted(tmp_path) == evaluated(tmp_path) == {name: name.split("/")[1] for name in NAMES}


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("column", ["label", "species"])
def test_tables_of_labels(tmp_path, table, column):
    write(tmp_path, NAMES)
    labels = {name: number % 3 for number, name in enumerate(NAMES)}
    for split in ("train", "val"):
        rows = [(name.removeprefix(f"{split}/"), label) for name, label in labels.items() if name.startswith(split)]
        lines = [f"file_name,{column}", *(f"{name},{label}" for name, label in rows)]
        records = [json.dumps({"file_name": name, column: label}) for name, label in rows]
        (tmp_path / split / table).write_text("\n".join(lines if table.endswith("csv") else records))
    options = {} if column == "label" else {"label_column": column}
    expected = {name: str(label) for name, label in labels.items()}
    assert extracted(tmp_path, **options) == evaluated(tmp_path, **options) == expected
    collection = read_images(tmp_path, **options)
    assert (collection.label_type, collection.warnings) == ("int64", ())
    with pytest.raises(VitrailError, match=rf"found the columns {column} .*, but no 'other'"):
        read_images(tmp_path, label_column="other")


def test_tables_that_name_no_image(tmp_path):
    write(tmp_path, ["a.png"])
    (tmp_path / "metadata.csv").write_text("file_name,label\n../a.png,1\n")
    with pytest.raises(VitrailError, match=r"metadata\.csv names no image: .*file_name"):
        read_images(tmp_path)
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.jsonl")
    with pytest.raises(VitrailError, match=r"cannot read .*metadata\.jsonl: "):
        read_images(tmp_path)


def test_other_files_are_counted(tmp_path):
    write(tmp_path, ["cat/a.png"])
    for name in ("cat/b.heic", "c.HEIC", "d.svg", "notes", "e.eps"):
        (tmp_path / name).touch()
    assert read_images(tmp_path).warnings == (
        f"{tmp_path}: 5 files with other extensions were left out: .heic (2), .eps (1), .svg (1), no extension (1)",
    )
    for name in ("cat/b.heic", "c.HEIC", "notes", "e.eps"):
        (tmp_path / name).unlink()
    assert read_images(tmp_path).warnings[0].endswith("1 file with another extension was left out: .svg (1)")
