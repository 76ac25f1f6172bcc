"""Images per second of training ViT-S/16 by DINO and by DINOv2: our Trainers, and plain loops over timm's backbone; and of making crops.

The same recipe for both, with the original's sizes (two crops of 224 pixels, eight of 96, a head of 65 536 prototypes), on random crops
that lie ready: in float32 on a CPU, with bfloat16 autocast on a GPU. The loops do what the originals' do: two passes of the student,
one of the teacher, the losses, clipping, AdamW, the moving average; stochastic depth is timm's. A run makes several updates, so that
what the Trainer does once for a run hardly counts. The runs of a method alternate, and their medians are compared. `peak_gib` is the
memory of the GPU, or of a process that makes the updates on a CPU. timm's rows are left out where it is not installed.
"""

import contextlib
import copy
import gc
import importlib.util
import itertools
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

import vitrail
from vitrail.data.labeled import load_training_images
from vitrail.pretraining.architectures import new_model
from vitrail.pretraining.arguments import DINOTrainingArguments, DINOv2TrainingArguments
from vitrail.pretraining.crops import MultiCropImages
from vitrail.pretraining.dino_trainer import DINOTrainer, clip_each_gradient
from vitrail.pretraining.dinov2_trainer import DINOv2Trainer
from vitrail.pretraining.masks import BlockMasking
from vitrail.pretraining.methods.dino import DINOHead, DINOLoss
from vitrail.processing.multi_crop import DINO_AUGMENTATION

from .extract import NUMBER, cut_photographs, own_or_small
from .timing import interleaved

ARCHITECTURE, PATCH = "vit_small_patch16", 16
PIXELS, LOCAL_PIXELS = DINO_AUGMENTATION.global_crops[0].size, DINO_AUGMENTATION.local_crop.size
# Images of an update, updates of a run, runs
CPU, GPU = (8, 3, 3), (64, 20, 3)
WORKERS, BATCH_OF_CROPS = 2, 8
OURS, THEIRS = "vitrail", "plain loop over timm"
METHODS = {"DINO": (DINOTrainer, DINOTrainingArguments), "DINOv2": (DINOv2Trainer, DINOv2TrainingArguments)}


class ReadyCrops(Dataset):
    """The same random crops again and again, which cost nothing, with masks."""

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


class MaskedCrops(ReadyCrops):
    """The crops with one of two masked."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.item["masks"] = BlockMasking(PATCH).draw(self.item["pixel_values"].shape, np.random.default_rng(0))


def ours(method: str, batch_size: int, updates: int, folder: str, *, on_gpu: bool) -> Callable[[], object]:
    """A short training by our Trainer, from the beginning."""
    trainer_class, arguments = METHODS[method]
    model, _ = new_model(ARCHITECTURE, image_size=PIXELS, seed=0)
    crops = (MaskedCrops if method == "DINOv2" else ReadyCrops)(batch_size * updates)

    def run() -> None:
        args = arguments(
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
        trainer = trainer_class(model, args, train_dataset=crops)
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    return run


def timms(method: str, batch_size: int, updates: int, *, on_gpu: bool) -> Callable[[], object]:
    """The original's loop, over timm's backbone."""
    import timm

    device = torch.device("cuda" if on_gpu else "cpu")
    rate = METHODS[method][1].__dataclass_fields__["drop_path_rate"].default
    backbone = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True, drop_path_rate=rate)
    update, crops = (dinov2_loss, MaskedCrops) if method == "DINOv2" else (dino_loss, ReadyCrops)

    def run() -> None:
        student = nn.ModuleList([copy.deepcopy(backbone), DINOHead(384)]).to(device)
        teacher = copy.deepcopy(student).eval().requires_grad_(False)
        mask_token = nn.Parameter(torch.zeros(1, 1, 384, device=device))
        center = DINOLoss(65536).to(device)
        trained = [p for p in student.parameters() if p.requires_grad] + ([mask_token] if method == "DINOv2" else [])
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        for batch in itertools.islice(DataLoader(crops(batch_size * updates), batch_size), updates):
            views = {name: value.to(device).transpose(0, 1).flatten(0, 1) for name, value in batch.items()}
            with torch.autocast(device.type, torch.bfloat16) if on_gpu else contextlib.nullcontext():
                loss = update(student, teacher, center, mask_token, **views)
            loss.backward()
            if method == "DINO":
                clip_each_gradient(student, 3.0)
            else:
                for part in student:
                    nn.utils.clip_grad_norm_(part.parameters(), 3.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.004)
            center.update_center()
        if on_gpu:
            torch.cuda.synchronize()

    return run


def dino_loss(
    student: nn.ModuleList,
    teacher: nn.ModuleList,
    center: DINOLoss,
    mask_token: nn.Parameter,
    pixel_values: torch.Tensor,
    local_pixel_values: torch.Tensor,
) -> torch.Tensor:
    """DINO's loss of a batch: the cross entropy of every target with the other views."""
    with torch.no_grad():
        targets = center.targets(teacher[1](teacher[0](pixel_values)), 0.04).chunk(2)
    outputs = student[1](torch.cat([student[0](pixel_values), student[0](local_pixel_values)]))
    return torch.stack(list(pairs(outputs, targets))).mean()


def dinov2_loss(
    student: nn.ModuleList,
    teacher: nn.ModuleList,
    center: DINOLoss,
    mask_token: nn.Parameter,
    pixel_values: torch.Tensor,
    local_pixel_values: torch.Tensor,
    masks: torch.Tensor,
) -> torch.Tensor:
    """DINOv2's loss of a batch: DINO's, iBOT's of the masked patches, and KoLeo's of [CLS]."""
    with torch.no_grad():
        tokens = teacher[0].forward_features(pixel_values)
        cls_outputs, patch_outputs = teacher[1](tokens[:, 0]), teacher[1](tokens[:, 1:][masks])
        targets = center.targets(cls_outputs, 0.07).chunk(2)
        patch_targets = F.softmax(patch_outputs.float() / 0.07, dim=-1)
    backbone, head = student
    embedded = backbone.patch_embed(pixel_values)
    rows, columns = embedded.shape[1:3]
    embedded = torch.where(masks.view(-1, rows, columns, 1), mask_token[None].to(embedded.dtype), embedded)
    tokens = backbone.norm(backbone.blocks(backbone._pos_embed(embedded)))
    outputs = head(torch.cat([tokens[:, 0], backbone(local_pixel_values), tokens[:, 1:][masks]]))
    num_views = len(outputs) - len(patch_targets)
    loss = torch.stack(list(pairs(outputs[:num_views], targets))).mean()
    weights = (1 / masks.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(masks)[masks]
    log_probabilities = F.log_softmax(outputs[num_views:].float() / 0.1, dim=-1)
    loss = loss - ((patch_targets * log_probabilities).sum(dim=-1) * weights).sum() / len(masks)
    for features in F.normalize(tokens[:, 0].float(), dim=-1).chunk(2):
        neighbors = (features @ features.T).detach().fill_diagonal_(-1).argmax(dim=1)
        loss = loss - 0.1 * F.pairwise_distance(features, features[neighbors], eps=1e-8).log().mean()
    return loss


def pairs(outputs: torch.Tensor, targets: tuple[torch.Tensor, ...]) -> Iterator[torch.Tensor]:
    """The cross entropies of the targets with the outputs of all other views."""
    views = F.log_softmax(outputs.float() / 0.1, dim=-1).chunk(len(outputs) // len(targets[0]))
    for index, target in enumerate(targets):
        for view, log_probabilities in enumerate(views):
            if view != index:
                yield -(target * log_probabilities).sum(dim=-1).mean()


def peak_of_a_process(function: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """The memory in GiB of a fresh process that makes a run on a CPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_and_measure, (function, arguments))


def _run_and_measure(function: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> float:
    logging.set_verbosity_error()
    function(*arguments, on_gpu=False)()
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # ru_maxrss would include the peak of the parent process
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**20, 2)


def peak_on_the_gpu(run: Callable[[], object]) -> float:
    """The memory in GiB that a run allocates on the GPU."""
    gc.collect()  # what an earlier Trainer holds, which refers to itself
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def make_crops(folder: Path) -> None:
    """All crops of JPEG files, made by two workers as for a training."""
    images = load_training_images(folder).train
    dataset = MultiCropImages(images, vitrail.make_image_processor("dino"), DINO_AUGMENTATION)
    for _ in DataLoader(dataset, batch_size=BATCH_OF_CROPS, num_workers=WORKERS):
        pass


def measure(method: str, folder: str, *, on_gpu: bool) -> list[dict[str, Any]]:
    """The rows of a method."""
    batch_size, updates, repeats = GPU if on_gpu else CPU
    makers: dict[str, tuple[Any, ...]] = {OURS: (ours, method, batch_size, updates, folder)}
    if importlib.util.find_spec("timm"):
        makers[THEIRS] = (timms, method, batch_size, updates)
    runs = {name: make(*arguments, on_gpu=on_gpu) for name, (make, *arguments) in makers.items()}
    seconds = interleaved(runs, repeats=repeats)
    return [
        {
            "method": method,
            "way": name,
            "batch": batch_size,
            "images_per_second": round(batch_size * updates / seconds[name], 2),
            "vitrail_is_faster_by": round(seconds[name] / seconds[OURS], 2),
            "peak_gib": peak_on_the_gpu(runs[name]) if on_gpu else peak_of_a_process(*makers[name]),
        }
        for name in runs
    ]


def run() -> list[dict[str, Any]]:
    """One row for each method and way, and one for the crops."""
    logging.set_verbosity_error()
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for method in METHODS for row in measure(method, folder, on_gpu=on_gpu)]
        pictures = Path(folder, "pictures")
        cut_photographs(pictures, NUMBER, own_or_small)
        making = interleaved({"crops": lambda: make_crops(pictures)}, repeats=2)["crops"]
    alone = {"method": "both", "way": f"crops alone, {WORKERS} workers", "batch": BATCH_OF_CROPS}
    return [*rows, {**alone, "images_per_second": round(NUMBER / making, 2), "vitrail_is_faster_by": "", "peak_gib": ""}]
