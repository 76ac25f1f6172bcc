"""PEFT, FSDP's wrapping policy, and the Trainer's best model: what users of transformers do with any model."""

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from small_models import make_images, make_model, run
from vitrail.modeling.modeling_vit import ViTEmbeddings, ViTForImageClassification, ViTLayer, ViTModel

LINEAR = {
    "absolute": {"qkv", "proj", "fc1", "fc2"},
    "swiglu": {"qkv", "proj", "gate_up_proj", "down_proj"},
    "relative_mlp": {"qkv", "proj", "fc1", "fc2"},
    "google": {"qkv", "proj", "fc1", "fc2", "representation"},
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # of a model without a name
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("target_modules", [["qkv"], "all-linear"], ids=["qkv", "all-linear"])
def test_lora(target_modules, name, tmp_path):
    base = make_model(ViTForImageClassification, name)
    images, labels = make_images(base.config), torch.tensor([0, 1])
    before = run(base, images)
    config = LoraConfig(r=2, target_modules=target_modules, modules_to_save=["classifier"], init_lora_weights=False)
    model = get_peft_model(base, config).train()
    model(pixel_values=images, labels=labels).loss.backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    layers = {key.split(".lora_")[0].rpartition(".")[2] for key in trained if ".lora_A" in key}
    assert layers == (LINEAR[name] if target_modules == "all-linear" else {"qkv"})
    assert {key for key in trained if ".lora_" not in key} == {
        f"base_model.model.classifier.modules_to_save.default.{parameter}" for parameter in ("weight", "bias")
    }
    adapted = run(model.eval(), images)
    assert not torch.allclose(adapted, before, atol=1e-2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(ViTForImageClassification, name), tmp_path).eval()
    torch.testing.assert_close(run(loaded, images), adapted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run(loaded.merge_and_unload(), images), adapted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_class", [ViTModel, ViTForImageClassification])
def test_fsdp_wraps_each_block(model_class):
    model = make_model(model_class, "relative_mlp_shared")
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy="transformer_based_wrap")
    plugin.set_auto_wrap_policy(model)
    assert plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {ViTEmbeddings, ViTLayer}


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    model = make_model(ViTForImageClassification, "absolute")
    images = make_images(model.config, batch_size=8)
    rows = [{"pixel_values": image, "labels": index % 5} for index, image in enumerate(images)]
    weights = []  # at each evaluation

    class OneUpdateIsBest(Trainer):
        def evaluate(self, *args, **kwargs):
            metrics = {"eval_loss": float(len(weights))}
            weights.append({key: value.clone() for key, value in self.model.state_dict().items()})
            self.log(metrics)
            return metrics

    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = OneUpdateIsBest(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert len(weights) > 1
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[0][key]), key
