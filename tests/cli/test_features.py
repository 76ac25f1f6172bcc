"""`vitrail extract`, `index`, `similar`, `duplicates` and `report`."""

import json
import re
import shutil

import pytest
from PIL import Image

from command_line import end_of
from image_folders import PHOTOS, small_model, small_processor, write_broken, write_images
from vitrail.cli.output import Result, as_command
from vitrail.features.store import StoredFeatures
from vitrail.hub.saving import save
from vitrail.visualization.report.page import make_report
from vitrail.visualization.similar import find_similar


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, images, and their features, extracted on the command line."""
    place = tmp_path_factory.mktemp("place")
    write_images(place / "images", 12)
    write_broken(place / "images")
    save(small_model(), small_processor(), place / "model", code=False)
    save(small_model(initializer_range=0.1), small_processor(), place / "other", code=False)
    words = ["--num-workers", 0, "--features", "pooled", "--features", "cls+mean"]
    assert not end_of("extract", place / "model", place / "images", place / "out", *words)
    return place


def fail(capsys, *words):
    assert end_of(*words) == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("command", "words", "function"),
    [
        ("extract", ["model", "images", "new"], "features.extraction.run_job"),
        ("index", ["out"], "features.indexing.build_index"),
        ("duplicates", ["out"], "features.duplicates.find_duplicates"),
    ],
)
def test_an_interruption_is_one_line(place, monkeypatch, capsys, command, words, function):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"vitrail.{function}", interrupt)
    assert end_of(command, *(place / word for word in words)) == 130
    resumed = "" if command == "duplicates" else ": what is finished is kept, and the same command continues"
    assert capsys.readouterr().err == f"interrupted{resumed}\n"


def test_warnings_about_loading_do_not_name_the_dtype_of_features(place, tmp_path, capsys):
    save(small_model().bfloat16(), small_processor(), tmp_path / "model", code=False)
    assert not end_of("extract", tmp_path / "model", place / "images", tmp_path / "out")
    assert "to train it, set --dtype float32 of `vitrail convert`\n" in capsys.readouterr().err


def test_extract_reports(place, tmp_path, capsys):
    options = ["--features", "patches", "--dtype", "float16", "--keep-aspect", "--shard-size", 5, "--batch-size", 2]
    options += ["--backend", "torch", "--jpeg-draft"]
    assert not end_of("extract", place / "model", place / "images", tmp_path / "out", *options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"{tmp_path / 'out'}: features of 12 images",
        f"20 images could not be used; the reasons are in {tmp_path / 'out' / 'errors.parquet'}",
    ]
    assert re.fullmatch(r"this process: 32 images, \d+\.\d images/s; the model waited for images \d+% of the time", lines[2])
    stored = StoredFeatures(tmp_path / "out")
    assert stored.manifest.settings["model"] == str(place / "model")
    assert stored.manifest.settings["dtype"] == "float16"
    settings = stored.manifest.settings["image_processor"]
    assert [settings[name] for name in ("size_divisor", "backend", "jpeg_draft")] == [[8, 8], "torch", True]
    assert len(stored.manifest.shards) == 7
    assert not end_of("extract", place / "model", place / "images", tmp_path / "out", *options)
    assert capsys.readouterr().out.splitlines() == lines[:2], "nothing was left to do"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "IMAGES", "OUT", "--features", "class"], "found the features 'class'; write one of pooled, cls, mean, cls+mean"),
        (["MODEL", "IMAGES", "OUT", "--dtype", "int8"], "found --dtype int8; expected float32 or float16"),
        (["MODEL", "IMAGES", "OUT", "--runner", "spark"], "found --runner spark; expected local or ray"),
        (["MODEL", "IMAGES", "OUT", "--max-errors", "3"], "more than --max-errors 3"),
        (["MODEL", "NOWHERE", "OUT"], "NOWHERE"),
        (["NOWHERE", "IMAGES", "OUT"], "NOWHERE"),
        (["MODEL", "IMAGES", "FILE"], "FILE: it is not a folder. Choose the name of a folder"),
        (["MODEL", "IMAGES", "IMAGES"], "IMAGES holds other things: choose a new or empty output folder."),
    ],
)
def test_what_extract_cannot_do_is_one_message(place, no_network, impatient, tmp_path, capsys, words, message):
    (tmp_path / "FILE").write_text("not a folder")
    names = {"MODEL": place / "model", "IMAGES": place / "images", "OUT": tmp_path / "OUT", "FILE": tmp_path / "FILE"}
    error = fail(capsys, "extract", *(names.get(word, word) for word in words))
    assert message.replace("IMAGES", str(place / "images")) in error
    assert not [path for path in (place / "images").iterdir() if path.name.startswith(".")]
    assert not (tmp_path / "OUT").exists() or (tmp_path / "OUT" / "manifest.json").exists()


def test_json(place, tmp_path, capsys):
    sheet, page = tmp_path / "sheet.png", tmp_path / "page.html"
    assert not end_of("extract", place / "model", place / "images", tmp_path / "out", "--num-workers", 0, "--json")
    extracted = json.loads(capsys.readouterr().out)
    assert [extracted[name] for name in ("output", "rows", "errors", "images")] == [str(tmp_path / "out"), 12, 20, 32]
    assert not end_of("similar", place / "model", place / "out", PHOTOS[0], "--top", 3, "--output", sheet, "--json")
    images = json.loads(capsys.readouterr().out)["images"]
    ids, cosines, _ = find_similar(small_model(), StoredFeatures(place / "out"), PHOTOS[0], top=3)
    assert [image["id"] for image in images] == ids.tolist()
    assert [image["cosine"] for image in images] == pytest.approx(cosines)
    assert not end_of("report", place / "out", "--output", page, "--json")
    reported = json.loads(capsys.readouterr().out)
    assert reported == {"output": str(page), "images": 12, "bytes": page.stat().st_size, "warnings": []}


def test_an_index_is_built_and_used(place, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(place / "out", out)
    assert not end_of("similar", place / "model", out, PHOTOS[0], "--top", 3, "--json")
    exact = json.loads(capsys.readouterr().out)
    assert exact["search"] == "exact search"
    assert not end_of("index", out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{out / 'index' / 'pooled'}: 12 vectors, 12 of them added"
    assert re.fullmatch(r"recall@10 [01]\.\d{3} against exact search, on 12 rows; a search reads 7 of 7 lists", lines[1])
    assert not end_of("index", out, "--json")
    record = json.loads(capsys.readouterr().out)
    assert [record[name] for name in ("index", "added", "library", "metric", "rows")] == [
        str(out / "index" / "pooled"), 0, "faiss", "cosine", 12
    ]  # fmt: skip
    assert not end_of("similar", place / "model", out, PHOTOS[0], "--top", 3, "--json")
    approximate = json.loads(capsys.readouterr().out)
    assert approximate["search"] == f"index, recall@10 {record['recall']:.3f}"
    assert [image["path"] for image in approximate["images"]] == [image["path"] for image in exact["images"]]
    assert not end_of("similar", place / "model", out, PHOTOS[0], "--top", 3, "--exact", "--json")
    assert json.loads(capsys.readouterr().out) == exact
    content = json.loads((out / "index" / "pooled" / "index.json").read_text())
    (out / "index" / "pooled" / "index.json").write_text(json.dumps(content | {"features": "0" * 64}))
    message = "is the index of other features (fingerprint 000000000000…; these have"
    for words in (("similar", place / "model", out, PHOTOS[0]), ("index", out), ("duplicates", out)):
        assert message in fail(capsys, *words)
    assert "or search all vectors with --exact." in fail(capsys, "duplicates", out)


def test_duplicates_are_listed_and_written(place, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number, path in enumerate((PHOTOS[0], PHOTOS[1], PHOTOS[0])):
        shutil.copy(path, tmp_path / "images" / f"{number}.jpg")
    out, table = tmp_path / "out", tmp_path / "pairs.csv"
    assert not end_of("extract", place / "model", tmp_path / "images", out, "--num-workers", 0)
    capsys.readouterr()
    assert not end_of("duplicates", out, "--threshold", 0.9999, "--output", table)
    assert capsys.readouterr().out.splitlines() == [
        "group 1: 2 images",
        "  0.jpg",
        "  2.jpg",
        "1 pair with a cosine of at least 0.9999 in 1 group of 2 images; 3 vectors, exact search",
        f"{table}: 1 pair",
    ]
    assert table.read_text().splitlines()[0] == '"group","id","path","other_id","other_path","cosine"'
    assert not end_of("duplicates", out, "--threshold", 0.9999, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["groups"] == [[{"id": 0, "path": "0.jpg"}, {"id": 2, "path": "2.jpg"}]]
    assert [(pair["path"], pair["other_path"]) for pair in found["pairs"]] == [("0.jpg", "2.jpg")]
    assert "found --threshold 2.0; expected a cosine above 0 and below 1" in fail(capsys, "duplicates", out, "--threshold", 2)
    assert "unsupported extension '.txt'; expected .csv, .parquet" in fail(capsys, "duplicates", out, "--output", out / "a.txt")
    assert "has no vectors cls" in fail(capsys, "duplicates", out, "--column", "cls")
    assert "holds no features" in fail(capsys, "index", tmp_path / "images")


@pytest.mark.parametrize("name", ["\udce9", "\x1b[2J", "\r", "\x85", "\u202e"])
def test_names_that_would_control_a_terminal_are_escaped(name, capsys):
    """Names are escaped as text and as JSON, where the escape decodes to the same name."""
    command = as_command(lambda: Result({"path": f"{name}.jpg"}, [f"é {name}.jpg"]))
    command(json=False, traceback=False)
    assert capsys.readouterr().out == f"é \\u{ord(name[0]):04x}{name[1:]}.jpg\n"
    command(json=True, traceback=False)
    assert json.loads(capsys.readouterr().out) == {"path": f"{name}.jpg"}


def test_secrets_of_urls_are_not_printed(capsys):
    url = "https://me:SECRET@example.org/a.jpg?X-Amz-Signature=SECRET"
    command = as_command(lambda: Result({"path": url, "b": 1}, [f"read {url}, and more"]))
    command(json=False, traceback=False)
    assert capsys.readouterr().out == "read https://example.org/a.jpg, and more\n"
    command(json=True, traceback=False)
    assert json.loads(capsys.readouterr().out) == {"path": "https://example.org/a.jpg", "b": 1}


def test_similar_prints_the_nearest_and_draws_them(place, tmp_path, capsys):
    output = tmp_path / "sheet.png"
    assert not end_of("similar", place / "model", place / "out", PHOTOS[0], "--top", 3, "--column", "cls_mean", "--output", output)
    lines = capsys.readouterr().out.splitlines()
    stored = StoredFeatures(place / "out")
    ids, cosines, sheet = find_similar(small_model(), stored, PHOTOS[0], top=3, column="cls_mean")
    path_of = dict(zip(stored.ids().tolist(), stored.paths(), strict=True))
    assert [line.split() for line in lines[:3]] == [
        [str(rank), f"{cosine:.3f}", path_of[number]]
        for rank, (number, cosine) in enumerate(zip(ids.tolist(), cosines, strict=True), start=1)
    ]
    assert lines[3:] == ["12 vectors, exact search", f"{output}: {PHOTOS[0].name} and its 3 nearest images"]
    with Image.open(output) as written:
        assert written.tobytes() == sheet.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_report_writes_one_page(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not end_of("report", place / "out", "--num-images", 5)
    page = make_report(place / "out", num_images=5).html
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert re.fullmatch(r"report\.html: 5 images, 0\.\d MB, opens without a network\n", capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_similar_writes_no_picture_unless_it_is_asked_to(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not end_of("similar", place / "model", place / "out", PHOTOS[0], "--top", 1)
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_report_names_what_is_missing(place, tmp_path, capsys):
    words = ["extract", place / "model", place / "images", tmp_path / "out", "--num-workers", 0]
    assert not end_of(*words)
    (place / "model").rename(tmp_path / "moved")
    capsys.readouterr()
    try:
        assert not end_of("report", tmp_path / "out", "--output", tmp_path / "page.html")
        assert "warning: the norms of patch tokens need the model, model, which is not on this machine" in capsys.readouterr().err
        assert not end_of("report", tmp_path / "out", "--output", tmp_path / "page.html", "--model", tmp_path / "moved")
        assert capsys.readouterr().out.count("\n") == 1
    finally:
        (tmp_path / "moved").rename(place / "model")


def test_what_cannot_be_done_is_one_message_and_exit_code_2(place, tmp_path, capsys):
    sheet, page = ["--output", tmp_path / "sheet.png"], ["--output", tmp_path / "page.html"]
    model, out = place / "model", place / "out"
    assert "unsupported extension '.txt'; expected .png" in fail(
        capsys, "similar", model, out, PHOTOS[0], "--output", tmp_path / "sheet.txt"
    )
    assert "holds no features" in fail(capsys, "similar", model, place / "images", PHOTOS[0], *sheet)
    assert "whose weights have the SHA-256" in fail(capsys, "similar", place / "other", out, PHOTOS[0], *sheet)
    assert "no column of vectors 'mean'; expected one of pooled, cls_mean" in fail(
        capsys, "similar", model, out, PHOTOS[0], "--column", "mean", *sheet
    )
    assert "the file does not exist" in fail(capsys, "similar", model, out, tmp_path / "none.jpg", *sheet)
    assert "unsupported extension '.txt'; expected .html" in fail(capsys, "report", out, "--output", tmp_path / "page.txt")
    assert "holds no features" in fail(capsys, "report", place / "images", *page)
    assert "whose weights have the SHA-256" in fail(capsys, "report", out, "--model", place / "other", *page)
    assert not list(tmp_path.iterdir())
