"""The hooks of transformers that are not public, which our classes override or use: each must still exist on its base class.

An override of a hook that is gone would no longer be called, and nothing would fail.
"""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.backbone_utils import BackboneConfigMixin
from transformers.image_processing_utils import BaseImageProcessor

import vitrail
from vitrail.utils.trainer import ARGUMENTS_ATTRIBUTES, TRAINER_ATTRIBUTES, TRAINER_HOOKS

ROOT = Path(vitrail.__file__).parent
IMAGE_PROCESSOR_HOOKS = (
    "_set_attributes",
    "_standardize_kwargs",
    "_valid_kwargs_names",
)
MODEL_HOOKS = (
    "_apply",  # torch's
    "_can_compile_fullgraph",
    "_init_weights",
    "_input_embed_layer",
    "_keep_in_fp32_modules",
    "_keep_in_fp32_modules_strict",
    "_no_split_modules",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_sdpa",
)
CONFIG_HOOKS = ("_out_features", "_out_indices")
# For each base class: the hooks, and the files whose classes extend it
HOOKS = {
    Trainer: ((*TRAINER_HOOKS, *TRAINER_ATTRIBUTES), ["utils/trainer.py"]),
    TrainingArguments: (ARGUMENTS_ATTRIBUTES, ["pretraining/arguments.py"]),
    BaseImageProcessor: (IMAGE_PROCESSOR_HOOKS, ["processing/image_processing_vit.py"]),
    PreTrainedModel: (MODEL_HOOKS, sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("modeling/modeling_*.py"))),
    BackboneConfigMixin: (CONFIG_HOOKS, ["configuration/configuration_vit.py"]),
    PreTrainedConfig: ((), ["configuration/configuration_vit.py"]),
}


@functools.cache
def assigned_names(base: type) -> set[str]:
    """The attributes that the methods of a class, and of the classes that it extends, assign."""
    assignment = re.compile(r"\b(?:self|cls)\.(\w+)\b\s*(?::[^=\n]+)?=[^=]")
    return {name for kind in base.__mro__ if kind is not object for name in assignment.findall(inspect.getsource(kind))}


def has(base: type, name: str) -> bool:
    """Return whether a class defines an attribute or assigns it to its instances."""
    return hasattr(base, name) or name in assigned_names(base)


@functools.cache
def private_names(file: str) -> set[str]:
    """The private names that the classes of a file define, or use on themselves."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
                names |= {item.name} if isinstance(item, ast.FunctionDef) else set()
        elif isinstance(node, ast.Attribute):
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            names |= {node.attr} if isinstance(owner, ast.Name) and owner.id in ("self", "cls", "super") else set()
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.parametrize(("base", "name"), [(base, name) for base, (names, _) in HOOKS.items() for name in names])
def test_a_hook_exists(base, name):
    assert has(base, name), f"transformers' {base.__name__} has no {name} any more"


def test_a_missing_hook_is_detected():
    assert not has(Trainer, "_no_such_hook")
    assert not has(BaseImageProcessor, "_checked")


@pytest.mark.parametrize("base", HOOKS)
def test_every_hook_is_in_the_list(base):
    names, files = HOOKS[base]
    used = set().union(*(private_names(file) for file in files))
    assert {name for name in used if has(base, name)} <= set(names)


def test_only_one_module_uses_the_hooks_of_the_trainer():
    files = [*ROOT.glob("evaluation/*.py"), *ROOT.glob("pretraining/**/*.py")]
    hooks = {*TRAINER_HOOKS, *TRAINER_ATTRIBUTES, *ARGUMENTS_ATTRIBUTES}
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not [name for name in hooks if re.search(rf"\b{name}\b", text)], file
        assert not {name for name in private_names(str(file.relative_to(ROOT))) if has(Trainer, name)}, file
