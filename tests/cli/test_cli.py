"""The command line: as an installed program, or in the process of the tests."""

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import deterministic
import paths
import vitrail
from command_line import end_of
from small_models import tiny_config
from vitrail.cli.checkpoints import significant
from vitrail.convert.report import ConversionReport, SourceFile
from vitrail.modeling.modeling_vit import ViTModel
from vitrail.processing.presets import make_image_processor

PHOTO = paths.IMAGES / "chelsea.jpg"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    deterministic.write_checkpoint(deterministic.dino_vits16(), folder / "dino_deitsmall16_pretrain.pth")
    head = {"module.linear.weight": torch.randn(10, 4 * 384), "module.linear.bias": torch.zeros(10)}
    torch.save({"state_dict": head}, folder / "linear.pth")
    run("convert", folder / "dino_deitsmall16_pretrain.pth", folder / "dino-vits16")
    run("convert", folder / "dino_deitsmall16_pretrain.pth", folder / "classifier", "--head", folder / "linear.pth")
    return folder / "dino-vits16"


def run(*words):
    assert not end_of(*words)


def fail(capsys, *words):
    """Run a command that must fail with exit code 2, and return its message."""
    assert end_of(*words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_convert_reports(model_dir, capsys):
    run("convert", model_dir.parent / "dino_deitsmall16_pretrain.pth", model_dir.parent / "again")
    printed = capsys.readouterr().out
    assert "dino, 150 tensors converted" in printed
    assert "conversion.json" in printed


def test_info(model_dir, capsys):
    run("info", model_dir)
    printed = " ".join(capsys.readouterr().out.split())
    # by hand: 12 blocks of 197 tokens x 12 x 384^2 products, and 12 x 2 x 197^2 x 384 in attention
    for part in (
        "small: 12 blocks, hidden size 384, 6 heads",
        "21.7 M",
        "4.25 (4.61 with the products of attention)",
        "196 patches",
        "converted from a dino checkpoint, dino_deitsmall16_pretrain.pth",
    ):
        assert part in printed


def test_info_of_a_small_model_has_three_significant_digits(tmp_path, capsys):
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), tmp_path / "tiny.pth")
    run("info", tmp_path / "tiny.pth")
    row = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    run("info", tmp_path / "tiny.pth", "--json")
    counts = json.loads(capsys.readouterr().out)
    number, unit = row["parameters"].split()
    assert (unit, len(number.lstrip("0."))) == ("M", 3)
    assert float(number) == pytest.approx(counts["parameters"] / 1e6, rel=5e-3)
    assert float(row["GMACs"].split()[0]) == pytest.approx(counts["macs"] / 1e9, rel=5e-3)


def test_significant_digits():
    assert [significant(value) for value in (0, 0.021345, 4.246, 21.66, 86.6, 1136.48)] == [
        "0",
        "0.0213",
        "4.25",
        "21.7",
        "86.6",
        "1,136",
    ]


def test_list(capsys):
    run("list", "--family", "dinov2")
    lines = capsys.readouterr().out.splitlines()
    expected = [checkpoint for checkpoint in vitrail.list_checkpoints() if checkpoint.family == "dinov2"]
    assert [line.split()[:2] for line in lines] == [["dinov2", checkpoint.name] for checkpoint in expected]
    assert next(line for line in lines if " dinov2-vitg14 " in line).split()[2:] == ["1,136", "M", "apache-2.0"]
    run("list", "--family", "timm")
    bamboo = next(line for line in capsys.readouterr().out.splitlines() if "bamboo" in line)
    assert bamboo.endswith("license not stated")
    run("list", "--json")
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [row["name"] for row in rows] == [checkpoint.name for checkpoint in vitrail.list_checkpoints()]
    assert "expected one of dino, dinov2" in fail(capsys, "list", "--family", "clip")


@pytest.mark.parametrize(
    ("name", "pooling", "said"),
    [
        (
            "timm/vit_base_patch16_siglip_gap_224.webli",
            "avg",
            "the mean of the patch tokens, after the final norm. pooler_output is",
        ),
        ("dino-vits16", "cls", "[CLS], after the final norm"),
    ],
)
def test_info_states_which_vector_is_pooled(monkeypatch, capsys, name, pooling, said):
    """Also where the original of an official checkpoint computes another vector."""
    model = ViTModel(tiny_config(pooling=pooling))
    report = ConversionReport("timm", SourceFile("model.safetensors", None, None, 0, str), catalog_name=name)
    monkeypatch.setattr("vitrail.cli.checkpoints.load_model", lambda *_, **__: (model, make_image_processor("dino"), report))
    run("info", name)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("pooling"))
    assert line.split(maxsplit=1)[1].startswith(said)
    assert ("pools by attention" in line) == ("siglip" in name)


def test_version(capsys):
    run("--version")
    assert capsys.readouterr().out == f"vitrail {vitrail.__version__}\n"


def test_json_is_one_object_on_standard_output(hub_server, model_dir, tmp_path, capsys):
    source, features = model_dir.parent / "dino_deitsmall16_pretrain.pth", tmp_path / "features.safetensors"

    def read(*words):
        run(*words, "--json")
        return json.loads(capsys.readouterr().out)

    converted = read("convert", source, tmp_path / "model", "--no-code")
    assert (converted["output"], converted["format"]) == (str(tmp_path / "model"), "dino")
    assert converted["coverage"]["converted"] == 150
    info = read("info", model_dir)
    assert (info["class"], info["size"], info["config"]["hidden_size"]) == ("ViTModel", "small", 384)
    assert info["parameters"] == sum(parameter.numel() for parameter in vitrail.load(model_dir)[0].parameters())
    verified = read("verify", model_dir, "--against", source)
    assert verified["passed"]
    assert verified["checks"] == json.loads((model_dir / "conversion.json").read_text())["verification"]
    embedded = read("embed", model_dir, PHOTO, PHOTO, "--output", features, "--precision", "bfloat16")
    assert (embedded["shape"], embedded["dtype"]) == ([2, 384], "float32")
    assert embedded["optimization"]["precision"] == "bfloat16"
    classified = read("classify", model_dir.parent / "classifier", PHOTO, "--top", 3)
    probabilities = [label["probability"] for label in classified["images"][0]["labels"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len(probabilities) == 3
    assert classified["optimization"] is None
    exported = read("export", model_dir, tmp_path / "timm", "--to", "timm")
    assert "by its own rule" in exported["warnings"][0]
    pushed = read("push", model_dir, "user/json", "--dry-run")
    assert pushed["files"]["model.safetensors"] == (model_dir / "model.safetensors").stat().st_size
    assert read("card", "dino-vits8")["card"].startswith("---\n")
    assert read("attention", model_dir, PHOTO, "--output", tmp_path / "a.png")["patch_grids"] == [[14, 14]]
    assert 0 < read("pca", model_dir, PHOTO, "--output", tmp_path / "p.png")["foreground"] < 1


def test_a_mistake_prints_no_json(model_dir, capsys):
    assert end_of("info", "no-such-model", "--json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("vitrail: ")


def test_traceback_on_demand(capsys):
    assert end_of("info", "no-such-model", "--traceback") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Traceback (most recent call last):")
    assert printed.err.splitlines()[-1].startswith("vitrail: ")


@pytest.mark.parametrize(
    ("error", "code", "last"),
    [
        (RuntimeError("a fault"), 1, f"vitrail: this is a fault of vitrail {vitrail.__version__}: please report it"),
        (KeyError("root"), 1, "vitrail: this is a fault"),
        (ValueError("a mistake"), 2, "vitrail: a mistake"),
        (OSError(28, "No space left on device"), 2, "vitrail: [Errno 28] No space left on device"),
        (MemoryError(), 2, "vitrail: there is not enough memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "vitrail: there is not enough memory (OutOfMemoryError)"),
    ],
)
def test_only_a_fault_of_ours_prints_a_traceback(monkeypatch, capsys, error, code, last):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr("vitrail.cli.output.load", broken)
    assert end_of("info", "model") == code
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback") == (code == 1)
    assert printed.splitlines()[-1].startswith(last)
    assert code == 1 or len(printed.splitlines()) == 1


def test_warnings_of_a_conversion_go_to_standard_error(model_dir, capsys):
    source = model_dir.parent / "dino_deitsmall16_pretrain.pth"
    _, _, report = vitrail.load(source)
    assert report.warnings
    run("info", source)
    printed = capsys.readouterr()
    assert printed.err.count("warning: ") == len(report.warnings)
    assert "pass --format timm" in printed.err  # in the words of the command line
    assert "warning" not in printed.out


def test_embed_writes_one_row_for_each_image_in_order(model_dir, tmp_path, capsys):
    upside_down = tmp_path / "upside down.png"
    Image.open(PHOTO).transpose(Image.Transpose.ROTATE_180).save(upside_down)
    run("embed", model_dir, PHOTO, upside_down, PHOTO, "--output", tmp_path / "features.safetensors", "--batch-size", 2)
    with safe_open(tmp_path / "features.safetensors", "pt") as file:
        features, images = file.get_tensor("features"), file.metadata()["images"]
    assert features.shape == (3, 384)
    torch.testing.assert_close(features[0], features[2], atol=1e-4, rtol=0)
    assert (features[0] - features[1]).abs().max() > 1e-2
    assert "upside down.png" in images
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.safetensors", upside_down.name]


def test_classify_prints_labels_with_their_probabilities(model_dir, capsys):
    run("classify", model_dir.parent / "classifier", PHOTO, "--top", 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("LABEL_" in line and "%" in line for line in lines)


def test_classify_takes_the_names_of_the_classes(model_dir, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name {number}" for number in range(10)))
    run("classify", model_dir.parent / "classifier", PHOTO, "--top", 1, "--labels", names)
    assert capsys.readouterr().out.split("%")[1].strip().startswith("name ")
    names.write_text("ant\nbee\n")
    error = fail(capsys, "classify", model_dir.parent / "classifier", PHOTO, "--labels", names)
    assert "--labels holds 2 names, but the model has 10 classes" in error


def test_preset_and_patch_size(tmp_path, capsys):
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), tmp_path / "tiny.pth")
    run("info", tmp_path / "tiny.pth", "--preset", "sat", "--patch-size", "7x14", "--json")
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert (record["config"]["patch_size"], record["image_processor"]["image_mean"]) == ([7, 14], [0.43, 0.411, 0.296])
    assert "--preset sat takes the place of the checkpoint's preprocessing: images of 98x98 pixels" in printed.err
    assert "patch projection of 14x14 pixels resized to 7x14" in printed.err
    torch.save(torch.load(tmp_path / "tiny.pth")["teacher"], tmp_path / "bare.pth")
    run("convert", tmp_path / "bare.pth", tmp_path / "out")
    assert "--preset dinov2 is assumed (images of 224x224 pixels" in capsys.readouterr().err


def test_classify_takes_folders_and_writes_a_table(model_dir, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(Path(PHOTO).read_bytes())
    (tmp_path / "photos" / "cut.jpg").write_bytes(b"")
    run("classify", model_dir.parent / "classifier", tmp_path / "photos", "--top", 2, "--output", tmp_path / "labels.csv")
    assert "skipped" in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert [Path(row["image"]).name for row in rows] == ["a.jpg", "a.jpg", "b.jpg", "b.jpg"]
    assert rows[0]["label"].startswith("LABEL_")
    assert 1 >= float(rows[0]["probability"]) >= float(rows[1]["probability"])


def test_bad_input_is_one_message_and_exit_code_2(model_dir, tmp_path, capsys):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.pth").write_bytes((model_dir.parent / "dino_deitsmall16_pretrain.pth").read_bytes()[:9999])
    assert "nothing.pth" in fail(capsys, "convert", tmp_path / "nothing.pth", tmp_path / "out")
    assert "cut.pth" in fail(capsys, "convert", tmp_path / "cut.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "empty.jpg" in fail(capsys, "embed", model_dir, tmp_path / "empty.jpg", "--output", tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()
    assert "no classifier" in fail(capsys, "classify", model_dir, PHOTO)
    assert "Missing argument" in fail(capsys, "convert")


class Payload:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_checkpoints_are_one_message_and_exit_code_2(model_dir, tmp_path, capsys):
    source = model_dir.parent / "dino_deitsmall16_pretrain.pth"
    tensors = torch.load(source, weights_only=True)
    few = {name: tensor for name, tensor in tensors.items() if name != "blocks.3.norm1.bias"}
    contents = {
        "code": ({"cls_token": Payload(tmp_path / "executed")}, "system"),
        "many": (tensors | {"extra": torch.zeros(1)}, "extra"),
        "few": (few, "layers.3.norm1.bias"),
    }
    for name, (content, message) in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        assert message in fail(capsys, "convert", tmp_path / f"{name}.pth", tmp_path / "out")
    assert "multiple of patch_size" in fail(capsys, "convert", source, tmp_path / "out", "--image-size", 225)
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_written_are_refused_first(model_dir, tmp_path, capsys):
    assert "does not exist" in fail(capsys, "embed", model_dir, PHOTO, "--output", tmp_path / "none" / "f.safetensors")
    assert "unsupported extension '.npy'; expected .safetensors" in fail(
        capsys, "embed", model_dir, PHOTO, "--output", tmp_path / "f.npy"
    )
    assert "is both source and output folder" in fail(capsys, "convert", model_dir, model_dir)
    assert not list(tmp_path.iterdir())


def test_the_installed_program_ends_with_exit_code_2(tmp_path, monkeypatch, capsys):
    program = Path(sys.executable).with_name("vitrail")
    ended = subprocess.run([str(program), "info", "no-such-model"], capture_output=True, text=True, cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitrail", "info", "no-such-model"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("vitrail", run_name="__main__", alter_sys=True)  # as `python -m vitrail` does
    for code, error in ((ended.returncode, ended.stderr), (end.value.code, capsys.readouterr().err)):
        assert code == 2
        assert error.startswith("vitrail: ")
        assert "no-such-model" in error
        assert "Traceback" not in error


def test_verify_prints_a_table_and_keeps_it(model_dir, capsys):
    source = model_dir.parent / "dino_deitsmall16_pretrain.pth"
    run("verify", model_dir, "--against", source, "--image", PHOTO)
    printed = " ".join(capsys.readouterr().out.split())
    assert "round trip" in printed
    assert "FAILED" not in printed
    kept = json.loads((model_dir / "conversion.json").read_text())["verification"]
    assert kept[0]["note"] == "150 tensors equal bit for bit"


def test_verify_ends_with_1_when_a_check_fails(model_dir, tmp_path, capsys):
    tensors = torch.load(model_dir.parent / "dino_deitsmall16_pretrain.pth", weights_only=True)
    tensors["norm.bias"] += 1e-3
    torch.save(tensors, tmp_path / "other.pth")
    kept = (model_dir / "conversion.json").read_bytes()
    assert end_of("verify", model_dir, "--against", tmp_path / "other.pth") == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert "the table is not kept: a check failed" in printed.err
    assert (model_dir / "conversion.json").read_bytes() == kept, "a typing error does not mark a sound model"


def test_export(model_dir, tmp_path, capsys):
    run("export", model_dir, tmp_path / "timm", "--to", "timm")
    assert "interpolates positions by its own rule" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "timm").iterdir()} == {"config.json", "model.safetensors"}
    assert "cannot hold" in fail(capsys, "export", model_dir, tmp_path / "google.npz", "--to", "google")
    assert not (tmp_path / "google.npz").exists()


def test_export_as_a_graph(tmp_path, capsys):
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), tmp_path / "tiny.pth")
    run("export", tmp_path / "tiny.pth", tmp_path / "out", "--to", "openvino", "--image-size", "56x42", "--batch-size", 1)
    printed = capsys.readouterr()
    assert printed.err.startswith("OpenVINO ")
    assert printed.err.endswith("(images of 56x42)\n")
    assert printed.err.count("\n") == 1
    assert printed.out == f"written to {tmp_path / 'out'}\n"
    error = fail(capsys, "export", tmp_path / "tiny.pth", tmp_path / "other", "--to", "timm", "--dynamic-size")
    assert "batch_size and dynamic_size are options of graphs (onnx, openvino)" in error


def test_push_prints_what_it_uploads(hub_server, model_dir, capsys):
    run("push", model_dir, "user/name", "--private", "--dry-run")
    printed = capsys.readouterr().out
    weights = (model_dir / "model.safetensors").stat().st_size
    assert f"{weights:,}  model.safetensors" in printed
    assert "modeling_vit.py" in printed
    assert "nothing was uploaded" in printed
    assert not hub_server.requests
    run("push", model_dir, "user/name", "--private")
    commit = hub_server.repositories["user/name"].commit()
    assert capsys.readouterr().out.endswith(f"uploaded: {hub_server.url}/user/name/commit/{commit.sha}\n")
    assert hub_server.repositories["user/name"].private
    hub_server.put("user/name", {"README.md": b"edited", "model-00001-of-00002.safetensors": b"of before"})
    run("push", model_dir, "user/name", "--private")
    printed = capsys.readouterr()
    assert "removed: model-00001-of-00002.safetensors" in printed.out
    assert "warning: README.md was edited on the Hub and is kept" in printed.err
    run("push", model_dir, "user/name", "--private")
    assert "nothing has changed: " in capsys.readouterr().out


def test_push_options(hub_server, model_dir, capsys):
    run("push", model_dir, "user/timm", "--as", "timm")
    config = json.loads(hub_server.repositories["user/timm"].files()["config.json"])
    assert config["model_args"]["embed_dim"] == 384
    assert "by its own rule" in capsys.readouterr().err
    run("push", model_dir, "user/name", "--no-code", "--revision", "draft")
    assert "modeling_vit.py" not in hub_server.repositories["user/name"].files("draft")
    hub_server.put("other/name", {})
    run("push", model_dir, "other/name", "--create-pr")
    assert f"uploaded: {hub_server.url}/other/name/discussions/1" in capsys.readouterr().out


def test_push_refusals_are_one_message_and_exit_code_2(hub_server, model_dir, capsys):
    assert "write user/name" in fail(capsys, "push", model_dir, "name")
    assert "expected one of vitrail, transformers, timm" in fail(capsys, "push", model_dir, "user/name", "--as", "keras")
    assert "'other' is you or your organization" in fail(capsys, "push", model_dir, "other/name")
    assert "'nothing' is not a file, a folder, a URL" in fail(capsys, "push", "nothing", "user/name")


def test_card(model_dir, tmp_path, capsys):
    """Cards of a folder, of an official checkpoint without a download, and of a checkpoint file."""
    run("card", model_dir)
    assert capsys.readouterr().out in (model_dir / "README.md").read_text()
    run("card", "dino-vits8")
    official = (paths.CHECKOUT / "model_cards" / "official" / "dino-vits8.md").read_text()
    assert capsys.readouterr().out == official
    run("card", model_dir.parent / "dino_deitsmall16_pretrain.pth", "--output", tmp_path / "card.md")
    assert "dino_deitsmall16_pretrain.pth" in (tmp_path / "card.md").read_text()
    assert "unsupported extension '.txt'; expected .md" in fail(capsys, "card", model_dir, "--output", tmp_path / "card.txt")


def test_convert_without_code(model_dir, tmp_path):
    run("convert", model_dir, tmp_path / "model", "--no-code")
    assert not list((tmp_path / "model").glob("*.py"))
