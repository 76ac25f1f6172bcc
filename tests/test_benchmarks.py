"""The judgement of the sweep over timm's registry, and the steps and ratios of growth: `python -m benchmarks registry` and `growth`."""

import importlib.util
import runpy
import sys

import pytest
import torch

import paths

REGISTRY = runpy.run_path(str(paths.CHECKOUT / "benchmarks" / "registry.py"))


@pytest.mark.parametrize(
    ("native", "other", "expected"),
    [
        ({}, {}, "agrees"),
        ({}, {"features": torch.tensor([4.0, 8.0005])}, "agrees at the native size"),
        ({"logits": torch.tensor([1.0, 2.0001])}, {}, "wrong"),
        ({"features": torch.tensor([float("nan"), 8.0])}, {}, "wrong"),
        ({"features": torch.tensor([[4.0, 8.0]])}, {}, "wrong"),  # another shape
        ({"features": torch.tensor([4.0001, 8.0])}, {}, "agrees"),  # 1.25e-5 of the largest value
    ],
)
def test_outputs_are_judged_relative_to_their_scale(native, other, expected):
    theirs = {"features": torch.tensor([4.0, 8.0]), "logits": torch.tensor([1.0, 2.0])}
    differences = [REGISTRY["difference"](theirs, theirs | changes) for changes in (native, other)]
    assert REGISTRY["outcome"](*differences)[0] == expected


@pytest.fixture
def growth(monkeypatch):
    """The module of the suite, from the checkout, whose root is a package of the same names as the installed one."""
    folder = paths.CHECKOUT / "benchmarks"
    package = importlib.util.spec_from_file_location("benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)])
    for name in ("benchmarks", "benchmarks.convert", "benchmarks.extract", "benchmarks.search", "benchmarks.growth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "benchmarks", importlib.util.module_from_spec(package))
    return importlib.import_module("benchmarks.growth")


@pytest.mark.parametrize(
    ("seconds", "peaks", "above"),
    [
        ((1, 9, 90), (400, 500, 510), ""),
        ((1, 30, 90), (400, 400, 400), ""),  # the largest sizes decide
        ((1, 2, 60), (400, 400, 400), "time"),
        ((1, 2, 3), (400, 400, 900), "memory"),
        ((1, 10, 111), (400, 1000, 9000), "time and memory"),
        ((1,), (400,), ""),
    ],
)
def test_what_grows_faster_than_the_rows_is_named(growth, seconds, peaks, above):
    row = growth.row_of(growth.Step("a step", print), [10, 100, 1000][: len(peaks)], list(zip(seconds, peaks, strict=True)))
    assert row["above"] == above


def test_the_steps_of_growth_run(growth, tmp_path):
    for step in growth.STEPS:
        if step.name not in ("make images", "extract", "report"):  # which tests of their own run
            step.work(tmp_path, 600)
    assert len(list((tmp_path / "files" / "data").iterdir())) == 600 // growth.ROWS_PER_FILE
