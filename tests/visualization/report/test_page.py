"""`vitrail.visualization.report.page`: the page, read as HTML and opened in a browser."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA

from image_folders import small_model, small_processor, write_broken, write_images
from vitrail.data import read_images
from vitrail.errors import VitrailError
from vitrail.features.extraction import extract
from vitrail.features.store import StoredFeatures
from vitrail.hub.saving import save
from vitrail.visualization.report.drawing import heat_uri, histogram
from vitrail.visualization.report.page import MAX_PARTITIONS, NUM_NEIGHBORS, make_report
from vitrail.visualization.report.patch_norms import compute_patch_norms
from vitrail.visualization.report.projection import project
from vitrail.visualization.stored_images import map_images

pytestmark = pytest.mark.usefixtures("one_thread")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = "broken/<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'&.jpg"


def saved(folder, **fields):
    model = small_model(**fields)
    save(model, small_processor(), folder, code=False)
    return model


def extracted(images, output, model_folder, **options):
    source = read_images(images)
    extract(
        small_model(), small_processor(), source, output, progress=False, num_workers=0, model_name=str(model_folder), **options
    )
    return output


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model; 66 images with labels, one of them of a hostile name, and broken files; and their features."""
    place = tmp_path_factory.mktemp("report")
    write_images(place / "images", 65)
    write_broken(place / "images")
    hostile = place / "images" / HOSTILE
    hostile.parent.mkdir(parents=True)
    Image.effect_noise((40, 40), 60).save(hostile)
    (hostile.parent / "'\"><b>empty.png").write_bytes(b"")
    saved(place / "model")
    extracted(place / "images", place / "out", place / "model", features=("pooled", "mean", "patches"))
    return place


@pytest.fixture(scope="module")
def report(place):
    return make_report(place / "out")


class Page(HTMLParser):
    """The tags of a page, with their attributes; its text; and the data of its script."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.inside, self.words, self.scripts = [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while tag in self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.inside[-1:] != ["style"]:
            self.words.append(data)


def test_the_head_of_the_page_names_the_features(place, report):
    text, stored = Page(report.html).text, StoredFeatures(place / "out")
    assert "Features of 66 images" in text
    assert "unreadable images 21" in text
    for words in ("Images: images . Model: model .", "float32", stored.manifest.settings["weights"][:16]):
        assert words in text
    assert str(place) not in report.html
    norms = np.linalg.norm(stored.vectors("mean"), axis=1)
    assert f"mean vectors of 32 {np.median(norms):.3g} {np.percentile(norms, 5):.3g} to {np.percentile(norms, 95):.3g}" in text
    assert "patches tensors, the first 4 by 4 by 32" in text
    assert (report.num_images, report.warnings) == (66, [])


def test_neighbors_are_those_of_brute_force(place, report):
    stored, data = StoredFeatures(place / "out"), Page(report.html).data
    vectors = stored.vectors().astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = [item["path"] for item in data["items"]]
    vectors = vectors[[stored.paths().index(path) for path in paths]]
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    assert data["shown"] == len(set(paths)) == 66
    for of_one, near in zip(cosines, data["neighbors"], strict=True):
        assert [other for other, _ in near] == np.argsort(-of_one)[:NUM_NEIGHBORS].tolist()
        assert [cosine for _, cosine in near] == pytest.approx(np.sort(of_one)[::-1][:NUM_NEIGHBORS], abs=1e-4)


def test_positions_pictures_and_labels(place, report):
    stored, data = StoredFeatures(place / "out"), Page(report.html).data
    positions = np.array(data["points"])
    assert positions.min() >= 0
    assert (positions.max(axis=0) <= (960, 600)).all()
    assert np.ptp(positions, axis=0).max() > 500
    rows = [stored.paths().index(item["path"]) for item in data["items"]]
    expected = project(stored.vectors()[rows])[0]
    for found, wanted in zip(positions.T, expected.T, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.9999
    label_of = dict(zip(stored.paths(), stored.labels(), strict=True))
    assert data["labels"] == ["astronaut", "chelsea", "coffee", "broken"]  # 22, 22, 21, 1
    assert all(data["labels"][item["label"]] == label_of[item["path"]] for item in data["items"])
    for item in data["items"][:5]:
        uri = re.fullmatch(r"data:image/jpeg;base64,(.+)", item["picture"])
        with Image.open(io.BytesIO(base64.b64decode(uri[1]))) as thumbnail, Image.open(place / "images" / item["path"]) as image:
            assert max(thumbnail.size) == 96
            expected = np.asarray(image.convert("RGB").resize(thumbnail.size), dtype=int)
            assert np.abs(np.asarray(thumbnail) - expected).mean() < 8


def test_errors_are_listed_and_their_reasons_counted(place, report):
    stored, page = StoredFeatures(place / "out"), Page(report.html)
    assert len(stored.errors()) == 21
    for error in stored.errors():
        assert f"{error['path']} {error['reason']}" in page.text
    assert "3 it is empty" in page.text  # empty.jpg, empty.png, and the one of a hostile name
    assert page.text.count("image file is truncated (… bytes not processed)") == 1  # however many bytes


def test_paths_cannot_become_html_or_script(report):
    page = Page(report.html)
    assert [tag for tag, _ in page.tags].count("script") == len(page.scripts) == 2
    assert {name for _, attributes in page.tags for name in attributes if name.startswith("on")} == set()
    assert [attributes["src"][:11] for tag, attributes in page.tags if tag == "img"] == ["data:image/"] * 13
    assert HOSTILE in [item["path"] for item in page.data["items"]]
    assert "broken/<img src=x onerror=alert(1)><" not in report.html
    assert "'\"><b>empty.png" not in report.html


def test_the_page_refers_to_nothing_outside(report):
    assert not re.findall(r"\w+://|url\(|@import|<link|<iframe|(?:src|href)=\"(?!data:|#)", report.html)


def test_the_policy_lets_in_our_own_style_and_script_alone(report):
    policy = next(attributes["content"] for tag, attributes in Page(report.html).tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", report.html, re.DOTALL)[1]
        assert f"{name} 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy


def test_every_class_has_a_style(copy):
    (copy / "images" / StoredFeatures(copy / "out").paths()[0]).unlink()  # a page with a warning
    html = make_report(copy / "out").html
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]
    used = {name for _, attributes in Page(html).tags for name in (attributes.get("class") or "").split()}
    assert "warnings" in used
    assert used - set(re.findall(r"\.([a-z][\w-]*)", style)) == set()


def test_the_same_features_give_the_same_page(place, report):
    assert make_report(place / "out").html == report.html


def test_only_some_images_are_shown_and_neighbors_are_of_all(place, monkeypatch):
    for of_all_rows in ("ids", "paths", "labels", "errors", "vectors"):  # would be in memory together
        monkeypatch.delattr(StoredFeatures, of_all_rows)
    data = Page(make_report(place / "out", num_images=5).html).data
    assert (data["shown"], len(data["points"]), len(data["neighbors"])) == (5, 5, 5)
    others = {other for near in data["neighbors"] for other, _ in near}
    assert others - set(range(5))
    assert others | set(range(5)) == set(range(len(data["items"])))
    assert all(item["picture"] for item in data["items"])


def test_of_many_archives_a_few_are_read(tmp_path):
    write_images(tmp_path, 18)
    (tmp_path / "tars").mkdir()
    for number in range(6):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for path in sorted(tmp_path.glob("*/*.jpg"))[number * 3 : number * 3 + 3]:
                tar.add(path, path.name)
    saved(tmp_path / "model")
    report = make_report(extracted(tmp_path / "tars", tmp_path / "out", tmp_path / "model"))
    page = Page(report.html)
    assert len({item["path"].split("/")[0] for item in page.data["items"]}) == MAX_PARTITIONS
    assert len(page.data["items"]) == report.num_images == 3 * MAX_PARTITIONS
    assert all(item["picture"] for item in page.data["items"])
    assert (
        "Neighbors are the images with the largest cosine of pooled among 12 images from some parts of the collection." in page.text
    )


@pytest.fixture
def copy(place, tmp_path):
    """A copy of the images, the model and the features that a test may change."""
    shutil.copytree(place / "images", tmp_path / "images")
    shutil.copytree(place / "model", tmp_path / "model")
    extracted(tmp_path / "images", tmp_path / "out", tmp_path / "model")
    return tmp_path


def test_without_the_model_is_reported(copy):
    shutil.move(copy / "model", copy / "moved")
    report = make_report(copy / "out")
    page = Page(report.html)
    assert len(report.warnings) == 1
    assert "the norms of patch tokens need the model, model, which" in report.warnings[0]
    assert f"Not available: {report.warnings[0]}" in page.text
    assert page.data["items"][0]["picture"]
    given = make_report(copy / "out", model=str(copy / "moved"))
    assert (given.warnings, "Not available" in given.html) == ([], False)


def test_another_model_is_refused_or_reported(copy):
    saved(copy / "other", initializer_range=0.1)
    with pytest.raises(VitrailError, match="whose weights have the SHA-256"):
        make_report(copy / "out", model=str(copy / "other"))
    shutil.rmtree(copy / "model")
    shutil.move(copy / "other", copy / "model")
    assert "whose weights have the SHA-256" in make_report(copy / "out").warnings[0]


def test_without_the_images_is_reported(copy):
    first = StoredFeatures(copy / "out").paths()[0]
    (copy / "images" / first).unlink()
    report = make_report(copy / "out")
    assert report.warnings == ["1 of the 66 images no longer exist and have no pictures."]
    assert [item["path"] for item in Page(report.html).data["items"] if item["picture"] is None] == [first]
    shutil.rmtree(copy / "images")
    report = make_report(copy / "out")
    page = Page(report.html)
    assert len(report.warnings) == 1
    assert "the images cannot be read any more" in report.warnings[0]
    assert "Not available: there are no pictures" in page.text
    assert {item["picture"] for item in page.data["items"]} == {None}
    assert len(page.data["points"]) == 66


@pytest.mark.parametrize("allowed", [False, True])
def test_nothing_is_fetched_unasked(copy, no_network, http_server, impatient, allowed):
    """Whoever wrote the folder chose its addresses; an image of a list may have one too."""
    manifest = json.loads((copy / "out" / "manifest.json").read_text())
    manifest["settings"]["model"] = f"{http_server.url}/model.pth"
    manifest["settings"]["collection"]["source"] = f"{http_server.url}/list.txt"
    (copy / "out" / "manifest.json").write_text(json.dumps(manifest))
    report = make_report(copy / "out", allow_external=allowed)
    assert bool(http_server.requests) == allowed
    assert len(report.warnings) == 2
    first = StoredFeatures(copy / "out").paths()[0]
    manifest["settings"]["collection"]["source"] = str(copy / "list.txt")
    (copy / "out" / "manifest.json").write_text(json.dumps(manifest))
    (copy / "list.txt").write_text(f"{http_server.url}/a.jpg\n{first}\n")
    http_server.requests.clear()
    map_images(lambda number, image: number, StoredFeatures(copy / "out"), {0: f"{http_server.url}/a.jpg"}, allow_external=allowed)
    assert bool(http_server.requests) == allowed


def test_without_vectors_or_labels_there_is_a_gallery(tmp_path):
    paths = write_images(tmp_path / "nested", 4)
    (tmp_path / "images").mkdir()
    for path in paths:
        shutil.copy(tmp_path / "nested" / path, tmp_path / "images")
    saved(tmp_path / "model")
    report = make_report(extracted(tmp_path / "images", tmp_path / "out", tmp_path / "model", features=("layers=0,1",)))
    page = Page(report.html)
    assert "No map and no neighbors" in page.text
    assert "layers tensors, the first 2 by 32" in page.text
    assert (page.data["points"], page.data["labels"]) == (None, [])
    assert sorted(item["path"] for item in page.data["items"]) == sorted(path.split("/")[-1] for path in paths)
    assert ("None: all images are readable." in page.text, 'id="plot"' in report.html) == (True, False)


def test_one_image_is_enough(tmp_path):
    write_images(tmp_path / "images", 1)
    saved(tmp_path / "model")
    page = Page(make_report(extracted(tmp_path / "images", tmp_path / "out", tmp_path / "model")).html)
    assert (page.data["points"], page.data["neighbors"]) == ([[480.0, 300.0]], [[]])
    assert "Features of 1 image" in page.text


def test_norms_are_those_that_leave_the_last_block():
    model = small_model(num_register_tokens=2)
    left = []
    handle = model.layers[-1].register_forward_hook(lambda module, inputs, outputs: left.append(outputs[0]))
    images = [torch.randn(1, 3, 32, 32), torch.randn(1, 3, 16, 40)]
    norms = compute_patch_norms(model, images)
    handle.remove()
    for tokens, shape, found in zip(left, [(4, 4), (2, 5)], norms.maps, strict=True):
        assert found.shape == shape
        assert found == pytest.approx(np.linalg.norm(tokens[0, 3:].numpy(), axis=-1).reshape(shape), rel=1e-5)


def outlying(model):
    """Return the model with one outlier: the third patch of the second row."""
    with torch.no_grad():
        model.embeddings.position_embeddings[0, 1 + 4 + 2] *= 300
    return model


def test_outliers_are_found_where_they_are(tmp_path):
    write_images(tmp_path / "images", 3)
    model = outlying(small_model())
    save(model, small_processor(), tmp_path / "model", code=False)
    extract(
        model,
        small_processor(),
        read_images(tmp_path / "images"),
        tmp_path / "out",
        progress=False,
        num_workers=0,
        model_name=str(tmp_path / "model"),
    )
    norms = compute_patch_norms(model, [torch.randn(1, 3, 32, 32)])
    assert np.argwhere(norms.maps[0] > norms.threshold).tolist() == [[1, 2]]
    assert norms.share == 1 / 16
    report = make_report(tmp_path / "out")
    page = Page(report.html)
    assert "6.2 % of the patch tokens are outliers" in page.text
    assert page.text.count(", 1 outlier") == 3
    assert report.html.count('class="bin out"') >= 1
    heat = next(attributes["src"] for tag, attributes in page.tags if attributes.get("class") == "heat")
    with Image.open(io.BytesIO(base64.b64decode(heat.partition(",")[2]))) as map_of_first:
        levels = np.asarray(map_of_first.convert("L"))
    assert np.unravel_index(levels.argmax(), levels.shape) == (1, 2)


def test_a_model_without_outliers_is_reported(report):
    text = Page(report.html).text
    assert "No outliers No patch token has a norm above 3 times the median." in text
    assert "512 tokens of 32 images" in text
    largest = [float(value) for value in re.findall(r"norms from [\d.]+ to ([\d.]+)", text)]
    assert largest == sorted(largest, reverse=True)
    assert len(largest) == 6
    assert 'class="bin out"' not in report.html


def test_histogram_counts_every_value_and_splits_at_the_threshold():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(10, 30, 5000), rng.uniform(61, 399, 35), [61, 400]])
    made = histogram(values, 60)
    assert sum(bar["count"] for bar in made["bars"]) == 5037
    assert sum(bar["count"] for bar in made["bars"] if bar["above"]) == 37
    assert all(bar["above"] == (bar["from"] > 59.999) for bar in made["bars"])
    assert max(bar["height"] for bar in made["bars"]) == 1
    assert all(bar["height"] > 0 and bar["at"] + bar["width"] < 1.000001 for bar in made["bars"])
    ticks = [tick["value"] for tick in made["x"]]
    assert ticks == [0, 100, 200, 300, 400]
    assert [tick["value"] for tick in made["y"]] == [1, 10, 100, 1000][: len(made["y"])]
    assert histogram(np.full(4, 7.0), 21.0)["bars"][0]["count"] == 4


def test_heat_has_a_pixel_for_each_value():
    with Image.open(io.BytesIO(base64.b64decode(heat_uri(np.array([[0, 0.5, 1]])).partition(",")[2]))) as heat:
        assert heat.size == (3, 1)
        assert list(np.diff(np.asarray(heat.convert("L"), dtype=int)[0]) > 20) == [True, True]


def test_few_vectors_are_placed_by_their_principal_components():
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    positions, method = project(5 * vectors)
    expected = PCA(2, svd_solver="full").fit_transform(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert method == "PCA"
    assert np.abs(positions) == pytest.approx(np.abs(expected), abs=1e-5)


def test_many_vectors_are_placed_by_their_neighborhoods():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 16))
    groups = np.arange(120) % 4
    vectors = (centers[groups] + 0.1 * rng.normal(size=(120, 16))).astype(np.float32)
    positions, method = project(vectors)
    again, _ = project(vectors)
    assert method == "t-SNE"
    assert (positions == again).all()
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    assert (groups[distances.argmin(axis=1)] == groups).all()
    assert positions[:, 0].std() >= positions[:, 1].std()


@pytest.mark.parametrize("number", [1, 2, 100])
def test_equal_vectors_have_one_place(number):
    positions, _ = project(np.ones((number, 5), dtype=np.float32))
    assert np.abs(positions).max() < 1e-5


def browse(tmp_path, url, *switches):
    """Return the output of Chromium for a page after its script has run, and the console messages."""
    switches = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--virtual-time-budget=2000", "--enable-logging=stderr"),
        *switches,
    )
    profile = tmp_path / "profile"
    profile.mkdir(exist_ok=True)
    ended = subprocess.run([CHROMIUM, *switches, f"--user-data-dir={profile}", url], capture_output=True, text=True, timeout=120)
    return ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line]


# The actions of a visitor: looks at a point, chooses it, walks to its first neighbor, goes on by keyboard, picks a label, wants pictures
VISIT = """
const point = document.querySelectorAll(".point")[3];
point.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
document.body.dataset.tip = document.getElementById("tip").textContent;
point.dispatchEvent(new MouseEvent("click", { bubbles: true }));
document.body.dataset.chosen = document.querySelector("#panel .chosen").textContent;
document.body.dataset.neighbors = JSON.stringify([...document.querySelectorAll("#panel .neighbor")].map((row) => row.textContent));
document.querySelector("#panel button.neighbor").click();
document.body.dataset.second = document.querySelector("#panel .chosen").textContent;
document.querySelector('.point[tabindex="0"]').focus();
const walk = [];
for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowRight", "ArrowLeft"]) {
  const from = Number(document.activeElement.dataset.index);
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  walk.push([key, from, Number(document.activeElement.dataset.index)]);
}
document.body.dataset.walk = JSON.stringify(walk);
document.body.dataset.focus = document.activeElement.getAttribute("aria-label");
document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
document.body.dataset.third = document.querySelector("#panel .chosen").textContent;
document.querySelector("#legend .c1").click();
document.body.dataset.faint = document.querySelectorAll(".point.faint").length;
document.getElementById("as-pictures").click();
document.body.dataset.pictures = document.querySelectorAll("#points image").length;
document.body.dataset.fetched = performance.getEntriesByType("resource").filter((entry) => !entry.name.startsWith("data:")).length;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_the_page_works_in_a_browser(report, tmp_path):
    data = Page(report.html).data
    (tmp_path / "report.html").write_text(report.html, encoding="utf-8")
    html, console = browse(tmp_path, f"file://{tmp_path}/report.html#image-5", "--dump-dom")
    page = Page(html)
    assert console == []  # no error, and nothing that the policy had to refuse
    points = [attributes for tag, attributes in page.tags if tag == "g" and attributes.get("class", "").startswith("point")]
    assert [attributes["transform"] for attributes in points] == [f"translate({x:g} {y:g})" for x, y in data["points"]]
    assert len({attributes["class"] for attributes in points}) == 4
    near = data["neighbors"][5]
    assert all(f"{cosine:.3f} {data['items'][other]['path']}" in page.text for other, cosine in near)
    assert sum(tag == "line" and "x1" in attributes and "class" not in attributes for tag, attributes in page.tags) == len(near)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert HOSTILE in [attributes.get("title") for _, attributes in page.tags]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome")
def test_a_visitor_can_look_choose_and_walk(report, tmp_path):
    """The visitor is a script that the page's own policy would refuse."""
    data = Page(report.html).data
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", report.html)
    visited = without_policy.replace("</body>", f"<script>{VISIT}</script></body>")
    (tmp_path / "visited.html").write_text(visited, encoding="utf-8")
    url = f"file://{tmp_path}/visited.html"
    html, console = browse(tmp_path, url, "--dump-dom", f"--screenshot={tmp_path}/page.png", "--window-size=1000,900")
    assert console == []
    seen = next(attributes for tag, attributes in Page(html).tags if tag == "body")

    def name(index):
        return data["items"][index]["path"] + data["labels"][data["items"][index]["label"]]

    near = data["neighbors"][3]
    assert seen["data-tip"] == seen["data-chosen"] == name(3)
    assert json.loads(seen["data-neighbors"]) == [f"{cosine:.3f}{data['items'][other]['path']}" for other, cosine in near]
    assert seen["data-second"] == name(near[0][0])
    steps = [step for step in json.loads(seen["data-walk"]) if step[1] != step[2]]  # at an edge there is nowhere to go
    assert len(steps) >= 4
    for key, start, end in steps:
        right, down = np.subtract(data["points"][end], data["points"][start])
        assert {"ArrowLeft": -right, "ArrowRight": right, "ArrowUp": -down, "ArrowDown": down}[key] > 0
    assert seen["data-third"] == seen["data-focus"].replace(", ", "")
    assert int(seen["data-faint"]) == sum(item["label"] != 1 for item in data["items"])
    assert int(seen["data-pictures"]) == 66
    assert int(seen["data-fetched"]) == 0
