"""Names of classes, as users write them into files."""

import json

import pytest

from vitrail.configuration.class_names import IMAGENET, SEGMENTATIONS, dataset_labels, read_labels, segmentation_colors
from vitrail.errors import VitrailError


@pytest.mark.parametrize(("name", "count"), IMAGENET.items())
def test_imagenet_has_a_name_for_each_class(name, count):
    assert len(dataset_labels(name)) == count
    assert read_labels(name) == dataset_labels(name)


def test_segmentations_have_a_name_and_a_color_for_each_class():
    """ADE20K has no background; VOC's colors are the bits of the class number, from the highest bit of a color down (VOC's devkit)."""
    for name, count in SEGMENTATIONS.items():
        assert len(read_labels(name)) == len(segmentation_colors(name)) == count
    assert (read_labels("ade20k")[0], segmentation_colors("ade20k")[0]) == ("wall", (120, 120, 120))
    assert (read_labels("ade20k")[-1], segmentation_colors("ade20k")[-1]) == ("flag", (92, 0, 255))
    assert read_labels("voc2012")[0] == "background"
    for number, color in enumerate(segmentation_colors("voc2012")):
        assert color == tuple(sum((number >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "ant\nbee \n"),
        ("names", "\ufeffant\r\nbee"),
        ("names.json", json.dumps(["ant", "bee"])),
        ("id2label.JSON", json.dumps({"1": "bee", "0": "ant"})),
    ],
)
def test_names_in_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_labels(tmp_path / name) == read_labels(str(tmp_path / name)) == read_labels(["ant", "bee"]) == ("ant", "bee")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", b"ant\n\nbee", "does not hold a name for each class; expected one name per line"),
        ("names.txt", b"", "does not hold a name for each class"),
        ("names.txt", b"\xff\xfea", "is not text in UTF-8"),
        ("names.json", b"[", "is not JSON in UTF-8"),
        ("names.json", b'["ant", 5]', "does not hold a name for each class"),
        ("names.json", b'{"0": "ant", "2": "bee"}', 'an object with the keys "0", "1", '),
        ("names.json", b'"ant"', "does not hold a name for each class"),
    ],
)
def test_what_is_not_a_list_of_names_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VitrailError, match=message):
        read_labels(tmp_path / name)


def test_a_name_that_is_not_a_file_is_refused(tmp_path):
    with pytest.raises(
        VitrailError, match="labels='imagenet' is not a file; expected a file of names, imagenet-1k or imagenet-21k"
    ):
        read_labels("imagenet")
