import os

import pytest
import torch
from safetensors.torch import save_file

from vitrail.errors import CorruptFileError, VitrailError
from vitrail.utils.atomic import check_new, read_json, replaced, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("old")
    with replaced(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.name.startswith(".")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replaced(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_lies_where_it_is_asked_for(tmp_path):
    (tmp_path / "progress").mkdir()
    with replaced(tmp_path / "file", temporary_dir=tmp_path / "progress") as temporary:
        assert temporary.parent == tmp_path / "progress"
        temporary.touch()
    assert (tmp_path / "file").exists()


def test_text_has_the_same_line_ends_everywhere_and_any_file_name(tmp_path):
    write_text(tmp_path / "text", "é\n\udcff\n")
    assert (tmp_path / "text").read_bytes() == "é\n\\udcff\n".encode()


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"path": "é\udcff", "numbers": [1, 0.5, None]}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[]", "holds a list; expected an object")])
def test_other_content_is_refused(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(CorruptFileError, match=message):
        read_json(tmp_path / "file.json")


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "file.json")
    with pytest.raises(VitrailError, match=r"file\.json is a named pipe; expected a file"):
        read_json(tmp_path / "file.json")


def test_a_file_has_the_mode_of_new_files(tmp_path):
    with replaced(tmp_path / "features.safetensors") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)  # which makes private files
    (tmp_path / "new").touch()
    assert (tmp_path / "features.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_what_exists_is_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(VitrailError, match="a exists already: remove it, or give another name"):
        check_new(tmp_path / "a", tmp_path / "b")
