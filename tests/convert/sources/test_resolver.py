import dataclasses
import errno
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import constants

from vitrail.convert.sources import resolver as sources
from vitrail.convert.sources.catalog import checkpoints, find_checkpoint
from vitrail.convert.sources.resolver import resolve
from vitrail.errors import CorruptFileError, DownloadError, SourceNotFoundError, UnsupportedCheckpointError
from vitrail.utils import downloads as download_module
from vitrail.utils.downloads import download
from vitrail.utils.hashing import sha256

pytestmark = pytest.mark.usefixtures("no_network")

BODY = bytes(range(256)) * 12_000  # three chunks
OTHER = BODY[::-1] + b"and more"
DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


# Files over HTTP ------------------------------------------------------------------------------------------------------


def test_download_keeps_file_and_record(http_server, page, tmp_path):
    http_server.pages["/dino/weights.pth"] = page(BODY, headers={"ETag": '"v1"'})
    url = f"{http_server.url}/dino/weights.pth"
    path = download(url)
    assert path.name == "weights.pth"
    assert path.is_relative_to(tmp_path / "hf" / "vitrail")
    assert path.read_bytes() == BODY
    record = json.loads(path.with_name("weights.pth.json").read_text())
    expected = hashlib.sha256(BODY).hexdigest()
    assert record == {"format_version": 1, "url": url, "size": len(BODY), "etag": '"v1"', "last_modified": None, "sha256": expected}
    assert sha256(path) == expected
    assert not path.with_name("weights.pth.part").exists()

    assert download(url) == path
    assert len(http_server.requests) == 1


@pytest.mark.parametrize("record", ["[]", "{}", "{", '{"size": 10, "etag": 3}'])
def test_a_damaged_record_of_a_download_is_none(record, http_server, page):
    http_server.pages["/w.pth"] = page(OTHER, headers={"ETag": '"v1"'})
    path = download(f"{http_server.url}/w.pth")
    path.rename(path.with_name("w.pth.part"))
    path.with_name("w.pth.json").write_text(record)
    assert download(f"{http_server.url}/w.pth").read_bytes() == OTHER


def test_same_base_name_does_not_collide(http_server, page, tmp_path):
    http_server.pages |= {"/a/ViT-B_16.npz": page(b"a"), "/b/ViT-B_16.npz": page(b"b")}
    paths = [download(f"{http_server.url}/{letter}/ViT-B_16.npz", cache_dir=tmp_path / "cache") for letter in "ab"]
    assert [path.read_bytes() for path in paths] == [b"a", b"b"]
    assert [path.name for path in paths] == ["ViT-B_16.npz"] * 2
    assert all(path.is_relative_to(tmp_path / "cache") for path in paths)


@pytest.mark.parametrize(
    ("headers", "condition"),
    [
        ({"ETag": '"v1"', "Last-Modified": "Mon, 03 May 2021 10:00:00 GMT"}, '"v1"'),
        ({"ETag": 'W/"v1"', "Last-Modified": "Mon, 03 May 2021 10:00:00 GMT"}, "Mon, 03 May 2021 10:00:00 GMT"),
    ],
)
def test_a_broken_download_is_resumed(headers, condition, http_server, page):
    http_server.pages["/w.pth"] = page(BODY, headers=headers, cut=2_000_000)
    url = f"{http_server.url}/w.pth"
    with pytest.raises(DownloadError, match=f"interrupted after 2000000 of {len(BODY)} bytes .*Run the command again to resume"):
        download(url)
    http_server.pages["/w.pth"].cut = None
    path = download(url)
    assert path.read_bytes() == BODY
    assert http_server.requests[1].headers["range"] == "bytes=2000000-"
    assert http_server.requests[1].headers["if-range"] == condition
    assert json.loads(path.with_name("w.pth.json").read_text())["sha256"] == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("other", [OTHER, BODY[:1000], BODY[::-1]])
def test_a_file_that_changed_meanwhile_starts_over(other, if_range, http_server, page):
    http_server.pages["/w.pth"] = page(BODY, headers={"ETag": '"v1"'}, cut=2_000_000)
    with pytest.raises(DownloadError, match="was interrupted"):
        download(f"{http_server.url}/w.pth")
    http_server.pages["/w.pth"] = page(other, headers={"ETag": '"v2"'}, if_range=if_range)
    path = download(f"{http_server.url}/w.pth")
    assert path.read_bytes() == other
    assert json.loads(path.with_name("w.pth.json").read_text())["sha256"] == hashlib.sha256(other).hexdigest()


@pytest.mark.parametrize(("headers", "ranges"), [({}, True), ({"ETag": '"v1"'}, False)])
def test_a_server_that_cannot_resume(headers, ranges, http_server, page):
    http_server.pages["/w.pth"] = page(BODY, headers=headers, ranges=ranges, cut=100)
    with pytest.raises(DownloadError, match="was interrupted after 100 of"):
        download(f"{http_server.url}/w.pth")
    http_server.pages["/w.pth"].cut = None
    assert download(f"{http_server.url}/w.pth").read_bytes() == BODY


def test_a_body_without_length(http_server, page):
    http_server.pages["/w.pth"] = page(BODY, chunked=True, cut=100)
    with pytest.raises(DownloadError, match=r"was interrupted after .* of unknown bytes"):
        download(f"{http_server.url}/w.pth")
    http_server.pages["/w.pth"].cut = None
    path = download(f"{http_server.url}/w.pth")
    assert path.read_bytes() == BODY
    assert download(f"{http_server.url}/w.pth") == path
    assert len(http_server.requests) == 2


def test_a_damaged_cache_is_detected(http_server, page):
    http_server.pages["/w.pth"] = page(BODY)
    path = download(f"{http_server.url}/w.pth")
    path.write_bytes(BODY[:-1])
    assert download(f"{http_server.url}/w.pth").read_bytes() == BODY


@pytest.mark.parametrize("record", ["[]", "{}", '{"size": "9", "etag": 3}', '{"size": 3072000, "sha256": []}', "[" * 100_000])
def test_a_damaged_record_is_written_again(record, http_server, page):
    http_server.pages["/w.pth"] = page(BODY, headers={"ETag": '"v1"'})
    path = download(f"{http_server.url}/w.pth")
    path.with_name("w.pth.json").write_text(record)
    assert download(f"{http_server.url}/w.pth") == path
    assert json.loads(path.with_name("w.pth.json").read_text())["size"] == len(BODY)


def test_a_trickle_ends(http_server, page, monkeypatch):
    http_server.pages["/w.pth"] = page(BODY, headers={"ETag": '"v1"'})
    monkeypatch.setattr(download_module, "PATIENCE", -1e9)
    with pytest.raises(DownloadError, match=r"sends less than 20000 bytes per second.*Run the command again to resume"):
        download(f"{http_server.url}/w.pth")


def test_the_published_sha256_is_checked(http_server, page, monkeypatch):
    http_server.pages["/w.pth"] = page(OTHER)
    row = dataclasses.replace(
        find_checkpoint("dino-vits8"), url=f"{http_server.url}/w.pth", sha256=hashlib.sha256(BODY).hexdigest()
    )
    monkeypatch.setattr(sources, "find_checkpoint", {"dino-vits8": row}.get)
    download(row.url)  # in the cache before the digest was known
    for _ in range(2):
        with pytest.raises(CorruptFileError, match=f"has the SHA-256 {hashlib.sha256(OTHER).hexdigest()}; expected the published"):
            resolve("dino-vits8")
    http_server.pages["/w.pth"] = page(BODY)
    assert resolve("dino-vits8").path.read_bytes() == BODY


def test_secrets_of_a_url_are_neither_written_nor_shown(http_server, page):
    url = f"{http_server.url}/w.pth?X-Amz-Signature=SECRET"
    with pytest.raises(DownloadError) as missing:
        resolve(url)
    http_server.pages["/w.pth"] = page(BODY, headers={"ETag": '"v1"'}, cut=100)
    with pytest.raises(DownloadError) as broken:
        resolve(url)
    http_server.pages["/w.pth"].cut = None
    resolved = resolve(url)
    with pytest.raises(SourceNotFoundError) as user:
        resolve("https://me:SECRET@example.org/w.pth")
    written = [file.read_bytes() for file in resolved.path.parent.glob("*.json")]
    for text in (str(missing.value), str(broken.value), str(user.value), repr(resolved), *map(str, written)):
        assert "w.pth" in text
        assert "SECRET" not in text
    assert resolved.url == f"{http_server.url}/w.pth"


def test_a_full_disk_is_reported(http_server, page, monkeypatch):
    class Full:
        def __init__(self, *_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    http_server.pages["/w.pth"] = page(BODY)
    monkeypatch.setattr(download_module.hashlib, "file_digest", Full)
    with pytest.raises(DownloadError, match="No space left on device"):
        download(f"{http_server.url}/w.pth")


def test_two_together_download_once(http_server, page):
    http_server.pages["/w.pth"] = page(BODY)
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(download, [f"{http_server.url}/w.pth"] * 4))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == BODY
    assert len(http_server.requests) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "returned HTTP 401 Unauthorized; it is not public"),
        (403, "returned HTTP 403 Forbidden; access is denied"),
        (404, "returned HTTP 404 Not Found; the file does not exist: check the address"),
        (503, "returned HTTP 503 Service Unavailable; try again later"),
    ],
)
def test_refusals(status, message, http_server, page):
    http_server.pages["/w.pth"] = page(b"no", status=status)
    with pytest.raises(DownloadError, match=message):
        download(f"{http_server.url}/w.pth")


def test_a_page_is_not_a_file(http_server, page):
    http_server.pages["/w.pth"] = page(b"<html>Log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(DownloadError, match="returns an HTML page"):
        download(f"{http_server.url}/w.pth")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/w.pth", "file:///etc/hostname"])
def test_a_redirect_leads_to_http_alone(target, http_server, page):
    http_server.pages["/w.pth"] = page(b"", status=302, headers={"Location": target})
    with pytest.raises(DownloadError, match=r"it redirects to ftp|returned HTTP 302"):
        download(f"{http_server.url}/w.pth")


def test_no_network():
    with pytest.raises(DownloadError, match=r"cannot be reached \(.*\)\. Check the network"):
        download("http://127.0.0.1:9/w.pth")


def test_offline(http_server, page, monkeypatch):
    http_server.pages["/w.pth"] = page(BODY)
    path = download(f"{http_server.url}/w.pth")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(f"{http_server.url}/w.pth") == path
    with pytest.raises(DownloadError, match=r"/other\.pth is not in the cache .* HF_HUB_OFFLINE is set"):
        download(f"{http_server.url}/other.pth")
    assert len(http_server.requests) == 1


@pytest.mark.parametrize(("progress", "terminal", "shown"), [(True, "1", True), (False, "1", False), (True, "0", False)])
def test_progress_is_for_terminals(progress, terminal, shown, http_server, page, monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)  # rich takes stderr for a terminal, or for none
    http_server.pages["/w.pth"] = page(BODY)
    download(f"{http_server.url}/w.pth", progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("w.pth" in captured.err) == shown


# Names ----------------------------------------------------------------------------------------------------------------


def test_what_is_on_the_disk_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("dino-vits8").write_bytes(b"mine")  # also a name of the catalog
    Path("user/name").mkdir(parents=True)  # also a Hub id
    for source, path in {"dino-vits8": "dino-vits8", "user/name": "user/name", "~/dino-vits8": tmp_path / "dino-vits8"}.items():
        resolved = resolve(source)
        assert resolved.path == Path(path)
        assert resolved.name == Path(source).name
        assert (resolved.url, resolved.hub_id, resolved.checkpoint) == (None, None, None)
    assert resolve(Path("dino-vits8")).path == Path("dino-vits8")
    assert resolve(".").name == tmp_path.name


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("dino-vits8", DINO_URL),
        ("dino_vits8", DINO_URL),
        ("imagenet21k/ViT-B_16", "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"),
        ("gs://vit_models/imagenet21k/ViT-B_16.npz", "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"),
        ("https://example.org/w.pth?signature=" + "x" * 5000, "https://example.org/w.pth is not in the cache"),
    ],
)
def test_where_it_would_be_fetched_from(source, url):
    with pytest.raises(DownloadError) as raised:
        resolve(source)
    assert str(raised.value).startswith(url)


def test_catalog_name_and_its_url(http_server, page, monkeypatch):
    http_server.pages["/w.pth"] = page(BODY)
    row = dataclasses.replace(find_checkpoint("dino-vits8"), url=f"{http_server.url}/w.pth")
    monkeypatch.setattr(sources, "find_checkpoint", {"dino-vits8": row}.get)
    monkeypatch.setattr(sources, "checkpoints", lambda: (*checkpoints(), row))
    for source in ("dino-vits8", row.url):
        resolved = resolve(source)
        assert resolved.path.read_bytes() == BODY
        assert (resolved.name, resolved.url, resolved.hub_id) == ("dino-vits8", row.url, None)
        assert resolved.checkpoint is row


def test_a_file_behind_a_license_is_loaded_by_its_mailed_link(http_server, page, monkeypatch):
    """The plain address is refused, and so is that of a classifier; the mailed one has a query, which stays secret."""
    urls = {name: f"{http_server.url}/{name}.pth" for name in ("w", "linear")}
    row = dataclasses.replace(find_checkpoint("dinov3-vit7b16"), url=urls["w"], head_urls={"linear": urls["linear"]})
    monkeypatch.setattr(sources, "find_checkpoint", {"dinov3-vit7b16": row}.get)
    monkeypatch.setattr(sources, "checkpoints", lambda: (row,))
    page_of_license = "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/"
    remedy = f"accept the license at {page_of_license}, then pass the link that is mailed to you, or the path of the file"
    http_server.pages |= {f"/{name}.pth": page(b"no", status=403) for name in urls}
    for source in ("dinov3-vit7b16", *urls.values()):
        with pytest.raises(DownloadError, match=re.escape(f"403 Forbidden; {remedy}.")):
            resolve(source)
    http_server.pages["/w.pth"] = page(BODY)  # the server ignores the query
    resolved = resolve(f"{row.url}?Policy=secret")
    assert resolved.path.read_bytes() == BODY
    assert (resolved.name, resolved.url, resolved.checkpoint) == ("dinov3-vit7b16", row.url, row)


def test_any_other_url_has_no_row(http_server, page):
    http_server.pages["/mine.pth"] = page(BODY)
    resolved = resolve(f"{http_server.url}/mine.pth")
    assert (resolved.name, resolved.checkpoint) == ("mine.pth", None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("dino-vit-s8", r"'dino-vit-s8' is not a file, .*Similar names: .*\bdino-vits8\b"),
        ("ViT-B_16", "Similar names: .*ViT-B_16-224"),
        ("qqqqqqqqq", r"or a Hub id \(user/name\)\.$"),
        ("", "'' is not a file, a folder"),
        ("weights/dino.pth", "'weights/dino.pth' is not a file, a folder"),  # not asked of the Hub
        ("./user/name", "is not a file, a folder"),
        (Path("user/name"), "There is no file or folder user/name"),
        ("~nosuchuser/w.pth", "'~nosuchuser/w.pth' is not a file, a folder"),
        ("s3://bucket/w.pth", "has the unsupported scheme s3://; expected http, https or gs"),
    ],
)
def test_nothing_of_that_name(source, message):
    with pytest.raises(SourceNotFoundError, match=message):
        resolve(source)


# The Hub --------------------------------------------------------------------------------------------------------------

SAFETENSORS = {"config.json": b"{}", "preprocessor_config.json": b"{ }", "model.safetensors": BODY}


def test_hub_repository(hub, http_server, tmp_path, capsys):
    hub("user/name", {**SAFETENSORS, "pytorch_model.bin": OTHER, "tf_model.h5": OTHER, "README.md": b"#"})
    resolved = resolve("user/name")
    assert {file.name: file.read_bytes() for file in resolved.path.iterdir()} == SAFETENSORS
    assert resolved.path.is_relative_to(tmp_path / "hf" / "hub")
    assert (resolved.name, resolved.hub_id, resolved.url, resolved.checkpoint) == ("user/name", "user/name", None, None)
    asked_of_it = [request for request in http_server.requests if "user/name" in request.path]
    assert {request.headers["authorization"] for request in asked_of_it} == {"Bearer hf_of_the_test"}
    assert capsys.readouterr().err == ""  # stderr is not a terminal here

    asked = len(http_server.requests)
    assert resolve(f"{http_server.url}/user/name") == resolved  # the address of the page
    assert not any("/resolve/" in request.path for request in http_server.requests[asked:])


@pytest.mark.parametrize(
    "weights",
    [
        {"pytorch_model.bin": BODY},
        {"model.safetensors.index.json": b"{}", "model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"},
        {"pytorch_model.bin.index.json": b"{}", "pytorch_model-00001-of-00001.bin": b"1"},
    ],
)
def test_other_layouts_on_the_hub(weights, hub, tmp_path):
    hub("user/name", {"config.json": b"{}", "optimizer.bin": OTHER, **weights}, revision="v2")
    path = resolve("user/name", revision="v2", cache_dir=tmp_path / "cache").path
    assert {file.name for file in path.iterdir()} == {"config.json", *weights}
    assert path.is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize(
    "source", ["timm/vit_small_patch16_224.dino", "vit_small_patch16_224.dino", "timm-vit_small_patch16_224.dino"]
)
def test_catalog_row_on_the_hub(source, hub):
    hub("timm/vit_small_patch16_224.dino", SAFETENSORS)
    resolved = resolve(source)
    assert resolved.checkpoint is find_checkpoint("timm-vit_small_patch16_224.dino")
    assert resolved.name == "timm-vit_small_patch16_224.dino"
    assert resolved.hub_id == "timm/vit_small_patch16_224.dino"
    assert (resolved.path / "model.safetensors").read_bytes() == BODY


def test_hub_offline(hub, http_server, monkeypatch):
    hub("user/name", SAFETENSORS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="user/name is not complete in the cache, and HF_HUB_OFFLINE is set"):
        resolve("user/name")
    assert http_server.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = resolve("user/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("user/name") == online


def test_hub_out_of_reach():
    with pytest.raises(
        DownloadError, match=r"user/name is not complete in the cache, and http://127\.0\.0\.1:9/user/name cannot be"
    ):
        resolve("user/name")


def test_hub_without_weights_of_its_layout(hub, http_server):
    hub("user/name", {"config.json": b"{}", "dino.pth": BODY})
    with pytest.raises(
        UnsupportedCheckpointError, match=f"neither .*pass the address of the file: {http_server.url}/user/name/resolve/main/"
    ):
        resolve("user/name")


@pytest.mark.parametrize(
    ("status", "headers", "error", "message"),
    [
        (
            404,
            {"X-Error-Code": "RepoNotFound"},
            SourceNotFoundError,
            "or a Hub repository that you can access. For a private repository, log in",
        ),
        (404, {"X-Error-Code": "RevisionNotFound"}, SourceNotFoundError, "has no revision 'v9'"),
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            DownloadError,
            "401.*Your token is not valid: log in again",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, DownloadError, "user/dino-vits8 is gated: accept its terms at http"),
        (
            403,
            {"X-Error-Message": "Access to this resource is disabled."},
            DownloadError,
            "403.*Access to this resource is disabled",
        ),
    ],
)
def test_hub_refusals(status, headers, error, message, hub, http_server, page):
    http_server.pages["/api/models/user/dino-vits8/revision/v9"] = page(b"{}", status=status, headers=headers)
    with pytest.raises(error, match=message) as raised:
        resolve("user/dino-vits8", revision="v9")
    if "RepoNotFound" in headers.values():
        assert re.search(r"Similar names: .*facebook/dino-vits8", str(raised.value))


def test_gated_files_of_a_public_page(hub, http_server, page):
    hub("user/name", SAFETENSORS)
    for path in http_server.pages:
        if "/resolve/" in path:
            http_server.pages[path] = page(status=403, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(DownloadError, match="user/name is gated"):
        resolve("user/name")
