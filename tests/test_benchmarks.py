"""The judgement of the sweep over timm's registry, `python -m benchmarks registry`."""

import runpy

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
