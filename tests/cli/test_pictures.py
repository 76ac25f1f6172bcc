"""`vitrail attention` and `vitrail pca`: the pictures that they write."""

import numpy as np
import pytest
from PIL import Image

import paths
import vitrail
from command_line import end_of
from small_models import tiny_model
from vitrail.processing.resizing import at_size, keep_aspect
from vitrail.visualization.attention import plot_attention
from vitrail.visualization.pca import plot_pca

IMAGES = paths.IMAGES
PHOTO, OTHER = IMAGES / "chelsea.jpg", IMAGES / "astronaut.jpg"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    model = tiny_model(hidden_size=48, num_hidden_layers=4, num_attention_heads=3, image_size=32, patch_size=8)
    folder = tmp_path_factory.mktemp("pictures") / "model"
    vitrail.save(model, vitrail.make_image_processor("dino", image_size=32), folder)
    return folder


def draw(capsys, *words):
    assert not end_of(*words)
    return capsys.readouterr().out


def fail(capsys, *words):
    assert end_of(*words) == 2
    return " ".join(capsys.readouterr().err.replace("│", " ").split())


def same(path, picture):
    with Image.open(path) as written:
        return written.size == picture.size and np.abs(np.asarray(written).astype(int) - np.asarray(picture)).max() <= 1


def test_attention_draws_each_head_of_the_last_block(model_dir, tmp_path, capsys):
    printed = draw(capsys, "attention", model_dir, PHOTO, "--output", tmp_path / "attention.png")
    assert printed == f"{tmp_path / 'attention.png'}: heads of block 3 on 4x4 patches\n"
    model, processor, _ = vitrail.load(model_dir)
    _, picture = plot_attention(model, processor, [PHOTO], layers=(3,))
    assert same(tmp_path / "attention.png", picture)
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]


def test_attention_options(model_dir, tmp_path, capsys):
    model, processor, _ = vitrail.load(model_dir)
    output = tmp_path / "attention.png"
    for options, prepared, settings, words in (
        (["--layers", "-1,0"], processor, {"layers": (3, 0)}, "heads of block 3, 0 on 4x4 patches"),
        (["--layers=all", "--show", "mean"], processor, {"layers": range(4), "show": "mean"}, "mean of block 0, 1, 2, 3"),
        (["--show", "rollout", "--style", "grid"], processor, {"show": "rollout", "style": "grid"}, ": rollout on 4x4"),
        (["--image-size", "64"], at_size(processor, (8, 8), 64), {}, "8x8 patches"),
        (["--image-size", "64x40"], at_size(processor, (8, 8), (64, 40)), {}, "8x5 patches"),
        (["--image-size", "64", "--keep-aspect"], keep_aspect(at_size(processor, (8, 8), 64), (8, 8)), {}, "8x12, 8x8 patches"),
    ):
        printed = draw(capsys, "attention", model_dir, PHOTO, OTHER, "--output", output, *options)
        assert words in printed
        _, picture = plot_attention(model, prepared, [PHOTO, OTHER], **settings)
        assert same(output, picture), options


def test_pca(model_dir, tmp_path, capsys):
    model, processor, _ = vitrail.load(model_dir)
    for options, prepared, settings in (
        ([], processor, {}),
        (["--no-foreground", "--image-size", "64"], at_size(processor, (8, 8), 64), {"foreground": False}),
        (["--keep-aspect"], keep_aspect(processor, (8, 8)), {}),
    ):
        printed = draw(capsys, "pca", model_dir, PHOTO, OTHER, "--output", tmp_path / "pca.png", *options)
        _, masks, picture = plot_pca(model, prepared, [PHOTO, OTHER], **settings)
        assert same(tmp_path / "pca.png", picture), options
        share = np.concatenate([mask.flatten() for mask in masks]).mean()
        assert f"patches, {share:.0%} of them foreground" in printed
    assert draw(capsys, "pca", model_dir, PHOTO, "--output", tmp_path / "pca.jpg")
    with Image.open(tmp_path / "pca.jpg") as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize("command", ["attention", "pca"])
def test_bad_input_is_one_message_and_exit_code_2(command, model_dir, tmp_path, capsys):
    output = tmp_path / "picture.png"
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for words, message in (
        ([PHOTO, tmp_path / "empty.jpg", "--output", output], "empty.jpg: it is empty"),
        ([PHOTO, tmp_path / "none.jpg", "--output", output], "none.jpg does not exist"),
        ([PHOTO, "--output", tmp_path / "a.txt"], "a.txt: unsupported extension '.txt'; expected .png, .jpg, .jpeg, .webp"),
        ([PHOTO, "--output", tmp_path / "folder.png"], "is a folder"),
        ([PHOTO, "--output", tmp_path / "none" / "a.png"], "does not exist: create it"),
        ([PHOTO, "--output", output, "--image-size", "60"], "choose the size 56x56 or 64x64"),
        ([PHOTO, "--output", output, "--image-size", "large"], "found large; expected pixels, such as 480"),
        ([PHOTO, "--output", output, "--image-size", "8x8x8"], "found 8x8x8"),
        ([PHOTO, "--output", output, "--image-size", "0"], "found 0"),
        ([tmp_path, "--output", output], "is a folder; expected image files"),
        (["--output", output], "Missing argument"),
    ):
        error = fail(capsys, command, model_dir, *words)
        assert message in error
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.jpg", "folder.png"]


def test_bad_options_of_attention(model_dir, tmp_path, capsys):
    for options, message in (
        (["--layers", "4"], "There is no block [4]"),
        (["--layers", "first"], "expected all, or a list of blocks such as 3,7,11"),
        (["--show", "everything"], "expected one of heads, mean, rollout"),
        (["--style", "cubist"], "expected one of overlay, grid"),
        (["--show", "rollout", "--layers", "all"], "omit layers"),
    ):
        assert message in fail(capsys, "attention", model_dir, PHOTO, "--output", tmp_path / "a.png", *options)
    assert not list(tmp_path.iterdir())
