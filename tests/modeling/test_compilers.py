"""torch.compile, torch.export, half precision."""

import copy

import pytest
import torch

from small_models import IMPORT_OF_THE_COMPILER, every_config, make_images, make_model, run
from vitrail.modeling.modeling_vit import ViTForImageClassification


@IMPORT_OF_THE_COMPILER
@pytest.mark.parametrize(
    ("name", "backend"),
    [("registers", "inductor"), ("offset", "eager"), ("relative_table", "eager"), ("rotary", "eager")],
)
def test_compiled_equals_eager(name, backend):
    torch._dynamo.reset()
    model = make_model(ViTForImageClassification, name, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        torch.testing.assert_close(run(compiled, images), run(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch 2.7, of constants
@pytest.mark.filterwarnings("ignore:(Node .* target .*lifted_tensor|Additional .* about get_attr):UserWarning")
@pytest.mark.parametrize("grid", [None, (3, 5)])
@pytest.mark.parametrize("name", ["registers", "rotary", "relative_table", "relative_mlp_shared"])
def test_exported_equals_eager(name, grid):
    model = make_model(ViTForImageClassification, name)
    images = make_images(model.config, grid=grid)
    batch = {0: torch.export.Dim("batch", min=2, max=8)}
    exported = torch.export.export(model, (images,), dynamic_shapes={"pixel_values": batch}, strict=False).module()
    for batch_size in (2, 5):
        images = make_images(model.config, batch_size=batch_size, grid=grid, seed=1)
        torch.testing.assert_close(run(exported, images), run(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@every_config
def test_half_precision_stays_near_float32(name, dtype, error):
    model = make_model(ViTForImageClassification, name)
    half = copy.deepcopy(model).to(dtype)
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        expected, logits = run(model, images), run(half, images)  # the images stay float32
        assert logits.dtype == dtype
        assert (logits.float() - expected).square().mean().sqrt() < error * expected.square().mean().sqrt()


@pytest.mark.parametrize("name", ["rotary", "relative_table", "relative_mlp"])
def test_autocast(name):
    model = make_model(ViTForImageClassification, name)
    for grid in (None, (3, 5)):
        images = make_images(model.config, grid=grid)
        expected = run(model, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = run(model, images)
        assert (logits.float() - expected).square().mean().sqrt() < 0.05 * expected.square().mean().sqrt()
        assert torch.equal(run(model, images), expected)
