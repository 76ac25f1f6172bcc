"""Models load from the Hub by name, at any revision, from the cache the second time. Failures have clear messages."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import vitrail
from command_line import end_of
from hub_server import Fault
from small_models import tiny_config
from vitrail.errors import DownloadError, SourceNotFoundError

PIXEL_VALUES = torch.linspace(-1, 1, 3 * 16 * 24).reshape(1, 3, 16, 24)


@pytest.fixture
def make_files(tmp_path):
    """Return a function that makes the files of a classifier on the Hub, and its expected outputs."""

    def make(seed=0):
        torch.manual_seed(seed)
        model = vitrail.ViTForImageClassification(tiny_config(num_labels=5)).eval()
        torch.nn.init.normal_(model.classifier.weight)
        folder = tmp_path / f"model-{seed}"
        vitrail.save(model, vitrail.make_image_processor("dino", image_size=32), folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}, logits(model)

    return make


def logits(model):
    with torch.no_grad():
        return model(PIXEL_VALUES).logits


def assert_same(output, expected):
    """The tolerance covers rounding: transformers maps files into memory, and another alignment may change the order of sums."""
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


def fetched(hub_server):
    return {request.path.rpartition("/")[2] for request in hub_server.asked("GET", "/resolve/")}


# Successful pulls -----------------------------------------------------------------------------------------------------------


def test_every_revision(hub_server, make_files):
    models = [make_files(seed) for seed in range(3)]
    commit = hub_server.put("user/name", models[0][0])
    repository = hub_server.repositories["user/name"]
    repository.add("refs/tags/v1", repository.commit())
    hub_server.put("user/name", models[1][0], revision="tries/second")
    hub_server.put("user/name", models[2][0])
    for revision, (_, expected) in {None: models[2], "v1": models[0], commit: models[0], "tries/second": models[1]}.items():
        model, image_processor, report = vitrail.load("user/name", revision=revision)
        assert_same(logits(model), expected)
        assert report.source.hub_id == "user/name"
        classifier = AutoModelForImageClassification.from_pretrained("user/name", revision=revision)
        assert type(classifier) is vitrail.ViTForImageClassification
        assert_same(logits(classifier), expected)
        encoder = AutoModel.from_pretrained("user/name", revision=revision)
        with torch.no_grad():
            assert_same(encoder(PIXEL_VALUES).last_hidden_state, model.vit(PIXEL_VALUES).last_hidden_state)
        assert AutoImageProcessor.from_pretrained("user/name", revision=revision).to_dict() == image_processor.to_dict()


def test_only_what_is_needed_is_fetched_and_only_once(hub_server, make_files):
    files, _ = make_files()
    hub_server.put("user/name", {**files, "training/optimizer.bin": b"large"})
    vitrail.load("user/name")
    assert fetched(hub_server) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    hub_server.requests.clear()
    vitrail.load("user/name")
    AutoModel.from_pretrained("user/name")
    AutoImageProcessor.from_pretrained("user/name")
    assert fetched(hub_server) == set()

    config = json.loads(files["config.json"]) | {"label2id": None, "id2label": dict(enumerate("abcde"))}
    hub_server.put("user/name", {"config.json": json.dumps(config).encode()})
    assert vitrail.load("user/name")[0].config.id2label[4] == "e"
    assert fetched(hub_server) == {"config.json"}


def test_a_private_repository(hub_server, make_files, monkeypatch):
    files, expected = make_files()
    hub_server.put("user/name", files)
    hub_server.repositories["user/name"].private = True
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SourceNotFoundError):
        vitrail.load("user/name")
    assert_same(logits(vitrail.load("user/name", token="hf_of_the_test")[0]), expected)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-2")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    assert_same(logits(vitrail.load("user/name")[0]), expected)


# Failing pulls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_of_refusals(hub_server, make_files):
    files, _ = make_files()
    for name in ("public", "private", "gated"):
        hub_server.put(f"user/{name}", files)
    hub_server.repositories["user/private"].private = True
    hub_server.repositories["user/gated"].gated = True
    hub_server.add_user("hf_other", "other")
    return hub_server


@pytest.mark.parametrize(
    ("name", "token", "error", "message"),
    [
        ("public", "hf_wrong", DownloadError, "Invalid credentials in Authorization header.*Your token is not valid"),
        ("private", "hf_other", SourceNotFoundError, "'user/private' is not .* that you can access. For a private repository"),
        ("private", None, SourceNotFoundError, "'user/private' is not .* log in with an account that has access"),
        ("none", "hf_other", SourceNotFoundError, "'user/none' is not a file, a folder"),
        ("none", None, SourceNotFoundError, "'user/none' is not a file, a folder"),
        ("gated", "hf_other", DownloadError, "user/gated is gated: accept its terms at http://.*/user/gated"),
        ("gated", None, DownloadError, "user/gated is gated: accept its terms at .*`hf auth login`"),
    ],
)
def test_refusals(name, token, error, message, hub_of_refusals, monkeypatch):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(error, match=message):
        vitrail.load(f"user/{name}")


def test_a_token_of_the_caller(hub_of_refusals):
    """A token and a cache folder are accepted like in transformers."""
    with pytest.raises(SourceNotFoundError):
        vitrail.load("user/private", token="hf_other")
    vitrail.load("user/private", token="hf_of_the_test", cache_dir=hub_of_refusals.folder / "elsewhere")
    assert (hub_of_refusals.folder / "elsewhere" / "models--user--private").is_dir()


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_no_such_revision(revision, hub_of_refusals):
    with pytest.raises(SourceNotFoundError, match=f"/user/public has no revision '{revision}'"):
        vitrail.load("user/public", revision=revision)


@pytest.mark.parametrize(
    ("path", "fault", "message"),
    [
        ("/api/models/user/public", {"status": 503}, "could not be downloaded.*503 Service Unavailable.*Try again later"),
        (
            "/api/models/user/public",
            {"status": 403},
            "could not be downloaded.*403 Forbidden.*Your token has no permission to read it",
        ),
        ("/resolve/.*safetensors", {"status": 500}, "500 Internal Server Error"),
        ("/resolve/.*safetensors", {"after": 100}, "peer closed connection"),
    ],
)
def test_a_hub_in_trouble(path, fault, message, hub_of_refusals, impatient):
    """Nothing of what came is taken for a model, and the next try succeeds."""
    hub_of_refusals.faults.append(Fault("GET", path, times=20, **fault))
    with pytest.raises(DownloadError, match=message):
        vitrail.load("user/public")
    hub_of_refusals.faults.clear()
    vitrail.load("user/public")


# Other processes ------------------------------------------------------------------------------------------------------

OFFLINE = """
import sys, torch, vitrail
from transformers import AutoImageProcessor, AutoModelForImageClassification
from vitrail.cli.app import main

pixel_values = torch.load(sys.argv[1])
models = vitrail.load("user/name")[0], AutoModelForImageClassification.from_pretrained("user/name")
AutoImageProcessor.from_pretrained("user/name")
with torch.no_grad():
    torch.save([model(pixel_values).logits for model in models], sys.argv[2])
sys.argv = ["vitrail", "info", "user/other"]
main()
"""


def python(*words, environment, folder):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env={**os.environ, **environment}, cwd=folder)


def test_offline_after_one_pull(hub_server, make_files, tmp_path):
    """The repository is private and the token is in HF_TOKEN: the environment is read when the client is imported."""
    files, expected = make_files()
    for name in ("name", "other"):
        hub_server.put(f"user/{name}", files)
        hub_server.repositories[f"user/{name}"].private = True
    environment = hub_server.environment("hf_of_the_test")
    pulled = python("-m", "vitrail", "info", "user/name", environment=environment, folder=tmp_path)
    assert (pulled.returncode, pulled.stderr) == (0, "")
    assert "ViTForImageClassification, float32, from a vitrail checkpoint" in pulled.stdout

    hub_server.requests.clear()
    torch.save(PIXEL_VALUES, tmp_path / "pixel_values.pt")
    arguments = [tmp_path / "pixel_values.pt", tmp_path / "logits.pt"]
    offline = python("-c", OFFLINE, *arguments, environment={**environment, "HF_HUB_OFFLINE": "1"}, folder=tmp_path)
    assert offline.returncode == 2, offline.stderr
    assert offline.stderr.splitlines()[-1] == (
        "vitrail: user/other is not complete in the cache, and HF_HUB_OFFLINE is set: unset it to download the files."
    )
    assert "Traceback" not in offline.stderr
    for output in torch.load(tmp_path / "logits.pt"):
        assert_same(output, expected)
    assert hub_server.requests == []


def test_a_refusal_at_the_command_line(hub_of_refusals, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert end_of("info", "user/gated") == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("vitrail: user/gated is gated: accept its terms at")
    assert error.count("\n") == 1
