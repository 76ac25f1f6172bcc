"""Segmentation and depth: shapes, padding, windows, losses, and the habits of every transformers model. Numbers are in the golden cases."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModelForDepthEstimation, AutoModelForSemanticSegmentation, pipeline

import vitrail
from small_models import IMPORT_OF_THE_COMPILER, gradients, main_output, parameters_without_gradient, randomize, tiny_config
from vitrail.modeling.modeling_vit_dense import ViTBatchNorm, depth_bins, depth_loss, pad_to_patches, windows
from vitrail.utils.compat import CHECKPOINTING

FOUR = {"num_hidden_layers": 4, "layer_scale_init_value": 1.0}
DPT = {"dense_layers": [0, 1, 2, 3], "depth_head": "dpt", "depth_fusion_size": 16, "depth_hidden_size": 4}
# One model of each kind that is published
MODELS = {
    "segmentation": (vitrail.ViTForSemanticSegmentation, {"dense_layers": [2, 3], "num_labels": 5}),
    "linear": (
        vitrail.ViTForDepthEstimation,
        {"dense_norm": False, "depth_readout": "concatenate", "depth_upsampling": 4, "depth_num_bins": 16, "depth_clamp": True},
    ),
    "dpt": (vitrail.ViTForDepthEstimation, DPT | {"depth_readout": "project", "depth_num_bins": 1, "dense_norm": False}),
    "synthmix": (
        vitrail.ViTForDepthEstimation,
        DPT | {"depth_batch_norm": True, "depth_num_bins": 16, "depth_range": (0.001, 100)},
    ),
    "chmv2": (
        vitrail.ViTForDepthEstimation,
        DPT
        | {"depth_readout": "project", "depth_fusion_bias": True, "depth_fusion_projection": False, "depth_bins": "mixed_log"}
        | {"depth_num_bins": 16, "depth_range": (0.001, 96), "position_embedding_type": "rotary", "num_register_tokens": 2},
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name, **fields):
    model_class, own = MODELS[name]
    torch.manual_seed(0)
    model = randomize(model_class(tiny_config(**FOUR | own | fields))).eval()
    for part in model.modules():
        if isinstance(part, ViTBatchNorm):
            part.running_mean += 0.1
            part.running_var *= 1.5
    return model


def images(height=37, width=51, batch_size=2):
    return torch.randn(batch_size, 3, height, width, generator=torch.Generator().manual_seed(0))


@every_model
@torch.no_grad()
def test_saved_loaded_eager_and_alone(name, tmp_path):
    model, pixel_values = make(name), images()
    expected = main_output(model(pixel_values))
    assert expected.shape == ((2, 5, 5, 7) if name == "segmentation" else (2, 37, 51))
    model.save_pretrained(tmp_path)
    auto = AutoModelForSemanticSegmentation if name == "segmentation" else AutoModelForDepthEstimation
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info.values()), info
    assert torch.equal(main_output(loaded(pixel_values)), expected)
    again, _, report = vitrail.load(tmp_path)
    assert type(again) is type(model)
    assert not [warning for warning in report.warnings if "preprocessing" not in warning]
    assert torch.equal(main_output(again(pixel_values)), expected)
    loaded.set_attn_implementation("eager")
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(main_output(loaded(pixel_values)), expected, atol=tolerance, rtol=1e-4)
    torch.testing.assert_close(main_output(model(pixel_values[1:])), expected[1:], atol=tolerance, rtol=1e-4)


@every_model
def test_gradients_reach_every_parameter_also_with_checkpoints(name):
    model, pixel_values = make(name).train(), images(32, 48)
    labels = torch.randint(0, 5, (2, 32, 48)) if name == "segmentation" else torch.rand(2, 32, 48) * 9
    model(pixel_values, labels=labels).loss.backward()
    unread = {f"vit.layernorm.{kind}" for kind in ("weight", "bias")} if not model.config.dense_norm else set()
    assert parameters_without_gradient(model) == unread
    expected = gradients(model)
    model.zero_grad()
    getattr(model, f"{CHECKPOINTING}_enable")()
    model(pixel_values, labels=labels).loss.backward()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-5, rtol=1e-3, msg=key)


@IMPORT_OF_THE_COMPILER
@torch.no_grad()
def test_one_graph():
    model, pixel_values = make("chmv2", num_hidden_layers=1, dense_layers=[0] * 4), images()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(main_output(compiled(pixel_values)), main_output(model(pixel_values)))


@pytest.mark.parametrize(("height", "width"), [(37, 51), (32, 41), (40, 40), (5, 3)])
def test_padding_is_half_on_each_side_and_the_odd_one_at_the_end(height, width):
    pixel_values = images(height, width)
    missing = [-length % 8 for length in (height, width)]
    expected = np.pad(pixel_values.numpy(), [(0, 0), (0, 0), *((length // 2, length - length // 2) for length in missing)])
    assert np.array_equal(pad_to_patches(pixel_values, (8, 8)).numpy(), expected)


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [
        (224, 150, 100, [0, 74]),
        (683, 512, 341, [0, 171]),
        (512, 512, 341, [0]),
        (100, 512, 341, [0]),
        (700, 512, 100, [0, 100, 188]),
    ],
)
def test_windows_end_at_the_border(length, window, stride, starts):
    found = list(windows(length, window, stride))
    assert [one.start for one in found] == starts
    assert {one.stop - one.start for one in found} == {min(window, length)}


@torch.no_grad()
def test_probabilities_are_averaged_over_scales_and_mirrored_images():
    model, pixel_values = make("segmentation"), images(40, 56)

    def at(scale, mirrored):
        resized = F.interpolate(pixel_values, size=(int(40 * scale), int(56 * scale)), mode="bilinear")
        logits = model(resized.flip(-1) if mirrored else resized).logits
        logits = F.interpolate(F.interpolate(logits, size=resized.shape[-2:], mode="bilinear"), size=(40, 56), mode="bilinear")
        return logits.softmax(1).flip(-1) if mirrored else logits.softmax(1)

    found = model.segment(pixel_values, scales=(1, 1.5), flip=True)
    expected = sum(at(scale, mirrored) for scale in (1, 1.5) for mirrored in (False, True)) / 4
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 40, 56))
    halved = model.segment(pixel_values, size=20)
    assert halved.shape == (2, 5, 40, 56)
    assert not torch.allclose(halved, model.segment(pixel_values))


def test_losses():
    model, pixel_values = make("segmentation"), images(32, 32)
    labels = torch.randint(0, 5, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    labels[:, :9] = 255
    output = model(pixel_values, labels=labels)
    probabilities = F.interpolate(output.logits, size=(32, 32), mode="bilinear").softmax(1).detach().numpy()
    counted = labels.numpy() != 255
    picked = np.take_along_axis(probabilities, np.where(counted, labels.numpy(), 0)[:, None], 1)[:, 0]
    assert output.loss.item() == pytest.approx(-np.log(picked[counted]).mean(), rel=1e-5)

    depth, truth = torch.rand(2, 4, 5) * 8 + 0.1, torch.rand(2, 4, 5) * 12
    truth[0, 0] = 0
    valid = (truth > 0) & (truth <= 10)
    predicted, true = depth[valid].double().numpy(), truth[valid].double().numpy()
    g = np.log(predicted + 1e-3) - np.log(true + 1e-3)
    expected = np.sqrt(np.var(g, ddof=1) + 0.15 * np.mean(g) ** 2)
    assert depth_loss(depth, truth, 10).item() == pytest.approx(expected, rel=1e-5)


def test_mixed_bins_are_logarithmic_at_first_and_even_at_last():
    bins = depth_bins(make("chmv2").config, torch.device("cpu")).double()
    assert (bins[0].item(), bins[-1].item()) == pytest.approx((0.008, 96))
    assert torch.all(bins.diff() > 0)


def test_post_processing_resizes_to_each_image():
    image_processor = vitrail.make_image_processor("dinov2")
    with torch.no_grad():
        segmented, measured = make("segmentation")(images()), make("linear")(images())
    classes = image_processor.post_process_semantic_segmentation(segmented, [(37, 51), (20, 30)])
    for index, size in enumerate([(37, 51), (20, 30)]):
        resized = F.interpolate(segmented.logits[index : index + 1], size=size, mode="bilinear")
        assert torch.equal(classes[index], resized.argmax(1)[0])
    assert [one.shape for one in image_processor.post_process_semantic_segmentation(segmented)] == [(5, 7)] * 2
    depths = image_processor.post_process_depth_estimation(measured, torch.tensor([[37, 51], [74, 102]]))
    assert torch.equal(depths[0]["predicted_depth"], measured.predicted_depth[0])
    assert depths[1]["predicted_depth"].shape == (74, 102)
    with pytest.raises(ValueError, match="found 1 target_sizes for 2 images"):
        image_processor.post_process_depth_estimation(measured, [(1, 1)])


def test_pipelines_of_transformers(tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    image_processor = vitrail.VitrailImageProcessor(do_resize=False, do_center_crop=False)
    for name, task in (("segmentation", "image-segmentation"), ("linear", "depth-estimation")):
        vitrail.save(make(name), image_processor, tmp_path / name)
        result = pipeline(task, model=str(tmp_path / name))(photo)
        model, pixel_values = make(name), image_processor(photo, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model(pixel_values)
        if name == "linear":
            torch.testing.assert_close(result["predicted_depth"], outputs.predicted_depth[0])
            assert result["depth"].size == (40, 50)
            continue
        expected = F.interpolate(outputs.logits, size=(50, 40), mode="bilinear").argmax(1)[0].numpy()
        assert {segment["label"] for segment in result} == {f"LABEL_{index}" for index in np.unique(expected)}
        for segment in result:
            assert np.array_equal(np.asarray(segment["mask"]) > 0, expected == int(segment["label"].removeprefix("LABEL_")))
