"""Recipes of DINO's training: batch, learning rate, and the settings in which they differ from `DINOTrainingArguments`."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import VitrailError
from ..processing.multi_crop import DINO_AUGMENTATION, CropAugmentation, MultiCropAugmentation
from ..utils.atomic import read_json
from .arguments import DINOTrainingArguments

# Arguments that a recipe does not set, because it has fields for them, or the run does
NOT_ARGUMENTS = (
    *("output_dir", "num_train_epochs", "max_steps", "learning_rate", "seed"),
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "auto_find_batch_size",
        "resume_from_checkpoint",
        "push_to_hub",
    ),
)


@dataclass(frozen=True)
class PretrainingRecipe:
    """A way to train without labels.

    source: the code that it repeats.
    epochs: over the images.
    batch_size: images of an update, on all devices together.
    learning_rate: for 256 images.
    arguments: of `DINOTrainingArguments`, those that differ from its defaults.
    augmentation: the views of an image.
    """

    name: str
    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    augmentation: MultiCropAugmentation = DINO_AUGMENTATION


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # README.md, "Vanilla DINO training": ViT-S/16, 8 GPUs with 64 images each; all else are the defaults
        PretrainingRecipe("dino", "facebookresearch/dino, main_dino.py", epochs=100, batch_size=512, learning_rate=0.0005),
    )
}


def find_recipe(name: str) -> PretrainingRecipe:
    """The recipe of a name, or that of a JSON file.

    A file says which recipe it changes, and what: {"recipe": "dino", "batch_size": 64, "arguments": {"warmup_epochs": 1}}, with the
    fields of `PretrainingRecipe`; "augmentation" has those of `MultiCropAugmentation`, without those that stay.

    Raises:
        VitrailError: there is no such recipe or file, or it says what a recipe has not.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        raise VitrailError(f'There is no recipe "{name}": choose {", ".join(RECIPES)}, or give a .json file that changes one.')
    changes = read_json(path)
    base = RECIPES.get(str(changes.pop("recipe", "")))
    if base is None:
        raise VitrailError(f'{path} does not say which recipe it changes: write "recipe": "{next(iter(RECIPES))}" into it.')
    _check_names(path, changes, _names(PretrainingRecipe, but=("name", "source")))
    _check_values(path, changes)
    arguments = changes.get("arguments", {})
    _check_names(path, arguments, _names(DINOTrainingArguments, but=NOT_ARGUMENTS))
    _check_numbers(path, arguments)
    augmentation = _changed(path, base.augmentation, changes.get("augmentation", {}))
    changes |= {"arguments": {**base.arguments, **arguments}, "augmentation": augmentation}
    return replace(base, **changes, name=path.stem, source=f"{base.source}, changed by {path.name}")


def _changed(path: Path, base: MultiCropAugmentation, changes: Mapping[str, Any]) -> MultiCropAugmentation:
    """An augmentation of which a file says what is otherwise; of a crop, too, it may leave out what stays."""
    crops = changes.get("global_crops", ({}, {}))
    kinds = [*crops, changes.get("local_crop", {})] if isinstance(crops, list | tuple) else [crops]
    if len(kinds) != 3 or not all(isinstance(kind, Mapping) for kind in kinds):
        raise VitrailError(f'{path}: write two objects into a list for "global_crops", and one object for "local_crop".')
    first, second, local = (
        asdict(crop) | dict(kind) for crop, kind in zip((*base.global_crops, base.local_crop), kinds, strict=True)
    )
    try:
        return MultiCropAugmentation.from_dict(
            asdict(base) | dict(changes) | {"global_crops": (first, second), "local_crop": local}
        )
    except VitrailError as error:
        raise VitrailError(f"{path}, augmentation: {error}") from error


def _names(kind: type, *, but: Collection[str]) -> list[str]:
    return [known.name for known in fields(kind) if known.init and known.name not in but]


def _check_names(path: Path, given: Iterable[str], known: Collection[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise VitrailError(f"{path} says {', '.join(unknown)}, which is not among: {', '.join(known)}.")


def _check_values(path: Path, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if name in ("arguments", "augmentation"):
            fits, expected = isinstance(value, Mapping), "an object with its fields by name"
        elif name == "learning_rate":
            fits, expected = _is_number(value) and value > 0, "a number above 0"
        else:
            fits, expected = _is_number(value) and isinstance(value, int) and value > 0, "a whole number above 0"
        if not fits:
            raise VitrailError(f"{path} says {name}: {value!r}; write {expected}.")


def _check_numbers(path: Path, arguments: Mapping[str, Any]) -> None:
    """Of what else an argument may be, transformers tells."""
    for known in fields(DINOTrainingArguments):
        value = arguments.get(known.name, known.default)
        if _is_number(known.default) and not _is_number(value):
            raise VitrailError(f"{path} says {known.name}: {value!r}; write a number, as {known.default}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fit_to_patches(augmentation: MultiCropAugmentation, patch_size: tuple[int, int]) -> MultiCropAugmentation:
    """The same with crops that patches divide: where they do not, the next larger size, as DINOv2 takes 98 for patches of 14.

    Raises VitrailError for patches that are no squares, as crops are.
    """
    patch, width = patch_size
    if patch != width:
        raise VitrailError(f"The model's patches are {patch}x{width} pixels; crops are squares, which take square patches.")

    def fitted(crop: CropAugmentation) -> CropAugmentation:
        return replace(crop, size=-(-crop.size // patch) * patch)

    first, second = augmentation.global_crops
    return replace(augmentation, global_crops=(fitted(first), fitted(second)), local_crop=fitted(augmentation.local_crop))
