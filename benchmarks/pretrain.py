"""Images per second of DINO's training of ViT-S/16: our Trainer, and a plain loop over timm's backbone; and of making the crops alone.

The same recipe for both, with the original's sizes (two crops of 224 pixels, eight of 96, a head of 65 536 prototypes), on random crops
that lie ready: in float32 on a CPU, with bfloat16 autocast on a GPU. The loop does what the original's does: two passes of the student,
one of the teacher, a loss, clipping, AdamW, the moving average. A run makes several updates, so that what the Trainer does once for
a run hardly counts. The runs alternate, and their medians are compared. timm's row is left out where it is not installed.
"""

import contextlib
import copy
import gc
import importlib.util
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

import vitrail
from vitrail.data.labeled import load_training_images
from vitrail.pretraining.architectures import new_model
from vitrail.pretraining.arguments import DINOTrainingArguments
from vitrail.pretraining.crops import MultiCropImages
from vitrail.pretraining.dino_trainer import DINOTrainer, clip_each_gradient
from vitrail.pretraining.methods.dino import DINOHead, DINOLoss
from vitrail.processing.multi_crop import DINO_AUGMENTATION

from .extract import NUMBER, write_images
from .timing import interleaved

ARCHITECTURE = "vit_small_patch16"
PIXELS, LOCAL_PIXELS = DINO_AUGMENTATION.global_crops[0].size, DINO_AUGMENTATION.local_crop.size
# Images of an update, updates of a run, runs
CPU, GPU = (8, 3, 3), (64, 20, 5)
WORKERS, BATCH_OF_CROPS = 2, 8


class ReadyCrops(Dataset):
    """The same random crops again and again, which cost nothing."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.item = {
            "pixel_values": torch.randn(2, 3, PIXELS, PIXELS),
            "local_pixel_values": torch.randn(DINO_AUGMENTATION.num_local_crops, 3, LOCAL_PIXELS, LOCAL_PIXELS),
        }

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return self.item


def ours(model: vitrail.ViTModel, batch_size: int, updates: int, folder: str, *, on_gpu: bool) -> Callable[[], object]:
    """A short training by DINOTrainer, from the beginning."""

    def run() -> None:
        args = DINOTrainingArguments(
            folder,
            max_steps=updates,
            per_device_train_batch_size=batch_size,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DINOTrainer(model, args, train_dataset=ReadyCrops(batch_size * updates))
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    return run


def timms(batch_size: int, updates: int, *, on_gpu: bool) -> Callable[[], object]:
    """The original's loop, over timm's backbone."""
    import timm

    device = torch.device("cuda" if on_gpu else "cpu")
    backbone = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True, drop_path_rate=0.1)

    def run() -> None:
        student = nn.ModuleList([copy.deepcopy(backbone), DINOHead(384)]).to(device)
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        loss_of = DINOLoss(65536).to(device)
        optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-6, fused=True)
        for batch in itertools.islice(DataLoader(ReadyCrops(batch_size * updates), batch_size), updates):
            crops = [views.to(device).transpose(0, 1).flatten(0, 1) for views in batch.values()]
            with torch.autocast(device.type, torch.bfloat16) if on_gpu else contextlib.nullcontext():
                with torch.no_grad():
                    targets = teacher[1](teacher[0](crops[0]))
                answers = student[1](torch.cat([student[0](views) for views in crops]))
                loss, _ = loss_of(answers, targets, teacher_temperature=0.04)
            loss.backward()
            clip_each_gradient(student, 3.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.004)
            loss_of.update_center()
        if on_gpu:
            torch.cuda.synchronize()

    return run


def make_crops(folder: Path) -> None:
    """All crops of JPEG files, made by two workers as for a training."""
    images = load_training_images(folder).train
    dataset = MultiCropImages(images, vitrail.make_image_processor("dino"), DINO_AUGMENTATION)
    for _ in DataLoader(dataset, batch_size=BATCH_OF_CROPS, num_workers=WORKERS):
        pass


def run() -> list[dict[str, Any]]:
    """One row for each way."""
    logging.set_verbosity_error()
    on_gpu = torch.cuda.is_available()
    batch_size, updates, repeats = GPU if on_gpu else CPU
    model, _ = new_model(ARCHITECTURE, image_size=PIXELS, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        runs = {"vitrail, DINOTrainer": ours(model, batch_size, updates, folder, on_gpu=on_gpu)}
        if importlib.util.find_spec("timm"):
            runs["plain loop over timm"] = timms(batch_size, updates, on_gpu=on_gpu)
        seconds = interleaved(runs, repeats=repeats)
        peaks = {}
        for name, once in runs.items() if on_gpu else ():
            gc.collect()  # what an earlier Trainer holds, which refers to itself
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            once()
            peaks[name] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        write_images(pictures)
        making = interleaved({"crops": lambda: make_crops(pictures)}, repeats=2)["crops"]
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "batch": batch_size,
            "images_per_second": round(batch_size * updates / median, 2),
            "vitrail_is_faster_by": round(median / seconds["vitrail, DINOTrainer"], 2),
            "peak_gib": peaks.get(name, ""),
        }
        for name, median in seconds.items()
    ]
    return [
        *rows,
        {
            "way": f"crops alone, {WORKERS} workers",
            "batch": BATCH_OF_CROPS,
            "images_per_second": round(NUMBER / making, 2),
            "vitrail_is_faster_by": "",
            "peak_gib": "",
        },
    ]
