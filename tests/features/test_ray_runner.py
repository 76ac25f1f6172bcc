"""`vitrail.features.ray_runner`: a Ray cluster gives the rows of one process, even when its processes die."""

import contextlib
import importlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from image_folders import small_model, small_processor, write_broken, write_images

pytest.importorskip("ray.data", exc_type=ImportError)

import ray

from vitrail.data import read_images
from vitrail.errors import VitrailError
from vitrail.features import ray_runner
from vitrail.features.extraction import extract
from vitrail.features.job import Job
from vitrail.features.ray_runner import Pool, Share, choose_pool, run_on_ray
from vitrail.features.store import StoredFeatures
from vitrail.hub.saving import save
from vitrail.runtime.workers import InferenceWorkers

# Ray Data sets options that Ray Data itself has deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def ray_environment():
    """Settings that isolate the Ray of these tests; its files are in a folder with a name short enough for its sockets."""
    folder = tempfile.mkdtemp(prefix="ray-")
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray writes one into the home folder
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": folder,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(ray_environment):
    """A cluster of two cores on this machine."""
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with 30 images and 20 broken ones."""
    folder = tmp_path_factory.mktemp("pictures")
    write_images(folder, 30)
    write_broken(folder)
    return folder


def begun_job(pictures, folder, **options):
    """A job whose folder is ready for it, as `extract` makes it."""
    job = Job(small_model(), small_processor(), read_images(pictures), folder, **{"shard_size": 5, **options})
    folder.mkdir(parents=True)
    job.folder.begin(job.settings)
    return job


@pytest.fixture
def held(http_server, page):
    """Returns the URL of an image that does not come until an event."""
    event = threading.Event()

    def hold(content):
        http_server.pages["/held.jpg"] = page(content, ranges=False, held=event)
        return f"{http_server.url}/held.jpg", event

    yield hold
    event.set()  # closing the server waits for its answers


def assert_same_rows(one, other):
    np.testing.assert_array_equal(one.ids(), other.ids())
    assert one.paths() == other.paths()
    np.testing.assert_allclose(one.vectors(), other.vectors(), atol=1e-6)
    assert one.errors() == other.errors()


def actors():
    """Process ids of the actors of this process's Ray, by the task that Ray reports."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_bytes().partition(b"\0")[0].decode()
            raylet = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            driver = int(Path(f"/proc/{raylet}/stat").read_text().rpartition(")")[2].split()[1])
            if title.startswith("ray::MapWorker") and driver == os.getpid():
                found[int(folder.name)] = title
    return found


def commands_with(text):
    """Commands of running processes in which this occurs."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [command for command in [file.read_bytes().decode(errors="replace")] if text in command]
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the actors' processes in /proc")
def test_two_actors_of_which_one_is_killed_give_the_rows_of_one_process(cluster, pictures, held, no_network, tmp_path, monkeypatch):
    """An image that never comes keeps an actor in the middle of its piece, until the actor is killed."""
    names = [str(path) for path in sorted(pictures.rglob("*.*"))]
    place = next(place for place, name in enumerate(names) if "coffee" in name)
    names[place], come = held(Path(names[place]).read_bytes())
    images = tmp_path / "images.txt"
    images.write_text("\n".join(names))
    killed = []

    def busy_actors():
        return [pid for pid, title in actors().items() if title.endswith(".submit")]

    def kill():
        # The actor that has finished the ninth piece is busy for a moment longer
        while len(list((tmp_path / "out").glob(".progress/chunk-*"))) < 9 or len(busy_actors()) != 1:
            time.sleep(0.05)
        killed.extend(busy_actors())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        come.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    monkeypatch.setattr(ray_runner, "CORES_PER_WORKER", 1)  # so that two cores are two actors
    options = {"shard_size": 5, "progress": False}
    done = extract(small_model(), small_processor(), read_images(images), tmp_path / "out", **options, runner="ray")
    killer.join()
    assert len(killed) == 1
    assert (done.rows, done.errors, done.images) == (30, 20, 50), "what is done again counts once"
    extract(small_model(), small_processor(), read_images(images), tmp_path / "one", **options)
    assert_same_rows(StoredFeatures(tmp_path / "one"), StoredFeatures(tmp_path / "out"))


def test_an_error_of_an_actor_is_that_of_the_run(cluster, pictures, tmp_path):
    """A run that was begun on this machine goes on; its bad images count too."""
    job = begun_job(pictures, tmp_path / "out", max_errors=7)
    job.run(job.missing()[:2])
    assert len(job.missing()) == 8
    with pytest.raises(
        VitrailError,
        match=r"^found 8 unreadable images, more than max_errors=7\. Finished files are kept.* The last is broken/\S+: ",
    ):
        run_on_ray(job, job.missing(), num_errors=4, concurrency=1)
    assert ray.is_initialized(), "a cluster of the caller's goes on"
    assert not list(job.folder.progress.glob("ray-*"))
    assert not list(job.folder.progress.glob("*.part*"))


def test_bad_images_of_all_actors_count_together(cluster, pictures, tmp_path, monkeypatch):
    """With the results of an actor of this process."""

    def results(shared, num_pieces, pool):
        runner = ray_runner.PieceRunner(ray.get(shared))
        return (runner.run(index) for index in range(num_pieces))

    monkeypatch.setattr(ray_runner, "_results", results)
    job = begun_job(pictures, tmp_path / "out", max_errors=12)  # each piece has at most 5
    with pytest.raises(VitrailError, match=r"^found 1\d unreadable images, more than max_errors=12"):
        run_on_ray(job, job.missing(), concurrency=1)


# The messages of an actor, in this process


def share_of(job, mark):
    return Share(job, tuple(job.missing()), 0, mark, Pool(1, 1, 0))


def test_a_machine_that_does_not_see_the_folder_is_named(pictures, tmp_path):
    job = begun_job(pictures, tmp_path / "out")
    result = ray_runner.PieceRunner(share_of(job, tmp_path / "elsewhere")).run(0)
    assert f"cannot find the files in {tmp_path / 'out'}: choose an output folder on a file system" in result["error"]
    assert len(job.missing()) == 10


def test_a_piece_that_kills_its_actors_is_given_up(pictures, tmp_path):
    job = begun_job(pictures, tmp_path / "out")
    (tmp_path / "mark").mkdir()
    runner = ray_runner.PieceRunner(share_of(job, tmp_path / "mark"))
    (tmp_path / "mark" / "0").write_bytes(b"...")
    assert runner.run(0)["error"] == ""
    (tmp_path / "mark" / "1").write_bytes(b"....")
    assert "4 processes of the Ray cluster have died over the images from 5 to 10 of partition 0" in runner.run(1)["error"]


def test_an_actor_ends_with_the_run(pictures, tmp_path, monkeypatch):
    job = begun_job(pictures, tmp_path / "out")
    (tmp_path / "mark").mkdir()
    run = Job.run

    def run_when_the_driver_has_gone(self, *arguments, **options):
        shutil.rmtree(tmp_path / "mark")
        return run(self, *arguments, **options)

    monkeypatch.setattr(Job, "run", run_when_the_driver_has_gone)
    assert "has ended" in ray_runner.PieceRunner(share_of(job, tmp_path / "mark")).run(0)["error"]
    assert len(job.missing()) == 10


def test_a_machine_without_the_package_is_named():
    actor = ray_runner._actor_class()("no_such_package.features", "1.2.3", [])
    assert "has no package no_such_package: install vitrail 1.2.3 with its extra ray on all of them" in actor({"index": 0})["error"]


def test_an_actor_has_as_many_workers_as_cores(pictures, tmp_path, monkeypatch):
    job = begun_job(pictures, tmp_path / "out")
    (tmp_path / "mark").mkdir()
    share = replace(share_of(job, tmp_path / "mark"), pool=Pool(1, 3, 0))
    threads = []

    def run(self, *arguments, **options):
        threads.append(torch.get_num_threads())
        return InferenceWorkers(torch.device("cpu")), 0

    monkeypatch.setattr(Job, "run", run)
    before = torch.get_num_threads()
    ray_runner.PieceRunner(share).run(0)
    torch.set_num_threads(before)
    assert threads == [3]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_without_a_cluster_is_reported_immediately(pictures, tmp_path, monkeypatch, address):
    job = begun_job(pictures, tmp_path / "out")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", pytest.fail)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(VitrailError, match=f"no Ray cluster responds at RAY_ADDRESS={address} .*: start it, or unset RAY_ADDRESS"):
        run_on_ray(job, job.missing())


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, ray_runner.__name__)
    with pytest.raises(VitrailError, match=r'pip install "\.\[ray\]"'):
        importlib.import_module(ray_runner.__name__)


# The actors that a cluster has room for


@pytest.mark.parametrize(
    ("nodes", "concurrency", "num_pieces", "pool"),
    [
        ([{"CPU": 2}], None, 10, Pool(1, 2, 0)),
        ([{"CPU": 2}], 2, 10, Pool(2, 1, 0)),
        ([{"CPU": 2}], 5, 10, Pool(2, 1, 0)),
        ([{"CPU": 64}], None, 100, Pool(8, 8, 0)),
        ([{"CPU": 64}], None, 2, Pool(2, 32, 0)),
        ([{"CPU": 64}], 1, 100, Pool(1, 64, 0)),
        ([{"CPU": 16}, {"CPU": 4}, {"memory": 1e9}, {"CPU": 0}], None, 100, Pool(5, 4, 0)),
        ([{"CPU": 16}, {"CPU": 16}], 3, 100, Pool(3, 8, 0)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 96, "GPU": 8}, {"CPU": 64}], None, 100, Pool(12, 8, 1)),
        ([{"CPU": 32, "GPU": 4}], 2, 100, Pool(2, 8, 1)),
        ([{"CPU": 32, "GPU": 4}], None, 3, Pool(3, 8, 1)),
        ([{"GPU": 1}], None, 3, Pool(1, 0, 1)),
    ],
)
def test_pool(nodes, concurrency, num_pieces, pool):
    assert choose_pool(nodes, concurrency=concurrency, num_pieces=num_pieces) == pool


def test_a_cluster_without_room_is_an_error():
    with pytest.raises(VitrailError, match="neither GPUs nor CPU cores"):
        choose_pool([{"memory": 1e9}], concurrency=None, num_pieces=1)


# The command, in a separate process


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's processes in /proc")
def test_ctrl_c_ends_the_command_and_its_ray_and_the_rest_is_done_later(cluster, held, no_network, tmp_path):
    model, image_processor = small_model(), small_processor()
    save(model, image_processor, tmp_path / "model", code=False)
    names = [str(tmp_path / "pictures" / name) for name in write_images(tmp_path / "pictures", 13)]
    names[-1], come = held(Path(names[-1]).read_bytes())
    images = tmp_path / "images.txt"
    images.write_text("\n".join(names))
    ray_folder = tempfile.mkdtemp(prefix="ray-")
    words = ["extract", tmp_path / "model", images, tmp_path / "out", "--shard-size", "4", "--runner", "ray"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vitrail", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_TMPDIR": ray_folder},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background may ignore the signal
    )
    while process.poll() is None and len(list((tmp_path / "out").glob(".progress/chunk-*"))) < 3:
        time.sleep(0.05)
    assert commands_with(ray_folder)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert not commands_with(ray_folder)
    shutil.rmtree(ray_folder)

    come.set()
    options = {"shard_size": 4, "progress": False}
    done = extract(model, image_processor, read_images(images), tmp_path / "out", **options)
    assert (done.rows, done.images) == (13, 1)
    extract(model, image_processor, read_images(images), tmp_path / "one", **options)
    assert_same_rows(StoredFeatures(tmp_path / "one"), StoredFeatures(tmp_path / "out"))
