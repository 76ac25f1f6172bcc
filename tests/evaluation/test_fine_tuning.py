"""Fine-tuning of a whole model: learning rates by depth, and the same run with less memory and after an interruption."""

import copy

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.evaluation import fine_tuning as module
from vitrail.evaluation.fine_tuning import FineTuning, finetune, layerwise_groups
from vitrail.evaluation.recipes import WarmupSchedule
from vitrail.evaluation.training_data import ImageRows
from vitrail.modeling.modeling_vit import ViTForImageClassification

SETTINGS = FineTuning(batch_size=64)


@pytest.fixture
def rows(digits, digits_processor):
    """The first 150 digits to learn from, and 150 others."""

    def make(half, seed):
        images = half.select(range(150))
        labels = np.array(images["label"][:])
        return ImageRows(images, digits_processor, rows=np.arange(150), labels=labels, seed=seed, resample=3)

    return make(digits.train, 0), make(digits.validation, None)


def test_learning_rates_fall_with_depth():
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4, num_labels=5,
        num_register_tokens=2, use_mask_token=True, layer_scale_init_value=0.1,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    groups = layerwise_groups(model, FineTuning(learning_rate=1.0, layer_decay=0.5, weight_decay=0.3))
    settings = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in settings  # each parameter is in one group
            settings[id(parameter)] = (group["lr"], group["weight_decay"])
    found = {name: settings.pop(id(parameter)) for name, parameter in model.named_parameters()}
    assert not settings
    assert found["classifier.weight"] == (1.0, 0.3)
    assert found["classifier.bias"] == (1.0, 0)
    assert found["vit.layernorm.weight"] == (1.0, 0)
    assert found["vit.layers.2.attention.qkv.weight"] == (0.5, 0.3)
    assert found["vit.layers.2.layer_scale1"] == (0.5, 0)
    assert found["vit.layers.0.mlp.fc1.weight"] == (0.125, 0.3)
    assert found["vit.layers.0.norm1.weight"] == (0.125, 0)
    assert found["vit.embeddings.patch_embeddings.projection.weight"] == (0.0625, 0.3)
    for token in ("cls_token", "mask_token", "register_tokens", "position_embeddings"):
        assert found[f"vit.embeddings.{token}"] == (0.0625, 0)


def test_the_learning_rate_grows_and_then_falls():
    schedule = WarmupSchedule(100, 10, 0, iterations=50, warmup=5)
    factors = [schedule.learning_rate_factor(update) for update in range(50)]
    np.testing.assert_allclose(factors[:6], [0, 0.2, 0.4, 0.6, 0.8, 1])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 45)
    for factor in factors[5:]:
        assert factor == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


def test_one_update_is_that_of_torch(random_model, rows, tmp_path, monkeypatch):
    """The loss, the learning rates and the weight decay of the first update, against AdamW called by hand."""
    monkeypatch.setattr(module, "WarmupSchedule", lambda *args, warmup, **kwargs: WarmupSchedule(*args, **kwargs))
    train, validation = rows
    settings = FineTuning(batch_size=150, layer_decay=1.0, weight_decay=0.0)
    expected = copy.deepcopy(random_model).train()
    finetune(
        random_model, train, validation, epochs=1, output_dir=tmp_path, settings=settings, device_batch_size=64, progress=False
    )
    batch = train.__getitems__(np.random.default_rng([0, 0]).permutation(150).tolist())
    optimizer = torch.optim.AdamW(expected.parameters(), lr=5e-4 * 150 / 256, weight_decay=0.0)
    torch.nn.functional.cross_entropy(expected(batch["pixel_values"]).logits, batch["labels"]).backward()
    optimizer.step()
    for (name, one), other in zip(random_model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5, msg=name)
    assert not random_model.training


def test_it_learns_and_goes_on_after_an_interruption(random_model, rows, tmp_path, monkeypatch):
    train, validation = rows
    again = copy.deepcopy(random_model)
    train.seed = None  # a crop of this few pixels carries little information
    settings = FineTuning(learning_rate=2e-2, layer_decay=1.0, batch_size=50)
    options = {"epochs": 12, "settings": settings, "device_batch_size": 25, "progress": False}
    trainer = finetune(random_model, train, validation, output_dir=tmp_path / "whole", **options)
    assert trainer.predict(validation).metrics["test_accuracy"] > 0.25  # by chance: 0.1
    assert [entry["step"] for entry in trainer.state.log_history if "eval_accuracy" in entry] == list(range(3, 37, 3))

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.FineTuner, "description", "interrupted")
        patch.setattr("vitrail.evaluation.training.KeepLastCheckpoint.on_step_end", Interrupt.on_step_end)
        with pytest.raises(KeyboardInterrupt):
            finetune(again, train, validation, output_dir=tmp_path / "pieces", **options)
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == ["checkpoint-6"]
    finetune(again, train, validation, output_dir=tmp_path / "pieces", **options)
    for (name, one), other in zip(random_model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_half_precision_becomes_float32(random_model, rows, tmp_path):
    train, validation = rows
    model = random_model.half()
    finetune(model, train, validation, epochs=1, output_dir=tmp_path, settings=SETTINGS, progress=False)
    assert model.dtype == torch.float32
    assert str(model.config.dtype).removeprefix("torch.") == "float32"
    assert "use_cache" not in model.config.to_dict()  # the Trainer's, of language models
