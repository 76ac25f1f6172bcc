"""From images to a folder: interrupted, in two processes, continued, with labels and without."""

import dataclasses
import functools
import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import forked
import vitrail
from small_models import tiny_config
from vitrail.data.labeled import load_training_images
from vitrail.errors import UnsupportedCheckpointError, VitrailError
from vitrail.evaluation.logistic import fit_logistic
from vitrail.model_cards.records import FeatureAccuracy
from vitrail.pretraining import feature_evaluation, job
from vitrail.pretraining.architectures import new_model
from vitrail.pretraining.job import pretrain
from vitrail.pretraining.methods.dinov2 import DINOv2Model
from vitrail.pretraining.recipes import RECIPES
from vitrail.processing.multi_crop import CropAugmentation
from vitrail.utils.trainer import KeepLastCheckpoint

SMALL = {"num_attention_heads": 2, "image_size": 16, "patch_size": 4, "position_interpolation_offset": 0.1, "layer_norm_eps": 1e-6}
ARGUMENTS = {
    "num_prototypes": 24,
    "head_hidden_size": 32,
    "head_bottleneck_size": 16,
    "warmup_epochs": 1,
    "drop_path_rate": 0.1,
    "optim": "adamw_torch",
}
GLOBAL = CropAugmentation(size=16, scale=(0.4, 1.0), blur_probability=0.5)
AUGMENTATION = dataclasses.replace(
    RECIPES["dino"].augmentation,
    global_crops=(GLOBAL, GLOBAL),
    local_crop=CropAugmentation(size=8, scale=(0.1, 0.4)),
    num_local_crops=2,
)
RECIPE = dataclasses.replace(
    RECIPES["dino"], name="small", epochs=3, batch_size=8, learning_rate=0.02, arguments=ARGUMENTS, augmentation=AUGMENTATION
)
DINOV2_RECIPE = dataclasses.replace(
    RECIPES["dinov2"],
    name="small-dinov2",
    epochs=3,
    batch_size=8,
    learning_rate=0.05,
    arguments=ARGUMENTS | {"warmup_teacher_temperature_epochs": 1, "separate_head": True, "drop_path_rate": 0.0},
    augmentation=AUGMENTATION,
)
COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)])


def write_images(folder, number, *, labeled, noise=30):
    rng = np.random.default_rng(0)
    for index in range(number):
        label = index % len(COLORS)
        path = folder / str(label) if labeled else folder
        path.mkdir(parents=True, exist_ok=True)
        pixels = rng.normal(0, noise, size=(20, 24, 3)) + COLORS[label]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path / f"{index:02d}.png")


def run(folder, output="model", data="images", seed=0, **options):
    folder = Path(folder)
    fields = SMALL | {name: options.pop(name) for name in list(options) if name in vitrail.ViTConfig.__annotations__}
    torch.manual_seed(0)
    model = vitrail.ViTModel(tiny_config(**fields))
    image_processor = vitrail.make_image_processor("dino", image_size=fields["image_size"])
    images = load_training_images(folder / data, validation_fraction=0.25)
    options = {"recipe": RECIPE, "progress": False, "from_scratch": True, **options}
    return pretrain(model, image_processor, images, output_dir=folder / output, seed=seed, **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    write_images(folder / "images", 36, labeled=True)  # of which 27 to train on: three updates of 8
    write_images(folder / "unlabeled", 20, labeled=False)
    return folder


@pytest.fixture(scope="module")
def whole(prepared):
    """A run without interruption."""
    return run(prepared, "whole", original_checkpoint=prepared / "whole.pth")


def losses(result):
    return [point["loss"] for point in result["curves"] if "loss" in point]


def test_what_lies_in_the_folder(prepared, whole):
    folder = prepared / "whole"
    kept = json.loads((folder / "pretraining.json").read_text())
    assert kept["weights_sha256"]
    assert {name: kept[name] for name in whole} == json.loads(json.dumps(whole))
    assert (kept["updates"], kept["epochs"], kept["batch_size"]) == (9, 3, 8)
    assert kept["arguments"]["learning_rate"] == pytest.approx(0.02 * 8 / 256)
    assert kept["arguments"]["num_prototypes"] == 24
    assert kept["data"]["train_images"] == 27
    assert not (prepared / "whole.run").exists()
    with Image.open(folder / "pretraining.png") as picture:
        picture.load()
    model, image_processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert type(model) is vitrail.ViTModel
    assert model.config.drop_path_rate == 0
    assert image_processor.crop_size["height"] == 16
    card = (folder / "README.md").read_text()
    assert "Vitrail trained it without labels by DINO" in card
    assert "27 images of `images`: 3 epochs with a batch size of 8, 9 updates" in card


def test_loss_and_entropies_are_logged_and_possible(whole):
    points = [point for point in whole["curves"] if "loss" in point]
    assert len(points) == 9
    for point in points:
        assert 0 < point["target_entropy"] <= point["mean_target_entropy"] <= math.log(24) + 1e-5


def test_the_teacher_is_measured_by_k_nn(prepared, whole):
    """The images have three clearly different colors."""
    assert whole["knn"] == {"k": 20, "accuracy": 1.0, "train_images": 27, "validation_images": 9}
    assert [point["epoch"] for point in whole["curves"] if "eval_knn_accuracy" in point] == [1.0, 2.0, 3.0]
    seldom = run(prepared, "seldom", evaluate_every=2)
    assert [point["epoch"] for point in seldom["curves"] if "eval_knn_accuracy" in point] == [2.0, 3.0]
    assert losses(seldom) == losses(whole)  # measuring changes nothing


def test_the_teacher_of_the_original_checkpoint_is_that_of_the_folder(prepared, whole):
    converted, _, _ = vitrail.load(prepared / "whole.pth", num_heads=2)
    for name, tensor in AutoModel.from_pretrained(prepared / "whole").state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name


def run_until_killed(folder, checkpoint, output="model"):
    class Kill(KeepLastCheckpoint):
        def on_save(self, args, state, control, **kwargs):
            super().on_save(args, state, control, **kwargs)
            if state.global_step == checkpoint:
                signal.raise_signal(signal.SIGKILL)

    job.KeepLastCheckpoint = Kill
    torch.set_num_threads(1)  # as in the process that the results are compared with
    run(folder, output)


def test_killed_it_goes_on(prepared, whole):
    assert forked.exit_code(__file__, "run_until_killed", prepared, 3) == -signal.SIGKILL
    assert not (prepared / "model").exists()
    with pytest.raises(VitrailError, match=r"begun with different settings \(seed was 0, is 1\): repeat the run"):
        run(prepared, seed=1)
    with pytest.raises(VitrailError, match=r"begun with different settings \(config.image_size was"):
        run(prepared, num_attention_heads=4, layer_norm_eps=1e-5, image_size=32)
    resumed = run(prepared)
    assert resumed["resumed_from"] == "checkpoint-3"
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    for name, tensor in AutoModel.from_pretrained(prepared / "whole").state_dict().items():
        torch.testing.assert_close(AutoModel.from_pretrained(prepared / "model").state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert not (prepared / "model.run").exists()
    assert "updates, with one process" in (prepared / "model" / "README.md").read_text()  # the time is that of a part


def run_in_each_process(folder):
    torch.set_num_threads(1)
    run(folder, "two", recipe=without_drop_path())


def test_two_processes_make_one_run(prepared):
    """Stochastic depth is drawn by each process for its images, so without it."""
    forked.run_two(__file__, "run_in_each_process", prepared)
    two = json.loads((prepared / "two" / "pretraining.json").read_text())
    one = run(prepared, "one", recipe=without_drop_path())
    assert two["processes"] == 2
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-4)
    assert two["knn"] == one["knn"]
    for name, tensor in AutoModel.from_pretrained(prepared / "one").state_dict().items():
        torch.testing.assert_close(AutoModel.from_pretrained(prepared / "two").state_dict()[name], tensor, rtol=0, atol=1e-4)


def without_drop_path():
    return dataclasses.replace(RECIPE, arguments=ARGUMENTS | {"drop_path_rate": 0.0})


def test_a_batch_in_pieces_is_the_same_batch(prepared):
    whole = run(prepared, "at-once", recipe=without_drop_path())
    pieces = run(prepared, "pieces", recipe=without_drop_path(), device_batch_size=3)  # 2, the largest that divides 8
    assert pieces["updates"] == whole["updates"]
    np.testing.assert_allclose(losses(pieces), losses(whole), atol=1e-4)


def test_images_without_labels(prepared):
    result = run(prepared, "no-labels", "unlabeled", epochs=1)
    assert result["knn"] is None
    assert result["updates"] == 2
    assert all("eval_knn_accuracy" not in point for point in result["curves"])
    assert "nearest" not in (prepared / "no-labels" / "README.md").read_text()


def test_on_from_a_model(prepared, whole):
    model, image_processor, report = vitrail.load(prepared / "whole")
    images = load_training_images(prepared / "unlabeled")
    output = prepared / "further"
    result = pretrain(model, image_processor, images, output_dir=output, recipe=RECIPE, epochs=1, progress=False, report=report)
    assert result["model"]["name"] == "model.safetensors"
    assert "from `model.safetensors`" in (output / "README.md").read_text()
    begun, further = (AutoModel.from_pretrained(prepared / name).state_dict() for name in ("whole", "further"))
    assert not all(torch.equal(begun[name], tensor) for name, tensor in further.items())
    assert max((begun[name] - tensor).abs().max().item() for name, tensor in further.items()) < 0.01  # and not from scratch


def test_an_adapted_model_is_compared_with_its_start_and_random_weights(prepared, whole, monkeypatch):
    """With adapters and a frozen block: the folder holds an ordinary model."""
    write_images(prepared / "hard", 60, labeled=True, noise=2000)
    monkeypatch.setattr(feature_evaluation, "fit_logistic", functools.partial(fit_logistic, grid=[1.0]))
    trained, image_processor, _ = vitrail.load(prepared / "whole")
    scaled = vitrail.ViTModel(
        vitrail.ViTConfig(**trained.config.to_dict() | {"layer_scale_init_value": 1.0})
    )  # as DINOv2's layout has it
    scaled.load_state_dict(trained.state_dict(), strict=False)
    vitrail.save(scaled, image_processor, prepared / "scaled")
    model, _, report = vitrail.load(prepared / "scaled")
    images = load_training_images(prepared / "hard", validation_fraction=0.4)
    arguments = RECIPES["adapt"].arguments | ARGUMENTS | {"lora_rank": 2, "frozen_blocks": 1}
    recipe = dataclasses.replace(RECIPES["adapt"], epochs=2, batch_size=8, arguments=arguments, augmentation=AUGMENTATION)
    output = prepared / "adapted"
    options = {"output_dir": output, "recipe": recipe, "progress": False, "report": report}
    result = pretrain(model, image_processor, images, logistic=True, original_checkpoint=prepared / "adapted.pth", **options)

    start, adapted = (AutoModel.from_pretrained(prepared / name) for name in ("scaled", "adapted"))
    differ = {name for name, tensor in start.state_dict().items() if not torch.equal(tensor, adapted.state_dict()[name])}
    assert differ == {f"layers.1.{layer}.weight" for layer in ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")}
    assert set(adapted.state_dict()) - set(start.state_dict()) == {"embeddings.mask_token"}
    torch.manual_seed(0)
    models = {"start": start, "result": adapted, "random": vitrail.ViTModel(adapted.config)}
    for name, compared in models.items():
        knn = vitrail.evaluate_knn(compared.eval(), image_processor, images.labeled, num_neighbors=[20])["accuracy"]
        assert result["comparison"][name]["knn"] == pytest.approx(knn)
        assert 0 < result["comparison"][name]["logistic"] <= 1
    assert len({accuracy["knn"] for accuracy in result["comparison"].values()}) > 1
    evaluated = [(point["epoch"], point["eval_knn_accuracy"]) for point in result["curves"] if "eval_knn_accuracy" in point]
    assert [epoch for epoch, _ in evaluated] == [0, 1, 2]
    assert [evaluated[0][1], evaluated[-1][1]] == [result["comparison"][name]["knn"] for name in ("start", "result")]
    assert "logistic regression is right for" in (output / "README.md").read_text()
    converted, _, _ = vitrail.load(prepared / "adapted.pth", num_heads=2)
    assert torch.equal(converted.layers[1].mlp.fc1.weight, adapted.layers[1].mlp.fc1.weight)
    dino = dataclasses.replace(RECIPE, arguments=ARGUMENTS | {"lora_rank": 2})
    with pytest.raises(VitrailError, match="an optimizer of all weights: leave out original_checkpoint= or lora_rank"):
        run(prepared, "nothing", recipe=dino, original_checkpoint=prepared / "dino.pth")
    assert whole["comparison"] is None


def test_a_run_whose_features_get_worse_stops(prepared, monkeypatch):
    measured = []

    def accuracy(evaluation, backbone, *, logistic=False):
        measured.append(0.2 if measured else 1.0)
        return FeatureAccuracy(knn=measured[-1])

    monkeypatch.setattr(feature_evaluation.FeatureEvaluation, "accuracy", accuracy)
    recipe = dataclasses.replace(RECIPE, arguments=ARGUMENTS | {"knn_patience": 2})
    message = r"at most 20\.0%; the start model's is 100\.0%, and 95\.0% is the limit .* Lower learning_rate or raise frozen_blocks"
    with pytest.raises(VitrailError, match=f"{message}, or set knn_patience=0 to go on.*checkpoint-3"):
        run(prepared, "worse", from_scratch=False, recipe=recipe)
    assert len(measured) == 3
    assert (prepared / "worse.run" / "checkpoint-3").is_dir()
    assert not (prepared / "worse").exists()
    assert run(prepared, "no-better", recipe=recipe, epochs=2)["knn"]["accuracy"] == 0.2  # random weights may get worse at first


def test_crops_fit_the_patches():
    """DINOv2's patches are of 14 pixels, and DINO's small crops of 96."""
    from vitrail.pretraining.recipes import fit_to_patches

    fitted = fit_to_patches(RECIPES["dino"].augmentation, (14, 14))
    assert [crop.size for crop in (*fitted.global_crops, fitted.local_crop)] == [224, 224, 98]
    assert fit_to_patches(RECIPES["dino"].augmentation, (16, 16)) == RECIPES["dino"].augmentation
    with pytest.raises(VitrailError, match="square"):
        fit_to_patches(RECIPES["dino"].augmentation, (16, 8))


def test_too_few_images(prepared):
    too_few = "27 images to train on, fewer than a batch of the recipe"
    with pytest.raises(VitrailError, match=f"{too_few} dino, 512: lower it with total_batch_size="):
        run(prepared, "few", recipe="dino")
    with pytest.raises(VitrailError, match=f"{too_few} small, 30"):
        run(prepared, "few", total_batch_size=30)
    assert not (prepared / "few.run").exists()


def test_a_new_model_of_a_name():
    model, image_processor = new_model("vit_tiny_patch16", image_size=224, seed=3)
    assert model.config.hidden_size == 192
    assert image_processor.crop_size["height"] == 224
    again, _ = new_model("vit_tiny_patch16", image_size=224, seed=3)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_each_epoch_is_logged_and_measured(prepared, whole):
    recipe = dataclasses.replace(RECIPE, arguments=ARGUMENTS | {"logging_strategy": "epoch"})
    result = run(prepared, "by-epoch", recipe=recipe)
    assert [point["epoch"] for point in result["curves"] if "loss" in point] == [1.0, 2.0, 3.0]
    assert [point["epoch"] for point in result["curves"] if "eval_knn_accuracy" in point] == [1.0, 2.0, 3.0]
    assert losses(result)[0] == pytest.approx(np.mean(losses(whole)[:3]), abs=1e-5)


def test_what_began_and_trained_nothing_does_not_stand_in_the_way(prepared):
    write_images(prepared / "damaged", 9, labeled=False)
    (prepared / "damaged" / "00.png").write_bytes(b"no image")
    recipe = dataclasses.replace(RECIPE, epochs=1)
    with pytest.raises(VitrailError, match=r"cannot read the image .*00\.png"):
        run(prepared, "mended", "damaged", recipe=recipe, strict=True)
    (prepared / "damaged" / "00.png").unlink()
    assert run(prepared, "mended", "damaged", recipe=recipe, strict=True)["updates"] == 1


def test_a_training_that_diverges_leaves_nothing(prepared):
    recipe = dataclasses.replace(RECIPE, learning_rate=1e12)
    with pytest.raises(VitrailError, match=r"the training has diverged|no finite numbers"):
        run(prepared, "diverged", recipe=recipe)
    assert not (prepared / "diverged").exists()


def test_labeled_images_that_cannot_be_read_measure_nothing(prepared):
    write_images(prepared / "half", 24, labeled=True)
    held_out = load_training_images(prepared / "half", validation_fraction=0.25).labeled.validation
    for row in held_out:
        Path(row["image"]["path"]).write_bytes(b"no image")
    result = run(prepared, "unmeasured", "half", epochs=1)
    assert result["knn"]["accuracy"] is None
    assert "nearest" not in (prepared / "unmeasured" / "README.md").read_text()


def test_a_model_of_which_nothing_is_known(prepared):
    run(prepared, "given", "unlabeled", epochs=1, from_scratch=False)
    assert "from weights of unknown origin" in (prepared / "given" / "README.md").read_text()


def test_mixed_precision_is_reported(prepared):
    recipe = dataclasses.replace(RECIPE, arguments=ARGUMENTS | {"bf16": True})
    assert run(prepared, "mixed", "unlabeled", recipe=recipe, epochs=1)["precision"] == "bfloat16"


def test_on_from_a_classifier_that_reads_several_blocks(prepared):
    """The evaluation uses the pooled output of the encoder, whose width differs from the input of the classifier."""
    torch.manual_seed(0)
    config = tiny_config(**SMALL, classifier_cls_layers=2, classifier_mean_patch=True, num_labels=5)
    images = load_training_images(prepared / "images", validation_fraction=0.25)
    image_processor = vitrail.make_image_processor("dino", image_size=16)
    output = prepared / "from-classifier"
    model = vitrail.ViTForImageClassification(config)
    result = pretrain(model, image_processor, images, output_dir=output, recipe=RECIPE, epochs=1, progress=False)
    assert result["knn"]["accuracy"] == 1.0
    assert type(AutoModel.from_pretrained(output)) is vitrail.ViTModel


def run_dinov2_in_each_process(folder):
    torch.set_num_threads(1)
    run(folder, "dinov2-two", recipe=DINOV2_RECIPE, layer_scale_init_value=0.1)


def test_dinov2_from_images_to_a_folder(prepared):
    path = prepared / "teacher_checkpoint.pth"
    one = run(prepared, "dinov2", recipe=DINOV2_RECIPE, layer_scale_init_value=0.1, original_checkpoint=path)
    points = [point for point in one["curves"] if "loss" in point]
    assert len(points) == 9
    for point in points:
        assert point["loss"] == pytest.approx(point["dino_loss"] + point["ibot_loss"] + 0.1 * point["koleo_loss"], abs=1e-5)
    assert one["arguments"]["learning_rate"] == pytest.approx(0.05 * math.sqrt(8 / 1024))
    card = (prepared / "dinov2" / "README.md").read_text()
    assert "Vitrail trained it without labels by DINOv2's method ([Oquab et al. 2023]" in card
    assert "oquab2023dinov2" in card
    state = torch.load(path, weights_only=True)["teacher"]
    assert {name.partition(".")[0] for name in state} == {"backbone", "dino_head", "ibot_head"}
    assert state["ibot_head.last_layer.weight_g"].shape == (24, 1)
    read, _, _ = vitrail.load(path, num_heads=2)
    trained = AutoModel.from_pretrained(prepared / "dinov2")
    assert trained.config.use_mask_token
    for name, tensor in trained.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    forked.run_two(__file__, "run_dinov2_in_each_process", prepared)
    two = json.loads((prepared / "dinov2-two" / "pretraining.json").read_text())
    np.testing.assert_allclose(losses(two), losses(one), atol=1e-4)


def test_a_phase_of_high_resolution(prepared, monkeypatch):
    sizes = []

    class Recorded(DINOv2Model):
        def forward(self, **batch):
            sizes.append((batch["pixel_values"].shape[-1], batch["local_pixel_values"].shape[-1], batch["masks"].shape[-1]))
            return super().forward(**batch)

    monkeypatch.setattr("vitrail.pretraining.dinov2_trainer.DINOv2Model", Recorded)
    recipe = dataclasses.replace(DINOV2_RECIPE, arguments=DINOV2_RECIPE.arguments | {"high_resolution_scale": 1.7})
    run(prepared, "high", "unlabeled", recipe=recipe, epochs=2, high_resolution_epochs=1)
    assert sizes == [(16, 8, 16)] * 2 + [(28, 8, 49)] * 2  # rounded up to patches of 4
    with pytest.raises(VitrailError, match="The method dino has no phase of high resolution"):
        run(prepared, "none", high_resolution_epochs=1)


def test_a_layout_that_cannot_hold_the_model_is_refused_before_training(prepared):
    with pytest.raises(UnsupportedCheckpointError, match="LayerScale"):
        run(prepared, "refused", recipe=DINOV2_RECIPE, original_checkpoint=prepared / "refused.pth")
    assert not (prepared / "refused.run").exists()


def test_what_needs_a_model_to_start_from_is_refused_without_one(prepared):
    recipe = dataclasses.replace(DINOV2_RECIPE, arguments=DINOV2_RECIPE.arguments | {"gram_loss_weight": 1.0, "frozen_blocks": 1})
    with pytest.raises(
        VitrailError, match="frozen_blocks, gram_loss_weight of the recipe small-dinov2 keep a model close to its start"
    ):
        run(prepared, "nothing", recipe=recipe)
    for data, from_scratch in (("images", True), ("unlabeled", False)):
        with pytest.raises(VitrailError, match="logistic=True compares with the model that a run starts from, on labeled images"):
            run(prepared, "nothing", data, logistic=True, from_scratch=from_scratch)
    assert not (prepared / "nothing.run").exists()


def test_a_run_goes_on_with_other_stops(prepared):
    """Its name and its stops change no number."""
    assert forked.exit_code(__file__, "run_until_killed", prepared, 6, "goes-on") == -signal.SIGKILL
    others = dataclasses.replace(RECIPE, name="mine", arguments=ARGUMENTS | {"collapse_patience": 0, "knn_patience": 0})
    assert run(prepared, "goes-on", recipe=others)["resumed_from"] == "checkpoint-6"


@pytest.mark.parametrize(("argument", "precision"), [("bf16", "bfloat16"), ("fp16", "float16")])
@pytest.mark.parametrize("recipe", [RECIPE, DINOV2_RECIPE], ids=["dino", "dinov2"])
def test_a_run_on_cuda(recipe, argument, precision, prepared, cuda):
    recipe = dataclasses.replace(recipe, arguments=recipe.arguments | {argument: True, "knn_patience": 0})
    output = f"cuda-{recipe.name}-{argument}"
    result = run(prepared, output, recipe=recipe, from_scratch=False, num_workers=1, logistic=True)
    assert result["precision"] == precision
    assert all(map(math.isfinite, losses(result)))
    assert result["knn"]["accuracy"] > 0.5  # of three colors
    assert next(AutoModel.from_pretrained(prepared / output).parameters()).dtype == torch.float32


def test_training_runs_on_the_device_of_the_process(monkeypatch, tmp_path):
    """A user may ask for the CPU where there is a GPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    processes = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    args = job.training_arguments(tmp_path, RECIPE, processes, seed=0, device_batch_size=None, num_workers=0)
    assert (args.use_cpu, args.dataloader_pin_memory) == (True, False)
