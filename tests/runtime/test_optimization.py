"""`vitrail.optimize` against the model that it is given."""

import json

import pytest
import torch
from transformers.modeling_outputs import DepthEstimatorOutput, ImageClassifierOutput, SemanticSegmenterOutput

import vitrail
from image_folders import small_model
from small_models import IMPORT_OF_THE_COMPILER, make_model
from vitrail.errors import VitrailError
from vitrail.modeling.modeling_vit import ViTBackbone, ViTForImageClassification, ViTModelOutput
from vitrail.modeling.modeling_vit_dense import ViTForDepthEstimation, ViTForSemanticSegmentation

pytestmark = pytest.mark.usefixtures("one_thread")


def images(number=3, height=32, width=32):
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_it_is_called_like_the_model():
    model = small_model()
    fast = vitrail.optimize(model, precision="bfloat16")
    outputs = fast(pixel_values=images(height=48))
    with torch.no_grad():
        expected = model(images(height=48))
    assert isinstance(outputs, ViTModelOutput)
    assert outputs.patch_grid == expected.patch_grid == (6, 4)
    assert list(outputs) == ["last_hidden_state", "pooler_output"]
    for name, output in outputs.items():
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, expected[name], rtol=0, atol=0.1)
    assert fast.config is model.config
    assert fast.device == model.device


def test_a_classifier_gives_logits():
    model = make_model(ViTForImageClassification, "several_cls_mean_patch")
    fast = vitrail.optimize(model, precision="float16")
    pixel_values = torch.randn(2, 3, 16, 24)
    outputs = fast(pixel_values)
    assert isinstance(outputs, ImageClassifierOutput)
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, model(pixel_values).logits, rtol=0.02, atol=0.02)
    assert set(fast.report.agreement) == {"logits"}


@pytest.mark.parametrize(
    ("model_class", "output", "name"),
    [
        (ViTForSemanticSegmentation, SemanticSegmenterOutput, "logits"),
        (ViTForDepthEstimation, DepthEstimatorOutput, "predicted_depth"),
    ],
)
def test_a_dense_head_gives_maps_of_any_size(model_class, output, name):
    model = make_model(model_class, "registers")
    fast = vitrail.optimize(model, precision="bfloat16", example_size=(17, 24))
    outputs = fast(images(2, 17, 24))
    assert type(outputs) is output
    with torch.no_grad():
        torch.testing.assert_close(outputs[name], model(images(2, 17, 24))[name], rtol=0, atol=0.2)
    assert set(fast.report.agreement) == {name}


def test_the_report_names_what_was_compared_on_what():
    report = vitrail.optimize(small_model(), precision="bfloat16", example_size=(32, 48)).report
    assert (report.precision, report.engine, report.image_size, report.num_images) == ("bfloat16", "eager", (32, 48), 2)
    assert report.cosine == min(agreement.cosine for agreement in report.agreement.values()) < 1
    assert report.max_difference == max(agreement.max_difference for agreement in report.agreement.values()) > 0
    assert (
        json.loads(json.dumps(report.to_dict()))["agreement"]["pooler_output"]["cosine"] == report.agreement["pooler_output"].cosine
    )
    assert "eager, bfloat16: cosine 0.99" in str(report)
    assert "2 images of 32x48" in str(report)


def test_examples_determine_the_size():
    report = vitrail.optimize(small_model(), precision="float16", examples=images(20, 64, 40)).report
    assert (report.image_size, report.num_images) == ((64, 40), 8)


def test_the_model_itself_is_equal_to_itself():
    model = small_model()
    fast = vitrail.optimize(model)
    assert (fast.report.precision, fast.report.cosine, fast.report.max_difference) == ("float32", 1.0, 0.0)
    with torch.no_grad():
        assert torch.equal(fast(images()).last_hidden_state, model(images()).last_hidden_state)


@pytest.mark.parametrize(
    ("options", "found"), [({"batch_size": 0}, "batch_size=0;"), ({"examples": images()[:0]}, "and 0 examples;")]
)
def test_nothing_to_run_is_refused(options, found):
    with pytest.raises(VitrailError, match=f"{found} expected 1 or more"):
        vitrail.optimize(small_model(), **options)


def test_other_models_are_refused():
    with pytest.raises(VitrailError, match="found a ViTBackbone; pass a ViTModel or a ViTForImageClassification"):
        vitrail.optimize(make_model(ViTBackbone, "absolute"))


@IMPORT_OF_THE_COMPILER
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_engines_on_cuda(engine, precision, cuda):
    """Images come from the CPU, and the last batch is smaller."""
    pixel_values = images(11)
    with torch.no_grad():
        expected = small_model()(pixel_values).last_hidden_state
    model = small_model().to(cuda)
    fast = vitrail.optimize(model, engine=engine, precision=precision, examples=pixel_values, batch_size=4)
    found = fast(pixel_values).last_hidden_state
    assert (found.device.type, found.dtype, fast.device.type) == ("cuda", torch.float32, "cuda")
    assert torch.cosine_similarity(found.cpu().flatten(1), expected.flatten(1)).min() > 0.99
    assert next(model.parameters()).dtype == torch.float32
