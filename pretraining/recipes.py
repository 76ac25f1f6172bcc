"""Pretraining recipes: method, batch size, learning rate, and the settings that differ from the defaults of the method."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import VitrailError
from ..evaluation.recipes import REFERENCE_BATCH
from ..processing.multi_crop import DINO_AUGMENTATION, DINOV2_AUGMENTATION, CropAugmentation, MultiCropAugmentation
from ..utils.atomic import read_json
from .arguments import STOPS, DINOTrainingArguments, DINOv2TrainingArguments, DistillationTrainingArguments, PretrainingArguments

# Arguments that a recipe cannot set: it has fields for them, or the run sets them
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
class Method:
    """A method of training.

    task: for people, and in pretraining.json. Its first word is the method's name in model cards.
    arguments: class of its arguments.
    adaptation: name of the recipe for a run that starts from a model; None for the recipe that is called like the method.
    reference_batch: the batch that a recipe's learning rate is for.
    exponent: of the batch, by which the learning rate grows.
    frozen_teacher: whether it learns from another model, which a run receives.
    """

    task: str
    arguments: type[PretrainingArguments]
    reference_batch: int
    exponent: float
    frozen_teacher: bool = False
    adaptation: str | None = None

    def scale_learning_rate(self, learning_rate: float, batch_size: int) -> float:
        """Return a learning rate for another batch than the reference."""
        return float(learning_rate * (batch_size / self.reference_batch) ** self.exponent)


METHODS = {
    # main_dino.py: args.lr * batch / 256.
    "dino": Method("DINO self-supervised training", DINOTrainingArguments, REFERENCE_BATCH, 1.0),
    # utils/config.py, apply_scaling_rules_to_cfg: "sqrt_wrt_1024"
    "dinov2": Method("DINOv2 self-supervised training", DINOv2TrainingArguments, 1024, 0.5, adaptation="adapt"),
    # Proteus-pytorch, pretrain/main.py: args.lr * batch / 512.0
    "distill": Method("Distillation without labels", DistillationTrainingArguments, 512, 1.0, frozen_teacher=True),
}


@dataclass(frozen=True)
class PretrainingRecipe:
    """A way to train without labels.

    method: a name in METHODS.
    source: the code that the recipe repeats.
    epochs: passes over the images.
    batch_size: images per update, on all devices together.
    learning_rate: for the reference batch of the method; see `scaled_learning_rate`.
    arguments: fields of the arguments of the method that differ from the defaults.
    augmentation: the views of an image.
    """

    name: str
    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    augmentation: MultiCropAugmentation = DINO_AUGMENTATION
    method: str = "dino"

    def numbers(self) -> dict[str, Any]:
        """Return everything that the results of a run depend on: not its name, and not when it stops."""
        arguments = {name: value for name, value in self.arguments.items() if name not in STOPS}
        return {name: value for name, value in asdict(self).items() if name not in ("name", "source")} | {"arguments": arguments}

    def check_new_model(self) -> None:
        """Raise VitrailError if the recipe keeps a model close to its start, which random weights do not deserve."""
        if kept := [name for name in ("frozen_blocks", "lora_rank", "gram_loss_weight") if self.arguments.get(name)]:
            raise VitrailError(
                f"{', '.join(kept)} of the recipe {self.name} keep a model close to its start, but this run starts from random weights: "
                "use another recipe, or start from a model."
            )

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate for the batch of the recipe."""
        return METHODS[self.method].scale_learning_rate(self.learning_rate, self.batch_size)

    def check_teacher(self, given: bool) -> None:
        """Raise VitrailError if a run is given a teacher, and its method has none of that kind, or needs one that is missing."""
        if METHODS[self.method].frozen_teacher and not given:
            raise VitrailError(f"The method {self.method} learns from a frozen model, and none is given: name it with teacher=.")
        if given and not METHODS[self.method].frozen_teacher:
            suitable = " or ".join(name for name, method in METHODS.items() if method.frozen_teacher)
            raise VitrailError(
                f"The method {self.method} does not learn from a frozen model: leave out teacher=, or choose the method {suitable}."
            )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # README.md of facebookresearch/dino, "Vanilla DINO training": "on a single node with 8 GPUs for 100 epochs". The other
        # settings are the defaults of main_dino.py; see DINOTrainingArguments and DINO_AUGMENTATION
        PretrainingRecipe(
            "dino",
            source="facebookresearch/dino, main_dino.py",
            epochs=100,  # --epochs
            batch_size=512,  # --batch_size_per_gpu (64) on 8 GPUs; the paper: "a batch size of 1024, distributed over 16 GPUs"
            learning_rate=0.0005,  # --lr; arXiv:2104.14294, section 3.2: "lr = 0.0005 * batchsize / 256"
        ),
        # The defaults of configs/ssl_default_config.yaml, see DINOv2TrainingArguments
        PretrainingRecipe(
            "dinov2",
            source="facebookresearch/dinov2, configs/ssl_default_config.yaml",
            epochs=100,  # optim.epochs
            batch_size=2048,  # train.batch_size_per_gpu (64) on 32 GPUs (README, "Training")
            learning_rate=0.004,  # optim.base_lr: "learning rate for a batch size of 1024"
            augmentation=DINOV2_AUGMENTATION,
            method="dinov2",
        ),
        # The same settings on ImageNet-1k ("this corresponds to the default config"), in passes over its images: an epoch of the original
        # is train.OFFICIAL_EPOCH_LENGTH (1,250) updates of 2,048 images, twice as many as ImageNet-1k has
        PretrainingRecipe(
            "dinov2-short",
            source="facebookresearch/dinov2, configs/train/vitl16_short.yaml",
            epochs=200,
            batch_size=2048,
            learning_rate=0.004,
            arguments={"warmup_epochs": 20.0, "warmup_teacher_temperature_epochs": 60, "freeze_last_layer_epochs": 2},
            augmentation=DINOV2_AUGMENTATION,
            method="dinov2",
        ),
        # For hundreds to 100,000 images, from a published model, whose heads begin new. docs/guides/pretraining.md has the reasons
        PretrainingRecipe(
            "adapt",
            source="facebookresearch/dinov2, configs/ssl_default_config.yaml, with a smaller learning rate and smaller heads",
            epochs=20,
            batch_size=32,
            learning_rate=0.0004,
            arguments={
                "warmup_epochs": 2.0,
                "num_prototypes": 1024,
                "head_hidden_size": 512,
                "drop_path_rate": 0.0,
                "frozen_blocks": 2,
                "gram_loss_weight": 2.0,
                "warmup_teacher_temperature_epochs": 6,
                "freeze_last_layer_epochs": 0,
                "collapse_patience": 100,
            },
            augmentation=DINOV2_AUGMENTATION,
            method="dinov2",
        ),
        # Proteus, arXiv:2407.10366, on ImageNet-1k, without its masked patches and its average of the student; see
        # DistillationTrainingArguments. The views are ours: DINOv2's large ones
        PretrainingRecipe(
            "distill",
            source="BeSpontaneous/Proteus-pytorch, pretrain/run_pretrain.sh",
            epochs=300,  # --epochs
            batch_size=512,  # --batch-size (128) on --nproc_per_node (4)
            learning_rate=0.0005,  # main.py: --lr, for 512 images
            augmentation=replace(DINOV2_AUGMENTATION, num_local_crops=0),
            method="distill",
        ),
    )
}


def find_recipe(name: str | None = None, *, method: str | None = None, from_model: bool = False) -> PretrainingRecipe:
    """Return the recipe with a name, or the recipe in a JSON file.

    Without a name, it is the recipe that is called like the method; with `from_model`, for a run that starts from a model, the recipe of
    the method for such a run (`adapt` for dinov2).

    A file names the recipe that it changes, and the fields of `PretrainingRecipe` that differ: {"recipe": "dino", "batch_size": 64,
    "arguments": {"warmup_epochs": 1}}. "augmentation" has the fields of `MultiCropAugmentation` that differ.

    Raises:
        VitrailError: there is no such recipe, method or file, the recipe has another method, or the file has unknown fields or unsuitable
            values.
    """
    if method is not None and method not in METHODS:
        raise VitrailError(f'There is no method "{method}": choose {", ".join(METHODS)}.')
    default = method or "dino"
    recipe = _find_recipe(name or (METHODS[default].adaptation if from_model else None) or default)
    if method not in (None, recipe.method):
        raise VitrailError(f"The recipe {recipe.name} is for the method {recipe.method}, not {method}: leave one of the two out.")
    return recipe


def _find_recipe(name: str) -> PretrainingRecipe:
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix == ".json" and not path.is_file():
        raise VitrailError(
            f"There is no file {path}; expected a recipe: {', '.join(RECIPES)}, or a .json file that changes a recipe."
        )
    if path.suffix != ".json":
        raise VitrailError(f'There is no recipe "{name}": choose {", ".join(RECIPES)}, or give a .json file that changes a recipe.')
    changes = read_json(path, remedy="correct it")
    base = RECIPES.get(str(changes.pop("recipe", "")))
    if base is None:
        raise VitrailError(f'{path} does not name the recipe that it changes: add "recipe": "{next(iter(RECIPES))}".')
    _check_names(path, changes, _field_names(PretrainingRecipe, excluded=("name", "source", "method")))
    _check_values(path, changes)
    arguments = changes.get("arguments", {})
    kind = METHODS[base.method].arguments
    _check_names(path, arguments, _field_names(kind, excluded=NOT_ARGUMENTS))
    _check_numbers(path, kind, arguments)
    augmentation = _changed(path, base.augmentation, changes.get("augmentation", {}))
    changes |= {"arguments": {**base.arguments, **arguments}, "augmentation": augmentation}
    return replace(base, **changes, name=path.stem, source=f"{base.source}, changed by {path.name}")


def _changed(path: Path, base: MultiCropAugmentation, changes: Mapping[str, Any]) -> MultiCropAugmentation:
    """Return an augmentation with the changes in a file. The changes of a crop, too, need not name all fields."""
    global_crops = changes.get("global_crops", ({}, {}))
    crops = [*global_crops, changes.get("local_crop", {})] if isinstance(global_crops, list | tuple) else [global_crops]
    if len(crops) != 3 or not all(isinstance(crop, Mapping) for crop in crops):
        raise VitrailError(f'{path}: "global_crops" must be a list of two objects, and "local_crop" one object.')
    first, second, local = (
        asdict(crop) | dict(changed) for crop, changed in zip((*base.global_crops, base.local_crop), crops, strict=True)
    )
    try:
        return MultiCropAugmentation.from_dict(
            asdict(base) | dict(changes) | {"global_crops": (first, second), "local_crop": local}
        )
    except VitrailError as error:
        raise VitrailError(f"{path}, augmentation: {error}") from error


def _field_names(kind: type, *, excluded: Collection[str]) -> list[str]:
    return [known.name for known in fields(kind) if known.init and known.name not in excluded]


def _check_names(path: Path, names: Iterable[str], known: Collection[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        similar = [field for name in unknown for field in known if name in field or difflib.get_close_matches(name, [field])]
        hint = f"Similar fields: {', '.join(dict.fromkeys(similar))}" if similar else f"Known fields: {', '.join(known)}"
        raise VitrailError(f"{path} has unknown fields: {', '.join(unknown)}. {hint}.")


def _check_values(path: Path, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if name in ("arguments", "augmentation"):
            fits, expected = isinstance(value, Mapping), "an object with its fields by name"
        elif name == "learning_rate":
            fits, expected = _is_number(value) and value > 0, "a number above 0"
        else:
            fits, expected = _is_number(value) and isinstance(value, int) and value > 0, "a whole number above 0"
        if not fits:
            raise VitrailError(f"{path} has {name}: {value!r}; expected {expected}.")


def _check_numbers(path: Path, kind: type[PretrainingArguments], arguments: Mapping[str, Any]) -> None:
    """Check the arguments that must be numbers; transformers checks the others."""
    for known in fields(kind):
        value = arguments.get(known.name, known.default)
        if _is_number(known.default) and not _is_number(value):
            raise VitrailError(f"{path} has {known.name}: {value!r}; expected a number such as {known.default}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def enlarged(augmentation: MultiCropAugmentation, factor: float) -> MultiCropAugmentation:
    """Return the augmentation with larger global crops."""
    first, second = (replace(crop, size=round(crop.size * factor)) for crop in augmentation.global_crops)
    return replace(augmentation, global_crops=(first, second))


def fit_to_patches(augmentation: MultiCropAugmentation, patch_size: tuple[int, int]) -> MultiCropAugmentation:
    """Return the augmentation with each crop enlarged to a multiple of the patch, as DINOv2 uses 98 pixels for patches of 14.

    Raises:
        VitrailError: the patches are not square.
    """
    patch, width = patch_size
    if patch != width:
        raise VitrailError(f"The model's patches are {patch}x{width} pixels; square crops require square patches.")

    def fitted(crop: CropAugmentation) -> CropAugmentation:
        return replace(crop, size=-(-crop.size // patch) * patch)

    first, second = augmentation.global_crops
    return replace(augmentation, global_crops=(fitted(first), fitted(second)), local_crop=fitted(augmentation.local_crop))
