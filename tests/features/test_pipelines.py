"""transformers' own door: its pipelines on our folders and objects, against the model called directly and transformers' own classes."""

import datasets
import pytest
import torch
import transformers
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import vitrail
from image_folders import PHOTOS, small_model, small_processor, write_images
from small_models import CONFIGS, make_config, make_model, randomize
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel

FEATURES, CLASSES = "image-feature-extraction", "image-classification"
BATCH_SIZES = (1, 2, 4, 16)  # of 7 images: also one with a rest, and one that is larger
LABELS = ("cat", "cup", "face")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [str(folder / name) for name in write_images(folder, 7)]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "encoder"
    vitrail.save(small_model(), small_processor(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier():
    """A classifier that transformers' ViT can express, and the image processor of that one."""
    config = small_model().config.to_dict() | {"layer_norm_eps": 1e-12, "id2label": dict(enumerate(LABELS))}
    torch.manual_seed(0)
    model = randomize(ViTForImageClassification(vitrail.ViTConfig(**config))).eval()
    return model, vitrail.make_image_processor("google-hub", image_size=32)


@pytest.fixture(scope="module")
def classifier_folder(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "classifier"
    vitrail.save(*classifier, folder)
    return str(folder)


@pytest.fixture(scope="module")
def expected(files):
    """Return the outputs of the model for one image at a time."""
    model, image_processor = small_model(), small_processor()
    with torch.no_grad():
        return [model(**image_processor(file, return_tensors="pt")) for file in files]


def close(found, outputs, name, tolerance=1e-5):
    assert len(found) == len(outputs)
    for features, output in zip(found, outputs, strict=True):
        torch.testing.assert_close(torch.as_tensor(features), output[name], atol=tolerance, rtol=tolerance)


def same_outputs(found, wanted, tolerance=1e-5):
    for outputs, others in zip(found, wanted, strict=True):
        assert [output["label"] for output in outputs] == [output["label"] for output in others]
        assert [output["score"] for output in outputs] == pytest.approx([output["score"] for output in others], abs=tolerance)


# --------------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("pool", [None, False, True])
@pytest.mark.parametrize("return_tensors", [False, True])
def test_features_of_a_folder_and_of_objects(pool, return_tensors, encoder_folder, files, expected):
    of_folder = pipeline(FEATURES, model=encoder_folder)
    of_objects = pipeline(FEATURES, model=small_model(), image_processor=small_processor())
    for extract in (of_folder, of_objects):
        assert type(extract.model) is ViTModel
        assert type(extract.image_processor) is vitrail.VitrailImageProcessor
        found = extract(files, pool=pool, return_tensors=return_tensors)
        assert all(isinstance(features, torch.Tensor if return_tensors else list) for features in found)
        close(found, expected, "pooler_output" if pool else "last_hidden_state")
        close([extract(files[0], pool=pool)], expected[:1], "pooler_output" if pool else "last_hidden_state")


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_features_in_batches(batch_size, encoder_folder, files, expected):
    extract = pipeline(FEATURES, model=encoder_folder, batch_size=batch_size)
    close(extract(files), expected, "last_hidden_state")
    close(extract(files, pool=True, return_tensors=True), expected, "pooler_output")


def test_features_in_batches_with_every_output(files, expected):
    """An output that holds all that a model may return is divided among the images of a batch, too."""
    model = small_model(output_hidden_states=True, output_attentions=True, attn_implementation="eager")
    extract = pipeline(FEATURES, model=model, image_processor=small_processor(), batch_size=4)
    close(extract(files, pool=True), expected, "pooler_output")


def test_features_of_streams_and_data_sets(encoder_folder, files, expected):
    extract = pipeline(FEATURES, model=encoder_folder, batch_size=3)
    dataset = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    sources = {
        "list of images": [dataset[row]["image"] for row in range(len(files))],
        "generator": (file for file in files),
        "data set": KeyDataset(dataset, "image"),
        "streamed": (row["image"] for row in dataset.to_iterable_dataset()),
    }
    for name, source in sources.items():
        found = extract(source, pool=True, return_tensors=True)
        assert isinstance(found, list) == (name == "list of images")  # the others come one by one
        close(list(found), expected, "pooler_output")


def test_features_with_other_settings_of_the_image_processor(encoder_folder, files):
    larger = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 40}}
    found = pipeline(FEATURES, model=encoder_folder, image_processor_kwargs=larger)(files[0], return_tensors=True)
    with torch.no_grad():
        output = small_model()(**small_processor()(files[0], return_tensors="pt", **larger))
    assert found.shape == (1, 1 + 6 * 5, 32)
    close([found], [output], "last_hidden_state")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16", "auto"])
def test_device_and_dtype(dtype, encoder_folder, files, expected):
    extract = pipeline(FEATURES, model=encoder_folder, device="cpu", dtype=dtype, batch_size=4)
    found = extract(files, pool=True, return_tensors=True)
    assert extract.device == torch.device("cpu")
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {features.dtype for features in found} == {wanted}
    close([features.float() for features in found], expected, "pooler_output", tolerance=1e-5 if dtype == "auto" else 0.1)


@pytest.mark.parametrize("name", [name for name in CONFIGS if make_config(name).num_channels == 3])  # pipelines open images in RGB
def test_every_model_has_a_pooled_output(name):
    model = make_model(ViTModel, name)
    image_processor = vitrail.make_image_processor("google", image_size=model.config.image_size)
    extract = pipeline(FEATURES, model=model, image_processor=image_processor, batch_size=3)
    found = extract([str(photo) for photo in PHOTOS], pool=True, return_tensors=True)
    with torch.no_grad():
        outputs = [model(**image_processor(str(photo), return_tensors="pt")) for photo in PHOTOS]
    close(found, outputs, "pooler_output", tolerance=1e-4)


def test_features_of_a_classifier(classifier, classifier_folder, files):
    """The folder gives its encoder. The object returns logits, and an error states that it does not pool."""
    model, image_processor = classifier
    with torch.no_grad():
        pixel_values = image_processor(files, return_tensors="pt")["pixel_values"]
        pooled, logits = model.vit(pixel_values).pooler_output, model(pixel_values).logits
    found = pipeline(FEATURES, model=classifier_folder)(files, pool=True, return_tensors=True)
    torch.testing.assert_close(torch.cat(found), pooled, atol=1e-5, rtol=1e-5)
    extract = pipeline(FEATURES, model=model, image_processor=image_processor, batch_size=4)
    torch.testing.assert_close(torch.cat(extract(files, return_tensors=True)), logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="No pooled output"):
        extract(files[0], pool=True)


# --------------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_classes_are_those_of_transformers_own_pipeline(batch_size, classifier, classifier_folder, files, tmp_path):
    vitrail.export_model(classifier_folder, tmp_path / "exported", to="transformers")
    theirs = pipeline(CLASSES, model=str(tmp_path / "exported"))
    assert type(theirs.model) is transformers.ViTForImageClassification
    assert type(theirs.image_processor).__module__.startswith("transformers.")
    wanted = [theirs(file) for file in files]
    assert len({outputs[0]["label"] for outputs in wanted}) > 1  # otherwise every output would be right
    model, image_processor = classifier
    for kind in ({"model": classifier_folder}, {"model": model, "image_processor": image_processor}):
        classify = pipeline(CLASSES, **kind, batch_size=batch_size)
        assert type(classify.model) is ViTForImageClassification
        same_outputs(classify(files), wanted)


def test_classes_of_streams_and_data_sets(classifier, classifier_folder, files):
    model, image_processor = classifier
    with torch.no_grad():
        scores = model(**image_processor(files, return_tensors="pt")).logits.softmax(dim=-1)
    best = [[{"label": LABELS[row.argmax()], "score": row.max().item()}] for row in scores]
    classify = pipeline(CLASSES, model=classifier_folder, batch_size=3, top_k=1)
    dataset = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    for source in ((file for file in files), KeyDataset(dataset, "image"), (row["image"] for row in dataset.to_iterable_dataset())):
        same_outputs(list(classify(source)), best)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_scores(function, classifier, classifier_folder, files):
    model, image_processor = classifier
    with torch.no_grad():
        logits = model(**image_processor(files[0], return_tensors="pt")).logits[0]
    scores = {"softmax": logits.softmax(dim=0), "sigmoid": logits.sigmoid(), "none": logits}[function]
    wanted = [{"label": LABELS[index], "score": scores[index].item()} for index in scores.argsort(descending=True).tolist()]
    same_outputs([pipeline(CLASSES, model=classifier_folder, function_to_apply=function)(files[0])], [wanted])
    half = pipeline(CLASSES, model=classifier_folder, dtype=torch.bfloat16, device=torch.device("cpu"), top_k=1)
    same_outputs([half(files[0], function_to_apply=function)], [wanted[:1]], tolerance=0.1)
