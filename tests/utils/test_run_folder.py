import json
import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from vitrail.errors import VitrailError
from vitrail.utils import locks
from vitrail.utils.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "out" / "model.run")


def test_a_second_run_is_refused_until_the_first_ends(folder):
    with folder.lock():
        folder.begin({}, has_results=False)
        with pytest.raises(VitrailError, match=r"model\.run is in use by another run"), RunFolder(folder.path).lock():
            pass
    with RunFolder(folder.path).lock():
        pass


def test_nothing_is_left_of_a_run_that_did_not_begin(folder):
    with pytest.raises(ZeroDivisionError), folder.lock():
        1 / 0  # noqa: B018
    assert not folder.path.exists()
    folder.path.mkdir(parents=True)
    folder.lock_file.touch()  # of a run that was killed before it began
    with folder.lock():
        pass
    assert not folder.path.exists()


def test_the_folder_of_a_run_that_began_stays(folder):
    with folder.lock():
        folder.begin({"seed": 0}, has_results=False)
    assert json.loads(folder.settings_file.read_text()) == {"seed": 0}


def test_files_of_others_stay(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "thesis.tex").touch()
    folder = RunFolder(tmp_path, settings_name="manifest.json", temporary_names=[".progress"])
    with folder.lock():
        (tmp_path / ".progress").mkdir()
        (tmp_path / ".progress" / "chunk").touch()
    assert {path.name for path in tmp_path.iterdir()} == {".git", "thesis.tex"}


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere"), lambda path: None])
def test_what_is_no_folder_to_write_into(tmp_path, monkeypatch, make):
    make(tmp_path / "out")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # tests may run as root, who may write everywhere
    with (
        pytest.raises(VitrailError, match=r"cannot write into .*out: it is (not a folder|read-only)\. Choose the name of a folder"),
        RunFolder(tmp_path / "out").lock(),
    ):
        pass


def test_an_empty_folder_of_the_user_stays(tmp_path):
    with RunFolder(tmp_path).lock():
        pass
    assert not any(tmp_path.iterdir())


def test_a_run_continues_with_the_settings_it_was_begun_with(folder):
    folder.path.mkdir(parents=True)
    folder.begin({"seed": 0, "sizes": (1, 2), "lr": 0.1}, has_results=False)
    folder.begin({"seed": 0, "sizes": (1, 2), "lr": 0.1}, has_results=True)
    with pytest.raises(
        VitrailError,
        match=r"begun with different settings \(seed was 0, is 1; lr was 0.1, is 0.2\): repeat the run with the same settings",
    ):
        folder.begin({"seed": 1, "sizes": [1, 2], "lr": 0.2}, has_results=True)
    assert json.loads(folder.settings_file.read_text())["seed"] == 0


def test_without_results_any_settings_may_begin(folder):
    folder.path.mkdir(parents=True)
    folder.begin({"seed": 0}, has_results=False)
    folder.begin({"seed": 1}, has_results=False)
    folder.begin({"seed": 1}, has_results=True)


def test_results_of_unknown_settings_are_refused(folder):
    folder.path.mkdir(parents=True)
    with pytest.raises(VitrailError, match=r"different settings \(seed was not recorded, is None\)"):
        folder.begin({"seed": None}, has_results=True)


def test_damaged_settings_name_the_folder_to_remove(folder):
    folder.path.mkdir(parents=True)
    folder.settings_file.write_text("{")
    with pytest.raises(VitrailError, match=f"run.json is not valid JSON .*: remove the folder {folder.path} to start over"):
        folder.begin({"seed": 0}, has_results=True)


def test_ignored_settings_may_differ(tmp_path):
    folder = RunFolder(tmp_path, ignored_settings=["version"])
    folder.check_settings({"version": 2, "seed": 0}, {"version": 1, "seed": 0})
    with pytest.raises(VitrailError, match=r"\(seed was 1, is 0\)"):
        folder.check_settings({"version": 2, "seed": 0}, {"version": 1, "seed": 1})


def test_a_run_that_waits_says_so_and_finds_the_folder_again(folder, monkeypatch, caplog):
    monkeypatch.setattr(locks, "PATIENCE", 0.01)
    entered = threading.Event()

    def wait() -> None:
        with RunFolder(folder.path).lock(wait=True):
            folder.begin({"seed": 1}, has_results=False)
            entered.set()

    waiting = threading.Thread(target=wait)
    with folder.lock():
        waiting.start()
        assert not entered.wait(0.2)
    waiting.join(10)
    assert caplog.messages == [f"waiting for another process that writes to {folder.path}"]
    assert folder.settings_file.is_file()
    with FileLock(folder.lock_file, timeout=0):
        pass


def test_remove(folder):
    with folder.lock():
        folder.begin({}, has_results=False)
        folder.remove()
    assert not folder.path.exists()
