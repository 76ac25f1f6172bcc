"""The proof itself: it passes where all is well, and each of its three checks fails when its thing is wrong."""

import dataclasses
import json

import pytest
import torch

import deterministic
import paths
import vitrail
from small_models import tiny_config
from vitrail.convert import verification as module

PHOTO = paths.IMAGES / "coffee.jpg"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Files of small cases in their original containers."""
    folder = tmp_path_factory.mktemp("verify")
    for name in ("dinov2_chunked_teacher_tiny", "google_s16_augreg"):
        case = deterministic.case(name)
        deterministic.write_checkpoint(case, folder / name)
    deterministic.write_checkpoint(deterministic.dino_vits16(), folder / "dino_vits16")
    return folder


def checks_of(path, **options):
    model, processor, _ = vitrail.load(path)
    return (
        model,
        processor,
        {check.name + check.note[:5]: check for check in vitrail.verify(model, processor, against=path, **options)},
    )


@pytest.mark.parametrize("name", ["dinov2_chunked_teacher_tiny", "google_s16_augreg", "dino_vits16"])
def test_a_sound_model_passes(sources, name):
    _, _, checks = checks_of(sources / name, image=PHOTO)
    assert all(check.passed is not False for check in checks.values()), checks
    assert checks["round trip" + checks_note(checks, "round trip")].passed
    assert any(check.name.startswith("features") and check.passed and check.difference <= 1e-5 for check in checks.values())
    assert any(check.name == "pixels" and check.passed for check in checks.values())
    # transformers has another rule of interpolation than all three: reported, and equal with that rule in our model
    known = [check for check in checks.values() if check.note.startswith("known")]
    assert known
    assert all(check.difference > 1e-3 for check in known)
    assert any(check.note == "with the library's rule in our model" and check.passed for check in checks.values())


def checks_note(checks, name):
    return next(check.note[:5] for check in checks.values() if check.name == name)


def test_a_model_of_a_narrower_dtype_is_compared_with_rounded_weights(sources):
    path = sources / "dinov2_chunked_teacher_tiny"
    model, _, _ = vitrail.load(path, dtype="bfloat16")
    (check,) = module._round_trip(model, path, None, "teacher")
    assert (check.passed, check.note) == (True, "63 tensors equal bit for bit, rounded to bfloat16")
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    (check,) = module._round_trip(model, path, None, "teacher")
    assert not check.passed


def test_a_changed_weight_fails_the_round_trip(sources):
    model, processor, _ = vitrail.load(sources / "dinov2_chunked_teacher_tiny")
    with torch.no_grad():
        model.layers[2].mlp.fc1.weight[0, 0] += 1e-6
    check = vitrail.verify(model, processor, against=sources / "dinov2_chunked_teacher_tiny")[0]
    assert check.passed is False
    assert "1 of 63 tensors differ" in check.note
    assert "blocks.2.mlp.fc1.weight" in check.note


def test_another_output_fails(sources, monkeypatch):
    """A model that pools, norms or attends otherwise than transformers' class does."""
    model, processor, _ = vitrail.load(sources / "dinov2_chunked_teacher_tiny")
    wrong = type(model.norm_tokens)(lambda self, hidden_states: self.layernorm(hidden_states) * 1.001, model)
    monkeypatch.setattr(type(model), "norm_tokens", wrong.__func__)
    checks = vitrail.verify(model, processor)
    assert [check.passed for check in checks if check.name.startswith("features at 98x98")] == [False]


def test_an_image_processor_that_does_otherwise_fails(sources, monkeypatch):
    model, processor, _ = vitrail.load(sources / "dinov2_chunked_teacher_tiny")
    original = type(processor).__call__

    def slightly_darker(self, images, **options):
        features = original(self, images, **options)
        features["pixel_values"] = features["pixel_values"] - 0.01
        return features

    monkeypatch.setattr(type(processor), "__call__", slightly_darker)
    checks = vitrail.verify(model, processor, image=PHOTO)
    assert [check.passed for check in checks if check.name == "pixels"] == [False]


def test_a_model_that_does_not_survive_saving_fails(sources, monkeypatch):
    model, processor, _ = vitrail.load(sources / "dinov2_chunked_teacher_tiny")
    original = type(model).from_pretrained.__func__

    def lossy(cls, folder, **options):
        loaded = original(cls, folder, **options)
        with torch.no_grad():
            loaded.layernorm.bias += 1e-3
        return loaded

    monkeypatch.setattr(type(model), "from_pretrained", classmethod(lossy))
    check = vitrail.verify(model, processor)[-1]
    assert check.name == "saved and loaded again"
    assert check.passed is False


def test_without_an_implementation_the_row_is_reported(monkeypatch):
    relative = {"position_embedding_type": "relative_mlp", "pooling": "avg", "use_cls_token": False, "layer_scale_init_value": 1.0}
    config = tiny_config(**relative)
    without_timm = dataclasses.replace(module.EXPORT_FORMATS["timm"], load_peer=lambda folder, exported: None)
    monkeypatch.setitem(module.EXPORT_FORMATS, "timm", without_timm)
    model = vitrail.ViTModel(config).eval()
    checks = vitrail.verify(model, vitrail.make_image_processor("inception", image_size=32))
    assert [check.passed for check in checks] == [None, None, True]
    assert "--against" in checks[0].note
    assert "timm is not installed" in checks[1].note


def test_the_table_is_kept_with_the_model(sources, tmp_path):
    from vitrail.hub.saving import keep_verification

    source = sources / "dinov2_chunked_teacher_tiny"
    vitrail.convert_checkpoint(source, tmp_path / "model")
    model, processor, _ = vitrail.load(tmp_path / "model")
    keep_verification(tmp_path / "model", vitrail.verify(model, processor, against=source))
    kept = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert kept["format"] == "dinov2"
    assert kept["verification"][0]["name"] == "round trip"
    assert kept["verification"][0]["passed"] is True


def test_the_classifier_of_another_file_is_proved_too(tmp_path):
    deterministic.write_checkpoint(deterministic.dino_vits16(), tmp_path / "backbone.pth")
    head = {"module.linear.weight": torch.randn(5, 4 * 384), "module.linear.bias": torch.randn(5)}
    torch.save({"state_dict": head}, tmp_path / "head.pth")
    model, _, _ = vitrail.load(tmp_path / "backbone.pth", head=tmp_path / "head.pth")

    def passed(head):
        return [check.passed for check in module._round_trip(model, tmp_path / "backbone.pth", head, "teacher")]

    assert passed(tmp_path / "head.pth") == [True, True]
    assert passed(None) == [True, None]
    with torch.no_grad():
        model.classifier.weight.zero_()
    assert passed(tmp_path / "head.pth") == [True, False]


@pytest.mark.parametrize("fields", [{"num_channels": 1}, {"image_size": (32, 48)}], ids=["one channel", "rectangle"])
def test_what_load_can_make_verify_can_look_at(fields):
    config = tiny_config(**fields)
    processor = vitrail.make_image_processor("dino", image_size=config.image_size, num_channels=config.num_channels)
    checks = vitrail.verify(vitrail.ViTModel(config).eval(), processor)
    assert all(check.passed is not False for check in checks), checks
    assert any(check.name.startswith("features at") and check.passed for check in checks)


def test_the_torch_backend_may_be_two_levels_off(sources):
    model, processor, _ = vitrail.load(sources / "dinov2_chunked_teacher_tiny")
    processor.backend = "torch"
    checks = vitrail.verify(model, processor, image=PHOTO)
    assert [check.passed for check in checks if check.name == "pixels"] == [True]


def test_a_size_that_was_changed_on_purpose_is_known(sources):
    source = sources / "dinov2_chunked_teacher_tiny"
    model, processor, _ = vitrail.load(source, image_size=112)
    check = vitrail.verify(model, processor, against=source)[0]
    assert check.passed is None
    assert "pos_embed" in check.note


def test_another_source_is_not_taken_for_a_changed_size(sources, tmp_path):
    """In a file of another width every tensor has another shape, which is not an adaptation."""
    source = sources / "dinov2_chunked_teacher_tiny"
    tensors = torch.load(source, weights_only=True)["teacher"]
    torch.save({"teacher": {name: torch.cat((tensor, tensor), -1) for name, tensor in tensors.items()}}, tmp_path / "wider.pth")
    model, processor, _ = vitrail.load(source)
    check = vitrail.verify(model, processor, against=tmp_path / "wider.pth")[0]
    assert check.passed is False
    assert "63 of 63 tensors differ" in check.note
