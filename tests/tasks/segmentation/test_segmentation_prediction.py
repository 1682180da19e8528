"""What is said about one image: tables, files, pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from castling.tasks.segmentation import SegmentationPrediction
from castling.tasks.segmentation.drawing import draw_masks
from castling.tasks.segmentation.palette import colour_table
from castling.utils.labels import IGNORED

CLASSES = ("background", "cat", "Hündin")


def prediction(mask, **options):
    return SegmentationPrediction(
        name="a.jpg",
        original_size=mask.shape,
        mask=mask,
        pixels=tuple(np.bincount(mask.ravel(), minlength=3).tolist()),
        classes=CLASSES,
        **options,
    )


@pytest.fixture
def mask():
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[5:15, 5:11] = 2
    labels[18:, 28:] = 1
    return labels


def test_rows_and_summary(mask):
    one = prediction(mask)
    assert one.rows() == [
        {"name": "a.jpg", "class": "background", "pixels": 536, "share": 0.893333},
        {"name": "a.jpg", "class": "Hündin", "pixels": 60, "share": 0.1},
        {"name": "a.jpg", "class": "cat", "pixels": 4, "share": 0.006667},
    ]
    assert set().union(*one.rows()) <= set(one.columns)
    assert one.summary() == "background 89.3 %, Hündin 10.0 %, cat 0.7 %"
    condensed = one.condensed()
    assert condensed.mask is None
    assert condensed.rows() == one.rows()
    assert json.loads(json.dumps(one.to_dict()))["classes"][1] == {
        "class": "Hündin",
        "label": 2,
        "pixels": 60,
        "share": 0.1,
    }


def test_many_classes_are_cut_short():
    many = tuple(f"c{i}" for i in range(9))
    one = SegmentationPrediction(name="a", pixels=(1,) * 9, classes=many)
    assert one.summary().endswith("c4 11.1 %, … (9 classes)")


def test_an_image_that_could_not_be_read():
    one = SegmentationPrediction(name="a.jpg", error="a.jpg is no image")
    assert one.rows() == [{"name": "a.jpg", "error": "a.jpg is no image"}]
    assert one.summary() == "a.jpg is no image"
    with pytest.raises(ValueError, match=r"there is no mask: a\.jpg is no image"):
        one.write_mask("nowhere.png")


@pytest.mark.parametrize("colours", [(), ((1, 2, 3), (4, 5, 6), (7, 8, 9))])
def test_files_hold_labels_and_show_colours(mask, colours, tmp_path):
    path = tmp_path / "deep" / "a.png"
    prediction(mask, colours=colours).write_mask(path)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), mask)
        shown = np.asarray(image.convert("RGB"))
    table = colour_table(colours, CLASSES)
    assert np.array_equal(shown, table[mask])
    if colours:
        assert shown[0, 0].tolist() == [1, 2, 3]


def test_default_colours_differ():
    table = colour_table((), ("background", *map(str, range(40))))
    assert table[0].tolist() == [0, 0, 0]
    apart = np.abs(table[:20, None].astype(int) - table[None, :20]).max(-1)
    assert apart[~np.eye(20, dtype=bool)].min() > 20
    assert colour_table((), ("road", "sky"))[0].any()


@pytest.mark.parametrize("ground", [0, 255])
def test_pictures(mask, ground):
    image = Image.new("RGB", (30, 20), (ground,) * 3)
    table = colour_table((), CLASSES)
    mask[0, :] = IGNORED
    drawn = draw_masks(image, [("prediction", mask)], CLASSES, table)
    times = drawn.width // 30
    assert times > 1  # a small image is enlarged
    assert drawn.height > 20 * times  # and has a legend below
    pixels = np.asarray(drawn)[: 20 * times : times, ::times]
    assert (pixels[0] == ground).all()
    assert (pixels[5, 5] == table[2]).all()  # the border
    assert (pixels[10, 8] == np.rint((table[2].astype(int) + ground) / 2)).all()  # inside
    legend = np.asarray(drawn)[20 * times :].reshape(-1, 3)
    for label in range(3):
        assert (legend == table[label]).all(1).sum() > 20
    assert np.asarray(image)[5, 5].tolist() == [ground] * 3  # a copy was drawn on


def test_the_truth_stands_beside(mask):
    image = Image.new("RGB", (300, 200), "gray")
    large = mask.repeat(10, 0).repeat(10, 1)
    table = colour_table((), CLASSES)
    one = draw_masks(image, [("prediction", large)], CLASSES, table)
    two = draw_masks(image, [("prediction", large), ("truth", large)], CLASSES, table)
    assert two.width == 2 * one.width + 4
    assert two.height > one.height  # titles


def test_a_long_legend_is_cut_and_wrapped():
    names = [f"a rather long name {i}" for i in range(40)]
    labels = np.arange(40, dtype=np.uint8).repeat(40).reshape(40, 40)
    drawn = draw_masks(Image.new("RGB", (40, 40)), [("", labels)], names, colour_table((), names))
    assert drawn.height < 1000
    assert drawn.width <= 40 * (480 // 40) + 1
