"""`vitrail.features.extraction`: the rows, and that nothing is lost."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

import forked
from command_line import end_of
from image_folders import broken_files, small_model, small_processor, write_broken, write_images
from vitrail.data import read_images
from vitrail.errors import CorruptFileError, VitrailError
from vitrail.features import extraction, inference, store
from vitrail.features.extraction import extract, run_job
from vitrail.features.job import Job
from vitrail.features.store import ChunkWriter, FeatureFolder, StoredFeatures
from vitrail.hub.saving import save
from vitrail.processing.resizing import keep_aspect


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with 30 images and 20 broken ones, and the paths of both."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, write_images(folder, 30), write_broken(folder)


@pytest.fixture(scope="module")
def tars(pictures, tmp_path_factory):
    """Return the files of `pictures` as WebDataset shards of 20."""
    folder, good, bad = pictures
    output = tmp_path_factory.mktemp("tars")
    names = sorted(good + bad)
    for number in range(3):
        with tarfile.open(output / f"{number:02d}.tar", "w") as tar:
            for index, name in enumerate(names[number * 20 : number * 20 + 20]):
                tar.add(folder / name, f"{index:03d}.{name.rpartition('.')[2]}")
    return output


def run(source, output, model=None, image_processor=None, **options):
    source = read_images(source) if isinstance(source, str | os.PathLike) else source
    return extract(model or small_model(), image_processor or small_processor(), source, output, progress=False, **options)


def files_of(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_by_path(folder, column="pooled"):
    stored = StoredFeatures(folder)
    return dict(zip(stored.paths(), stored.vectors(column), strict=True))


def test_rows_are_what_the_model_gives_for_each_image(pictures, tmp_path):
    folder, good, bad = pictures
    model, image_processor = small_model(), small_processor()
    feature_types = ["pooled", "mean", "cls+mean", "patches", "layers=0,1"]
    done = run(folder, tmp_path / "out", model, image_processor, features=feature_types, shard_size=16, batch_size=4)
    assert (done.rows, done.errors, done.images) == (30, 20, 50)

    table = pq.read_table(tmp_path / "out" / "data").to_pydict()
    assert table["path"] == good
    assert table["label"] == [name.partition("/")[0] for name in good]
    assert table["id"] == sorted(table["id"])
    for row, name in enumerate(good):
        with torch.no_grad():
            outputs = model(**image_processor(str(folder / name), return_tensors="pt"), output_hidden_states=True)
        patches = outputs.last_hidden_state[0, 1:]
        wanted = {
            "pooled": outputs.pooler_output[0],
            "mean": patches.mean(dim=0),
            "cls_mean": torch.cat((outputs.last_hidden_state[0, 0], patches.mean(dim=0))),
            "patches": patches.reshape(4, 4, -1),
            "layers": model.layernorm(torch.stack(outputs.hidden_states[1:])[:, 0, 0]),
        }
        for column, tensor in wanted.items():
            stored = np.array(table[column][row], dtype=np.float32).reshape(table.get(f"{column}_shape", {row: -1})[row])
            np.testing.assert_allclose(stored, tensor.detach().numpy(), atol=1e-6)

    errors = pq.read_table(tmp_path / "out" / "errors.parquet").to_pydict()
    assert errors["path"] == bad
    assert all(errors["reason"])
    assert not set(errors["id"]) & set(table["id"])


def test_a_folder_that_was_not_copied_as_a_whole(pictures, tmp_path):
    run(pictures[0], tmp_path / "out", shard_size=7)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest | {"rows": 10**30}))
    with pytest.raises(
        CorruptFileError, match=r"manifest\.json counts 10+ rows, and \d+ in its files: copy the whole folder again"
    ):
        StoredFeatures(tmp_path / "out")
    (tmp_path / "out" / manifest["shards"][0]["file"]).unlink()
    with pytest.raises(CorruptFileError, match=r"part-000000-000000\.parquet is missing: copy the whole folder again"):
        StoredFeatures(tmp_path / "out")


def test_other_tools_read_the_folder_as_it_is(pictures, tmp_path):
    folder, good, bad = pictures
    run(folder, tmp_path / "out", shard_size=7)
    stored = StoredFeatures(tmp_path / "out")
    assert stored.vector_columns == ("pooled",)
    vectors = stored.vectors()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for shard in manifest["shards"]:
        if shard["file"]:
            path = tmp_path / "out" / shard["file"]
            assert path.stat().st_size == shard["bytes"]
            digest = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
            assert digest == shard["sha256"]
            assert pq.read_metadata(path).num_rows == shard["rows"]

    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["pooled"] == datasets.List(datasets.Value("float32"), length=32)
    np.testing.assert_array_equal(loaded.with_format("numpy")["pooled"][:], vectors)
    errors = datasets.load_dataset(str(tmp_path / "out"), "errors", split="train", cache_dir=str(tmp_path / "cache"))
    assert errors["path"][:] == bad
    rows = duckdb.sql(f"select path, label, pooled from '{tmp_path / 'out' / 'data'}/*.parquet' order by id").fetchall()
    assert [row[0] for row in rows] == good
    np.testing.assert_array_equal(np.array([row[2] for row in rows], dtype=np.float32), vectors)


def test_float16_halves_the_files(pictures, tmp_path):
    run(pictures[0], tmp_path / "single")
    run(pictures[0], tmp_path / "half", dtype="float16")
    single, half = StoredFeatures(tmp_path / "single").vectors(), StoredFeatures(tmp_path / "half").vectors()
    np.testing.assert_array_equal(half, single.astype(np.float16))
    assert pq.read_schema(tmp_path / "half" / "data" / "part-000000-000000.parquet").field("pooled").type.value_type == "halffloat"
    assert duckdb.sql(f"select pooled[1] from '{tmp_path / 'half' / 'data'}/*.parquet' order by id").fetchall()[0] == (half[0, 0],)


def test_features_too_large_for_float16_are_refused(pictures, tmp_path):
    model = small_model()
    with torch.no_grad():
        model.layernorm.weight *= 1e6
    with pytest.raises(VitrailError, match=r"pooled features of .*\.jpg contain NaN or inf in float16: use dtype float32"):
        run(pictures[0], tmp_path / "out", model, dtype="float16")
    run(pictures[0], tmp_path / "out32", model)


def test_images_keep_their_shape_and_run_with_others_of_it(tmp_path):
    names = write_images(tmp_path / "pictures", 40, sizes=((64, 48), (48, 64), (90, 30), (64, 64)))
    model = small_model()
    image_processor = keep_aspect(small_processor(), model.config.patch_shape)
    run(tmp_path / "pictures", tmp_path / "out", model, image_processor, features=["patches"], batch_size=4)
    table = pq.read_table(tmp_path / "out" / "data").to_pydict()
    assert table["path"] == names
    assert {tuple(shape) for shape in table["patches_shape"]} == {(4, 5, 32), (5, 4, 32), (4, 12, 32), (4, 4, 32)}
    for row in (0, 1, 2, 3, 39):
        with torch.no_grad():
            outputs = model(**image_processor(str(tmp_path / "pictures" / names[row]), return_tensors="pt"))
        np.testing.assert_allclose(table["patches"][row], outputs.last_hidden_state[0, 1:].flatten(), atol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_and_batches_change_nothing(pictures, tmp_path, num_workers):
    folder, *_ = pictures
    run(folder, tmp_path / "one")
    run(folder, tmp_path / "other", num_workers=num_workers, batch_size=3)
    one, other = StoredFeatures(tmp_path / "one"), StoredFeatures(tmp_path / "other")
    assert one.paths() == other.paths()
    np.testing.assert_allclose(one.vectors(), other.vectors(), atol=1e-6)
    assert one.errors() == other.errors()


def test_archives_give_the_rows_of_the_folder(pictures, tars, tmp_path):
    run(pictures[0], tmp_path / "folder")
    done = run(tars, tmp_path / "tars", shard_size=6)
    assert (done.rows, done.errors) == (30, 20)
    np.testing.assert_allclose(
        StoredFeatures(tmp_path / "tars").vectors(), StoredFeatures(tmp_path / "folder").vectors(), atol=1e-6
    )
    names = sorted(path.name for path in (tmp_path / "tars" / "data").iterdir())
    assert names[-1] == "part-000002-000001.parquet", "each archive is a partition, and 10 images are two files"


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(pictures, tars, tmp_path, monkeypatch, kind):
    """Whichever file it was at."""
    source = pictures[0] if kind == "folder" else tars
    run(source, tmp_path / "whole", shard_size=6)
    whole = files_of(tmp_path / "whole")
    compute, interruptions = inference.compute_batch, 0
    for allowed in range(1, 20, 3):  # batches
        left = iter(range(allowed))

        def break_off(compiled, pixel_values, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return compute(compiled, pixel_values)

        monkeypatch.setattr(inference, "compute_batch", break_off)
        try:
            run(source, tmp_path / "out", shard_size=6)
        except KeyboardInterrupt:
            interruptions += 1
            assert not list((tmp_path / "out" / ".progress").glob("*.part*")), "nothing half-written stays"
            with pytest.raises(VitrailError, match="unfinished features: run the same"):
                StoredFeatures(tmp_path / "out")
        monkeypatch.setattr(inference, "compute_batch", compute)
    done = run(source, tmp_path / "out", shard_size=6)
    assert interruptions > 1
    assert files_of(tmp_path / "out") == whole
    assert done.rows == 30


@pytest.mark.parametrize("lost", [[0], [1], [3], [0, 2], [1, 3]])
def test_lost_files_of_an_archive_are_made_again(tars, tmp_path, lost):
    """The location of the files does not matter, and the manifest is the same."""
    run(tars, tmp_path / "out", shard_size=5)
    whole = files_of(tmp_path / "out")
    for number in lost:
        (tmp_path / "out" / "data" / f"part-000001-{number:06d}.parquet").unlink(missing_ok=True)
    run(tars, tmp_path / "out", shard_size=5)
    assert files_of(tmp_path / "out") == whole


def test_the_end_of_an_archive_is_found_again(tars, tmp_path, monkeypatch):
    """A run may end between the last file and the note that this file is the last."""
    run(tars, tmp_path / "out", shard_size=6)
    whole = files_of(tmp_path / "out")

    def end_partition(self, partition, num_rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FeatureFolder, "end_partition", end_partition)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run(tars, tmp_path / "other", shard_size=6)
    run(tars, tmp_path / "other", shard_size=6)
    assert files_of(tmp_path / "other") == whole


@pytest.mark.parametrize("kind", ["folder", "tars"])
def test_a_run_may_end_at_any_renaming(pictures, tars, tmp_path, monkeypatch, kind):
    """The run ends when a file appears, and just before."""
    source = pictures[0] if kind == "folder" else tars
    run(source, tmp_path / "whole", shard_size=10)
    whole = files_of(tmp_path / "whole")
    replace = Path.replace
    for after in (False, True):
        for allowed in range(0, 40, 3):
            output, left = tmp_path / f"{after}-{allowed}", iter(range(allowed))

            def break_off(path, target, left=left, after=after):
                last = next(left, None) is None
                if last and not after:
                    raise KeyboardInterrupt
                replaced = replace(path, target)
                if last:
                    raise KeyboardInterrupt
                return replaced

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", break_off)
                with contextlib.suppress(KeyboardInterrupt):
                    run(source, output, shard_size=10)
            run(source, output, shard_size=10)
            assert files_of(output) == whole


def test_files_that_have_turned_bad_leave_no_rows(tmp_path):
    """The run ended between a file and its record."""
    names = write_images(tmp_path / "pictures", 6)
    job = Job(small_model(), small_processor(), read_images(tmp_path / "pictures"), tmp_path / "out", shard_size=2)
    (tmp_path / "out").mkdir()
    job.folder.begin(job.settings)
    job.run(job.missing())
    (record,) = job.folder.progress.glob("chunk-*-000001.json")
    record.unlink()
    for name in names[2:4]:
        (tmp_path / "pictures" / name).write_bytes(b"")
    done = run(tmp_path / "pictures", tmp_path / "out", shard_size=2)
    assert (done.rows, done.errors, done.images) == (4, 2, 2)
    assert len(pq.read_table(tmp_path / "out" / "data")) == 4


def test_nothing_of_a_file_is_held_once_it_is_decoded(tars, tmp_path, monkeypatch):
    contents = []
    add, add_unreadable = ChunkWriter.add, ChunkWriter.add_unreadable
    monkeypatch.setattr(
        ChunkWriter, "add", lambda self, entries, features: contents.extend(entries) or add(self, entries, features)
    )
    monkeypatch.setattr(
        ChunkWriter,
        "add_unreadable",
        lambda self, unreadable: contents.append(unreadable.entry) or add_unreadable(self, unreadable),
    )
    run(tars, tmp_path / "out")
    assert len(contents) == 50
    assert {entry.content for entry in contents} == {None}


def test_an_image_of_a_rare_shape_does_not_hold_up_the_others(tmp_path, monkeypatch):
    write_images(tmp_path / "pictures" / "a", 1, sizes=((90, 30),))
    write_images(tmp_path / "pictures" / "b", 200)
    held, most = store.ROW_GROUP, 0
    write = ChunkWriter._write

    def watch(self):
        nonlocal most
        most = max(most, len(self.rows))
        write(self)

    monkeypatch.setattr(store, "ROW_GROUP", 1)
    monkeypatch.setattr(ChunkWriter, "_write", watch)
    run(tmp_path / "pictures", tmp_path / "out", image_processor=keep_aspect(small_processor(), 8), batch_size=2)
    assert len(StoredFeatures(tmp_path / "out")) == 201
    assert 2 <= most <= 20 < held


def test_finished_files_are_not_made_again_but_lost_and_damaged_ones_are(pictures, tmp_path):
    run(pictures[0], tmp_path / "out", shard_size=10)
    whole = files_of(tmp_path / "out")
    assert run(pictures[0], tmp_path / "out", shard_size=10).images == 0
    assert files_of(tmp_path / "out") == whole
    (tmp_path / "out" / "data" / "part-000000-000003.parquet").unlink()
    cut = tmp_path / "out" / "data" / "part-000000-000000.parquet"
    cut.write_bytes(cut.read_bytes()[:-10])
    flipped = tmp_path / "out" / "data" / "part-000000-000004.parquet"
    content = bytearray(flipped.read_bytes())
    content[100] ^= 1
    flipped.write_bytes(content)
    assert run(pictures[0], tmp_path / "out", shard_size=10).images == 30
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"features": ["mean"]}, r"features was \['pooled'\], is \['mean'\]"),
        ({"dtype": "float16"}, "dtype was float32, is float16"),
        ({"shard_size": 11}, "shard_size was 10, is 11"),
        ({"model": small_model(initializer_range=0.3)}, "weights was .*…, is .*…; config.initializer_range was 0.2, is 0.3"),
        ({"image_processor": small_processor(resample=2)}, "image_processor.resample was 3, is 2"),
    ],
)
def test_other_features_are_not_mixed_with_those_that_are_there(pictures, tmp_path, change, named):
    run(pictures[0], tmp_path / "out", shard_size=10)
    with pytest.raises(VitrailError, match=rf"was begun with different settings \({named}\): repeat the run"):
        run(pictures[0], tmp_path / "out", **{"shard_size": 10, **change})


def test_a_run_without_a_finished_file_may_begin_with_other_settings(pictures, tmp_path, monkeypatch):
    def fail(writer):
        (writer.folder.path / "data" / "part-000000-000047.parquet").write_bytes(b"not recorded")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ChunkWriter, "finish", fail)
        with pytest.raises(VitrailError, match="No space left on device"):
            run(pictures[0], tmp_path / "out", shard_size=1)
    run(pictures[0], tmp_path / "out", shard_size=10, dtype="float16")
    run(pictures[0], tmp_path / "expected", shard_size=10, dtype="float16")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "expected")


def test_a_folder_that_has_changed_is_not_mixed_with_what_it_was(tmp_path):
    write_images(tmp_path / "pictures", 6)
    run(tmp_path / "pictures", tmp_path / "out")
    write_images(tmp_path / "pictures", 7)
    with pytest.raises(
        VitrailError, match=r"was begun with different settings \(images.number was 6, is 7; images.digest was .*: repeat"
    ):
        run(tmp_path / "pictures", tmp_path / "out")


def test_a_folder_with_other_things_is_left_alone(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(VitrailError, match="holds other things"):
        run(pictures[0], tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_second_run_on_the_same_folder_is_refused(pictures, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(VitrailError, match="in use by another run"):
        run(pictures[0], tmp_path / "out")
    run(pictures[0], tmp_path / "out")


def test_too_many_bad_images_end_the_run(pictures, tmp_path):
    with pytest.raises(
        VitrailError, match=r"found 4 unreadable images, more than max_errors=3\. Finished files are kept.* The last is broken/"
    ):
        run(pictures[0], tmp_path / "out", max_errors=3)
    assert run(pictures[0], tmp_path / "out", max_errors=20).errors == 20


def test_a_finished_folder_is_not_touched_by_the_same_command(pictures, tmp_path, monkeypatch):
    run(pictures[0], tmp_path / "out")
    monkeypatch.delattr(FeatureFolder, "settle")
    assert run(pictures[0], tmp_path / "out").images == 0
    StoredFeatures(tmp_path / "out")
    assert not (tmp_path / "out" / ".progress").exists()


def test_secrets_of_a_url_are_not_written(pictures, tmp_path):
    collection = read_images(pictures[0])
    collection.settings["source"] = "https://me:SECRET@example.org/images.tar?signature=SECRET"
    run(collection, tmp_path / "out")
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert b"https://example.org/images.tar" in written
    assert b"SECRET" not in written


def test_a_folder_that_has_moved_is_the_same(tmp_path):
    write_images(tmp_path / "before", 5)
    run(tmp_path / "before", tmp_path / "out")
    (tmp_path / "before").rename(tmp_path / "after")
    assert run(tmp_path / "after", tmp_path / "out").images == 0
    assert StoredFeatures(tmp_path / "out").manifest.settings["collection"]["source"] == str(tmp_path / "after")


def test_errors_of_an_earlier_run_count(tmp_path):
    write_broken(tmp_path / "pictures")
    write_images(tmp_path / "pictures", 30)
    with pytest.raises(VitrailError, match="found 13 unreadable images"):
        run(tmp_path / "pictures", tmp_path / "out", max_errors=12, shard_size=5)
    with pytest.raises(VitrailError, match="found 13 unreadable images"):
        run(tmp_path / "pictures", tmp_path / "out", max_errors=12, shard_size=5)


def test_a_collection_without_a_good_image_is_an_error(tmp_path):
    write_broken(tmp_path / "pictures")
    with pytest.raises(VitrailError, match=r"none of the 20 images of .* can be used; broken/bomb.png: "):
        run(tmp_path / "pictures", tmp_path / "out")
    assert len(pq.read_table(tmp_path / "out" / "errors.parquet")) == len(broken_files())


def test_a_dead_host_is_an_error_of_its_images_which_are_tried_again(
    tmp_path, no_network, http_server, page, impatient, monkeypatch
):
    names = write_images(tmp_path, 5)
    http_server.pages["/a.jpg"] = page((tmp_path / names[0]).read_bytes(), status=503, ranges=False)
    (tmp_path / "list.txt").write_text("\n".join([*names[:3], f"{http_server.url}/a.jpg", "http://127.0.0.1:9/b.jpg", *names[3:]]))
    done = run(tmp_path / "list.txt", tmp_path / "out", shard_size=2, num_workers=0)
    assert (done.rows, done.errors, done.unreachable) == (5, 2, 2)
    http_server.pages["/a.jpg"].status = 200
    again = run(tmp_path / "list.txt", tmp_path / "out", shard_size=2, num_workers=0)
    assert (again.rows, again.errors, again.unreachable, again.images) == (6, 1, 1, 4)
    whole = rows_by_path(tmp_path / "out")
    np.testing.assert_array_equal(whole[f"{http_server.url}/a.jpg"], whole[names[0]])
    job = Job(small_model(), small_processor(), read_images(tmp_path / "list.txt"), tmp_path / "cache", num_workers=0)
    with pytest.raises(VitrailError, match=r"cannot reach http.*9/b\.jpg"):  # a cache would keep the error
        run_job(job, progress=False)


@pytest.mark.parametrize(
    ("name", "value", "least"), [("batch_size", 0, 1), ("shard_size", 0, 1), ("max_errors", -1, 0), ("num_workers", -1, 0)]
)
def test_numbers_that_make_no_sense(pictures, tmp_path, name, value, least):
    with pytest.raises(VitrailError, match=f"found {name}={value}; expected {least} or more"):
        run(pictures[0], tmp_path / "out", **{name: value})


def test_more_files_than_a_manifest_holds_are_refused_before_the_run(pictures, tars, tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "MAX_FILES", 2)
    with pytest.raises(VitrailError, match=r"would be at least 5 files; expected at most 2: choose a larger shard_size\."):
        run(pictures[0], tmp_path / "out", shard_size=10)
    with pytest.raises(VitrailError, match=r"at least 3 files; .* a larger shard_size, or give fewer and larger archives\."):
        run(tars, tmp_path / "out", shard_size=1000)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_is_killed_is_a_clear_error_wherever_it_strikes(pictures, tmp_path, monkeypatch):
    """torch raises its error from the handler of a signal, here while a file is written; another error is a fault of ours."""
    whole = store.synchronize
    for message, expected in (("DataLoader worker (pid 7) is killed by signal: Killed.", VitrailError), ("a bug", RuntimeError)):

        def strike(file, message=message):
            raise RuntimeError(message)

        monkeypatch.setattr(store, "synchronize", strike)
        with pytest.raises(expected, match=message.partition("(")[0]) as caught:
            run(pictures[0], tmp_path / "out")
        assert caught.type in (VitrailError, RuntimeError)
        assert ("has died" in str(caught.value)) == (expected is VitrailError)
    monkeypatch.setattr(store, "synchronize", whole)
    assert run(pictures[0], tmp_path / "out").rows == 30


def test_the_card_of_features_names_no_folder_of_this_machine(tmp_path):
    write_images(tmp_path / "pictures", 1)
    run(tmp_path / "pictures", tmp_path / "out", features=["cls", "patches"], model_name=str(tmp_path / "model"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card
    for text in ("# Features of 1 image\n", "of `pictures`, by the model `model`.", "patches_shape", "0 images could not be used"):
        assert text in card


# The command, in separate processes


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    save(small_model(), small_processor(), folder, code=False)
    return folder


@pytest.fixture(scope="module")
def six_hundred(tmp_path_factory):
    """580 images and 20 broken ones."""
    folder = tmp_path_factory.mktemp("six-hundred")
    return folder, write_images(folder, 580), write_broken(folder)


def command(model_dir, source, output, *options):
    return [sys.executable, "-m", "vitrail", "extract", str(model_dir), str(source), str(output), *map(str, options)]


def test_killed_at_any_moment_and_resumed_it_loses_nothing(model_dir, six_hundred, tmp_path):
    folder, good, bad = six_hundred
    run(folder, tmp_path / "whole", shard_size=15, model_name=str(model_dir))
    seed = time.time_ns()
    draw = random.Random(seed)
    print("seed", seed)  # shown where the test fails
    data = tmp_path / "out" / "data"
    for _ in range(3):
        before = len(list(data.glob("*"))) if data.exists() else 0
        process = forked.start(__file__, "end_of", *command(model_dir, folder, tmp_path / "out", "--shard-size", 15)[3:])
        wanted = before + draw.randint(0, 6)
        while process.exitcode is None and (not data.exists() or len(list(data.glob("*"))) < wanted):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    done = run(folder, tmp_path / "out", shard_size=15)
    assert (done.rows, done.errors) == (580, 20)
    files, whole = files_of(tmp_path / "out"), files_of(tmp_path / "whole")
    assert files.keys() == whole.keys()
    stored, uninterrupted = StoredFeatures(tmp_path / "out"), StoredFeatures(tmp_path / "whole")
    assert stored.paths() == uninterrupted.paths() == good
    np.testing.assert_array_equal(stored.ids(), uninterrupted.ids())
    np.testing.assert_allclose(stored.vectors(), uninterrupted.vectors(), atol=1e-6)
    assert [error["path"] for error in stored.errors()] == bad


def run_command(folder, words):
    with (folder / f"stdout-{os.environ['RANK']}").open("w") as stdout, contextlib.redirect_stdout(stdout):
        assert end_of(*words) == 0


def test_two_processes_give_the_rows_of_one(model_dir, pictures, tars, tmp_path):
    forked.run_two(__file__, "run_command", tmp_path, command(model_dir, tars, tmp_path / "two-tars", "--shard-size", 6)[3:])
    assert "features of 30 images" in (tmp_path / "stdout-0").read_text()
    assert not (tmp_path / "stdout-1").read_text()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    words = command(model_dir, pictures[0], tmp_path / "two-folder", "--shard-size", 6, "--max-errors", 15)[2:]
    ended = subprocess.run([*launch, *words], capture_output=True, text=True)
    assert ended.returncode != 0
    assert "found 20 unreadable images, more than --max-errors 15" in ended.stderr, "though neither has found so many"
    assert run(pictures[0], tmp_path / "two-folder", shard_size=6).images == 0, "both have done all that they could"
    for kind, source in (("folder", pictures[0]), ("tars", tars)):
        run(source, tmp_path / f"one-{kind}", shard_size=6)
        one, two = StoredFeatures(tmp_path / f"one-{kind}"), StoredFeatures(tmp_path / f"two-{kind}")
        assert one.paths() == two.paths()
        np.testing.assert_allclose(one.vectors(), two.vectors(), atol=1e-6)
        assert one.errors() == two.errors()


def run_on_a_full_disk(messages, words):
    """A limit on the size of files is the full disk that a test can have."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
    with messages.open("w") as stderr, contextlib.redirect_stderr(stderr):
        assert end_of(*words) == 2


def test_a_full_disk_ends_the_run_and_the_next_goes_on(model_dir, six_hundred, tmp_path):
    words = command(model_dir, six_hundred[0], tmp_path / "out", "--shard-size", 200)[3:]
    assert forked.exit_code(__file__, "run_on_a_full_disk", tmp_path / "stderr", words) == 0
    messages = (tmp_path / "stderr").read_text()
    assert "cannot write into" in messages
    assert "run the same command to resume" in messages
    assert "Traceback" not in messages
    assert not list((tmp_path / "out").rglob("*.part*"))
    assert not list((tmp_path / "out" / "data").iterdir())
    assert run(six_hundred[0], tmp_path / "out", shard_size=200).rows == 580


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    "settings", [{}, {"backend": "torch", "device": "cuda"}, {"do_pad": True, "size_divisor": 8, "do_center_crop": False}]
)
def test_extraction_on_cuda(settings, num_workers, cuda, tmp_path):
    """Images travel as uint8 and are normalized there, unless they are padded."""
    files = write_images(tmp_path / "images", 30, sizes=((64, 48), (50, 70)))
    expected = [
        small_model()(**small_processor(**settings | {"device": None})(tmp_path / "images" / file, return_tensors="pt"))
        for file in files
    ]
    model = small_model()
    run(tmp_path / "images", tmp_path / "out", model, small_processor(**settings), batch_size=7, num_workers=num_workers)
    assert model.device.type == "cuda"
    stored = StoredFeatures(tmp_path / "out")
    assert [Path(path).name for path in stored.paths()] == [Path(file).name for file in files]
    pooled = np.concatenate([output.pooler_output.detach().numpy() for output in expected])
    np.testing.assert_allclose(stored.vectors("pooled"), pooled, rtol=0, atol=1e-3)
