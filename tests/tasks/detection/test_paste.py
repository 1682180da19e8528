"""Masks on the image, and which detections are right."""

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as official
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import box_iou

from castling.tasks.detection.matching import match, overlaps
from castling.tasks.detection.paste import encoded, pasted


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_masks_lie_where_torchvision_puts_them(seed):
    generator = torch.Generator().manual_seed(seed)
    size = tuple(torch.randint(1, 60, (2,), generator=generator).tolist())
    masks = torch.rand((5, 7, 7), generator=generator)
    corner = torch.rand((5, 2), generator=generator) * 60 - 10
    sides = torch.rand((5, 2), generator=generator) * 40
    boxes = torch.cat((corner, corner + sides), dim=1)  # some reach beyond the image
    try:
        expected = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] >= 0.5
    except RuntimeError:  # torchvision's fails for a box that lies outside
        boxes = boxes.clamp(min=0).minimum(torch.tensor([size[1], size[0]] * 2).float())
        expected = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] >= 0.5
    for rle, mask in zip(pasted(masks, boxes, size), expected, strict=True):
        assert rle["size"] == list(size)
        np.testing.assert_array_equal(official.decode(rle), mask.numpy())


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (6, 1), (1, 5)])
def test_a_mask_in_a_corner_is_encoded_as_pycocotools_does(shape):
    size = (6, 5)
    for top, left in ((0, 0), (size[0] - shape[0], size[1] - shape[1])):
        whole = np.zeros(size, dtype=np.uint8, order="F")
        whole[top : top + shape[0], left : left + shape[1]] = 1
        expected = official.encode(whole)["counts"].decode()
        assert encoded(np.ones(shape, bool), top, left, size)["counts"] == expected
        empty = encoded(np.zeros(shape, bool), top, left, size)
        assert empty["counts"] == official.encode(np.zeros_like(whole))["counts"].decode()


def test_a_mask_of_a_very_large_image_needs_little_memory():
    size = (30_000, 30_000)  # 900 MB as a canvas, 100 times that for 100 masks
    masks, boxes = torch.ones((100, 28, 28)), torch.tensor([[20_000.0, 20_000, 20_050, 20_040]])
    (rle, *_) = pasted(masks, boxes.expand(100, 4), size)
    assert 50 * 40 <= coco.area(rle) <= 54 * 44


def test_overlaps_are_those_of_torchvision_and_of_pycocotools():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 50, (30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 30, (30, 2))], axis=1)
    found, objects = boxes[:18], boxes[18:]
    none = np.zeros(12, bool)
    expected = box_iou(torch.tensor(found), torch.tensor(objects)).numpy()
    np.testing.assert_allclose(overlaps(found, objects, none), expected, atol=1e-12)

    def sides(rows):
        return np.hstack([rows[:, :2], rows[:, 2:] - rows[:, :2]])

    crowds = rng.random(12) < 0.5
    expected = official.iou(sides(found), sides(objects), crowds.astype(np.uint8))
    np.testing.assert_allclose(overlaps(found, objects, crowds), expected, atol=1e-12)


def test_objects_are_given_to_the_best_detections_first():
    objects = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 40, 40]])
    crowds = np.array([False, False, True])
    boxes = np.array(
        [
            [0.0, 0, 10, 9],  # the first object
            [0, 0, 10, 10],  # that again: a duplicate, though it fits better
            [21, 0, 30, 10],  # the second
            [5, 22, 15, 32],  # within the crowd
            [6, 22, 16, 32],  # so is this
            [60, 60, 70, 70],  # nothing
        ]
    )
    found = match(boxes, objects, crowds)
    assert found.found.tolist() == [0, -1, 1, -1, -1, -1]
    assert found.ignored.tolist() == [False, False, False, True, True, False]
    np.testing.assert_allclose(found.overlap, [0.9, 1, 0.9, 1, 1, 0])
    np.testing.assert_allclose(found.reached, [1, 0.9, 1])
    assert match(boxes[:0], objects, crowds).reached.tolist() == [0, 0, 0]
    assert match(boxes, objects[:0], crowds[:0]).found.tolist() == [-1] * 6
