"""A small detector: one class and one box per cell of a map of stride 8, with or without masks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from castling.heads import Detector
from castling.models.dense import HeadConfig, register_head

STRIDE = 8


@dataclass(frozen=True, kw_only=True)
class ToyConfig(HeadConfig):
    """masks: whether it also says that objects fill their boxes."""

    name: ClassVar[str] = "toy_detector"
    masks: bool = False


class Toy(Detector):
    multiple = STRIDE
    detections = 20

    def __init__(self, backbone, num_classes, masks):
        super().__init__()
        self.backbone, self.num_classes, self.has_masks = backbone, num_classes, masks
        self.head = nn.Conv2d(backbone.channels[0], num_classes + 4, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.constant_(self.head.bias, -3)

    def forward(self, images):
        found = self.head(self.backbone(images)[0]).flatten(2).transpose(1, 2)
        return {"logits": found[..., :-4], "sides": found[..., -4:]}

    def centers(self, height, width):
        ys, xs = torch.meshgrid(
            torch.arange(height // STRIDE), torch.arange(width // STRIDE), indexing="ij"
        )
        return (torch.stack((xs, ys), -1).reshape(-1, 2) + 0.5) * STRIDE

    def boxes(self, sides, size):
        sides = sides.clamp(-5, 5).exp() * STRIDE
        centers = self.centers(*size).to(sides)
        return torch.cat((centers - sides[..., :2], centers + sides[..., 2:]), -1)

    def losses(self, images, targets):
        raw = self(images)
        size = tuple(images.shape[-2:])
        goal = torch.zeros_like(raw["logits"])
        boxes = self.boxes(raw["sides"], size)
        distance = raw["sides"].sum() * 0
        for row, target in enumerate(targets):
            middle = (target["boxes"][:, :2] + target["boxes"][:, 2:]) / 2
            for center, box, label in zip(middle, target["boxes"], target["labels"], strict=True):
                cell = int((self.centers(*size) - center).square().sum(1).argmin())
                goal[row, cell, label] = 1
                distance = distance + F.smooth_l1_loss(boxes[row, cell], box) / STRIDE
            if self.has_masks:
                assert target["masks"].shape == (len(target["boxes"]), *size)
        count = max(1, sum(len(target["boxes"]) for target in targets))
        classes = F.binary_cross_entropy_with_logits(raw["logits"], goal, reduction="sum")
        return {"classes": classes / count, "boxes": distance / count}

    def decode(self, raw, size, valid=None):
        scores, labels = raw["logits"].sigmoid().max(-1)
        best = scores.topk(min(self.detections, scores.shape[1]), dim=1)
        boxes = self.boxes(raw["sides"], size).gather(1, best.indices[..., None].expand(-1, -1, 4))
        found = {
            "boxes": boxes,
            "scores": best.values,
            "labels": labels.gather(1, best.indices),
        }
        if self.has_masks:
            found["masks"] = torch.ones((*best.values.shape, 4, 4))
        return found


@register_head(ToyConfig, task="detection")
def toy(config, make_backbone, num_classes):
    return Toy(make_backbone((STRIDE,)), num_classes, config.masks)
