"""SimOTA and varifocal loss against slow implementations that follow the definitions."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from castling.heads.sim_ota import SimOTA
from castling.heads.varifocal import varifocal_loss


def slow_varifocal(logit, target):
    p = 1 / (1 + math.exp(-logit))
    if target > 0:
        return -target * (target * math.log(p) + (1 - target) * math.log(1 - p))
    return -0.75 * p**2 * math.log(1 - p)


def slow_assignment(logits, predicted, points, strides, boxes, labels):
    """Point → object, one pair at a time, in Python's float64, with the authors' 1e8."""
    cost, overlap = {}, {}
    for i, (x, y) in enumerate(points.tolist()):
        inside, central = [], []
        for x1, y1, x2, y2 in boxes.tolist():
            reach = 2.5 * float(strides[i])
            inside.append(x1 < x < x2 and y1 < y < y2)
            central.append(abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach)
        if not any(inside + central):
            continue
        for j, box in enumerate(boxes):
            a, b = predicted[i : i + 1].double(), box[None].double()
            overlap[i, j] = float(box_iou(a, b))
            total = sum(
                slow_varifocal(logit, overlap[i, j] if k == int(labels[j]) else 0.0)
                for k, logit in enumerate(logits[i].double().tolist())
            )
            giou = float(generalized_box_iou(a, b))
            cost[i, j] = total + 6 * (1 - giou) + 1e8 * (not (inside[j] and central[j]))
    possible = sorted({i for i, _ in cost})
    claims: dict[int, list[int]] = {}
    for j in range(len(boxes)):
        best = sorted((overlap[i, j] for i in possible), reverse=True)[:10]
        count = max(int(sum(best)), 1)
        for i in sorted(possible, key=lambda i: cost[i, j])[:count]:
            claims.setdefault(i, []).append(j)
    for i, objects in claims.items():
        if len(objects) > 1:
            claims[i] = [min(range(len(boxes)), key=lambda j: cost[i, j])]
    return {i: objects[0] for i, objects in claims.items()}


def scene(seed, objects, smallest, classes=3):
    """Three levels of points on 64 pixels, objects, and predictions near some of them."""
    random = torch.Generator().manual_seed(seed)
    points, strides = [], []
    for stride in (8, 16, 32):
        centres = torch.arange(64 // stride) * stride + stride / 2
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], 1))
        strides.append(torch.full((len(points[-1]),), float(stride)))
    points, strides = torch.cat(points), torch.cat(strides)
    corner = torch.rand(objects, 2, generator=random) * 50
    sides = smallest + torch.rand(objects, 2, generator=random) * 30
    boxes = torch.cat([corner, corner + sides], 1)
    nearest = boxes[torch.randint(objects, (len(points),), generator=random)]
    predicted = nearest + torch.randn(len(points), 4, generator=random) * 4
    low, high = (
        predicted[:, :2].minimum(predicted[:, 2:]),
        predicted[:, :2].maximum(predicted[:, 2:]),
    )
    logits = torch.randn(len(points), classes, generator=random) * 2
    labels = torch.randint(classes, (objects,), generator=random)
    return logits, torch.cat([low, high + 1], 1), points, strides, boxes, labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([1.0, 12.0]))
@example(25908, 1, 1.0)  # in float32 the large number hides which point is cheaper
def test_points_and_objects_of_the_definition(seed, objects, smallest):
    given_ = scene(seed, objects, smallest)
    found = SimOTA()(*given_)
    assert dict(zip(found.points.tolist(), found.objects.tolist(), strict=True)) == slow_assignment(
        *given_
    )
    assert found.points.tolist() == sorted(set(found.points.tolist()))


def test_an_object_between_the_points_gets_the_best_of_those_around():
    """Of one pixel: no point lies inside, so all costs have the large number added."""
    logits, predicted, points, strides, _, _ = scene(0, 3, 8.0)
    boxes = torch.tensor([[28.0, 28.0, 29.0, 29.0]])
    best = int(((points - 36).abs().sum(1) + (strides - 8)).argmin())
    predicted[best] = boxes[0] + 0.25
    found = SimOTA()(logits * 0, predicted, points, strides, boxes, torch.tensor([0]))
    assert found.points.tolist() == [best]


def test_an_object_beyond_every_point_gets_none():
    logits, predicted, points, strides, _, _ = scene(0, 3, 8.0)
    boxes = torch.tensor([[900.0, 900.0, 910.0, 910.0]])
    found = SimOTA()(logits, predicted, points, strides, boxes, torch.tensor([0]))
    assert found.points.shape == found.objects.shape == (0,)


@pytest.mark.parametrize("target", [0.0, 1e-6, 0.3, 1.0])
def test_varifocal_loss(target):
    logits = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True)
    found = varifocal_loss(logits, torch.full_like(logits, target))
    expected = [slow_varifocal(logit, target) for logit in logits.tolist()]
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(varifocal_loss, (logits, torch.full_like(logits, target)))


def test_varifocal_loss_of_extreme_logits_is_finite():
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = varifocal_loss(logits, torch.tensor([0.5, 0.0])).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
