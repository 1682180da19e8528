"""Suppression of a batch: torchvision's, image by image, and the same in basic operators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops.boxes import _batched_nms_vanilla

import castling
from castling.ops.suppression import suppress


def candidates(seed, batch=2, count=60, classes=3, distinct=True):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 40
    side = torch.rand(batch, count, 2, generator=generator) * 40 + 1
    scores = torch.rand(batch, count, generator=generator)
    if not distinct:
        scores = (scores * 4).round() / 4
    labels = torch.randint(classes, (batch, count), generator=generator)
    return torch.cat([corner, corner + side], -1), scores, labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 70), st.booleans())
def test_as_torchvision_image_by_image(seed, iou, limit, distinct):
    boxes, scores, labels = candidates(seed, distinct=distinct)
    places, found = suppress(boxes, scores, labels, threshold=iou, keep=limit, num_classes=3)
    with castling.attention_backend("naive"):
        naive = suppress(boxes, scores, labels, threshold=iou, keep=limit, num_classes=3)
    torch.testing.assert_close(found, naive.scores, rtol=0, atol=0)
    for image in range(2):
        some = (scores[image] > 0).nonzero()[:, 0]
        kept = some[
            _batched_nms_vanilla(boxes[image][some], scores[image][some], labels[image][some], iou)
        ]
        right = scores[image, kept[:limit]]
        assert torch.equal(found[image, : len(right)], right)
        assert not found[image, len(right) :].any()
        if distinct:
            assert places[image, : len(right)].tolist() == kept[:limit].tolist()
            assert naive.indices[image, : len(right)].tolist() == kept[:limit].tolist()


def test_nothing_to_keep_and_fewer_candidates_than_asked_for():
    boxes, scores, labels = candidates(0, count=3)
    scores[0] = 0
    places, found = suppress(boxes, scores, labels, threshold=0.5, keep=7, num_classes=3)
    assert found.shape == places.shape == (2, 7)
    assert not found[0].any()
    assert 1 <= int((found[1] > 0).sum()) <= 3


def test_a_box_of_another_class_or_image_suppresses_nothing():
    boxes = torch.tensor([[[0.0, 0, 8, 8]] * 2, [[0, 0, 8, 8]] * 2])
    scores = torch.tensor([[0.9, 0.8], [0.7, 0.6]])
    labels = torch.tensor([[0, 1], [1, 1]])
    _, found = suppress(boxes, scores, labels, threshold=0.5, keep=2, num_classes=2)
    assert torch.equal(found, torch.tensor([[0.9, 0.8], [0.7, 0.0]]))


def test_degenerate_boxes_do_no_harm():
    boxes = torch.zeros(1, 4, 4)
    scores, labels = torch.rand(1, 4), torch.zeros(1, 4, dtype=torch.int64)
    _, found = suppress(boxes, scores, labels, threshold=0.5, keep=4, num_classes=1)
    assert (found > 0).all()  # nothing overlaps what has no area


def test_the_operator_is_registered_as_pytorch_wants_it():
    boxes, scores, labels = candidates(1)
    torch.library.opcheck(torch.ops.castling.suppress.default, (boxes, scores, labels, 0.5, 10, 3))


@pytest.mark.parametrize("backend", [None, "naive"])
def test_compiled_as_one_graph(backend):
    boxes, scores, labels = candidates(2)

    def call(boxes, scores, labels):
        with castling.attention_backend(backend):
            return suppress(boxes, scores * 2, labels, threshold=0.5, keep=5, num_classes=3)

    compiled = torch.compile(call, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(boxes, scores, labels), call(boxes, scores, labels), rtol=0, atol=0
    )
