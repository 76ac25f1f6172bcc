import errno
import io
import multiprocessing
import os
import pickle
import socket

import numpy as np
import pytest
from fsspec.registry import known_implementations
from PIL import Image

from vitrail.data import read_images
from vitrail.data.decoding import image_suffixes, open_entry, open_image
from vitrail.data.entries import ImageEntry
from vitrail.data.reader import _Decoder, _Reading
from vitrail.data.remote import Hosts
from vitrail.errors import UnreadableImageError, VitrailError
from vitrail.processing.image_processing_vit import VitrailImageProcessor


def png(level):
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def noise():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def level(image):
    return image.getpixel((0, 0))


def test_images_are_turned_upright():
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    stream = io.BytesIO()
    image.save(stream, "PNG", exif=exif)
    for opened in (
        open_image({"bytes": stream.getvalue(), "path": None}),
        open_entry(ImageEntry(0, "a", content=stream.getvalue())),
    ):
        assert opened.size == (2, 4)
        assert opened.getpixel((1, 0)) == (255, 0, 0)


def test_images_open_from_bytes_or_files(tmp_path):
    file = str(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(7))
    for entry in ({"bytes": None, "path": file}, {"bytes": png(7), "path": None}, {"bytes": png(7), "path": "x.png"}):
        assert level(open_image(entry)) == 7
    for entry in (ImageEntry(0, "a.png", location=file), ImageEntry(0, "x.png", content=png(7))):
        assert level(open_entry(entry)) == 7


BAD = [
    (b"", "it is empty"),
    (b"<html>", "Pillow does not recognize its format"),
    (noise()[:1000], "truncated"),
    (png(1)[:-20], "truncated"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS files are programs, which are not run"),
    (None, "the file does not exist"),
]


@pytest.mark.parametrize(("content", "reason"), BAD)
def test_bad_images_are_named(tmp_path, content, reason):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=reason):
            open_image({"bytes": content, "path": "inner.jpg"})
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        open_image({"bytes": None, "path": str(path)})
    assert caught.value.path == str(path)
    assert str(caught.value) == f"cannot read the image {path}: {caught.value.reason}"
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - as between processes
    assert (again.path, again.reason) == (caught.value.path, caught.value.reason)


@pytest.mark.parametrize(("content", "reason"), BAD)
def test_bad_entries_are_named_as_in_their_collection(tmp_path, content, reason):
    entries = [ImageEntry(3, "inner/bad.jpg", location=str(tmp_path / "bad.jpg"))]
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)
        entries.append(ImageEntry(3, "inner/bad.jpg", content=content))
    for entry in entries:
        with pytest.raises(UnreadableImageError, match=reason) as caught:
            open_entry(entry)
        assert caught.value.path == "inner/bad.jpg"
        assert str(tmp_path) not in caught.value.reason


def test_rows_without_an_image():
    for entry in (None, {"bytes": None, "path": None}):
        with pytest.raises(UnreadableImageError, match="without a path: the row holds no image"):
            open_image(entry)
    with pytest.raises(UnreadableImageError, match=r"00\.tar: the archive ends early"):
        open_entry(ImageEntry(0, "00.tar", problem="the archive ends early"))


def test_decompression_bombs(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        open_image({"bytes": png(1), "path": "bomb.png"})
    with pytest.raises(UnreadableImageError, match="decompression bomb"):
        open_entry(ImageEntry(0, "bomb.png", content=png(1)))


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(UnreadableImageError, match="Is a directory"):
        open_entry(ImageEntry(0, "a.png", location=str(tmp_path)))


def test_pipes_and_devices_are_not_opened(tmp_path, processor):
    """Opening the pipe would wait for ever, and reading the device has no end."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for entry in read_images(tmp_path).read():
        with pytest.raises(UnreadableImageError, match="it is not a regular file"):
            open_entry(entry)
        with pytest.raises(ValueError, match=r"cannot read the image .*\.png: it is not a regular file"):
            processor(entry.location)
    for name in ("list.txt", "shard.tar", "rows.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(VitrailError, match=f"{name} is a named pipe; expected a file"):
            read_images(tmp_path / name)


@pytest.fixture
def processor():
    return VitrailImageProcessor()


@pytest.mark.parametrize("size", [(1, 20_000), (65_000, 1)])
@pytest.mark.parametrize("backend", ["pil", "torch"])
def test_thin_images_are_not_enlarged_without_bound(size, backend):
    message = f"an image of {size[0]} x {size[1]} pixels would be resized to .* raise PIL.Image.MAX_IMAGE_PIXELS"
    with pytest.raises(ValueError, match=message):
        VitrailImageProcessor(backend=backend)(Image.new("L", size))


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("too wide"), AttributeError("of SPIDER")])
def test_what_one_image_raises_is_listed(monkeypatch, processor, error):
    """Whether its decoder raises it, or the preprocessing does."""

    def fail(*args, **kwargs):
        raise error

    entries = [ImageEntry(0, "a.png", content=png(1))]
    decoder = _Decoder(processor, None)
    for place, name in ((Image.Image, "resize"), (Image, "open")):
        if isinstance(error, AttributeError) and name == "resize":
            continue  # a fault of ours
        monkeypatch.setattr(place, name, fail)
        (unreadable,) = decoder.decode(_Reading(None, entries, None)).unreadable
        assert unreadable.reason == (str(error) or "MemoryError")


@pytest.mark.parametrize(("number", "bad"), [(errno.EACCES, True), (errno.EIO, True), (errno.EMFILE, False), (errno.ESTALE, False)])
def test_faults_of_the_machine_are_not_faults_of_the_image(tmp_path, monkeypatch, number, bad):
    """Tests may run as root, who may read everything, so the system's replies are set by hand."""

    def refuse(path):
        raise OSError(number, "the system's words", path)

    (tmp_path / "a.png").write_bytes(png(1))
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(VitrailError, match=r"a\.png: the system's words") as caught:
        open_entry(ImageEntry(0, "a.png", location=str(tmp_path / "a.png")))
    assert isinstance(caught.value, UnreadableImageError) == bad


def test_suffixes_of_what_pillow_decodes():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm"} < image_suffixes()
    assert not {".pdf", ".txt", ".json", ".h5", ".mpg", ""} & image_suffixes()


# Stores


@pytest.fixture
def url(no_network, http_server, page, impatient):
    http_server.pages["/a.png"] = page(png(9), ranges=False)
    return f"{http_server.url}/a.png"


def test_images_of_a_web_server(url):
    assert level(open_entry(ImageEntry(0, url, location=url))) == 9


def _level_of(entry, queue):
    queue.put(level(open_entry(entry)))


def test_images_of_a_web_server_in_a_process_that_was_forked(url):
    """Workers of a DataLoader are forked like this, after this process has used the connections that fsspec keeps."""
    entry = ImageEntry(0, url, location=url)
    open_entry(entry)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=_level_of, args=(entry, queue))
    worker.start()
    assert queue.get(timeout=30) == 9
    worker.join()


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "the file does not exist"), (410, "the file does not exist"), (403, r"refuses it \(403\)")]
)
def test_what_a_web_server_does_not_give(url, http_server, status, reason):
    http_server.pages["/a.png"].status = status
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        open_entry(ImageEntry(0, "the image", location=url))
    assert caught.value.path == "the image"
    assert len(http_server.requests) == 1


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (503, 3), (429, 3), (401, 1)])
def test_a_web_server_that_is_ill_is_not_a_fault_of_the_image(url, http_server, status, requests):
    http_server.pages["/a.png"].status = status
    with pytest.raises(VitrailError, match=f"cannot reach {url}.*{status}") as caught:
        open_entry(ImageEntry(0, url, location=url))
    assert not isinstance(caught.value, UnreadableImageError)
    assert len(http_server.requests) == requests


def test_a_connection_that_breaks_is_not_a_fault_of_the_image(url, http_server):
    http_server.pages["/a.png"].cut = 20
    with pytest.raises(VitrailError, match="cannot reach") as caught:
        open_entry(ImageEntry(0, url, location=url))
    assert not isinstance(caught.value, UnreadableImageError)
    assert len(http_server.requests) == 3


def test_a_store_that_is_down_is_not_a_fault_of_the_image(no_network, impatient):
    with pytest.raises(VitrailError, match=r"cannot reach http://127\.0\.0\.1:9/a\.png: .*repeat the command") as caught:
        open_entry(ImageEntry(0, "a.png", location="http://127.0.0.1:9/a.png"))
    assert not isinstance(caught.value, UnreadableImageError)


def test_a_server_that_accepts_and_is_silent(no_network, impatient, monkeypatch):
    monkeypatch.setattr("vitrail.data.remote.SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        with pytest.raises(VitrailError, match=f"cannot reach {url}: .*Timeout"):
            open_entry(ImageEntry(0, url, location=url))


def test_a_host_that_is_down_is_asked_once_in_a_while(no_network, monkeypatch):
    """It concerns the images of a list that are there, and each of them may be tried later."""
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("vitrail.data.decoding.HOSTS", Hosts())
    for name in "abc":
        with pytest.raises(UnreadableImageError, match="cannot reach http") as caught:
            open_entry(ImageEntry(0, f"{name}.png", location=f"http://127.0.0.1:9/{name}.png", own_store=True))
        assert caught.value.retry
    assert waits == [1, 4]


def test_a_store_is_asked_again(url, http_server, monkeypatch):
    """The server fails twice and then responds."""
    page, waits = http_server.pages["/a.png"], []
    page.status = 503

    def sleep(seconds):
        waits.append(seconds)
        page.status = 503 if len(waits) < 2 else 200

    monkeypatch.setattr("time.sleep", sleep)
    assert level(open_entry(ImageEntry(0, url, location=url))) == 9
    assert waits == [1, 4]


@pytest.mark.parametrize(("location", "reason"), [("needs://a.png", "Install it"), ("nowhere://a.png", "Protocol not known")])
def test_stores_that_no_package_reaches(monkeypatch, location, reason):
    monkeypatch.setitem(known_implementations, "needs", {"class": "a_package_that_is_not_there.FileSystem", "err": "Install it"})
    with pytest.raises(VitrailError, match=f"cannot open {location}: {reason}") as caught:
        open_entry(ImageEntry(0, "a.png", location=location))
    assert not isinstance(caught.value, UnreadableImageError)
