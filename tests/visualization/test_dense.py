"""Pictures of segmentation, depth and patch similarity: maps at the size of the photograph, colors, legends and scale bars."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vitrail
from small_models import randomize, tiny_config, tiny_model
from vitrail.configuration.class_names import dataset_labels, segmentation_colors
from vitrail.errors import VitrailError
from vitrail.processing.resizing import keep_aspect
from vitrail.visualization import depth, legends, patch_similarity, segmentation, whole_images
from vitrail.visualization.pictures import heat

HEIGHT, WIDTH = 40, 56
WINDOWS = {"segmentation_size": 24, "segmentation_window": 16, "segmentation_stride": 12}
UNRESIZED = vitrail.VitrailImageProcessor(do_resize=False, do_center_crop=False)
CROPPING = vitrail.make_image_processor("dino", image_size=32)
RESIZING = vitrail.VitrailImageProcessor(size={"shortest_edge": 24}, do_center_crop=False)


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    pass


@pytest.fixture(scope="module")
def photo():
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


def make(model_class, **fields):
    torch.manual_seed(0)
    return randomize(model_class(tiny_config(**fields))).eval()


def pixels(image_processor, photo):
    return image_processor(photo, return_tensors="pt")["pixel_values"]


def strips(module, monkeypatch, function, *arguments, **options):
    """Call a function that returns maps and a picture; return the maps, and the cells of the picture before they are joined."""
    monkeypatch.setattr(module, "contact_sheet", lambda cells: cells)
    return function(*arguments, **options)


@pytest.mark.parametrize(
    ("windows", "image_processor"), [(True, UNRESIZED), (True, RESIZING), (False, RESIZING), (False, CROPPING)]
)
@torch.no_grad()
def test_classes_come_from_windows_or_from_one_pass(windows, image_processor, photo):
    model = make(vitrail.ViTForSemanticSegmentation, num_labels=5, **WINDOWS)
    (classes,), _ = vitrail.plot_segmentation(model, image_processor, [photo], windows=windows)
    assert classes.dtype == np.uint8
    if windows:
        scores = model.segment(pixels(UNRESIZED, photo), size=24)
    else:
        if image_processor is CROPPING:
            image_processor = keep_aspect(image_processor, 8)
        logits = model(pixels(image_processor, photo)).logits
        scores = F.interpolate(logits, size=(HEIGHT, WIDTH), mode="bilinear")
    assert np.array_equal(classes, scores[0].argmax(0).numpy())


def test_the_overlay_and_its_legend_have_the_colors_of_the_dataset(photo, monkeypatch):
    names = dict(enumerate(dataset_labels("voc2012")))
    model = make(vitrail.ViTForSemanticSegmentation, num_labels=21, id2label=names)
    (classes,), [cells] = strips(segmentation, monkeypatch, vitrail.plot_segmentation, model, UNRESIZED, [photo])
    (_, enlarged), (_, overlay), (caption, legend) = cells
    found = segmentation.class_shares(classes)
    assert caption == f"{len(found)} of 21 classes"
    assert sum(share for _, share in found) == pytest.approx(1)
    assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)
    palette = np.array(segmentation_colors("voc2012"))
    zoomed = classes[np.arange(enlarged.height) * HEIGHT // enlarged.height][:, np.arange(enlarged.width) * WIDTH // enlarged.width]
    expected = 0.35 * np.asarray(enlarged, dtype=float) + 0.65 * palette[zoomed]
    differing = np.abs(np.asarray(overlay) - expected).max(axis=-1) > 1.01
    assert differing.mean() < 0.03  # pixels on borders of classes
    first_swatch = legend.getpixel((10, 14))
    assert first_swatch == segmentation_colors("voc2012")[found[0][0]]


def test_colors_of_other_classes_differ():
    colors = segmentation.class_colors([str(index) for index in range(30)])
    assert len(np.unique(colors, axis=0)) == 30
    assert np.abs(np.diff(colors.astype(int), axis=0)).max(axis=1).min() > 60


@pytest.mark.parametrize("image_processor", [UNRESIZED, RESIZING])
def test_depth_in_meters_at_the_size_of_the_photograph(image_processor, photo, monkeypatch):
    model = make(vitrail.ViTForDepthEstimation)
    (found,), [cells] = strips(depth, monkeypatch, vitrail.plot_depth, model, image_processor, [photo])
    with torch.no_grad():
        predicted = model(pixels(image_processor, photo)).predicted_depth
    expected = F.interpolate(predicted[:, None], size=(HEIGHT, WIDTH), mode="bilinear")[0, 0].numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    picture = np.asarray(cells[1][1]).astype(int).sum(axis=-1)
    near, far = (np.unravel_index(index, found.shape) for index in (found.argmin(), found.argmax()))
    zoom = cells[0][1].width / WIDTH
    near, far = (picture[int((row + 0.5) * zoom), int((column + 0.5) * zoom)] for row, column in (near, far))
    assert near > far  # near is light


def test_depth_files(tmp_path):
    values = np.array([[0.0014, 2.5], [65.535, 10]], dtype=np.float32)
    depth.write_depth(values, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert np.asarray(picture).tolist() == [[1, 2500], [65535, 10000]]
    depth.write_depth(values, tmp_path / "a.npy")
    assert np.array_equal(np.load(tmp_path / "a.npy"), values)
    with pytest.raises(VitrailError, match=r"depths up to 65.54 m, but 16 bits of millimeters end at 65.535 m: write .npy"):
        depth.write_depth(np.float32([[65.5356]]), tmp_path / "b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.png"]


@torch.no_grad()
def test_large_images_are_shrunk_and_their_maps_enlarged(photo, monkeypatch):
    monkeypatch.setattr(whole_images, "MAX_PIXELS", HEIGHT * WIDTH // 4)
    model = make(vitrail.ViTForSemanticSegmentation, num_labels=5)
    (classes,), _ = vitrail.plot_segmentation(model, UNRESIZED, [photo])
    halved = vitrail.VitrailImageProcessor(size={"height": HEIGHT // 2, "width": WIDTH // 2}, do_center_crop=False)
    logits = F.interpolate(model(pixels(halved, photo)).logits, size=(HEIGHT // 2, WIDTH // 2), mode="bilinear")
    assert np.array_equal(classes, logits[0].argmax(0).numpy().repeat(2, axis=0).repeat(2, axis=1))


@torch.no_grad()
def test_cosines_with_the_patches_at_points(photo, monkeypatch):
    model, other = tiny_model(num_register_tokens=2), photo.rotate(180).resize((32, 32))
    points = [(0, 0), (55, 25.5)]
    maps, cells = strips(
        patch_similarity, monkeypatch, vitrail.plot_patch_similarity, model, keep_aspect(CROPPING, 8), [photo, other], points
    )
    tokens = [model(pixels(keep_aspect(CROPPING, 8), image)).last_hidden_state[0, 3:].double().numpy() for image in (photo, other)]
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in tokens]
    grids = [(4, 6), (4, 4)]  # 32 x 45 pixels become 32 x 48
    rows = unit[0][[0, 2 * 6 + 5]]
    for found, values, grid in zip(maps, unit, grids, strict=True):
        np.testing.assert_allclose(found, (rows @ values.T).reshape(2, *grid), atol=1e-5)
    assert [len(strip) for strip in cells] == [3, 3]
    assert cells[0][1][0] == "cosine with (0, 0)"
    with pytest.raises(VitrailError, match=r"\(56, 3\) lies outside of the first image: pass 0 <= x < 56 and 0 <= y < 40"):
        vitrail.plot_patch_similarity(model, CROPPING, [photo], [(56, 3)])


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.001, 10, ["2", "4", "6", "8", "10"]),
        (4.7, 5.25, ["4.8", "5.0", "5.2"]),
        (-0.74, 1, ["-0.5", "0.0", "0.5", "1.0"]),
        (0.31, 0.312, ["0.3100", "0.3105", "0.3110", "0.3115", "0.3120"]),
        (3, 3, ["3"]),
    ],
)
def test_ticks_of_scale_bars_are_round(low, high, texts):
    assert [text for _, text in legends.ticks(low, high)] == texts


def test_a_scale_bar_runs_from_the_lowest_to_the_highest_color():
    picture = Image.new("RGB", (480, 100))
    sheet = legends.with_scale_bar(picture, 0, 10, heat)
    ends = [sheet.getpixel((x, 112)) for x in (1, 478)]
    assert ends[0] < (40, 40, 90)
    assert min(ends[1]) > 180


def test_entries_of_a_legend_that_do_not_fit_are_counted(monkeypatch):
    written = []
    monkeypatch.setattr(legends.ImageDraw.ImageDraw, "text", lambda self, place, text, **options: written.append(text))
    entries = [(f"class {index}", (index, 0, 0)) for index in range(500)]
    legends.legend(entries, (480, 300))
    assert written[:2] == ["class 0", "class 1"]
    assert written[-1] == f"and {500 - len(written) + 1} more"
    written.clear()
    legends.legend(entries[:20], (480, 300))
    assert written == [name for name, _ in entries[:20]]


def test_what_is_refused(photo):
    model = make(vitrail.ViTModel)
    for function, name in ((vitrail.plot_segmentation, "segmentation"), (vitrail.plot_depth, "depth")):
        with pytest.raises(VitrailError, match=f"found a ViTModel; load a {name} head"):
            function(model, UNRESIZED, [photo])
        with pytest.raises(VitrailError, match="found no image"):
            function(model, UNRESIZED, [])
    with pytest.raises(VitrailError, match="found 1 images and 0 points"):
        vitrail.plot_patch_similarity(model, UNRESIZED, [photo], [])
