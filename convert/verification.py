"""Verification of a converted model: three independent checks.

1. Round trip: exported to the source's format, every tensor equals the source's bit for bit.
2. Another implementation: the same weights in an installed library (transformers or timm) give the same outputs, at the model's size and
   at a size that is not square.
3. Reload: after saving and loading, the outputs are identical.
"""

import importlib.metadata
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..configuration.configuration_vit import ViTConfig
from ..errors import UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTModel, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .adaptation import may_be_adapted
from .detection import find_family
from .export import to_format, write_exported
from .families.dense_heads import IGNORED
from .families.family import RawCheckpoint, Tensors
from .families.formats import Exported, RunPeer
from .families.registry import EXPORT_FORMATS
from .families.rules import convert_tensors, reverse
from .heads import HEAD_PREFIXES, head_rules, head_source
from .loading import convert_family, open_source
from .report import Check
from .sources.resolver import resolve

TOLERANCE = 1e-4  # absolute, between float32 outputs of two implementations
SEED = 0


def verify(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    *,
    against: str | Path | None = None,
    head: str | Path | None = None,
    branch: str = "teacher",
    image: str | Path | Image.Image | None = None,
) -> list[Check]:
    """Run the three checks on a model.

    Args:
        model: a model in evaluation mode.
        image_processor: its image processor.
        against: the checkpoint that the model was converted from, for the first check.
        head: the separate file of the classifier.
        branch: the network of a full training checkpoint `against`.
        image: an image to preprocess; noise by default.
    """
    checks = []
    if against is None:
        checks.append(Check("round trip", "the source", None, None, "not done: pass the source with --against"))
    else:
        checks += _round_trip(model, against, head, branch)
    if image is None:
        noise = np.random.default_rng(SEED).integers(0, 256, (300, 400, model.config.num_channels), dtype=np.uint8)
        image = Image.fromarray(noise.squeeze()) if model.config.num_channels in (1, 3) else None
    checks += _other_implementation(model, image_processor, image)
    checks.append(_reload(model, image_processor))
    return checks


def _pixel_values(config: ViTConfig, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, config.num_channels, *size, generator=torch.Generator().manual_seed(SEED))


def _off_grid(config: ViTConfig) -> tuple[int, int]:
    """Return a size that is neither square nor the model's."""
    (rows, columns), (patch_height, patch_width) = config.patch_grid, config.patch_shape
    return (rows + 2) * patch_height, max(columns - 3, 1) * patch_width


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()


# ----------------------------------------------------------------------------------------------------------- 1. round trip


def _round_trip(model: ViTPreTrainedModel, against: str | Path, head: str | Path | None, branch: str) -> list[Check]:
    resolved = resolve(against)
    raw = open_source(resolved, branch=branch)
    family = find_family(raw)
    _, coverage = convert_family(raw, family, [])
    ours = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    in_file = HEAD_PREFIXES if family.head_rules is not None else HEAD_PREFIXES[1:]  # some formats hold their classifier
    separate = {name: ours.pop(name) for name in list(ours) if name.startswith(in_file) and name not in raw.tensors}
    rules_back = reverse(family.rules(raw))
    back, _ = convert_tensors(ours, rules_back)
    adaptable, _ = convert_tensors({name: tensor for name, tensor in ours.items() if may_be_adapted(name)}, rules_back)
    checks = [_bit_for_bit("round trip", f"{resolved.name} ({family.name})", back, raw, coverage.converted, adaptable)]
    if separate and head is None:
        checks.append(Check("round trip of the head", "its file", None, None, "not done: pass the file with --head"))
    elif separate and head is not None:
        resolved_head = resolve(head_source(resolved, head))
        raw_head = open_source(resolved_head)
        rules, _ = head_rules(raw_head, family, model.config.to_dict())
        back, _ = convert_tensors(separate, reverse(rules))
        _, found = convert_tensors(raw_head.tensors, rules, IGNORED)
        checks.append(
            _bit_for_bit("round trip of the head", resolved_head.name, back, raw_head, found.converted + found.unexpected)
        )
    return checks


def _bit_for_bit(
    name: str,
    against: str,
    back: dict[str, torch.Tensor],
    raw: RawCheckpoint,
    expected: list[str],
    adaptable: Collection[str] = (),
) -> Check:
    """Compare values in the narrower dtype of source and model; a wider dtype converts back without loss.

    Tensors in `adaptable` with another shape were changed on purpose, by `image_size=`, `patch_size=`, `num_channels=` or `num_labels=`.
    """
    different, rounded = [], set()
    for key in expected:
        theirs, ours = _unmasked(key, raw.tensors), None if key not in back else _unmasked(key, back)
        if ours is not None and ours.dtype.itemsize < theirs.dtype.itemsize:  # loaded with dtype=
            theirs = theirs.to(ours.dtype)
            rounded.add(str(ours.dtype).removeprefix("torch."))
        if ours is None or not torch.equal(ours.to(theirs.dtype), theirs):
            different.append(key)
    surplus = sorted(back.keys() - set(expected))
    if different and not surplus and all(key in adaptable and back[key].shape != raw.tensors[key].shape for key in different):
        note = f"known: the shape of {', '.join(different[:3])} was changed when the model was converted"
        return Check(name, against, None, None, note)
    if different or surplus:
        note = f"{len(different)} of {len(expected)} tensors differ, {len(surplus)} are unexpected: "
        return Check(name, against, None, False, note + ", ".join((different + surplus)[:3]))
    note = f", rounded to {' and '.join(sorted(rounded))}" if rounded else ""
    return Check(name, against, 0.0, True, f"{len(back)} tensors equal bit for bit{note}")


def _unmasked(key: str, tensors: Tensors) -> torch.Tensor:
    """Return what the forward pass reads of a tensor: the product of a bias and its mask, in which both may differ."""
    bias = key.removesuffix("_mask")
    mask = tensors.get(f"{bias}_mask")
    return tensors[key] if mask is None else tensors[bias] * mask


# ------------------------------------------------------------------------------------------------- 2. other implementation


def _other_implementation(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, image: str | Path | Image.Image | None
) -> list[Check]:
    """Compare with the first library that can hold the model."""
    candidates = [(name, whole) for whole in _wholes(model) for name, export in EXPORT_FORMATS.items() if export.load_peer]
    refusals = []
    for name, whole in candidates:
        try:
            exported = to_format(whole, image_processor, name)
        except UnsupportedCheckpointError as refusal:
            refusals.append(str(refusal))
            continue
        with tempfile.TemporaryDirectory() as folder:
            written = write_exported(exported, Path(folder) / name)[0]
            export = EXPORT_FORMATS[name]
            assert export.load_peer is not None
            assert export.library is not None
            peer = export.load_peer(written, exported)
            if peer is None:
                refusals.append(f"{export.library} is not installed.")
                continue
            library = f"{export.library} {importlib.metadata.version(export.library)}"
            checks = []
            if export.peer_image_processor is not None and image is not None:
                checks.append(_pixels(image_processor, image, export.peer_image_processor(written), library))
            without = "" if whole is model else ", without the head"
            return checks + _same_outputs(whole, peer, exported, library + without)
    return [Check("outputs", "another implementation", None, None, f"not done: {' '.join(dict.fromkeys(refusals))}")]


def _wholes(model: ViTPreTrainedModel) -> list[ViTPreTrainedModel]:
    """Return the model and, for libraries that cannot hold its classifier, its encoder alone."""
    return [model] if isinstance(model, ViTModel) else [model, model.vit]


def _pixels(
    image_processor: VitrailImageProcessor, image: str | Path | Image.Image, theirs: Callable[..., Any], library: str
) -> Check:
    """Compare the pixels of an image with those of a library's image processor on Pillow; the torch backend may differ by two levels."""
    ours = image_processor(image, jpeg_draft=False, return_tensors="pt")  # the library decodes in full
    opened = ImageOps.exif_transpose(Image.open(image)) if isinstance(image, str | Path) else image
    opened = opened.convert({1: "L", 3: "RGB"}.get(image_processor.num_channels, "RGB"))
    if image_processor.num_channels != 3:
        return Check("pixels", library, None, None, "not done: the library's image processors are for three channels")
    difference = _difference(ours["pixel_values"], theirs(opened, return_tensors="pt")["pixel_values"])
    tolerance = TOLERANCE if image_processor.backend == "pil" else 2.01 / 255 / min(image_processor.image_std)
    passed: bool | None = difference <= tolerance
    note = ""
    if not passed and image_processor.do_center_crop and _has_odd_margin(image_processor, opened.size):
        passed, note = (
            None,
            "known: the library rounds the position of the crop down, torchvision to even; here they differ by one pixel",
        )
    return Check("pixels", library, difference, passed, note)


def _has_odd_margin(image_processor: VitrailImageProcessor, size: tuple[int, int]) -> bool:
    if "shortest_edge" not in dict(image_processor.size):
        return False
    shorter = dict(image_processor.size)["shortest_edge"]
    longer = int(shorter * max(size) / min(size))
    crop = dict(image_processor.crop_size)["height"]
    return (shorter - crop) % 2 == 1 or (longer - crop) % 2 == 1


@torch.no_grad()
def _same_outputs(model: ViTPreTrainedModel, peer: RunPeer, exported: Exported, name: str) -> list[Check]:
    weights = {key: tensor.float() for key, tensor in model.state_dict().items()}
    pooling = {name: value for name, value in exported.conventions.items() if name == "pooling"}
    config = ViTConfig(**model.config.to_dict() | pooling)
    reference = type(model)(config).eval()
    reference.load_state_dict(weights)

    def compare(ours: ViTPreTrainedModel, size: tuple[int, int], note: str = "") -> list[Check]:
        pixel_values = _pixel_values(model.config, size)
        expected = peer(pixel_values)
        differences = {
            key: _difference(value, expected[key]) for key, value in _outputs(ours, pixel_values).items() if key in expected
        }
        return [
            Check(f"{key} at {size[0]}x{size[1]}", name, value, None if note.startswith("known") else value <= TOLERANCE, note)
            for key, value in differences.items()
        ]

    native, other = model.config.image_shape, _off_grid(model.config)
    if EXPORT_FORMATS[exported.format].native_size_only(model.config):
        return compare(reference, native)
    if exported.computed:
        twin = type(model)(config).eval()
        twin.load_state_dict(weights | exported.computed)
        rounded = next(warning for warning in exported.warnings if "computes them" in warning)
        return (
            compare(reference, native, f"known: {rounded}")
            + compare(twin, native, "with the library's periods in our model")
            + compare(twin, other, "with the library's periods in our model")
        )
    if exported.conventions.keys() <= pooling.keys():
        return compare(reference, native) + compare(reference, other)
    twin = type(model)(ViTConfig(**model.config.to_dict() | exported.conventions)).eval()
    twin.load_state_dict(weights)
    rule = next(warning for warning in exported.warnings if "by its own rule" in warning)
    # with the library's rule in our model, everything else must agree
    return (
        compare(reference, native)
        + compare(reference, other, f"known: {rule}")
        + compare(twin, other, "with the library's rule in our model")
    )


def _outputs(model: ViTPreTrainedModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    if isinstance(model, ViTModel):
        outputs = model(pixel_values)
        return {"features": outputs.last_hidden_state, "pooled": outputs.pooler_output}
    outputs = model.vit(pixel_values)
    return {"features": outputs.last_hidden_state, "pooled": outputs.pooler_output, "logits": model(pixel_values).logits}


# --------------------------------------------------------------------------------------------------------------- 3. reload


@torch.no_grad()
def _reload(model: ViTPreTrainedModel, image_processor: VitrailImageProcessor) -> Check:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        again = type(model).from_pretrained(folder, dtype=model.dtype).eval()
        same_images = VitrailImageProcessor.from_pretrained(folder).to_dict() == image_processor.to_dict()
    pixel_values = _pixel_values(model.config, model.config.image_shape)
    difference = _difference(again(pixel_values)[0].float(), model(pixel_values)[0].float())
    note = "" if same_images else "the settings of the image processor changed"
    return Check("saved and loaded again", "this model", difference, difference == 0 and same_images, note)
