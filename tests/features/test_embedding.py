"""`ImageEmbedder`: columns of features, and what `datasets` finds in its cache."""

import copy
import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import forked
import vitrail
from image_folders import PHOTOS, small_model, small_processor, write_broken, write_images
from vitrail.errors import UnreadableImageError, VitrailError
from vitrail.features.embedding import ImageEmbedder
from vitrail.modeling.modeling_vit import ViTForImageClassification
from vitrail.processing.resizing import keep_aspect

KINDS = ("pooled", "cls", "mean", "cls+mean", "patches", "layers=0,-1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return [str(folder / name) for name in write_images(folder, 10, sizes=((64, 48), (48, 64)))]


@pytest.fixture
def images(files):
    return image_dataset(files)


def image_dataset(files, **options):
    return datasets.Dataset.from_dict({"image": files, "number": range(len(files))}).cast_column("image", datasets.Image(**options))


def embedder(seed=0, **options):
    torch.manual_seed(seed)
    return ImageEmbedder(small_model(), small_processor(), **options)


def pooled(files):
    """Each image by itself."""
    model, image_processor = small_model(), small_processor()
    with torch.no_grad():
        return np.concatenate([model(**image_processor(file, return_tensors="pt")).pooler_output.numpy() for file in files])


def close(found, wanted):
    np.testing.assert_allclose(np.array(found), wanted, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- columns


def test_a_column_for_each_kind(images, files):
    mapped = images.map(embedder(features=KINDS), batched=True, batch_size=4)
    assert mapped.column_names == ["image", "number", "pooled", "cls", "mean", "cls_mean", "patches", "layers"]
    assert mapped["number"][:] == list(range(10))
    model, image_processor = small_model(), small_processor()
    for row, file in zip(mapped, files, strict=True):
        with torch.no_grad():
            output = model(**image_processor(file, return_tensors="pt"), output_hidden_states=True)
        tokens = output.last_hidden_state[0]
        close(row["pooled"], output.pooler_output[0])
        close(row["cls"], tokens[0])
        close(row["mean"], tokens[1:].mean(dim=0))
        close(row["cls_mean"], torch.cat((tokens[0], tokens[1:].mean(dim=0))))
        close(row["patches"], tokens[1:].reshape(4, 4, 32))
        close(row["layers"], model.layernorm(torch.stack(output.hidden_states[1:])[:, 0, 0]).detach())


def test_numbers_are_float32_whatever_the_model_is(images):
    for dtype in (torch.float32, torch.bfloat16):
        mapped = images.map(ImageEmbedder(small_model().to(dtype), small_processor()), batched=True, batch_size=4)
        assert mapped.features["pooled"] == datasets.List(datasets.Value("float32"))


def test_images_of_many_shapes_keep_their_order(images, files):
    model = small_model()
    image_processor = keep_aspect(small_processor(), 8)
    mapped = images.map(ImageEmbedder(model, image_processor, features=["pooled", "patches"]), batched=True, batch_size=5)
    grids = set()
    for row, file in zip(mapped, files, strict=True):
        with torch.no_grad():
            output = model(**image_processor(file, return_tensors="pt"))
        close(row["pooled"], output.pooler_output[0])
        close(row["patches"], output.last_hidden_state[0, 1:].unflatten(0, output.patch_grid))
        grids.add(output.patch_grid)
    assert len(grids) == 2


def test_a_classifier_gives_the_features_of_its_encoder(images, files):
    classifier = ViTForImageClassification(small_model().config)
    classifier.vit.load_state_dict(small_model().state_dict())
    close(images.map(ImageEmbedder(classifier, small_processor()), batched=True)["pooled"][:], pooled(files))


def test_the_model_is_put_into_evaluation_mode(files):
    model = small_model(drop_path_rate=0.5, hidden_dropout_prob=0.5).train()
    embed = ImageEmbedder(model, small_processor())
    assert not model.training
    close(embed({"image": files})["pooled"], pooled(files))


@pytest.mark.parametrize("kind", ["paths", "bytes", "files", "decoded", "numpy", "paths in numpy", "torch"])
def test_columns_of_any_kind_of_images(kind, images, files):
    """datasets' own formats, where a batch may have one size or two, and columns without the type of an image."""
    content = [Path(file).read_bytes() for file in files]
    dataset = {
        "paths": datasets.Dataset.from_dict({"image": files}),
        "bytes": datasets.Dataset.from_dict({"image": content}),
        "files": image_dataset(files, decode=False),
        "decoded": images,
        "numpy": images.with_format("numpy"),
        "paths in numpy": datasets.Dataset.from_dict({"image": files}).with_format("numpy"),
        "torch": images.with_format("torch"),
    }[kind]
    mapped = dataset.map(embedder(), batched=True, batch_size=3).with_format("numpy")
    close(mapped["pooled"][:], pooled(files))


def test_a_stream(images, files):
    stream = images.to_iterable_dataset(num_shards=2)
    for dataset in (stream, stream.decode(False)):
        rows = list(dataset.map(embedder(), batched=True, batch_size=4))
        assert [row["number"] for row in rows] == list(range(10))
        close([row["pooled"] for row in rows], pooled(files))


def test_another_column(images, files):
    renamed = images.rename_column("image", "photo")
    close(renamed.map(embedder(image_column="photo"), batched=True)["pooled"][:], pooled(files))
    with pytest.raises(VitrailError, match="no column 'image' among photo, number; choose the column of images with image_column"):
        renamed.map(embedder(), batched=True)


def test_what_is_there_is_not_replaced(images):
    """WebDataset's labels are called cls."""
    labeled = images.rename_column("number", "cls")
    with pytest.raises(VitrailError, match="already has a column 'cls', which features would replace; rename or remove it"):
        labeled.map(embedder(features=["mean", "cls"]), batched=True)


def test_single_rows_are_refused(images):
    for dataset in (images, images.with_format("numpy"), images.with_format("torch")):
        with pytest.raises(VitrailError, match=r"expected a list of images; call dataset\.map with batched=True"):
            dataset.map(embedder())


def test_names_of_features_are_checked_immediately():
    with pytest.raises(VitrailError, match="write one of pooled"):
        embedder(features=["pooler"])


# ------------------------------------------------------------------------------------------------------------- bad images


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    return [str(folder / name) for name in write_broken(folder)]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # of what datasets opens
@pytest.mark.parametrize("decode", [True, False])
def test_bad_images_are_named(decode, broken, files):
    for bad in (*broken, str(Path(files[0]).with_name("missing.jpg"))):
        dataset = image_dataset([*files[:3], bad], decode=decode)
        with pytest.raises(UnreadableImageError) as raised:
            dataset.map(embedder(), batched=True, batch_size=4)
        assert raised.value.path == bad
        assert raised.value.reason


def test_bad_images_are_named_by_other_processes(broken, files):
    with pytest.raises(UnreadableImageError) as raised:
        image_dataset([*files, broken[0]]).map(embedder(), batched=True, num_proc=2)
    assert raised.value.path == broken[0]


def test_bad_images_of_a_stream_are_named_when_they_come_as_files(broken, files):
    stream = image_dataset([*files[:2], broken[0]]).to_iterable_dataset().decode(False)
    with pytest.raises(UnreadableImageError) as raised:
        list(stream.map(embedder(), batched=True, batch_size=4))
    assert raised.value.path == broken[0]


def test_images_that_are_not_images(files):
    with pytest.raises(UnreadableImageError, match="in row 1 of its batch: the row holds no image"):
        image_dataset([files[0], None]).map(embedder(), batched=True)
    deep = io.BytesIO()
    Image.fromarray(np.full((40, 40), 70000, dtype=np.int32)).save(deep, "TIFF")  # values that 16 bits cannot hold
    rows = {"bytes": deep.getvalue(), "path": "deep.tif"}
    dataset = datasets.Dataset.from_dict({"image": [rows]}, features=datasets.Features({"image": datasets.Image(decode=False)}))
    with pytest.raises(UnreadableImageError, match=r"deep.tif: found values from 70000 to 70000"):
        dataset.map(embedder(), batched=True)


# ------------------------------------------------------------------------------------------------- pickles and the cache


def embed_in_the_cache(folder, data):
    """Embed with the model of a folder; write the name of the features in the cache of datasets."""
    dataset = datasets.Dataset.from_parquet(data, cache_dir=data + ".cache")
    embed = ImageEmbedder(AutoModel.from_pretrained(folder / "model"), AutoImageProcessor.from_pretrained(folder / "model"))
    mapped = dataset.map(embed, batched=True, batch_size=4)
    (folder / "cached").write_text(f"{mapped._fingerprint} {mapped.cache_files[0]['filename']}")


@pytest.fixture
def on_disk(images, tmp_path):
    """A data set in files has a cache."""
    images.to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


def counted(monkeypatch):
    """The sizes of the batches that are computed from now on in this process."""
    sizes = []
    call = ImageEmbedder.__call__
    monkeypatch.setattr(ImageEmbedder, "__call__", lambda self, batch: sizes.append(len(batch["image"])) or call(self, batch))
    return sizes


def test_the_cache_knows_an_equal_model(on_disk, files, tmp_path, monkeypatch):
    model, image_processor = small_model(), small_processor()
    vitrail.save(model, image_processor, tmp_path / "model")
    assert forked.exit_code(__file__, "embed_in_the_cache", tmp_path, on_disk) == 0
    fingerprint, file = (tmp_path / "cached").read_text().split()

    dataset = datasets.Dataset.from_parquet(on_disk, cache_dir=on_disk + ".cache")
    sizes = counted(monkeypatch)

    def run(model, image_processor=image_processor, **options):
        return dataset.map(ImageEmbedder(model, image_processor, **options), batched=True, batch_size=4)

    classifier = ViTForImageClassification(model.config)
    classifier.vit.load_state_dict(model.state_dict())
    folder = tmp_path / "model"
    equal = {
        "the same": (model, image_processor),
        "loaded by vitrail": vitrail.load(folder)[:2],
        "loaded by transformers": (AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)),
        "in a classifier": (classifier, image_processor),
        "used before": (used(model), image_processor),
    }
    for name, pair in equal.items():
        mapped = run(*pair)
        assert (mapped._fingerprint, mapped.cache_files[0]["filename"]) == (fingerprint, file), name
        close(mapped["pooled"][:], pooled(files))
    assert sizes == []

    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.layers[1].mlp.fc2.bias[3] += 1e-3
    others = [
        run(changed),
        run(small_model(layer_norm_eps=1e-3)),
        run(model, small_processor(image_mean=(0.5, 0.5, 0.5))),
        run(model, features=("mean",)),
    ]
    assert sizes == [4, 4, 2] * 4
    assert len({mapped._fingerprint for mapped in (*others, mapped)}) == 5
    assert not np.array_equal(others[0]["pooled"][:], pooled(files))


def used(model):
    """A model that has run before has the same fingerprint: its cached positions at another size must not count."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 48))
    return model


def test_two_processes(images, files):
    """Two processes work even after this process has used torch's threads, which do not survive a fork."""
    embed = embedder(features=["pooled", "patches"])
    torch.rand(1 << 22).exp().sum()
    one = images.map(embed, batched=True, batch_size=3)
    two = images.map(embed, batched=True, batch_size=3, num_proc=2)
    assert two["number"][:] == list(range(10))
    close(two["pooled"][:], pooled(files))
    close(two["patches"][:], np.array(one["patches"][:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pickle_is_the_same_embedder(dtype, files):
    model = small_model(attn_implementation="eager", num_register_tokens=2).to(dtype)
    embed = ImageEmbedder(model, small_processor(image_mean=(0.4, 0.4, 0.4)), features=("mean", "patches"), image_column="photo")
    again = pickle.loads(pickle.dumps(embed))  # noqa: S301
    assert (again.features, again.image_column, again.feature_types) == (embed.features, embed.image_column, embed.feature_types)
    assert (again.vit.dtype, again.vit.config._attn_implementation) == (dtype, "eager")
    wanted, found = embed({"photo": files}), again({"photo": files})
    assert wanted.keys() == found.keys()
    for name, rows in wanted.items():
        np.testing.assert_array_equal(found[name], rows)
    assert pickle.dumps(again) == pickle.dumps(embed)


def test_photographs_on_their_side(tmp_path):
    """The EXIF orientation is applied once, whoever decodes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(PHOTOS[1]).resize((64, 48)).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        upright = image.convert("RGB").transpose(Image.Transpose.ROTATE_270)
    model, image_processor = small_model(), small_processor()
    with torch.no_grad():
        wanted = model(**image_processor(upright, return_tensors="pt")).pooler_output
    for decode in (True, False):
        mapped = image_dataset([str(tmp_path / "turned.jpg")], decode=decode).map(embedder(), batched=True)
        close(mapped["pooled"][:], wanted)
