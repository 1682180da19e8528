"""Detections compared as sets."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from castling.heads.matching import align_detections, detection_agreement, match_detections


def detections(seed, images=2, count=12, found=9, classes=3):
    """Boxes of some distance, so that none is like another; the last ones are padding."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randperm(400, generator=generator)[: images * count].reshape(images, count, 1)
    corner = torch.cat([corner % 20, corner // 20], -1) * 10.0
    scores = torch.rand(images, count, generator=generator).sort(1, descending=True).values + 0.1
    scores[:, found:] = 0
    labels = torch.randint(classes, (images, count), generator=generator)
    return {"boxes": torch.cat([corner, corner + 40], -1), "scores": scores, "labels": labels}


def shuffled(given, seed):
    order = torch.randperm(given["scores"].shape[1], generator=torch.Generator().manual_seed(seed))
    return {name: value[:, order] for name, value in given.items()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 12))
def test_the_order_does_not_matter_and_both_sides_are_alike(seed, other, found):
    first = detections(seed, found=found)
    second = shuffled(first, other)
    assert detection_agreement(first, second).tolist() == [1, 1]
    left, right = align_detections(first, second)
    for name in first:
        assert torch.equal(left[name], right[name])
    assert int((left["scores"] > 0).sum()) == 2 * found
    third = shuffled(detections(other), seed)
    assert torch.equal(detection_agreement(first, third), detection_agreement(third, first))
    forth = {tuple(pair) for pair in match_detections(first, third, 0.1).tolist()}
    back = {(i, b, a) for i, a, b in match_detections(third, first, 0.1).tolist()}
    assert forth == back


def test_the_share_of_a_known_change():
    first = detections(0)
    second = {name: value.clone() for name, value in first.items()}
    second["labels"][0, 0] += 1  # another class: one lost, one new
    second["scores"][0, 8] = 0  # one less
    second["boxes"][1, 3, 2] += 1  # 40 × 41 pixels: still above 0.9
    second["boxes"][1, 4, 2] += 9  # 40 / 49
    agreed = detection_agreement(first, second)
    torch.testing.assert_close(agreed, torch.tensor([2 * 7 / 17, 8 / 9]))


def test_a_detection_is_paired_once():
    box = torch.tensor([0.0, 0, 10, 10])
    one = {"boxes": box.expand(1, 2, 4), "scores": torch.tensor([[0.9, 0.0]])}
    two = {"boxes": box.expand(1, 2, 4), "scores": torch.tensor([[0.9, 0.8]])}
    one["labels"] = two["labels"] = torch.zeros(1, 2, dtype=torch.int64)
    assert match_detections(one, two).tolist() == [[0, 0, 0]]
    torch.testing.assert_close(detection_agreement(one, two), torch.tensor([2 / 3]))


def test_none_on_either_side():
    nothing = detections(0, found=0)
    something = detections(0)
    assert detection_agreement(nothing, nothing).tolist() == [1, 1]
    assert detection_agreement(nothing, something).tolist() == [0, 0]
    assert match_detections(nothing, something).shape == (0, 3)


def test_masks_move_with_their_boxes():
    first = detections(1)
    first["masks"] = first["boxes"][..., :1, None].expand(-1, -1, 4, 4)
    second = shuffled(first, 5)
    left, right = align_detections(first, second)
    assert torch.equal(left["masks"], right["masks"])
