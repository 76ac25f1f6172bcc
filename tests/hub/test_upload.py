"""A push, with the real client, to a Hub on this machine: what arrives, what is refused, and what can be loaded from it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

import vitrail
from hub_server import Fault
from small_models import randomize, tiny_config
from small_run import KNN, make_run
from vitrail.convert.report import ConversionRecord
from vitrail.convert.verification import Check
from vitrail.errors import UploadError, VitrailError
from vitrail.hub.saving import keep_verification
from vitrail.hub.upload import stage
from vitrail.model_cards.model_folder import hash_weights

CODE = {"configuration_vit.py", "modeling_vit.py", "modeling_vit_dense.py", "image_processing_vit.py"}
FILES = CODE | {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"}
SIZES = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128}  # heads 64 wide, as in published models

WITHOUT_VITRAIL = """
import sys
sys.modules["vitrail"] = None  # an import of it raises
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

pixel_values = torch.load(sys.argv[1])
model = AutoModel.from_pretrained("user/name", trust_remote_code=True).eval()
classifier = AutoModelForImageClassification.from_pretrained("user/name", trust_remote_code=True).eval()
image_processor = AutoImageProcessor.from_pretrained("user/name", trust_remote_code=True)
with torch.no_grad():
    outputs = model(pixel_values).pooler_output, classifier(pixel_values).logits
torch.save((outputs, {name: value for name, value in image_processor.to_dict().items() if name != "auto_map"}), sys.argv[2])

exported = AutoModelForImageClassification.from_pretrained("user/exported").eval()
assert type(exported).__module__.startswith("transformers.models."), type(exported)
with torch.no_grad():
    torch.save(exported(pixel_values[..., :32, :]).logits, sys.argv[3])
"""


def small(model_class=vitrail.ViTForImageClassification, seed=0, **fields):
    torch.manual_seed(seed)
    model = model_class(tiny_config(**SIZES | fields, num_labels=3)).eval()
    return randomize(model), vitrail.make_image_processor("dino", image_size=32)


@pytest.fixture
def folder(tmp_path):
    vitrail.save(*small(), tmp_path / "model")
    return tmp_path / "model"


def titles(hub_server, repo_id="user/name"):
    return [commit.title for commit in hub_server.repositories[repo_id].commit().history()]


def test_one_commit_with_everything_that_belongs_to_the_model(hub_server, folder):
    """Checks included, and a card that calls the model by its name on the Hub."""
    (folder / ".DS_Store").write_bytes(b"of this computer")
    keep_verification(folder, [Check("round trip", "file.pth", 0.0, True)])
    commit = vitrail.push(folder, "user/name")
    assert commit.commit_url == f"{hub_server.url}/user/name/commit/{commit.oid}"
    assert titles(hub_server) == [f"Upload model with vitrail {vitrail.__version__}", "initial commit"]
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES | {"conversion.json"}
    for name in files.keys() - {"README.md"}:
        assert files[name] == (folder / name).read_bytes(), name
    card = files["README.md"].decode()
    assert "user/name" in card
    assert "file.pth" in card
    assert hub_server.asked("POST", "validate-yaml")[0].json["content"] == card


def test_what_was_pushed_loads_without_vitrail_in_another_process(hub_server, folder, tmp_path):
    model, image_processor = small()
    vitrail.push(folder, "user/name", private=True)
    vitrail.push(folder, "user/exported", to="transformers")
    pixel_values = torch.randn(2, 3, 40, 32)
    torch.save(pixel_values, tmp_path / "pixels.pt")
    paths = [str(tmp_path / name) for name in ("pixels.pt", "outputs.pt", "exported.pt")]
    environment = os.environ | hub_server.environment("hf_of_the_test")
    command = [sys.executable, "-c", WITHOUT_VITRAIL, *paths]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (pooled, logits), settings = torch.load(paths[1], weights_only=False)
    with torch.no_grad():
        assert torch.equal(pooled, model.vit(pixel_values).pooler_output)
        assert torch.equal(logits, model(pixel_values).logits)
        native = model(pixel_values[..., :32, :]).logits
    assert settings == {name: value for name, value in image_processor.to_dict().items() if name != "auto_map"}
    torch.testing.assert_close(torch.load(paths[2]), native, rtol=0, atol=1e-5)


def test_pushed_in_the_layout_of_transformers(hub_server, folder, tmp_path):
    model, _ = small()
    keep_verification(folder, [Check("round trip", "file.pth", 0.0, True)])
    vitrail.push(folder, "user/name", to="transformers")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES - CODE | {"conversion.json"}
    for name, content in files.items():
        (tmp_path / "pulled" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / "pulled").eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values).logits, model(pixel_values).logits, rtol=0, atol=1e-5)
    assert "trust_remote_code" not in files["README.md"].decode()


def test_pushed_in_the_layout_of_timm(hub_server, folder, tmp_path):
    """With timm's own loader where timm is installed; its names and config in any case."""
    model, _ = small()
    vitrail.push(folder, "user/name", to="timm")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES - CODE - {"preprocessor_config.json"}
    config = json.loads(files["config.json"])
    assert config["architecture"].startswith("vit_")
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "model.safetensors")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("hf-hub:user/name", pretrained=True).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixel_values), model(pixel_values).logits, rtol=0, atol=1e-5)


def test_what_is_not_a_folder_of_ours_is_converted_first(hub_server, tmp_path):
    model, _ = small(vitrail.ViTModel)
    vitrail.save(*small(vitrail.ViTModel), tmp_path / "model")
    vitrail.export_model(tmp_path / "model", tmp_path / "original.pth", to="dino")
    vitrail.push(tmp_path / "original.pth", "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES | {"conversion.json"}
    assert json.loads(files["conversion.json"])["source"]["name"] == "original.pth"
    loaded, _, _ = vitrail.load("user/name")
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values)[0], model(pixel_values)[0])


def test_a_second_push_sends_only_what_changed_and_removes_what_is_no_more(hub_server, folder, monkeypatch):
    monkeypatch.setattr("vitrail.hub.saving.MAX_SHARD_SIZE", "100KB")
    vitrail.save(*small(), folder)
    shards = {name for name in os.listdir(folder) if name.startswith("model")}
    assert len(shards) > 2
    vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files().keys() == FILES - {"model.safetensors"} | shards
    loaded, _, _ = vitrail.load("user/name")
    assert torch.equal(loaded.classifier.weight, small()[0].classifier.weight)

    monkeypatch.setattr("vitrail.hub.saving.MAX_SHARD_SIZE", "5GB")
    vitrail.save(*small(seed=1), folder, code=False)
    hub_server.put("user/name", {"samples/cat.png": b"a picture of the user's"})
    vitrail.push(folder, "user/name", code=False)
    assert hub_server.repositories["user/name"].files().keys() == FILES - CODE | {"samples/cat.png"}
    assert "auto_map" not in json.loads(hub_server.repositories["user/name"].files()["config.json"])

    sent = len(hub_server.asked("PUT"))
    vitrail.push(folder, "user/name", code=False)
    assert len(hub_server.asked("PUT")) == sent
    assert len(titles(hub_server)) == 4  # the first, two pushes and the picture


def test_the_code_is_put_in_whatever_the_folder_holds(hub_server, folder):
    """A folder without code, or with another version of it, is pushed with the package's."""
    vitrail.save(*small(), folder, code=False)
    (folder / "modeling_vit.py").write_text("import os; os.remove('everything')")
    vitrail.push(folder, "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES
    assert b"everything" not in files["modeling_vit.py"]
    assert b"class ViTModel" in files["modeling_vit.py"]
    assert "auto_map" in json.loads(files["config.json"])


@pytest.mark.parametrize("to", ["vitrail", "transformers"])
def test_an_edited_card(hub_server, folder, to):
    """Goes along; but not with another layout, whose usage it does not describe."""
    (folder / "README.md").write_text("# Mine\n")
    vitrail.push(folder, "user/name", to=to)
    card = hub_server.repositories["user/name"].files()["README.md"].decode()
    assert (card == "# Mine\n") == (to == "vitrail")


def test_a_card_that_was_edited_on_the_hub_stays(hub_server, folder):
    """Unless that of the folder was edited too."""
    vitrail.push(folder, "user/name")
    hub_server.put("user/name", {"README.md": b"# Edited on the Hub\n", "results.json": b"of the user"})
    vitrail.save(*small(seed=1), folder)
    vitrail.push(folder, "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files["README.md"] == b"# Edited on the Hub\n"
    assert files["results.json"] == b"of the user"
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    (folder / "README.md").write_text("# Edited here\n")
    vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files()["README.md"] == b"# Edited here\n"


def test_another_commit_meanwhile(hub_server, folder, monkeypatch):
    """Nothing of the two is mixed."""
    from huggingface_hub import HfApi

    vitrail.push(folder, "user/name")
    list_repo_files = HfApi.list_repo_files

    def and_then_another(self, *args, **kwargs):
        names = list(list_repo_files(self, *args, **kwargs))
        hub_server.put("user/name", {"model-00001-of-00002.safetensors": b"somebody else's"})
        return names

    monkeypatch.setattr(HfApi, "list_repo_files", and_then_another)
    vitrail.save(*small(seed=1), folder)
    with pytest.raises(UploadError, match="was changed by another commit"):
        vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files()["model.safetensors"] != (folder / "model.safetensors").read_bytes()


def test_what_is_of_other_weights_is_left_out(hub_server, folder):
    """A fine-tuned model is not the one that was converted, verified and measured."""
    model, _ = small()
    keep_verification(folder, [Check("round trip", "file.pth", 0.0, True)])
    (folder / "results.json").write_text('{"task": "linear probe", "weights_sha256": "of other weights"}')
    model.classifier.bias.data += 1
    model.save_pretrained(folder)
    vitrail.push(folder, "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES
    assert b"file.pth" not in files["README.md"]


def keep_training(folder):
    """Write the files that a run of `vitrail pretrain` leaves in its folder, except for the picture."""
    run = make_run(knn=KNN) | {"weights_sha256": hash_weights(folder)}
    (folder / "pretraining.json").write_text(json.dumps(run))
    (folder / "pretraining.png").write_bytes(b"a picture")


def test_what_a_training_left_is_pushed_and_goes_with_its_weights(hub_server, folder, tmp_path):
    vitrail.save(*small(vitrail.ViTModel), folder)
    keep_training(folder)
    records = {"pretraining.json", "pretraining.png"}
    vitrail.push(folder, "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES | records
    assert all(files[name] == (folder / name).read_bytes() for name in records)
    assert b"without labels by DINO" in files["README.md"]
    assert b"](pretraining.png)" in files["README.md"]

    vitrail.save(*small(vitrail.ViTModel, seed=1), folder, overwrite=True)
    vitrail.push(folder, "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES
    assert b"DINO" not in files["README.md"].partition(b"## Training")[2].partition(b"\n## ")[0]


def test_an_edited_card_on_the_hub_keeps_what_it_describes(hub_server, folder):
    vitrail.save(*small(vitrail.ViTModel), folder)
    keep_training(folder)
    vitrail.push(folder, "user/name")
    hub_server.put("user/name", {"README.md": b"# Edited on the Hub\n"})
    vitrail.save(*small(vitrail.ViTModel, seed=1), folder, overwrite=True)
    vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files().keys() == FILES | {"pretraining.json", "pretraining.png"}


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_an_export_describes_the_training_in_words(hub_server, folder, to):
    vitrail.save(*small(vitrail.ViTModel), folder)
    keep_training(folder)
    vitrail.push(folder, "user/name", to=to)
    files = hub_server.repositories["user/name"].files()
    assert not {"pretraining.json", "pretraining.png"} & files.keys()
    assert b"without labels by DINO" in files["README.md"]
    assert b"pretraining.png" not in files["README.md"]


def test_a_training_of_other_weights_is_left_out(hub_server, folder):
    keep_training(folder)
    small(seed=1)[0].save_pretrained(folder)
    vitrail.push(folder, "user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() == FILES
    assert b"without labels by DINO" not in files["README.md"]


def test_a_sharded_branch_becomes_one_file(hub_server, folder):
    """Stale files are searched on the branch of the push."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrail.hub.saving.MAX_SHARD_SIZE", "100KB")
        vitrail.save(*small(), folder)
    vitrail.push(folder, "user/name", revision="draft")
    vitrail.save(*small(), folder)
    vitrail.push(folder, "user/name", revision="draft")
    assert hub_server.repositories["user/name"].files("draft").keys() == FILES


def test_a_push_that_broke_off_goes_on(hub_server, folder, impatient):
    """Nothing of it is seen, and what had arrived is not sent again."""
    hub_server.faults = [Fault("POST", "/commit/", status=500, times=100)]
    with pytest.raises(UploadError, match="Run the command again to resume"):
        vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files() == {}
    assert len(hub_server.asked("PUT", "/lfs/")) == 1
    hub_server.faults = []
    vitrail.push(folder, "user/name")
    assert len(hub_server.asked("PUT", "/lfs/")) == 1
    assert hub_server.repositories["user/name"].files().keys() == FILES


def test_weights_that_broke_off_are_sent_again(hub_server, folder, impatient):
    hub_server.faults = [Fault("PUT", "/lfs/", after=1000, times=100)]
    with pytest.raises(UploadError, match="was interrupted"):
        vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files() == {}
    hub_server.faults = []
    vitrail.push(folder, "user/name")
    assert hub_server.repositories["user/name"].files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_branch_and_a_pull_request(hub_server, folder):
    vitrail.push(folder, "user/name")
    (folder / "README.md").write_text("# Mine\n")
    vitrail.push(folder, "user/name", revision="draft")
    repository = hub_server.repositories["user/name"]
    assert repository.files("draft")["README.md"] == b"# Mine\n" != repository.files()["README.md"]
    hub_server.put("other/name", {"README.md": b"theirs"})
    commit = vitrail.push(folder, "other/name", create_pr=True)
    assert commit.pr_url == f"{hub_server.url}/other/name/discussions/1"
    assert hub_server.repositories["other/name"].files().keys() == {"README.md"}
    assert hub_server.repositories["other/name"].files("refs/pr/1").keys() == FILES
    for revision in ("a b", "0" * 40):
        with pytest.raises(VitrailError, match="is not a valid name of a branch"):
            vitrail.push(folder, "user/name", revision=revision)
    with pytest.raises(VitrailError, match="leave revision out"):
        vitrail.push(folder, "user/name", revision="draft", create_pr=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", b""),
        ("model.pt", b""),
        ("checkpoints/x", b""),
        ("notes.py", b""),
        ("model-00001-of-00002.safetensors", b"of no index"),
        ("LICENSE/x", b""),
    ],
)
def test_stray_and_unsafe_files_are_refused(hub_server, folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(VitrailError, match=f"also holds {name.partition('/')[0]}"):
        vitrail.push(folder, "user/name")
    assert not hub_server.requests


def test_what_a_trainer_wrote_is_left_out_by_name(hub_server, folder, tmp_path):
    for name in ("training_args.bin", "optimizer.pt", "checkpoint-500/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    upload = stage(folder, tmp_path / "upload", repo_id="user/name")
    assert upload.files.keys() == FILES
    assert upload.warnings == ["left out, because a Trainer wrote them: checkpoint-500, optimizer.pt, training_args.bin"]
    assert not hub_server.requests, "a dry run needs no network"


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "model.safetensors", "conversion.json"])
def test_links_are_uploaded_only_into_the_same_repository_of_the_cache(hub_server, folder, tmp_path, monkeypatch, name):
    """A link in somebody's folder would publish a file of this machine, or of a private repository."""
    snapshot = tmp_path / "cache" / "models--user--name" / "snapshots" / "0123"
    shutil.copytree(folder, snapshot)
    for repository, allowed in (("models--user--private", False), ("models--user--name", True)):
        target = tmp_path / "cache" / repository / "blobs" / "4567"
        target.parent.mkdir(parents=True)
        target.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(target)
        for cache in (tmp_path / "elsewhere", tmp_path / "cache"):
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
            if allowed and cache.name == "cache":
                assert name in stage(snapshot, tmp_path / "upload", repo_id="user/name").files.keys() | {"conversion.json"}
                continue
            with pytest.raises(VitrailError, match=f"{name} is a link to {target}, which is not in the same repository"):
                stage(snapshot, tmp_path / "refused", repo_id="user/name")
            assert not (tmp_path / "refused").exists()


def test_a_push_asks_for_a_copy_of_the_license(hub_server, tmp_path):
    """Of weights whose publisher demands one; in any layout."""
    folder = tmp_path / "model"
    vitrail.save(*small(vitrail.ViTModel), folder)
    ConversionRecord(checkpoint="dinov3-vits16", weights_sha256=hash_weights(folder)).write(folder / "conversion.json")
    for to in ("vitrail", "timm"):
        warnings = stage(folder, tmp_path / f"{to} 1", repo_id="user/name", to=to).warnings
        (found,) = [warning for warning in warnings if "license" in warning]
        assert found.startswith("the weights are under the DINOv3 License (https://ai.meta.com/")
        assert "add LICENSE.md" in found
    (folder / "LICENSE.md").write_text("DINOv3 License")
    for to in ("vitrail", "timm"):
        upload = stage(folder, tmp_path / f"{to} 2", repo_id="user/name", to=to)
        assert upload.files["LICENSE.md"].read_text() == "DINOv3 License"
        assert not [warning for warning in upload.warnings if "license" in warning]


def test_a_folder_without_an_image_processor_is_refused(hub_server, folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(VitrailError, match=r"has no preprocessor_config\.json"):
        vitrail.push(folder, "user/name")
    assert not hub_server.requests


@pytest.mark.parametrize(
    ("repo_id", "message"), [("name", "write user/name"), ("a/b/c", "repository"), ("user/na me", "name of a")]
)
def test_names_that_cannot_be(hub_server, folder, repo_id, message):
    with pytest.raises(VitrailError, match=message):
        vitrail.push(folder, repo_id)
    assert not hub_server.requests


def test_a_layout_that_is_none_and_one_that_cannot_hold_the_model(hub_server, tmp_path):
    with pytest.raises(VitrailError, match="expected one of vitrail, transformers, timm"):
        vitrail.push(tmp_path, "user/name", to="keras")
    vitrail.save(*small(position_embedding_type="relative_mlp"), tmp_path / "relative")
    with pytest.raises(VitrailError, match="transformers"):
        vitrail.push(tmp_path / "relative", "user/name", to="transformers")
    assert not hub_server.requests


def test_a_damaged_folder_is_not_pushed(hub_server, folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(VitrailError, match=r"model\.safetensors"):
        vitrail.push(folder, "user/name")
    assert not hub_server.requests


def test_private_means_private(hub_server, folder):
    vitrail.push(folder, "user/name", private=True)
    assert hub_server.repositories["user/name"].private
    hub_server.put("user/public", {})
    with pytest.raises(UploadError, match="is public"):
        vitrail.push(folder, "user/public", private=True)
    assert hub_server.repositories["user/public"].files() == {}


@pytest.mark.parametrize(
    ("token", "repo_id", "options", "message"),
    [
        ("hf_wrong", "user/name", {}, "not logged in.*hf auth login"),
        ("hf_of_the_test", "other/name", {}, "'other' is you or your organization"),
        ("hf_of_the_test", "user/missing", {"create_pr": True}, "does not exist, or your token has no access"),
    ],
)
def test_refusals_name_the_remedy(hub_server, folder, token, repo_id, options, message):
    with pytest.raises(UploadError, match=message):
        vitrail.push(folder, repo_id, token=token, **options)


def test_nobody_is_logged_in(hub_server, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UploadError, match="hf auth login"):
        vitrail.push(folder, "user/name")


def test_the_hub_finds_fault_with_the_card(hub_server, folder):
    """The error comes before the weights are sent."""
    hub_server.card_errors = ['"license" must be one of [apache-2.0, …]']
    with pytest.raises(UploadError, match=r'rejected the files.*"license" must be'):
        vitrail.push(folder, "user/name")
    assert not hub_server.asked("PUT")


def test_no_network(no_network, folder, monkeypatch, impatient):
    with pytest.raises(UploadError, match="was interrupted"):
        vitrail.push(folder, "user/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UploadError, match="HF_HUB_OFFLINE is set: unset it"):
        vitrail.push(folder, "user/name")


@pytest.mark.parametrize("while_saving", [False, True])
def test_transformers_own_push_to_hub_carries_the_code(hub_server, tmp_path, while_saving):
    model, image_processor = small()
    if while_saving:
        for saved in (model, image_processor):
            saved.save_pretrained(str(tmp_path / "model"), push_to_hub=True, repo_id="user/name")
    else:
        model.push_to_hub("user/name")
        image_processor.push_to_hub("user/name")
    files = hub_server.repositories["user/name"].files()
    assert files.keys() | {"README.md"} == FILES
    assert all("auto_map" in json.loads(files[name]) for name in ("config.json", "preprocessor_config.json"))


def test_the_trainers_push_to_hub_carries_the_code(hub_server, tmp_path):
    model, image_processor = small()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), hub_model_id="user/name", push_to_hub=True, report_to="none", use_cpu=True
    )
    transformers.Trainer(model=model, args=arguments, processing_class=image_processor).push_to_hub()
    assert hub_server.repositories["user/name"].files().keys() > FILES
