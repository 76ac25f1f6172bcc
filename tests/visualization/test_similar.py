"""`vitrail.visualization.similar`: similar images, from features that `extract` stored."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from image_folders import PHOTOS, small_model, small_processor, write_images
from vitrail.data import read_images
from vitrail.errors import UnreadableImageError, VitrailError
from vitrail.features.extraction import extract
from vitrail.features.store import StoredFeatures
from vitrail.visualization import similar as module
from vitrail.visualization.similar import MISSING, check_same_model, find_similar


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 24, sizes=((64, 48), (40, 70)))
    return folder


def extracted(images, output, image_processor=None, *, model=None, **options):
    extract(
        model or small_model(),
        image_processor or small_processor(),
        read_images(images),
        output,
        progress=False,
        num_workers=0,
        **options,
    )
    return StoredFeatures(output)


@pytest.fixture(scope="module")
def stored(images, tmp_path_factory):
    return extracted(images, tmp_path_factory.mktemp("features") / "out", features=("patches", "pooled", "cls+mean"))


@pytest.fixture
def sheet(monkeypatch):
    """The cells of the contact sheet."""
    cells = []

    def record(strips):
        cells.extend(cell for strip in strips for cell in strip)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(module, "contact_sheet", record)
    return cells


@pytest.fixture(scope="module")
def outputs(images):
    """Features of each image, computed one at a time."""
    model, image_processor = small_model(), small_processor()
    with torch.inference_mode():
        return {
            path.relative_to(images).as_posix(): model(**image_processor(path, return_tensors="pt"))
            for path in images.rglob("*.jpg")
        }


COLUMNS = {
    None: lambda outputs: outputs.pooler_output,
    "pooled": lambda outputs: outputs.pooler_output,
    "cls_mean": lambda outputs: torch.cat([outputs.last_hidden_state[:, 0], outputs.last_hidden_state[:, 1:].mean(1)], dim=1),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_the_nearest_are_those_of_brute_force(stored, outputs, column):
    def unit(outputs_of_one):
        vector = COLUMNS[column](outputs_of_one)[0].double().numpy()
        return vector / np.linalg.norm(vector)

    with torch.inference_mode():
        query = unit(small_model()(**small_processor()(PHOTOS[1], return_tensors="pt")))
    expected = {path: unit(outputs_of_one) @ query for path, outputs_of_one in outputs.items()}
    ids, cosines, _ = find_similar(small_model(), stored, PHOTOS[1], top=24, column=column)
    path_of = dict(zip(stored.ids().tolist(), stored.paths(), strict=True))
    found = [path_of[number] for number in ids.tolist()]
    assert ids.dtype == np.int64
    assert found == sorted(expected, key=lambda path: -expected[path])
    assert cosines == pytest.approx([expected[path] for path in found], abs=1e-5)


def test_there_are_as_many_as_wanted_or_as_there_are(stored):
    everything, cosines, _ = find_similar(small_model(), stored, PHOTOS[0], top=100)
    assert len(everything) == len(set(everything.tolist())) == len(cosines) == 24
    first, of_first, _ = find_similar(small_model(), stored, PHOTOS[0], top=3)
    assert (first == everything[:3]).all()
    assert (of_first == cosines[:3]).all()


def test_a_query_is_prepared_as_the_stored_images_were(images, tmp_path):
    squashed = small_processor(size={"height": 32, "width": 32}, do_center_crop=False)
    stored = extracted(images, tmp_path / "out", squashed, dtype="float16")
    path = stored.paths()[5]
    ids, cosines, _ = find_similar(small_model(), stored, images / path, top=1)
    assert ids[0] == stored.ids()[5]
    assert cosines[0] == pytest.approx(1, abs=1e-5)
    with Image.open(images / path) as image:
        assert find_similar(small_model(), stored, image, top=1)[1][0] == cosines[0]


def test_the_sheet_shows_the_query_and_then_the_nearest(images, stored, sheet):
    ids, cosines, _ = find_similar(small_model(), stored, PHOTOS[2], top=4)
    path_of = dict(zip(stored.ids().tolist(), stored.paths(), strict=True))
    captions = [f"{cosine:.3f}  {path_of[number]}" for number, cosine in zip(ids.tolist(), cosines, strict=True)]
    assert [caption for caption, _ in sheet] == ["query", *captions]
    for (_, picture), path in zip(sheet, [PHOTOS[2], *(images / path_of[number] for number in ids.tolist())], strict=True):
        with Image.open(path) as image:
            assert picture.width / picture.height == pytest.approx(image.width / image.height, rel=0.02)
            expected = np.asarray(image.convert("RGB").resize(picture.size, Image.Resampling.LANCZOS))
        assert np.abs(np.asarray(picture).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("top", [0, -1])
def test_no_image_is_no_number(stored, top):
    with pytest.raises(VitrailError, match=f"found top={top}; expected 1 or more"):
        find_similar(small_model(), stored, PHOTOS[2], top=top)


def test_the_sheet_is_a_picture(stored):
    _, _, picture = find_similar(small_model(), stored, PHOTOS[2], top=8)
    assert picture.mode == "RGB"
    assert picture.width == pytest.approx(picture.height, rel=0.2)  # nine cells


@pytest.fixture
def copy(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    return tmp_path / "images"


def test_images_that_are_not_there_any_more_are_gray(copy, tmp_path, sheet):
    stored = extracted(copy, tmp_path / "out")
    deleted, damaged = stored.paths()[3], stored.paths()[-1]
    (copy / deleted).unlink()
    (copy / damaged).write_bytes(b"")
    find_similar(small_model(), stored, PHOTOS[0], top=24)
    gone = {caption.split("  ")[-1] for caption, picture in sheet if picture is MISSING}
    assert gone == {f"missing: {deleted}", f"missing: {damaged}"}
    shutil.rmtree(copy)
    sheet.clear()
    assert len(find_similar(small_model(), stored, PHOTOS[0], top=5)[0]) == 5
    assert [picture is MISSING for _, picture in sheet] == [False] + 5 * [True]


def test_pictures_are_right_where_files_have_come_and_gone(copy, tmp_path, sheet):
    stored = extracted(copy, tmp_path / "out")
    find_similar(small_model(), stored, PHOTOS[0], top=24)
    before = dict(sheet)
    sheet.clear()
    for path in stored.paths()[6::2]:
        Image.new("RGB", (40, 40)).save((copy / path).with_suffix(".a.png"))
    (copy / stored.paths()[0]).unlink()
    find_similar(small_model(), stored, PHOTOS[0], top=24)
    assert [caption.replace("missing: ", "") for caption, _ in sheet] == list(before)
    for caption, picture in sheet:
        assert (picture is MISSING) == caption.endswith(f"missing: {stored.paths()[0]}")
        assert picture is MISSING or picture == before[caption]


def test_other_weights_are_refused(stored):
    other = small_model()
    with torch.no_grad():
        other.layers[1].mlp.fc1.bias[3] += 1e-6
    with pytest.raises(
        VitrailError, match=r"whose weights have the SHA-256 \w{12}…; the weights of this model have \w{12}…: pass the model"
    ):
        find_similar(other, stored, PHOTOS[0])


def test_the_same_weights_in_another_model_are_refused(stored):
    other = small_model(pooling="avg", layer_norm_eps=1e-3)
    with pytest.raises(
        VitrailError,
        match=r"these weights and other settings \(config.layer_norm_eps was 1e-06, is 0.001; config.pooling was cls, is avg\): pass",
    ):
        find_similar(other, stored, PHOTOS[0])
    check_same_model(small_model(), stored)


def test_columns_that_hold_no_vectors_are_refused(images, stored, tmp_path):
    for column in ("patches", "mean", "path"):
        with pytest.raises(VitrailError, match=f"no column of vectors '{column}'; expected one of pooled, cls_mean"):
            find_similar(small_model(), stored, PHOTOS[0], column=column)
    tensors = extracted(images, tmp_path / "out", features=("patches", "layers=0,1"))
    with pytest.raises(VitrailError, match="contains patches, layers but no vectors"):
        find_similar(small_model(), tensors, PHOTOS[0])


def test_a_query_that_is_not_an_image_is_named(stored, tmp_path):
    with pytest.raises(UnreadableImageError, match=r"none\.jpg: the file does not exist"):
        find_similar(small_model(), stored, tmp_path / "none.jpg")
