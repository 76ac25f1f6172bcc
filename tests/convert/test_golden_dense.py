"""Golden cases of segmentation and depth: files of published heads, loaded with their encoder, against the outputs of the originals."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import deterministic
import vitrail
from vitrail.configuration.class_names import dataset_labels
from vitrail.modeling.modeling_vit_dense import depth_from_logits, resize

TOLERANCE = 1e-4  # of logits
OUTPUTS = ("head_depth", "predicted_depth", "logits", "logits_resized", "slide_probabilities")
OF_THE_RANGE = 2e-5  # of depths, in units of the largest depth
# The heads of each case and the sizes of images that are tested; the others read the same weights for another dataset or size
SQUARE, PADDED, MULTIPLE = "224x224", "145x201", "144x192"
HEADS = {
    "dense_dinov2_vits14": {"nyu_linear": [PADDED], "nyu_linear4": [SQUARE], "nyu_dpt": [PADDED], "ade20k_ms": [SQUARE, PADDED]},
    "dense_dinov3_vits16": {"nyu_linear": [SQUARE, PADDED], "ade20k_linear": [MULTIPLE]},
    "dense_dinov3_40_blocks": {"synthmix_dpt": [PADDED]},
    "dense_dinov3_24_blocks_sat": {"chmv2_dpt": [PADDED]},
}
# What the training of mmcv and DINOv3 leaves in a file with the weights
BESIDE = {
    "meta": {
        "mmcv_version": "1.5.0",
        "CLASSES": ("wall", "building"),
        "PALETTE": [[120, 120, 120], [180, 120, 120]],
        "seed": np.int64(7),
        "hook_msgs": {"best_score": np.float32(0.5)},
    },
    "optimizer": {
        "state": {0: {"step": 40000, "exp_avg": torch.zeros(3)}},
        "param_groups": [{"lr": np.float64(1e-3), "params": [0]}],
    },
}


@pytest.fixture(scope="module", params=HEADS)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    case = deterministic.case(request.param) | {"folder": folder}
    case["reference"] = load_file(deterministic.GOLDEN / f"{request.param}.safetensors")
    deterministic.write_checkpoint(case, folder / "backbone.pth")
    yield case
    for file in folder.iterdir():
        file.unlink()


def load(case, head, **options):
    """Write the file of a head as it is published, and load it with the encoder."""
    spec = case["heads"][head]
    tensors = deterministic.weights(spec["checkpoint"])
    file = case["folder"] / spec["file"]
    torch.save({spec["root"]: tensors, **BESIDE} if spec["root"] else tensors, file)
    return vitrail.load(case["folder"] / "backbone.pth", head=file, **options)


def predictions(model, pixel_values, spec):
    """Every output that the golden cases contain, by name."""
    if spec["task"] == "depth":
        seen = []
        hook = model.depth_head.register_forward_hook(lambda head, inputs, logits: seen.append(logits))
        yield "predicted_depth", model(pixel_values).predicted_depth
        hook.remove()
        yield "head_depth", depth_from_logits(seen[0], model.config)
        return
    logits = model(pixel_values).logits
    yield "logits", logits
    yield "logits_resized", resize(logits, pixel_values.shape[-2:])
    if "slide" in spec:
        crop, stride = spec["slide"]["crop"], spec["slide"]["stride"]
        side = min(pixel_values.shape[-2:])
        yield "slide_probabilities", model.segment(pixel_values, size=side, window=crop, stride=stride, scales=[1], flip=False)


@torch.no_grad()
def test_every_array_equals_the_original(case):
    for head, sizes in HEADS[case["name"]].items():
        spec = case["heads"][head]
        model, _, report = load(case, head)
        assert report.coverage["converted"] + len(report.coverage["ignored"]) >= len(spec["checkpoint"])
        for size in sizes:
            found = dict(predictions(model, deterministic.pixel_values(case["inputs"][size]), spec))
            expected = {what for what in OUTPUTS if f"{size}/{head}/{what}" in case["samples"]}
            assert expected <= found.keys()
            for what in expected:
                name = f"{size}/{head}/{what}"
                sample = case["samples"][name]
                assert list(found[what].shape[-2:]) == sample["of"], name
                points = found[what][..., sample["rows"], :][..., sample["cols"]]
                tolerance = max(OF_THE_RANGE * spec["depth_range"][1], TOLERANCE) if spec["task"] == "depth" else TOLERANCE
                torch.testing.assert_close(points, case["reference"][name], atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    case = deterministic.case("dense_dinov2_vits14") | {"folder": tmp_path_factory.mktemp("dinov2")}
    deterministic.write_checkpoint(case, case["folder"] / "backbone.pth")
    return case


@torch.no_grad()
def test_the_range_of_torch_hub(dinov2):
    """torch.hub's linear functions compute 80 m for NYU; the file does not hold the range, so that another name needs the option."""
    model, _, report = load(dinov2, "nyu_linear", depth_range=(0.001, 80))
    assert model.config.depth_range == (0.001, 80.0)
    assert not [warning for warning in report.warnings if "range" in warning]
    name = "145x201/nyu_linear/predicted_depth_hub"
    expected = load_file(deterministic.GOLDEN / "dense_dinov2_vits14.safetensors")[name]
    depth = model(deterministic.pixel_values(dinov2["inputs"]["145x201"])).predicted_depth
    sample = dinov2["samples"][name]
    torch.testing.assert_close(depth[..., sample["rows"], :][..., sample["cols"]], expected, atol=80 * OF_THE_RANGE, rtol=0)

    renamed = dinov2["folder"] / "head.pth"
    (dinov2["folder"] / "dinov2_vits14_nyu_linear_head.pth").rename(renamed)
    model, _, report = vitrail.load(dinov2["folder"] / "backbone.pth", head=renamed)
    assert model.config.depth_range == (0.001, 10.0)
    assert [
        w
        for w in report.warnings
        if "head.pth does not hold the range of its depths: 0.001 to 10 m assumed" in w and "depth_range=" in w
    ]


def test_classes_and_windows_come_along(dinov2, tmp_path):
    model, image_processor, report = load(dinov2, "voc2012_ms")
    assert tuple(model.config.id2label.values()) == dataset_labels("voc2012")
    assert 'labels="voc2012" is assumed for the 21 classes: set labels= for others' in report.warnings
    config = model.config
    assert (config.segmentation_size, config.segmentation_window, config.segmentation_stride) == (640, 640, 320)
    assert (config.segmentation_scales, config.segmentation_flip) == ((1.0, 1.32, 1.73, 2.28, 3.0), True)
    assert config.dense_layers == [8, 9, 10, 11]
    assert dict(image_processor.size) == {"shortest_edge": 640, "longest_edge": 2560}
    assert (image_processor.do_center_crop, image_processor.resample) == (False, 2)
    vitrail.save(model, image_processor, tmp_path / "saved", report=report)
    again, same_images, _ = vitrail.load(tmp_path / "saved")
    assert type(again) is vitrail.ViTForSemanticSegmentation
    assert (again.config.to_dict() | {"auto_map": None}) == (model.config.to_dict() | {"auto_map": None})
    assert same_images.to_dict() == image_processor.to_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    encoder, _, without = vitrail.load(tmp_path / "saved", num_labels=0)
    assert type(encoder) is vitrail.ViTModel
    assert "the head of the ViTForSemanticSegmentation is left out" in without.warnings


def test_verify_compares_a_head_with_its_file(tmp_path):
    deterministic.write_checkpoint(deterministic.case("dinov2_chunked_teacher_tiny"), tmp_path / "backbone.pth")
    head = tmp_path / "dinov2_vits14_kitti_linear_head.pth"
    weight, bias = torch.randn(16, 256, 1, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(16)
    torch.save({"state_dict": {"decode_head.conv_depth.weight": weight, "decode_head.conv_depth.bias": bias}}, head)
    model, image_processor, _ = vitrail.load(tmp_path / "backbone.pth", head=head)
    assert model.config.depth_range == (0.001, 80.0)
    assert (image_processor.do_resize, image_processor.do_center_crop) == (False, False)

    def run_checks():
        checks = vitrail.verify(model, image_processor, against=tmp_path / "backbone.pth", head=head)
        return {check.name: check.passed for check in checks}

    passed = run_checks()
    assert all(passed[name] for name in ("round trip", "round trip of the head", "saved and loaded again"))
    with torch.no_grad():
        model.depth_head.projection.bias[0] += 1
    assert run_checks()["round trip of the head"] is False


@pytest.mark.parametrize(
    ("names", "file", "options", "message"),
    [
        (["weight", "bias"], "dinov2_vits14_nyu_linear_head.pth", {}, "holds a classifier of images.*in place of the dense head"),
        (
            ["weight", "bias"],
            "head.pth",
            {"depth_range": (0.001, 80)},
            "depth_range=.*is for a depth head.*ViTForImageClassification",
        ),
        (
            ["decode_head.pixel_decoder.x", "decode_head.cls_embed.weight"],
            "m2f.pth",
            {},
            "a Mask2Former decoder with a ViT-Adapter",
        ),
        (["segmentation_model.0.level_embed", "segmentation_model.1.x"], "m2f.pth", {}, "a Mask2Former decoder with a ViT-Adapter"),
        (["transformer.x", "bbox_embed.0.layers.0.weight"], "detr.pth", {}, "a DETR detector"),
        (["decode_head.conv_seg.weight"], "ade.pth", {}, "decode_head.conv_seg.weight with 768 inputs; expected 384 or 1536"),
    ],
)
def test_a_wrong_head_is_named(dinov2, names, file, options, message):
    shape = (1000, 768) if names[0] == "weight" else (150, 768, 1, 1)
    torch.save({name: torch.zeros(1000 if name == "bias" else shape) for name in names}, dinov2["folder"] / file)
    with pytest.raises(vitrail.VitrailError, match=message):
        vitrail.load(dinov2["folder"] / "backbone.pth", head=dinov2["folder"] / file, **options)
