"""Proof that a converted model is what its source was: three independent checks, each a row of numbers.

1. Written back to the source's format, every tensor equals the source's bit for bit.
2. The same weights in another implementation that is installed here (transformers' own ViT and DINOv2, or timm) answer alike, at the
   model's size and at another one that is no square.
3. Saved and loaded again, the model answers identically.
"""

import importlib.metadata
import tempfile
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps

from ..configuration.configuration_vit import ViTConfig
from ..errors import UnsupportedCheckpointError
from ..modeling.modeling_vit import ViTForImageClassification, ViTPreTrainedModel
from ..processing.image_processing_vit import VitrailImageProcessor
from .adaptation import may_be_adapted
from .detection import find_family, open_checkpoint
from .export import Exported, to_format, write_exported
from .families.family import RawCheckpoint
from .families.rules import convert_tensors, reverse
from .loading import convert_family
from .sources.resolver import resolve

TOLERANCE = 1e-4  # of float32 answers of two implementations, absolute
SEED = 0


@dataclass(frozen=True)
class Check:
    """A row of the table.

    name: what was compared; `against`: with what.
    difference: the largest absolute difference, or None where it was not computed.
    passed: None where the row is for information, or could not be computed; `note` says which.
    """

    name: str
    against: str
    difference: float | None
    passed: bool | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return asdict(self)


def verify(
    model: ViTPreTrainedModel,
    image_processor: VitrailImageProcessor,
    *,
    against: str | Path | None = None,
    head: str | Path | None = None,
    branch: str = "teacher",
    image: str | Path | Image.Image | None = None,
) -> list[Check]:
    """Runs the three checks on a model.

    Args:
        model: in evaluation mode.
        image_processor: the model's own.
        against: the checkpoint it was converted from, for the first check.
        head: the file of its classifier, where that is a separate one.
        branch: the network of that checkpoint, where it is one of a training run.
        image: a photograph to prepare and run; noise without it.
    """
    checks = []
    if against is None:
        checks.append(Check("round trip", "the source", None, None, "not done: give the source with --against"))
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
    """A size that is no square and not the model's."""
    (rows, columns), (patch_height, patch_width) = config.patch_grid, config.patch_size
    return (rows + 2) * patch_height, max(columns - 3, 1) * patch_width


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()


# ----------------------------------------------------------------------------------------------------------- 1. round trip


def _round_trip(model: ViTPreTrainedModel, against: str | Path, head: str | Path | None, branch: str) -> list[Check]:
    resolved = resolve(against)
    raw = open_checkpoint(resolved.path, branch=branch)
    family = find_family(raw)
    _, coverage = convert_family(raw, family, [])
    ours = {name.removeprefix("vit."): tensor for name, tensor in model.state_dict().items()}
    classifier = {name: ours.pop(name) for name in list(ours) if name.startswith("classifier.") and family.head_rules is not None}
    rules_back = reverse(family.rules(raw))
    back, _ = convert_tensors(ours, rules_back)
    adaptable, _ = convert_tensors({name: tensor for name, tensor in ours.items() if may_be_adapted(name)}, rules_back)
    checks = [_bit_for_bit("round trip", f"{resolved.name} ({family.name})", back, raw, coverage.converted, adaptable)]
    if classifier and head is None:
        checks.append(Check("round trip of the classifier", "its file", None, None, "not done: give the file with --head"))
    elif classifier and family.head_rules is not None and head is not None:
        resolved_head = resolve(head)
        raw_head = open_checkpoint(resolved_head.path)
        rules, _ = family.head_rules(raw_head, model.config.hidden_size)
        back, _ = convert_tensors(classifier, reverse(rules))
        checks.append(_bit_for_bit("round trip of the classifier", resolved_head.name, back, raw_head, list(raw_head.tensors)))
    return checks


def _bit_for_bit(
    name: str,
    against: str,
    back: dict[str, torch.Tensor],
    raw: RawCheckpoint,
    expected: list[str],
    adaptable: Collection[str] = (),
) -> Check:
    """Values are compared in the source's own dtype, to which a wider one leads back without loss.

    Those of `adaptable` that have another shape were changed on purpose: `image_size=`, `num_channels=`, `num_labels=`.
    """
    different = [
        key for key in expected if key not in back or not torch.equal(back[key].to(raw.tensors[key].dtype), raw.tensors[key])
    ]
    surplus = sorted(back.keys() - set(expected))
    if different and not surplus and all(key in adaptable and back[key].shape != raw.tensors[key].shape for key in different):
        note = f"known: {', '.join(different[:3])} of another shape: changed on purpose when the model was converted"
        return Check(name, against, None, None, note)
    if different or surplus:
        note = f"{len(different)} of {len(expected)} tensors differ, {len(surplus)} are too many: "
        return Check(name, against, None, False, note + ", ".join((different + surplus)[:3]))
    return Check(name, against, 0.0, True, f"{len(back)} tensors equal bit for bit")


# ------------------------------------------------------------------------------------------------- 2. other implementation


def _other_implementation(
    model: ViTPreTrainedModel, image_processor: VitrailImageProcessor, image: str | Path | Image.Image | None
) -> list[Check]:
    """The first implementation that can hold the model: transformers' own, or timm."""
    candidates = [(name, whole) for whole in _wholes(model) for name in PEERS]
    refusals = []
    for name, whole in candidates:
        try:
            exported = to_format(whole, image_processor, name)
        except UnsupportedCheckpointError as refusal:
            refusals.append(str(refusal))
            continue
        with tempfile.TemporaryDirectory() as folder:
            written = write_exported(exported, Path(folder) / name)[0]
            peer = PEERS[name](written, exported)
            if peer is None:
                refusals.append(f"{name} is not installed.")
                continue
            checks = [_pixels(image_processor, image, written)] if name == "transformers" and image is not None else []
            without = "" if whole is model else ", without the classifier"
            return checks + _same_answers(whole, peer, exported, f"{name} {importlib.metadata.version(name)}{without}")
    return [Check("answers", "another implementation", None, None, f"not done: {' '.join(dict.fromkeys(refusals))}")]


def _wholes(model: ViTPreTrainedModel) -> list[ViTPreTrainedModel]:
    """The model and, where no other implementation holds its classifier, its encoder alone."""
    return [model, model.vit] if isinstance(model, ViTForImageClassification) else [model]


Peer = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def _in_transformers(folder: Path, exported: Exported) -> Peer:
    """Transformers' own class, which must find every name and no other."""
    config = exported.config
    assert config is not None
    model_class = getattr(transformers, config["architectures"][0])
    peer, loading = model_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
    classifies = hasattr(peer, "classifier")
    options = {"interpolate_pos_encoding": True} if config["model_type"] == "vit" else {}

    def run(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = peer(pixel_values, output_hidden_states=classifies, **options)
        if not classifies:
            pools = config["model_type"] != "vit" or "pooler_output_size" in config
            return {"features": outputs.last_hidden_state} | ({"pooled": outputs.pooler_output} if pools else {})
        layernorm = peer.base_model.layernorm
        return {"features": layernorm(outputs.hidden_states[-1]), "logits": outputs.logits}

    peer.eval()
    return run


def _in_timm(folder: Path, exported: Exported) -> Peer | None:
    """Timm's own class, where timm is installed."""
    try:
        import timm
    except ImportError:
        return None
    peer = timm.create_model(f"local-dir:{folder}", pretrained=True).eval().float()
    native = tuple(exported.config["pretrained_cfg"]["input_size"][1:]) if exported.config else None

    def run(pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        if tuple(pixel_values.shape[-2:]) != native:
            peer.set_input_size(img_size=tuple(pixel_values.shape[-2:]))
        features = peer.forward_features(pixel_values)
        answers = {"features": features, "pooled": peer.forward_head(features, pre_logits=True)}
        return answers | ({"logits": peer.forward_head(features)} if peer.num_classes else {})

    return run


PEERS: dict[str, Callable[[Path, Exported], Peer | None]] = {"transformers": _in_transformers, "timm": _in_timm}


def _pixels(image_processor: VitrailImageProcessor, image: str | Path | Image.Image, folder: Path) -> Check:
    """The same photograph, prepared by transformers' own image processor on Pillow; the torch backend may be two grey levels off."""
    ours = image_processor(image, jpeg_draft=False, return_tensors="pt")  # transformers decodes in full
    opened = ImageOps.exif_transpose(Image.open(image)) if isinstance(image, str | Path) else image
    opened = opened.convert({1: "L", 3: "RGB"}.get(image_processor.num_channels, "RGB"))
    against = f"transformers {transformers.__version__}"
    if image_processor.num_channels != 3:
        return Check("pixels", against, None, None, "not done: transformers' image processors are for three channels")
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(opened, return_tensors="pt")
    difference = _difference(ours["pixel_values"], theirs["pixel_values"])
    tolerance = TOLERANCE if image_processor.backend == "pil" else 2.01 / 255 / min(image_processor.image_std)
    passed: bool | None = difference <= tolerance
    note = ""
    if not passed and image_processor.do_center_crop and _has_odd_margin(image_processor, opened.size):
        passed, note = None, "known: transformers rounds the place of the crop down, torchvision to even; here it is one pixel off"
    return Check("pixels", against, difference, passed, note)


def _has_odd_margin(image_processor: VitrailImageProcessor, size: tuple[int, int]) -> bool:
    if "shortest_edge" not in dict(image_processor.size):
        return False
    shorter = dict(image_processor.size)["shortest_edge"]
    longer = int(shorter * max(size) / min(size))
    crop = dict(image_processor.crop_size)["height"]
    return (shorter - crop) % 2 == 1 or (longer - crop) % 2 == 1


@torch.no_grad()
def _same_answers(model: ViTPreTrainedModel, peer: Peer, exported: Exported, name: str) -> list[Check]:
    if name.startswith("transformers") and len(set(model.config.patch_grid)) > 1:
        return [Check("answers", name, None, None, "not done: it takes positions of a rectangle for those of a square")]
    weights = {key: tensor.float() for key, tensor in model.state_dict().items()}
    reference = type(model)(model.config).eval()
    reference.load_state_dict(weights)

    def compare(ours: ViTPreTrainedModel, size: tuple[int, int], note: str = "") -> list[Check]:
        pixel_values = _pixel_values(model.config, size)
        expected = peer(pixel_values)
        differences = {
            key: _difference(value, expected[key]) for key, value in _answers(ours, pixel_values).items() if key in expected
        }
        return [
            Check(f"{key} at {size[0]}x{size[1]}", name, value, None if note.startswith("known") else value <= TOLERANCE, note)
            for key, value in differences.items()
        ]

    native, other = model.config.image_size, _off_grid(model.config)
    if not exported.interpolation:
        return compare(reference, native) + compare(reference, other)
    twin = type(model)(ViTConfig(**model.config.to_dict() | exported.interpolation)).eval()
    twin.load_state_dict(weights)
    rule = next(warning for warning in exported.warnings if "by its own rule" in warning)
    # with the other's rule in our model, the rest must agree
    return (
        compare(reference, native)
        + compare(reference, other, f"known: {rule}")
        + compare(twin, other, "with its rule in our model")
    )


def _answers(model: ViTPreTrainedModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    if not isinstance(model, ViTForImageClassification):
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
    pixel_values = _pixel_values(model.config, model.config.image_size)
    difference = _difference(again(pixel_values)[0].float(), model(pixel_values)[0].float())
    note = "" if same_images else "the image processor's settings changed"
    return Check("saved and loaded again", "this model", difference, difference == 0 and same_images, note)
