import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path

import datasets
import joblib
import pytest
import torch
from huggingface_hub import close_session, constants, hf_api
from threadpoolctl import threadpool_limits

from digit_models import digits, digits_processor, random_model, trained_model  # noqa: F401  # fixtures
from hub_server import HubServer
from local_server import LocalServer, Request

COMMIT = "5f1b2c3d" * 5
# `make test-quantization` brings its packages, which warn in every process that imports transformers
collect_ignore = [] if find_spec("torchao") else ["modeling/test_quantization.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Without `--cuda`, tests see no GPU, because they compare with outputs of a CPU."""
    parser.addoption("--cuda", action="store_true", help="run the tests that need a GPU with CUDA, and no others")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--cuda"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    if config.getoption("--cuda"):
        config.hook.pytest_deselected(items=[item for item in items if "cuda" not in item.fixturenames])
        items[:] = [item for item in items if "cuda" in item.fixturenames]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto` is one process for each core that this one may use, but no more than fit into 16 GB."""
    return min(joblib.cpu_count(), 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[object]) -> None:
    """Processes that run tests, and those that tests start, share the cores instead of each taking all of them."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, joblib.cpu_count() // len(specs)))


@dataclass
class Page:
    """The response of the server at one path.

    cut: close the connection after this number of bytes of the body; `ranges`: answer Range requests, and `if_range`: only while the
    ETag or date that the client names is still the file's; `held`: answer nothing until this event.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    ranges: bool = True
    if_range: bool = True
    chunked: bool = False
    held: threading.Event | None = None


class HttpServer:
    """A server on this machine that serves `pages` and records `requests`."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []

        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = LocalServer(Handler)
        self.url = self.httpd.url

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        wanted = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append(Request(handler.command, path, wanted))
        page = self.pages.get(path, Page(b"nothing here", status=404))
        if page.held is not None:
            page.held.wait()
        status, body, headers = page.status, page.body, dict(page.headers)
        same_version = wanted.get("if-range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
        if page.ranges and "range" in wanted and (same_version or not page.if_range):
            start = int(wanted["range"].removeprefix("bytes=").removesuffix("-"))
            if start < len(body):
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            else:
                status, body = 416, b""
        if page.chunked:
            headers["Transfer-Encoding"] = "chunked"
            handler.protocol_version = "HTTP/1.1"
        else:
            headers["Content-Length"] = str(len(body))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            body = body[: page.cut]
            if page.chunked:
                body = b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if page.cut is None else b"")
            handler.wfile.write(body)
        handler.close_connection = True


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    with server.httpd.running():
        yield server


@pytest.fixture
def page() -> type[Page]:
    return Page


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing reaches beyond this machine, or reads the user's own cache and token."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)  # where the client looks next


@pytest.fixture
def hub(no_network: None, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the real client talk to a server of ours; returns what puts a repository there."""
    monkeypatch.setattr(constants, "ENDPOINT", http_server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", http_server.url + "/{repo_id}/resolve/{revision}/{filename}")

    def put(hub_id: str, files: dict[str, bytes], *, revision: str = "main") -> None:
        def json_page(content: object) -> Page:
            return Page(json.dumps(content).encode(), headers={"Content-Type": "application/json"})

        api = f"/api/models/{hub_id}"
        blobs = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
        http_server.pages[f"{api}/revision/{revision}"] = json_page({"id": hub_id, "sha": COMMIT, "siblings": []})
        http_server.pages[f"{api}/tree/{COMMIT}"] = json_page(
            [{"type": "file", "path": name, "size": len(files[name]), "oid": blob} for name, blob in blobs.items()]
        )
        for name, content in files.items():
            headers = {"ETag": f'"{blobs[name]}"', "X-Repo-Commit": COMMIT}
            http_server.pages[f"/{hub_id}/resolve/{COMMIT}/{name}"] = Page(content, headers=headers)

    return put


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors as small as those of most tests are slower on several threads."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):  # those of numpy and scikit-learn
        yield
    torch.set_num_threads(number)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU with CUDA; without one, or without the option `--cuda`, the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA, and --cuda")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # which convolutions have by default, with 10 bits of mantissa
    return torch.device("cuda")


@pytest.fixture
def cache_of_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """datasets keeps what it reads in a folder of this test alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client repeats what failed after waiting for up to 8 seconds; here it does not wait."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def hub_server(no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A whole Hub for the real client, in this process and in others (`environment()`); `user` is logged in here."""
    server = HubServer(tmp_path)
    server.add_user("hf_of_the_test", "user")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url)  # of huggingface_hub's functions, which are its methods
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    # The client uploads in a way that the HTTP library it is built on advises against
    warnings.filterwarnings("ignore", "Use 'content=<...>' to upload raw bytes", DeprecationWarning)
    with server.running():
        yield server
    close_session()
    assert not server.unknown
