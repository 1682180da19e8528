"""Cascade Mask R-CNN against its description, written out region by region."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from castling import create_model
from castling.heads.regions import LEVELS, STRIDES

K, SIZE = 3, (64, 96)
#: Of mmdet's configuration: overlap of positives, standard deviations of the box code (mmdet rounds
#: the last ones to 0.033 and 0.067; Cascade R-CNN's weights are 30.3 and 14.9), weight of the loss.
STAGES = [
    (0.5, (0.1, 0.1, 0.2, 0.2), 1.0),
    (0.6, (0.05, 0.05, 0.1, 0.1), 0.5),
    (0.7, (1 / 30.3, 1 / 30.3, 1 / 14.9, 1 / 14.9), 0.25),
]


def build(**head):
    model = create_model("cascade_mask_rcnn_pico/test_resnet", num_classes=K, head=head)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    for stage in model.stages:  # boxes move, and stages differ in what they say
        nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=0.3)
        nn.init.normal_(stage.box_predictor.cls_score.weight, std=0.6)
    return model


def pooled(levels, image, box, size):
    """One region from the level that the FPN paper gives it (eq. 1)."""
    side = ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
    level = int(torch.floor(4 + torch.log2(side / 224) + 1e-6).clamp(2, 5)) - 2
    region = torch.cat([torch.tensor([float(image)]), box])[None]
    return roi_align(levels[LEVELS[level]], region, size, 1 / STRIDES[level], 2)


def coded(box, wanted, std):
    w, h = box[2] - box[0], box[3] - box[1]
    gw, gh = wanted[2] - wanted[0], wanted[3] - wanted[1]
    dx = ((wanted[0] + wanted[2]) - (box[0] + box[2])) / 2 / w
    dy = ((wanted[1] + wanted[3]) - (box[1] + box[3])) / 2 / h
    return torch.stack([dx, dy, (gw / w).log(), (gh / h).log()]) / torch.tensor(std)


def moved(box, delta, std):
    dx, dy, dw, dh = delta * torch.tensor(std)
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    limit = torch.log(torch.tensor(1000 / 16))
    w, h = w * dw.clamp(max=limit).exp(), h * dh.clamp(max=limit).exp()
    box = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return box.clamp(min=0).minimum(torch.tensor([SIZE[1], SIZE[0]] * 2))


def overlap(a, b):
    w = (torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])).clamp(min=0)
    h = (torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])).clamp(min=0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return float(w * h / union)


def box_outputs(stage, levels, image, box):
    features = pooled(levels, image, box, 7).flatten(1)
    head, last = stage.box_head, stage.box_predictor
    hidden = head.fc7(head.fc6(features).relu()).relu()
    return last.cls_score(hidden)[0], last.bbox_pred(hidden)[0]


def mask_logits(stage, levels, image, box):
    features = pooled(levels, image, box, 14)
    for convolution, _ in stage.mask_head:
        features = convolution(features).relu()
    last = stage.mask_predictor
    return last.mask_fcn_logits(last.conv5_mask(features).relu())[0]


def proposals_of(model, raw, *, training):
    """Of the region proposal network, which Faster R-CNN shares and compares with torchvision's."""
    if training:
        objects = [{"boxes": torch.tensor([[0.0, 0, 9, 9]])}] * len(raw["p2"])
        return model.proposal_losses(raw, SIZE, objects)[1]
    found = model.propose(raw, SIZE, None)
    return [boxes[there] for boxes, there in zip(*found, strict=True)]


def test_detections():
    model = build(proposals=20, score_threshold=0.15).eval()
    with torch.no_grad():
        raw = model(torch.randn(2, 3, *SIZE))
        found = model.decode(raw, SIZE)
        for image, proposals in enumerate(proposals_of(model, raw, training=False)):
            candidates = []
            for box in proposals:
                logits = torch.zeros(K + 1)
                for stage, (_, std, _) in zip(model.stages, STAGES, strict=True):
                    scores, delta = box_outputs(stage, raw, image, box)
                    logits, box = logits + scores / 3, moved(box, delta, std)
                for label, score in enumerate(logits.softmax(0)[1:]):
                    if score > 0.15:
                        candidates.append((float(score), label, box))
            kept = []
            for score, label, box in sorted(candidates, key=lambda each: -each[0]):
                if all(other != label or overlap(b, box) <= 0.5 for _, other, b in kept):
                    kept.append((score, label, box))
            assert 5 < len(kept) < len(candidates)
            n = len(kept)
            assert not found["scores"][image, n:].any()
            wanted = torch.tensor([score for score, _, _ in kept])
            torch.testing.assert_close(found["scores"][image, :n], wanted)
            assert found["labels"][image, :n].tolist() == [label for _, label, _ in kept]
            wanted = torch.stack([box for _, _, box in kept])
            torch.testing.assert_close(found["boxes"][image, :n], wanted, rtol=1e-4, atol=1e-3)
            for row in range(n):
                box, label = found["boxes"][image, row], found["labels"][image, row]
                masks = [
                    mask_logits(each, raw, image, box).sigmoid()[label] for each in model.stages
                ]
                torch.testing.assert_close(found["masks"][image, row], sum(masks) / 3)


def test_losses():
    """With room for all regions nothing is drawn, and the loss is a plain sum."""
    model = build(samples=4096, training_proposals=12, freeze_batchnorm=True).train()
    images = torch.randn(2, 3, *SIZE)
    boxes = torch.tensor([[4.0, 6, 60, 60], [30, 20, 90, 63]])
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    masks[0, 6:60, 4:30], masks[1, 30:63, 30:90] = 1, 1
    targets = [
        {"boxes": boxes, "labels": torch.tensor([2, 0]), "masks": masks},
        {"boxes": boxes[:0], "labels": torch.zeros(0).long(), "masks": masks[:0]},
    ]
    with torch.no_grad():
        found = model.losses(images, targets)
        raw = model(images)
        regions = proposals_of(model, raw, training=True)
        for i, (stage, (threshold, std, weight)) in enumerate(
            zip(model.stages, STAGES, strict=True)
        ):
            classes, box_losses, mask_losses, after = [], [], [], [[], []]
            for image, target in enumerate(targets):
                truth = list(target["boxes"])
                for own, box in [(0, b) for b in regions[image]] + [(1, b) for b in truth]:
                    shares = [overlap(box, each) for each in truth]
                    best = max(range(len(truth)), key=shares.__getitem__) if truth else None
                    positive = best is not None and shares[best] >= threshold
                    logits, delta = box_outputs(stage, raw, image, box)
                    label = int(target["labels"][best]) + 1 if positive else 0
                    classes.append(-logits.log_softmax(0)[label])
                    if positive:
                        difference = (delta - coded(box, truth[best], std)).abs()
                        smooth = torch.where(difference < 1, difference**2 / 2, difference - 0.5)
                        box_losses.append(smooth.sum())
                        region = torch.cat([torch.zeros(1), box])[None]
                        mask = target["masks"][best][None, None].float()
                        wanted = roi_align(mask, region, 28)[0, 0]
                        given = mask_logits(stage, raw, image, box)[label - 1]
                        mask_losses.append(F.binary_cross_entropy_with_logits(given, wanted))
                    if not own:
                        after[image].append(moved(box, delta, std))
            assert len(mask_losses) > 2
            parts = {
                "classification": sum(classes) / len(classes),
                "boxes": sum(box_losses) / len(classes),
                "masks": sum(mask_losses) / len(mask_losses),
            }
            for name, value in parts.items():
                given = found[f"{name}_{i + 1}"]
                torch.testing.assert_close(given, weight * value, rtol=1e-4, atol=1e-5)
            regions = after


def test_added_boxes_do_not_pass_on():
    """The boxes of the targets are offered anew to each stage, and not moved along."""
    model = build(samples=4096, training_proposals=7)
    target = {
        "boxes": torch.tensor([[4.0, 6, 60, 60]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, *SIZE, dtype=torch.uint8),
    }
    with torch.no_grad():
        raw = model(torch.randn(1, 3, *SIZE))
    regions = proposals_of(model, raw, training=True)
    _, after = model.stages[0].losses(raw, regions, [SIZE], [target])
    assert len(after[0]) == len(regions[0])
    assert not after[0].requires_grad


@pytest.mark.parametrize("i", [1, 2, 3])
def test_each_stage_is_trained_by_its_own_losses(i):
    model = build()
    target = {
        "boxes": torch.tensor([[4.0, 6, 60, 60]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, *SIZE, dtype=torch.uint8),
    }
    parts = model.losses(torch.randn(1, 3, *SIZE), [target])
    sum(parts[f"{name}_{i}"] for name in ("classification", "boxes", "masks")).backward()
    for number, stage in enumerate(model.stages, 1):
        assert all((p.grad is not None) == (number == i) for p in stage.parameters())
