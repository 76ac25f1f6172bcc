"""Folders are complete or absent, wherever the process that writes them dies."""

import os
import shutil
import threading

import pytest

from vitrail.errors import VitrailError
from vitrail.utils.folders import check_writable, interrupted, move_into_place, temporary_folder

CALLS = ("rename", "unlink", "rmdir", "link")


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(output, version):
    """Replace a folder by one with two files of a version."""
    with temporary_folder(output) as temporary:
        for name in ("config", "weights"):
            (temporary / name).write_text(version)
        move_into_place(temporary, output, keeps=lambda name: name not in ("config", "weights"))


def die_at(number, action):
    """Run `action` in another process, which dies just before one of its calls to the file system; return whether it came so far."""
    child = os.fork()
    if not child:
        made = 0

        def counted(call):
            def wrapper(*args, **kwargs):
                nonlocal made
                made += 1
                if made == number:
                    os._exit(9)
                return call(*args, **kwargs)

            return wrapper

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_process_that_dies_leaves_the_old_folder_or_the_new_one(tmp_path):
    output, others = tmp_path / "model", {"mine": "mine", "runs/log": "mine"}
    number, seen = 1, set()
    while True:
        shutil.rmtree(tmp_path)
        (output / "runs").mkdir(parents=True)
        for name, text in ({"config": "old", "weights": "old"} | others).items():
            (output / name).write_text(text)
        died = die_at(number, lambda: write(output, "new"))
        left = interrupted(output)
        assert (left is None) == output.exists()
        found = content(left or output)
        version = found["config"]
        assert found == {"config": version, "weights": version} | others, f"a mixture after call {number}"
        seen.add((version, left is None))
        write(output, "next")
        assert content(output) == {"config": "next", "weights": "next"} | others
        assert os.listdir(tmp_path) == ["model"], f"something is left after call {number}"
        if not died:
            break
        number += 1
    assert seen == {("old", True), ("old", False), ("new", True)}
    assert number > 8


def test_what_another_process_is_writing_stays(tmp_path):
    entered, go = threading.Event(), threading.Event()

    def slow():
        with temporary_folder(tmp_path / "model") as temporary:
            (temporary / "config").write_text("slow")
            entered.set()
            go.wait(10)
            move_into_place(temporary, tmp_path / "model", keeps=lambda name: False)

    first = threading.Thread(target=slow)
    second = threading.Thread(target=write, args=(tmp_path / "model", "second"))
    first.start()
    entered.wait(10)
    second.start()
    second.join(0.1)
    assert not (tmp_path / "model").exists()
    go.set()
    first.join(10)
    second.join(10)
    assert content(tmp_path / "model") == {"config": "second", "weights": "second"}
    assert os.listdir(tmp_path) == ["model"]


def test_nothing_stays_of_a_temporary_folder(tmp_path):
    output = tmp_path / "new" / "model"
    with temporary_folder(output) as folder:
        assert folder.parent == output.parent
        (folder / "model").mkdir()
        (folder / "rest").touch()
        (folder / "model").rename(output)
    assert list(output.parent.iterdir()) == [output]


def test_an_old_folder_with_another_successor_is_not_removed(tmp_path):
    for name in ("model", ".model.vitrail-old", ".model.vitrail-new"):
        (tmp_path / name).mkdir()
    with pytest.raises(VitrailError, match=r"\.model\.vitrail-old is the earlier .*model, left by a run"):
        write(tmp_path / "model", "new")
    assert (tmp_path / ".model.vitrail-old").exists()
    assert not (tmp_path / ".model.vitrail-lock").exists()


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    write(tmp_path / "model", "old")
    rename = os.rename

    def refused(source, target):
        if str(source).endswith("new"):
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(PermissionError):
        write(tmp_path / "model", "new")
    assert content(tmp_path / "model") == {"config": "old", "weights": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_files_have_the_mode_of_new_files_and_the_folder_its_own(tmp_path):
    (tmp_path / "model").mkdir(mode=0o700)
    (tmp_path / "model" / "mine").touch(mode=0o600)
    with temporary_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch(mode=0o600)
        move_into_place(temporary, tmp_path / "model", keeps=lambda name: True)
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {"weights": (tmp_path / "new").stat().st_mode & 0o777, "mine": 0o600}
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o700


def test_files_that_were_being_written_are_not_kept(tmp_path):
    write(tmp_path / "model", "old")
    for name in (".results.0123abcd.part.json", ".env.party", ".part"):
        (tmp_path / "model" / name).touch()
    write(tmp_path / "model", "new")
    assert content(tmp_path / "model").keys() == {"config", "weights", ".env.party", ".part"}


def test_an_output_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(VitrailError, match="file is a file; expected the name of a folder"):
        check_writable(tmp_path / "file")
    with pytest.raises(VitrailError, match=r"cannot be written, because .*file is not a folder"):
        check_writable(tmp_path / "file" / "below" / "model")
    with pytest.raises(VitrailError, match="is a mount point"):
        check_writable(tmp_path.__class__("/proc"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a test may run as root, whom nothing is refused
    with pytest.raises(VitrailError, match=f"because {tmp_path} is not a folder that you may write to"):
        check_writable(tmp_path / "new" / "model")
    assert os.listdir(tmp_path) == ["file"]
