import hashlib
import json
import os
import re
import shutil

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import vitrail
from small_models import tiny_config
from vitrail.convert.verification import Check
from vitrail.errors import ConversionError, SourceNotFoundError, UnsupportedCheckpointError, VitrailError
from vitrail.evaluation.results import describe_model
from vitrail.hub.saving import folder_of_run, keep_verification
from vitrail.hub.upload import stage

FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
FILES |= {"configuration_vit.py", "modeling_vit.py", "modeling_vit_dense.py", "image_processing_vit.py"}


def small(model_class=vitrail.ViTModel, **fields):
    torch.manual_seed(0)
    return model_class(tiny_config(**fields)).eval(), vitrail.make_image_processor("dino", image_size=32)


@pytest.mark.parametrize("model_class", [vitrail.ViTModel, vitrail.ViTForImageClassification])
def test_what_is_saved_loads_with_the_auto_classes_and_with_load(tmp_path, model_class):
    model, processor = small(model_class, num_labels=3)
    vitrail.save(model, processor, tmp_path / "model")
    auto = {vitrail.ViTModel: AutoModel, vitrail.ViTForImageClassification: AutoModelForImageClassification}[model_class]
    loaded, loaded_processor, report = vitrail.load(tmp_path / "model")
    pixel_values = torch.randn(2, 3, 32, 32)
    for other in (auto.from_pretrained(tmp_path / "model"), loaded):
        assert type(other) is model_class
        with torch.no_grad():
            assert torch.equal(other(pixel_values)[0], model(pixel_values)[0])
    assert report.format == "vitrail"
    for other in (AutoImageProcessor.from_pretrained(tmp_path / "model"), loaded_processor):
        assert other.to_dict() == processor.to_dict()


def test_nothing_but_the_folder_is_left(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    vitrail.export_model(tmp_path / "model", tmp_path / "exported", to="timm")
    (tmp_path / "file").touch()
    modes = {path.stat().st_mode for folder in ("model", "exported") for path in (tmp_path / folder).iterdir()}
    assert modes == {(tmp_path / "file").stat().st_mode}, "safetensors makes files that others cannot read"


def test_a_model_can_be_saved_over_another(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    model, processor = small(num_register_tokens=2)
    vitrail.save(model, processor, tmp_path / "model")
    assert AutoModel.from_pretrained(tmp_path / "model").config.num_register_tokens == 2
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    model, processor = small()
    vitrail.save(model, processor, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def full_disk(folder):
        raise OSError(28, "No space left on device")

    other, _ = small(num_register_tokens=2)
    monkeypatch.setattr(processor, "save_pretrained", full_disk)
    for name in ("model", "new"):
        with pytest.raises(OSError, match="No space left"):
            vitrail.save(other, processor, tmp_path / name)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_peoples_files_are_not_mixed_with_a_model(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VitrailError, match="new folder"):
        vitrail.save(*small(), tmp_path / "photos")
    with pytest.raises(VitrailError, match="is a file"):
        vitrail.save(*small(), tmp_path / "file")


def test_a_folder_of_another_model_is_refused(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(UnsupportedCheckpointError, match=r'Its config\.json names "swin"'):
        vitrail.load(tmp_path / "model")


def test_a_folder_with_a_parameter_missing_is_refused(tmp_path):
    model, processor = small()
    vitrail.save(model, processor, tmp_path / "model")
    state_dict = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.norm1" not in name}
    model.save_pretrained(tmp_path / "model", state_dict=state_dict)
    with pytest.raises(ConversionError, match=r"layers\.1\.norm1\.bias, layers\.1\.norm1\.weight"):
        vitrail.load(tmp_path / "model")


def test_conversion_keeps_its_report(tmp_path):
    import deterministic

    deterministic.write_checkpoint(deterministic.dino_vits16(), tmp_path / "dino.pth")
    report = vitrail.convert_checkpoint(tmp_path / "dino.pth", tmp_path / "model")
    kept = json.loads((tmp_path / "model" / "conversion.json").read_text())
    sha256 = hashlib.sha256((tmp_path / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert kept == report.to_dict() | {"weights_sha256": sha256}
    assert kept["format_version"] == 1
    assert kept["format"] == "dino"
    assert kept["source"]["name"] == "dino.pth"
    assert str(tmp_path) not in json.dumps(kept), "a report that is published must not tell where its author keeps files"
    assert AutoModel.from_pretrained(tmp_path / "model").config.patch_size == 16


def test_a_folder_of_another_kind_is_not_written_over(tmp_path):
    """This includes the source: `vitrail convert MODEL MODEL` would destroy it."""
    vitrail.save(*small(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"model_type": "vit"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(VitrailError, match="files that do not belong to a model"):
        vitrail.save(*small(), tmp_path / "model")


def test_what_belonged_to_the_model_before_is_removed(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    for name in ("conversion.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "mine.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    vitrail.save(*small(), tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES | {"mine.safetensors"}


def test_the_size_and_hash_of_a_sharded_source_are_of_its_shards(tmp_path):

    model, processor = small()
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    processor.save_pretrained(tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    report = vitrail.load(tmp_path / "model")[2]
    content = b"".join(shard.read_bytes() for shard in shards)
    assert report.source.bytes == len(content)
    assert report.source.sha256 == hashlib.sha256(content).hexdigest()


def test_a_save_that_is_interrupted_leaves_the_model_that_was_there(tmp_path, monkeypatch):
    """Weights of one model with the config of another would load, and be wrong."""
    model, processor = small()
    vitrail.save(model, processor, tmp_path / "model")
    rename = os.rename

    def interrupted(source, target):
        if ".vitrail-new" in str(source):
            raise KeyboardInterrupt  # the old folder has been moved aside
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vitrail.save(*small(num_register_tokens=2), tmp_path / "model")
    monkeypatch.undo()
    assert vitrail.load(tmp_path / "model")[0].config.num_register_tokens == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_load_names_the_folder_that_a_killed_save_has_moved_aside(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.vitrail-old")
    with pytest.raises(SourceNotFoundError, match=r"a process died .*: rename .*\.model\.vitrail-old to "):
        vitrail.load(str(tmp_path / "model"))


RESULTS = '{"task": "linear probe", "weights_sha256": "of a model that was here before"}'


@pytest.mark.parametrize(
    ("name", "text"),
    [("results.json", RESULTS), ("pretraining.json", RESULTS), ("optimizer.pt", ""), ("training_args.bin", "")],
)
def test_a_trained_model_is_replaced_only_on_request(tmp_path, name, text):
    """`vitrail convert FILE probed/` would lose days of work. What belonged to the training goes with its weights."""
    vitrail.save(*small(), tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    other, processor = small(num_register_tokens=2)
    for write in (
        lambda: vitrail.save(other, processor, tmp_path / "model"),
        lambda: vitrail.convert_checkpoint("no such file", tmp_path / "model"),
        lambda: folder_of_run(tmp_path / "model", overwrite=False),
    ):
        with pytest.raises(VitrailError, match=rf"holds a trained model \({name}\).*overwrite=True"):
            write()
    assert (tmp_path / "model" / name).read_text() == text
    vitrail.save(other, processor, tmp_path / "model", overwrite=True)
    assert vitrail.load(tmp_path / "model")[0].config.num_register_tokens == 2
    assert not (tmp_path / "model" / name).exists()


def test_a_run_may_replace_what_it_has_saved(tmp_path):
    """A run that was killed after it saved its model, and before it ended, goes on."""
    vitrail.save(*small(), tmp_path / "model")
    (tmp_path / "model" / "results.json").write_text(RESULTS)
    (tmp_path / "model.run").mkdir()
    (tmp_path / "model.run" / "run.json").write_text("{}")
    assert folder_of_run(tmp_path / "model", overwrite=False).path == tmp_path / "model.run"


def test_results_of_somebody_else_stay(tmp_path):
    """Files of the same name from elsewhere are not those of a training by vitrail."""
    names = ["pretraining.json", "pretraining.png", "results.json", "curves.png"]
    vitrail.save(*small(), tmp_path / "model")
    for name in names:
        (tmp_path / "model" / name).write_text('{"accuracy": 0.9}')
    vitrail.save(*small(), tmp_path / "model")
    assert all((tmp_path / "model" / name).exists() for name in names)
    (tmp_path / "model" / "pretraining.json").write_text(RESULTS)
    vitrail.save(*small(), tmp_path / "model", overwrite=True)
    assert [name for name in names if (tmp_path / "model" / name).exists()] == ["results.json", "curves.png"]


@pytest.mark.parametrize("attribute", ["merge_and_unload", "_hf_peft_config_loaded"])
def test_adapters_that_are_not_merged_are_refused(tmp_path, attribute):
    """PeftModel has the first, and a model after `add_adapter` the second: save_pretrained would write the adapters alone."""
    model, processor = small()
    setattr(model, attribute, True)
    with pytest.raises(VitrailError, match=r"not merged: save the model that merge_and_unload\(\)"):
        vitrail.save(model, processor, tmp_path / "model")
    with pytest.raises(VitrailError, match="found a Linear; expected a model of vitrail"):
        vitrail.save(torch.nn.Linear(1, 1), processor, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_by_another_name(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    vitrail.save(*small(), ".")
    assert "\n# model\n" in (tmp_path / "model" / "README.md").read_text()


def test_an_edited_card_stays(tmp_path):
    """A card that was only rendered is rendered again, for instance when verify has numbers."""
    vitrail.save(*small(), tmp_path / "model")
    card = tmp_path / "model" / "README.md"
    rendered = card.read_text()
    card.write_text("of the model that was here before")
    vitrail.save(*small(), tmp_path / "model")
    assert card.read_text() == "of the model that was here before"
    card.unlink()
    vitrail.save(*small(), tmp_path / "model")
    assert card.read_text() == rendered
    card.write_text(rendered.replace("vitrail", "VITRAIL", 1))
    keep_verification(tmp_path / "model", [Check("round trip", "a file", 0.0, True)])
    assert card.read_text() == rendered.replace("vitrail", "VITRAIL", 1)
    card.write_text(rendered)
    keep_verification(tmp_path / "model", [Check("round trip", "file.pth", 0.0, True)])
    assert "file.pth" in card.read_text()
    assert "file.pth" not in rendered


def test_the_origin_goes_along_as_long_as_the_weights_are_the_same(tmp_path):
    """The origin goes from the file to a folder and to a second folder, but is dropped when the weights have changed."""
    model, processor = small()
    vitrail.save(model, processor, tmp_path / "first")
    vitrail.export_model(tmp_path / "first", tmp_path / "original.pth", to="dino")
    vitrail.convert_checkpoint(tmp_path / "original.pth", tmp_path / "model", num_heads=4)
    keep_verification(tmp_path / "model", [Check("round trip", "original.pth", 0.0, True)])
    report = vitrail.convert_checkpoint(tmp_path / "model", tmp_path / "again")
    assert report.origin.source.name == "original.pth"
    assert report.origin.verification == []  # which was of another folder
    card = (tmp_path / "again" / "README.md").read_text()
    assert "from `original.pth`" in card
    assert "| File, before | `original.pth`" in card

    _, _, report = vitrail.load(tmp_path / "again")
    assert report.origin.origin.format == "dino"
    changed = vitrail.ViTModel.from_pretrained(tmp_path / "again")
    changed.layernorm.bias.data += 1
    changed.save_pretrained(tmp_path / "again")
    _, _, report = vitrail.load(tmp_path / "again")
    assert report.origin is None


def test_a_failed_check_is_kept_only_if_it_compared_the_recorded_source(tmp_path):
    model, processor = small()
    vitrail.save(model, processor, tmp_path / "first")
    vitrail.export_model(tmp_path / "first", tmp_path / "original.pth", to="dino")
    shutil.copy(tmp_path / "original.pth", tmp_path / "copy.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    vitrail.convert_checkpoint(tmp_path / "original.pth", tmp_path / "model", num_heads=4)
    failed = [Check("round trip", "a file", None, False)]
    for file, kept in (("other.pth", False), ("original.pth", True), ("copy.pth", True)):
        assert keep_verification(tmp_path / "model", failed, against=tmp_path / file) is kept
        assert ("FAILED" in (tmp_path / "model" / "README.md").read_text()) is kept
    assert not keep_verification(tmp_path / "model", failed, against=tmp_path / "copy.pth", head=tmp_path / "other.pth")


def test_a_verified_model_without_a_report_is_converted_probed_and_pushed(tmp_path):
    """Its conversion.json holds the checks alone."""
    vitrail.save(*small(), tmp_path / "model")
    keep_verification(tmp_path / "model", [Check("reload", "this model", 0.0, True)])
    report = vitrail.convert_checkpoint(tmp_path / "model", tmp_path / "again")
    assert report.checkpoint is None
    card = (tmp_path / "again" / "README.md").read_text()
    assert "| File | `model.safetensors`" in card
    assert "None" not in card.partition("## Conversion")[2].partition("## ")[0]
    assert describe_model(report)["name"] == "model.safetensors"
    for folder in ("model", "again"):
        assert "conversion.json" in stage(tmp_path / folder, tmp_path / f"{folder} staged", repo_id="user/name").files


@pytest.mark.parametrize("content", ['{"format_version": 2}', "{bad", "[]", '{"weights_sha256": 1}'])
def test_a_report_that_cannot_be_read_is_a_warning_of_load(tmp_path, content):
    """The weights are sound. What describes them names the file."""
    vitrail.save(*small(), tmp_path / "model")
    (tmp_path / "model" / "conversion.json").write_text(content)
    report = vitrail.load(tmp_path / "model")[2]
    assert report.origin is None
    (warning,) = report.warnings
    assert re.match(r"the origin of the weights is unknown: .*conversion\.json", warning)
    assert "hash_unchanged" not in repr(report)
    with pytest.raises(VitrailError, match=r"conversion\.json"):
        stage(tmp_path / "model", tmp_path / "staged", repo_id="user/name")
