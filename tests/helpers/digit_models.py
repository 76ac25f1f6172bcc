"""Real digits, and small models for them: fixtures that tests/conftest.py gives to all tests."""

import pytest
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from vitrail.configuration.configuration_vit import ViTConfig
from vitrail.data.decoding import open_image
from vitrail.data.labeled import load_labeled_images
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.processing.image_processing_vit import VitrailImageProcessor


@pytest.fixture(scope="session")
def digits():
    """1797 real digits, in two splits of equal size."""
    return load_labeled_images("digits")


@pytest.fixture(scope="session")
def digits_processor():
    return VitrailImageProcessor(
        num_channels=1, size={"height": 8, "width": 8}, do_center_crop=False, image_mean=[0.5], image_std=[0.5]
    )


@pytest.fixture
def random_model():
    """A small ViT for digits that has learned nothing."""
    return make_random_model()


def make_random_model():
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    torch.manual_seed(0)
    return ViTForImageClassification(config).eval()


class Digits(Dataset):
    def __init__(self, images, image_processor):
        pictures = [open_image(entry) for entry in images["image"][:]]
        self.pixel_values = image_processor(pictures, return_tensors="pt")["pixel_values"]
        self.labels = torch.tensor(images["label"][:])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {"pixel_values": self.pixel_values[row], "labels": self.labels[row]}


@pytest.fixture(scope="session")
def trained_model(digits, digits_processor, tmp_path_factory):
    """A small ViT after a few seconds of supervised training on one split of the digits."""
    model = make_random_model()
    args = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("digits")),
        num_train_epochs=15,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        weight_decay=0.05,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    Trainer(model=model, args=args, train_dataset=Digits(digits.train, digits_processor)).train()
    return model.eval()
